"""LoRA for the pipeline: one adapter may change the planner, the transformer or both.

The interface is that of all diffusers pipelines (`LoraBaseMixin`), for our two models: an adapter has one name in
both, and files are checked before a model changes. Adapters are trained by `training/train_mardini_lora.py`.
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import logging
from diffusers.utils.peft_utils import require_peft_backend

from ..models.adapter_conditions import add_adapter_conditions, delete_adapter_conditions
from ..models.adapters import (
    AdapterState,
    activate,
    after_deletion,
    are_disabled,
    check_adapter_name,
    chosen_adapters,
    fused_adapters,
    loaded_adapters,
    names_to_fuse,
    refuse_fused,
    refuse_loaded,
    refuse_unknown,
)
from ..models.lora_scale import finite_number
from .lora_conditions import check_conditions, refuse_disagreement, refuse_swapped_conditions
from .lora_files import LoraDescription, read_lora, write_lora_file
from .lora_fit import check_fit, check_swap, refuse_not_finite, settle_swap
from .lora_names import COMPONENTS, by_component


logger = logging.get_logger(__name__)


class MarDiniLoraLoaderMixin(LoraBaseMixin):
    """Load, mix, fuse, swap and save LoRA adapters of the planner and the transformer.

    The adapters reported as active are those that run, in both models. While an adapter is fused, every method that
    changes adapters raises `ValueError`, except `unfuse_lora` and `unload_lora_weights`. `enable_lora_hotswap` is
    inherited from diffusers unchanged.
    """

    _lora_loadable_modules = list(COMPONENTS)

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        weight_name: str | None = None,
        subfolder: str | None = None,
        return_lora_metadata: bool = False,
        **hub_arguments: Any,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """Return the tensors of a LoRA, and on request the arguments of its `LoraConfig`s, all prefixed by component.

        If a file names no component, names stay as they are in the file; `load_lora_weights` finds the component.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, an id on the Hub, or the tensors themselves.
            weight_name: the file in the folder.
            subfolder: a folder within the folder.
            return_lora_metadata: whether to return the configuration too, `None` if there is none.
            hub_arguments: `cache_dir`, `force_download`, `proxies`, `local_files_only`, `token` and `revision`.

        Raises:
            ValueError: for pickles, ambiguous folders and tensors that belong to no LoRA.
        """
        tensors, description = read_lora(
            pretrained_model_name_or_path_or_dict, weight_name, subfolder, **hub_arguments
        )
        if not return_lora_metadata:
            return tensors
        metadata = {
            f"{name}.{key}".lstrip("."): value
            for name, keys in description.adapters.items()
            for key, value in keys.items()
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
        """Return rank, alpha, targets, base model, training configuration and added conditions of a LoRA file; see
        `lora_state_dict`."""
        return read_lora(pretrained_model_name_or_path, weight_name, subfolder, **hub_arguments)[1]

    @require_peft_backend
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **file_arguments: Any,
    ) -> None:
        """Add an adapter to the models that its file names: planner, transformer or both. It becomes the only active
        one. Conditions that are a part of it are conditions of the pipeline while it is active.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, a file, an id on the Hub, or the tensors themselves.
            adapter_name: its name for `set_adapters`, without dots; by default `default_0`, `default_1` and so on.
            hotswap: replace the weights of the adapter `adapter_name` in place, at full strength, so that a compiled
                model is not compiled again. If ranks differ, call `enable_lora_hotswap` first.
            low_cpu_mem_usage: create no random weights before loading.
            file_arguments: those of `lora_state_dict`.

        Raises:
            ValueError: for files and names that cannot be used, for an adapter with a tensor that does not fit, and
                while an adapter is fused. The models are unchanged then.
        """
        tensors, description = read_lora(pretrained_model_name_or_path_or_dict, **file_arguments)
        models = self._lora_models()
        conditions = (description.conditions, description.condition_info)
        if hotswap:
            refuse_swapped_conditions(models, adapter_name, description.conditions)
        tensors, embeddings = check_conditions(models, tensors, *conditions)
        parts, configs = self._checked_parts(tensors, description)
        adapter_name = self._checked_adapter_name(adapter_name, hotswap, list(parts))
        self._refuse_fused()
        if hotswap:
            for name, part in parts.items():
                check_swap(models[name], name, part, configs[name], adapter_name)

        before = {name: AdapterState(model, tensors=hotswap) for name, model in models.items()}
        done = []
        try:
            for name, part in parts.items():
                add_adapter_conditions(models[name], adapter_name, *conditions, embeddings[name])
                models[name].load_lora_adapter(
                    part,
                    prefix=None,
                    adapter_name=adapter_name,
                    hotswap=hotswap,
                    low_cpu_mem_usage=low_cpu_mem_usage,
                    metadata=copy.deepcopy(configs[name]),
                    _pipeline=self,
                )
                done.append(name)
                if hotswap:
                    settle_swap(models[name], part, configs[name], adapter_name)
        except Exception:
            if not hotswap:  # remove the half that was loaded
                for name in done:
                    models[name].delete_adapters(adapter_name)
                for model in models.values():
                    delete_adapter_conditions(model, [adapter_name])
            for state in before.values():
                state.restore()
            raise
        if not hotswap:
            for name in models.keys() - parts.keys():  # otherwise another adapter would go on running there
                activate(models[name], [adapter_name])
                models[name].enable_lora()

    def _checked_parts(
        self, tensors: dict[str, torch.Tensor], description: LoraDescription
    ) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict[str, Any]]]:
        """Return tensors and configurations by component, after checking that all of them fit."""
        models, adapters = self._lora_models(), description.adapters

        def check(component: str, part: dict[str, torch.Tensor], config: dict[str, Any] | None) -> dict[str, Any]:
            return check_fit(models[component], component, part, config, description.base_model)

        # A file of one model that does not name it has one configuration, which does not name it either.
        only = next(iter(adapters.values())) if len(adapters) == 1 and not adapters.keys() & set(COMPONENTS) else None
        parts = by_component(tensors, models, lambda component, part: check(component, part, only))
        for name in parts:
            if name not in models:
                raise ValueError(
                    f"the adapter changes the {name}, which this pipeline does not have; a modular pipeline has it "
                    "after `load_components()` if one of its blocks uses it"
                )
        if len(parts) != 1 or any(name.split(".")[0] in COMPONENTS for name in tensors):
            only = None
        if only is None and adapters.keys() - parts.keys():
            raise ValueError(
                f"the header of the LoRA has a configuration for {', '.join(map(repr, adapters))}, and tensors for "
                f"{' and '.join(parts)}; both must name the same models"
            )
        return parts, {name: check(name, part, only or adapters.get(name)) for name, part in parts.items()}

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
        conditions: dict[str, int] | None = None,
        condition_info: dict[str, dict[str, Any]] | None = None,
    ) -> Path | None:
        """Write an adapter to one safetensors file.

        Args:
            save_directory: the folder; created if it is missing.
            planner_lora_layers, transformer_lora_layers: results of `peft.get_peft_model_state_dict`; at least one.
                For an adapter with conditions, both, each together with the model's `condition_parameters`.
            is_main_process: if False, nothing is written.
            weight_name: name of the file; `pytorch_lora_weights.safetensors` by default.
            safe_serialization: only True, as everywhere in this package.
            planner_lora_adapter_metadata, transformer_lora_adapter_metadata:
                `model.peft_config[adapter_name].to_dict()`: rank, alpha, targets. Without it a scale of 1 (alpha equal
                to the rank) is assumed on loading.
            base_model: the folder or Hub id of the pipeline that was adapted.
            training_config: the configuration of its training; anything that JSON can hold.
            conditions, condition_info: the conditions that the adapter adds, as `add_adapter` of a model got them.

        Returns:
            The path of the file, or None if nothing was to be written.

        Raises:
            ValueError: for no layers, for a pickle, for metadata without layers, and if the tensors of conditions are
                not those of `conditions`.
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
        refuse_disagreement(tensors, conditions, condition_info)
        if not is_main_process:
            return None
        description = LoraDescription(adapters, base_model, training_config, conditions, condition_info)
        return write_lora_file(save_directory, weight_name, tensors, description)

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | dict[str, float] | list[float | dict[str, float]] | None = None,
    ) -> None:
        """Make adapters active, each with a weight, or with one per component: `{"planner": 0.5, "transformer": 1}`.

        Args:
            adapter_names: the adapters; all others become inactive, in both models. `[]` leaves none active.
            adapter_weights: one for all, or a list with one for each; 1 by default.

        Raises:
            ValueError: for names that are not loaded, for components that have no adapters, for weights that are not
                finite numbers, while an adapter is fused, and if a model is wrapped by `torch.compile(model)`.
        """
        self._refuse_wrapped_models()
        self._refuse_fused()
        adapter_names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        refuse_unknown(adapter_names, self._all_adapters())
        if isinstance(adapter_weights, tuple):  # diffusers takes a list alone for one weight each
            adapter_weights = list(adapter_weights)  # pyright: ignore[reportAssignmentType]
        if isinstance(adapter_weights, dict) and len(adapter_names) > 1:
            # diffusers removes components from the dictionary as it goes: a shared one would serve the first only.
            adapter_weights = [adapter_weights for _ in adapter_names]
        if isinstance(adapter_weights, list):
            adapter_weights = [dict(weight) if isinstance(weight, dict) else weight for weight in adapter_weights]
            for weight in adapter_weights:
                if isinstance(weight, dict) and weight.keys() - set(COMPONENTS):
                    unknown = sorted(weight.keys() - set(COMPONENTS))
                    raise ValueError(f"`adapter_weights` names {unknown}; components are {', '.join(COMPONENTS)}")
        _check_weights(adapter_weights)
        if not adapter_names:  # an error for diffusers' own method
            for model in self._lora_models().values():
                activate(model, [])
            return
        super().set_adapters(adapter_names, adapter_weights)

    def get_active_adapters(self) -> list[str]:
        """Return the names of the adapters that run, in one model or both; none while they are disabled."""
        models = [model for model in self._lora_models().values() if not are_disabled(model)]
        # The longest list first, which has the order that `set_adapters` was given.
        lists = sorted(map(chosen_adapters, models), key=len, reverse=True)
        return list(dict.fromkeys(name for names in lists for name in names))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the loaded adapters by component."""
        loaded = {part: loaded_adapters(model) for part, model in self._lora_models().items()}
        return {part: names for part, names in loaded.items() if names}

    def _all_adapters(self) -> list[str]:
        return [name for names in self.get_list_adapters().values() for name in names]

    def disable_lora(self) -> None:
        """Switch all adapters off until `enable_lora`; refused while one is fused, as it would stay in the weights."""
        self._refuse_wrapped_models()
        self._refuse_fused()
        super().disable_lora()

    def enable_lora(self) -> None:
        """Switch on the adapters that were active before `disable_lora`."""
        self._refuse_wrapped_models()
        super().enable_lora()

    def set_lora_device(self, adapter_names: list[str] | str, device: torch.device | str | int) -> None:
        """Move adapters to a device, see [`~LoraBaseMixin.set_lora_device`]; refused while one is fused."""
        self._refuse_fused()
        adapter_names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        refuse_unknown(adapter_names, self._all_adapters())
        super().set_lora_device(adapter_names, device)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove adapters from both models; after the last one, a model is as it was before the first.

        If no active adapter is left, the first of the others becomes active in both models.

        Raises:
            ValueError: for names that are not loaded, and while an adapter is fused, as it would stay in the weights.
        """
        self._refuse_wrapped_models()
        self._refuse_fused()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        refuse_unknown(names, self._all_adapters())
        models = list(self._lora_models().values())
        left = after_deletion(models, names)
        if not {name for model in models for name in chosen_adapters(model)}.issuperset(left):
            logger.warning(f"The active adapters were deleted; {left[0]!r} is active now")
        for model in models:
            own = [name for name in names if name in loaded_adapters(model)]
            if own:
                model.delete_adapters(own)
            activate(model, left)

    def unload_lora_weights(self) -> None:
        """Remove all adapters: both models are as they were before, bit for bit, unless adapters were fused."""
        self._refuse_wrapped_models()
        super().unload_lora_weights()

    @property
    def fused_loras(self) -> set[str]:
        """The names of the adapters that are added to the weights of one model or both."""
        return {name for model in self._lora_models().values() for name in fused_adapters(model)}

    @property
    def num_fused_loras(self) -> int:
        """The number of adapters that are added to the weights."""
        return len(self.fused_loras)

    def fuse_lora(
        self,
        components: list[str] | str | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | str | None = None,
    ) -> None:
        """Add adapters to the weights, so that they cost no time; `unfuse_lora` removes them again.

        To keep them for good: `fuse_lora`, `unload_lora_weights`, `save_pretrained`.

        Args:
            components: by default `["planner", "transformer"]`.
            lora_scale: a further weight while they are fused.
            safe_fusing: whether to look for NaN in the sum first.
            adapter_names: by default all active ones. Other adapters of these components do not run until
                `unfuse_lora`.

        Raises:
            ValueError: for names that are not loaded, if none is active, for adapters that are fused already, and for
                those that could not be removed again. The weights are unchanged then.
        """
        models = self._chosen_models(components)
        if any(model.is_fused for model in models):
            self._refuse_fused()
        names = names_to_fuse(models, adapter_names)
        finite_number(lora_scale, "`lora_scale`")
        for model in models:
            refuse_not_finite(model, names)
        done = []
        try:
            for model in models:
                if loaded_adapters(model):
                    model._fuse(names, lora_scale, safe_fusing)
                    done.append(model)
        except Exception:
            for model in done:
                model.unfuse_lora()
            raise

    def unfuse_lora(self, components: list[str] | str | None = None) -> None:
        """Remove fused adapters from the weights.

        The weights are those of before up to the rounding of one sum and one difference; strengths are exactly equal.

        Raises:
            ValueError: if nothing is fused.
        """
        models = [model for model in self._chosen_models(components) if model.is_fused]
        if not models:
            raise ValueError("there is nothing to unfuse: no adapter is fused into the weights")
        for model in models:
            model.unfuse_lora()
        if not self.fused_loras:  # models whose adapters paused while it was fused
            for model in self._lora_models().values():
                if model.is_fused:
                    model.unfuse_lora()

    def _chosen_models(self, components: list[str] | str | None) -> list[torch.nn.Module]:
        """Return the models of `components`, all for None.

        Raises:
            ValueError: for other components, for none, and for models wrapped by `torch.compile(model)`.
        """
        self._refuse_wrapped_models()
        models = self._lora_models()
        components = [components] if isinstance(components, str) else components
        chosen = list(models) if components is None else list(dict.fromkeys(components))
        if not chosen or not models.keys() >= set(chosen):
            raise ValueError(
                f"`components` is {components}; this pipeline can have adapters in "
                f"{' and '.join(models) or 'no model'}"
            )
        return [models[name] for name in chosen]

    def _refuse_fused(self) -> None:
        """Raise `ValueError` while an adapter is fused in one of the models."""
        refuse_fused(self.fused_loras)

    def _refuse_loaded_adapters(self) -> None:
        """Raise `ValueError` if adapters are loaded: a folder saved now would lack the model's own weights."""
        refuse_loaded(self.get_list_adapters())

    def _lora_models(self) -> dict[str, torch.nn.Module]:
        """Return those of planner and transformer that the pipeline has; a modular one may have none."""
        models = {part: getattr(self, part, None) for part in COMPONENTS}
        return {part: model for part, model in models.items() if model is not None}

    def _refuse_wrapped_models(self) -> None:
        """Raise `ValueError` for a model in the wrapper of `torch.compile(model)`.

        diffusers loads adapters through the wrapper, and then does not find them.
        """
        for part, model in self._lora_models().items():
            if hasattr(model, "_orig_mod"):  # not isinstance: importing the wrapper's class takes seconds
                raise ValueError(
                    f"the {part} is wrapped by `torch.compile`, so its adapters cannot be reached; "
                    f"compile it in place, `pipe.{part}.compile()`, or its blocks, "
                    f"`pipe.{part}.compile_repeated_blocks()`"
                )

    def _checked_adapter_name(self, name: str | None, hotswap: bool, parts: list[str]) -> str:
        """Return the name of the adapter, one for both models."""
        loaded, taken = self.get_list_adapters(), self._all_adapters()
        if hotswap:
            owners = [part for part in COMPONENTS if name in loaded.get(part, [])]
            if owners != parts:
                raise ValueError(
                    f"cannot swap the adapter {name!r}: it changes "
                    f"{' and '.join(owners) or 'nothing, it is not loaded'}, and the new one "
                    f"{' and '.join(parts) or 'nothing'}; both must change the same models"
                )
            assert name is not None, "an adapter of this name is loaded"
            return name
        if name is None:
            return next(f"default_{i}" for i in range(len(taken) + 1) if f"default_{i}" not in taken)
        if check_adapter_name(name) in taken:
            raise ValueError(
                f"an adapter {name!r} is loaded already; choose another `adapter_name`, delete the old one with "
                "`delete_adapters`, or put the new one in its place with `hotswap=True`"
            )
        return name


def _check_weights(weights: Any) -> None:
    """Raise `ValueError` if a weight of an adapter is not finite; weights may be in lists and dictionaries."""
    if isinstance(weights, (list, tuple, dict)):
        for weight in weights.values() if isinstance(weights, dict) else weights:
            _check_weights(weight)
    elif weights is not None:
        finite_number(weights, "a weight in `adapter_weights`")
