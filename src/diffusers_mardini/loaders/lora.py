"""LoRA for the pipeline: one adapter may change the planner, the transformer or both.

What is done here is what all diffusers pipelines share (`LoraBaseMixin`), for our two models, with names that agree in
both, and with files that are checked before a model is touched. Training adapters is `training/`'s.
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.utils import logging
from diffusers.utils.peft_utils import require_peft_backend

from .lora_files import (
    COMPONENTS,
    LoraDescription,
    check_fit,
    check_swap,
    in_peft_form,
    local_lora_file,
    read_description,
    split_by_component,
    write_lora_file,
)


logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")


class MarDiniLoraLoaderMixin(LoraBaseMixin):
    """Loads, mixes, fuses, swaps and saves LoRA adapters of the planner and the transformer.

    Inherited from diffusers as they are: `disable_lora`, `enable_lora`, `get_active_adapters`, `get_list_adapters`,
    `set_lora_device`, `enable_lora_hotswap`.
    """

    _lora_loadable_modules = list(COMPONENTS)
    # Parameters of each model that required gradients before adapters were loaded, by name.
    _trainable_before_lora: dict[str, set[str]] = {}

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        weight_name: str | None = None,
        subfolder: str | None = None,
        return_lora_metadata: bool = False,
        **hub_arguments: Any,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """Reads the tensors of a LoRA, and on request the arguments of its `LoraConfig`s, all prefixed by component.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, an id on the Hub, or the tensors themselves.
            weight_name: which file of a folder.
            subfolder: where in the folder.
            return_lora_metadata: whether to return the configuration too, `None` where there is none.
            hub_arguments: `cache_dir`, `force_download`, `proxies`, `local_files_only`, `token` and `revision`.

        Raises:
            ValueError: for pickles, unclear folders and tensors that belong to no LoRA.
        """
        tensors, description = cls._read_lora(
            pretrained_model_name_or_path_or_dict, weight_name, subfolder, **hub_arguments
        )
        if not return_lora_metadata:
            return tensors
        metadata = {
            f"{name}.{key}": value for name, keys in description.adapters.items() for key, value in keys.items()
        }
        return tensors, metadata or None

    @classmethod
    def lora_description(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **hub_arguments: Any,
    ) -> LoraDescription:
        """Rank, alpha, targets, base model and training configuration of a LoRA file; see `lora_state_dict`."""
        return cls._read_lora(pretrained_model_name_or_path, weight_name, subfolder, **hub_arguments)[1]

    @require_peft_backend
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **file_arguments: Any,
    ) -> None:
        """Adds an adapter to the planner, the transformer or both, whichever the file holds, and makes it active.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, an id on the Hub, or the tensors themselves.
            adapter_name: what `set_adapters` will call it; by default `default_0`, `default_1` and so on.
            hotswap: puts the new weights where those of the adapter `adapter_name` are, without changing the model,
                so that a compiled one is not compiled anew. `enable_lora_hotswap` first, where ranks differ.
            low_cpu_mem_usage: makes no random weights before loading.
            file_arguments: those of `lora_state_dict`.

        Raises:
            ValueError: for files and names that cannot be used, before a model is changed.
        """
        tensors, description = self._read_lora(pretrained_model_name_or_path_or_dict, **file_arguments)
        parts = split_by_component(tensors)
        unused = [name for name in tensors if name.split(".")[0] not in COMPONENTS]
        if unused:
            logger.warning(
                f"{len(unused)} tensors of the LoRA were not used, because their names begin with neither "
                f"{' nor '.join(COMPONENTS)}: {', '.join(unused[:3])}"
            )
        models = self._lora_models()
        for name, part in parts.items():
            if name not in models:
                raise ValueError(
                    f"the adapter changes the {name}, which this pipeline does not have; a modular one has it after `load_components()` "
                    "where one of its blocks uses it"
                )
            check_fit(models[name], name, part, description.base_model)
        adapter_name = self._checked_adapter_name(adapter_name, hotswap, list(parts))
        if hotswap:
            for name, part in parts.items():
                check_swap(models[name], name, part, adapter_name)
        self._remember_trainable(list(parts))

        done = []
        try:
            for name, part in parts.items():
                getattr(self, name).load_lora_adapter(
                    part,
                    prefix=None,
                    adapter_name=adapter_name,
                    hotswap=hotswap,
                    low_cpu_mem_usage=low_cpu_mem_usage,
                    metadata=copy.deepcopy(description.adapters.get(name)),
                    _pipeline=self,
                )
                # New layers are in training mode, in which one that was trained with dropout would drop here, too.
                getattr(self, name).train(getattr(self, name).training)
                done.append(name)
        except Exception:
            if not hotswap:  # half an adapter is none
                for name in done:
                    getattr(self, name).delete_adapters(adapter_name)
                self._clean_up()
            raise

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        planner_lora_layers: dict[str, torch.Tensor] | torch.nn.Module | None = None,
        transformer_lora_layers: dict[str, torch.Tensor] | torch.nn.Module | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        safe_serialization: bool = True,
        planner_lora_adapter_metadata: dict[str, Any] | None = None,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
        base_model: str | None = None,
        training_config: dict[str, Any] | None = None,
    ) -> Path | None:
        """Writes an adapter to one safetensors file.

        Args:
            save_directory: where to; made if it is missing.
            planner_lora_layers, transformer_lora_layers: what `peft.get_peft_model_state_dict` gives; at least one.
            is_main_process: nothing is written where it is False.
            weight_name: of the file; `pytorch_lora_weights.safetensors` by default.
            safe_serialization: only True, as in all of this package.
            planner_lora_adapter_metadata, transformer_lora_adapter_metadata:
                `model.peft_config[adapter_name].to_dict()`: rank, alpha, targets. Without it a scale of 1 (alpha equal
                to the rank) is assumed on loading.
            base_model: the folder or Hub id of the pipeline that was adapted.
            training_config: how the adapter was trained; anything that JSON can say.

        Returns:
            The file, or None where nothing was to be written.

        Raises:
            ValueError: for no layers, for a pickle, and for metadata without layers.
        """
        if not safe_serialization:
            raise ValueError("`safe_serialization=False` would write a pickle; only safetensors files are written")
        layers = {"planner": planner_lora_layers, "transformer": transformer_lora_layers}
        layers = {name: part for name, part in layers.items() if part}
        adapters = {"planner": planner_lora_adapter_metadata, "transformer": transformer_lora_adapter_metadata}
        adapters = {name: config for name, config in adapters.items() if config}
        if not layers:
            raise ValueError("nothing to save: give `planner_lora_layers`, `transformer_lora_layers` or both")
        if adapters.keys() - layers.keys():
            raise ValueError(f"got metadata but no layers for {', '.join(sorted(adapters.keys() - layers.keys()))}")
        tensors = {}
        for name, part in layers.items():
            tensors.update(cls.pack_weights(part, name))
        if not is_main_process:
            return None
        return write_lora_file(
            save_directory, weight_name, tensors, LoraDescription(adapters, base_model, training_config)
        )

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | dict[str, float] | list[float | dict[str, float]] | None = None,
    ) -> None:
        """Makes adapters active, each with a weight, or with one per component: `{"planner": 0.5, "transformer": 1}`.

        Args:
            adapter_names: which; all others are inactive from now on.
            adapter_weights: one for all or a list with one for each; 1 where it is not given.

        Raises:
            ValueError: for components that have no adapters, and where a model is wrapped by `torch.compile(model)`.
        """
        self._refuse_wrapped_models()
        adapter_names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if isinstance(adapter_weights, dict) and len(adapter_names) > 1:
            # diffusers takes components out of the dictionary as it goes: one that is shared serves the first only.
            adapter_weights = [adapter_weights] * len(adapter_names)
        if isinstance(adapter_weights, list):
            adapter_weights = [dict(weight) if isinstance(weight, dict) else weight for weight in adapter_weights]
            for weight in adapter_weights:
                if isinstance(weight, dict) and weight.keys() - set(COMPONENTS):
                    unknown = sorted(weight.keys() - set(COMPONENTS))
                    raise ValueError(f"`adapter_weights` names {unknown}; components are {', '.join(COMPONENTS)}")
        super().set_adapters(adapter_names, adapter_weights)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Takes adapters out of both models; with the last one, a model is what it was before the first.

        Raises:
            ValueError: for one that is fused into the weights, which would stay there.
        """
        self._refuse_wrapped_models()
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        layers = [layer for model in self._lora_models().values() for layer in model.modules()]
        fused = sorted(
            {name for layer in layers for name in getattr(layer, "merged_adapters", ())}.intersection(names)
        )
        if fused:
            raise ValueError(f"{', '.join(map(repr, fused))} is fused into the weights; call `unfuse_lora()` first")
        super().delete_adapters(adapter_names)
        self._clean_up()

    def unload_lora_weights(self) -> None:
        """Takes all adapters out: both models are what they were before, bit for bit, unless adapters were fused."""
        self._refuse_wrapped_models()
        super().unload_lora_weights()
        self._merged_adapters.clear()  # what is fused stays in the weights, but no adapter is left to take it out by
        self._clean_up()

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Adds the active adapters to the weights, so that they cost no time; `unfuse_lora` takes them out again.

        To keep them in for good: `fuse_lora`, `unload_lora_weights`, `save_pretrained`.

        Args:
            components: `["planner", "transformer"]` unless given.
            lora_scale: a further weight.
            safe_fusing: whether to look for NaN first.
            adapter_names: which of the active ones; all unless given.
        """
        self._refuse_wrapped_models()
        components = list(self._lora_models()) if components is None else components
        super().fuse_lora(components, lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Takes fused adapters out of the weights: equal to before up to the rounding of one sum and difference."""
        self._refuse_wrapped_models()
        super().unfuse_lora(list(self._lora_models()) if components is None else components)

    def _refuse_loaded_adapters(self) -> None:
        """Raises `ValueError` where adapters are loaded: a folder saved now would miss the weights they stand on."""
        # Asked of the models: diffusers' `get_list_adapters` raises where peft is not installed.
        adapters = {part: list(getattr(model, "peft_config", {})) for part, model in self._lora_models().items()}
        loaded = [f"{', '.join(names)} ({part})" for part, names in adapters.items() if names]
        if loaded:
            raise ValueError(
                f"LoRA adapters are loaded: {'; '.join(loaded)}. Save them by themselves with `save_lora_weights`, and "
                "the pipeline after `unload_lora_weights()`, or after `fuse_lora()` and `unload_lora_weights()` to "
                "keep them in it"
            )

    @classmethod
    def _read_lora(
        cls,
        source: str | os.PathLike | dict[str, torch.Tensor],
        weight_name: str | None = None,
        subfolder: str | None = None,
        use_safetensors: bool | None = None,
        **hub_arguments: Any,
    ) -> tuple[dict[str, torch.Tensor], LoraDescription]:
        unknown = sorted(hub_arguments.keys() - set(HUB_ARGUMENTS))
        if unknown:
            raise ValueError(f"unknown arguments {unknown}; accepted are {', '.join(HUB_ARGUMENTS)}")
        if use_safetensors is False:
            raise ValueError("`use_safetensors=False` would unpickle a file; only .safetensors is read")
        if not isinstance(source, dict):
            file = local_lora_file(source, weight_name, subfolder)
            if file is not None:
                source, weight_name, subfolder = str(file), None, None
        tensors, _, header = _fetch_state_dict(
            source if isinstance(source, dict) else str(source),
            weight_name=weight_name,
            use_safetensors=True,
            subfolder=subfolder,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            return_file_metadata=True,
            **{name: hub_arguments.get(name) for name in HUB_ARGUMENTS},
        )
        description = read_description(header)
        tensors = in_peft_form(tensors, description)
        strange = [name for name in tensors if "lora" not in name]
        if strange:
            raise ValueError(
                f"this is no LoRA: {len(strange)} of its {len(tensors)} tensors have names without `lora`, such as "
                f"{strange[0]}"
            )
        return tensors, description

    def _lora_models(self) -> dict[str, torch.nn.Module]:
        """Planner and transformer, as far as the pipeline has them: a modular one may have one of them or none."""
        models = {part: getattr(self, part, None) for part in COMPONENTS}
        return {part: model for part, model in models.items() if model is not None}

    def _refuse_wrapped_models(self) -> None:
        """Raises `ValueError` for a model in the wrapper of `torch.compile(model)`: diffusers loads adapters through it, and then finds none."""
        for part, model in self._lora_models().items():
            if hasattr(model, "_orig_mod"):  # asked so, because importing the wrapper's class takes seconds
                raise ValueError(
                    f"the {part} is wrapped by `torch.compile`, and this does not reach the adapters in the wrapper; compile it in place, "
                    f"`pipe.{part}.compile()`, or its blocks, `pipe.{part}.compile_repeated_blocks()`"
                )

    def _remember_trainable(self, parts: list[str]) -> None:
        for part in parts:
            model = getattr(self, part)
            if not getattr(model, "peft_config", None):
                trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
                self._trainable_before_lora = {**self._trainable_before_lora, part: trainable}

    def _clean_up(self) -> None:
        """Makes models without adapters plain again: no wrapped layers, and gradients where they were.

        peft freezes all weights of a model that it adapts, and torch multiplies frozen weights by another kernel: without
        this, results after unloading differ in the last bit.
        """
        models = self._lora_models()
        for part, model in models.items():
            if getattr(model, "peft_config", None):
                continue
            if getattr(model, "_hf_peft_config_loaded", False) or part in self._trainable_before_lora:
                model.unload_lora()
            trainable = self._trainable_before_lora.get(part, set())
            for name, parameter in model.named_parameters():
                if name in trainable:
                    parameter.requires_grad_(True)
        self._trainable_before_lora = {
            part: names
            for part, names in self._trainable_before_lora.items()
            if getattr(models.get(part), "peft_config", None)
        }

    def _checked_adapter_name(self, name: str | None, hotswap: bool, parts: list[str]) -> str:
        """The name of the adapter, one for both models."""
        loaded = self.get_list_adapters()
        taken = {name for names in loaded.values() for name in names}
        if hotswap:
            owners = [part for part in COMPONENTS if name in loaded.get(part, [])]
            if owners != parts:
                raise ValueError(
                    f"cannot swap the adapter {name!r}: it changes {' and '.join(owners) or 'nothing, it is not loaded'}"
                    f", and the new one {' and '.join(parts) or 'nothing'}; both must change the same models"
                )
            return name
        if name is None:
            return next(f"default_{i}" for i in range(len(taken) + 1) if f"default_{i}" not in taken)
        if name in taken:
            raise ValueError(
                f"an adapter {name!r} is loaded already; choose another `adapter_name`, delete the old one with "
                "`delete_adapters`, or put the new one in its place with `hotswap=True`"
            )
        return name
