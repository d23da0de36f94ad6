"""Adapters of one model: load, delete, fuse and unfuse them without damage to the model's own weights.

Both models use it instead of diffusers' `PeftAdapterMixin`. Files, names and the pipeline's methods for both models
are in `loaders/`; the weight of adapters during one call is in `lora_scale.py`.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.peft_utils import delete_adapter_layers, get_adapter_name

from ..weights import SUFFIX, is_pickle, pickle_refusal
from .adapter_conditions import AdapterConditionEmbedding, PeftConditionsMixin, adapter_conditions
from .lora_scale import copy_scaling, finite_number, put_back_scaling


# Arguments of `load_lora_adapter` that say where a file is, and how to get it.
_FILE_ARGUMENTS = (
    "weight_name", "use_safetensors", "local_files_only", "cache_dir", "force_download", "proxies", "token",
    "revision", "subfolder", "metadata",
)  # fmt: skip
_OWNER = re.compile(r"\.lora_(?:A|B|magnitude_vector)\.([^.]+)")  # the adapter that a parameter belongs to


def adapter_layers(model: torch.nn.Module) -> list[Any]:
    """Return the layers that peft has wrapped, and conditions of adapters; recognized by an attribute, so that peft
    need not be installed."""
    return [module for module in model.modules() if hasattr(module, "merged_adapters")]


def fused_adapters(model: torch.nn.Module) -> set[str]:
    """Return the names of the adapters that are fused into the weights of `model`."""
    return {name for layer in adapter_layers(model) for name in layer.merged_adapters}


def loaded_adapters(model: torch.nn.Module) -> list[str]:
    """Return the names of the adapters of `model`, in the order of loading."""
    return list(getattr(model, "peft_config", None) or {})


def chosen_adapters(model: torch.nn.Module) -> list[str]:
    """Return the names of the active adapters, even if they are disabled."""
    names = dict.fromkeys(name for layer in adapter_layers(model) for name in layer.active_adapters)
    return [name for name in names if name in loaded_adapters(model)]


def are_disabled(model: torch.nn.Module) -> bool:
    """Return whether `disable_lora` has disabled the adapters of `model`."""
    return any(layer.disable_adapters for layer in adapter_layers(model))


def activate(model: torch.nn.Module, names: Iterable[str]) -> None:
    """Activate these adapters and no others, with their present weights; names of other models have no effect."""
    for layer in adapter_layers(model):
        layer.set_adapter(list(names))


def after_deletion(models: list[torch.nn.Module], names: Iterable[str]) -> list[str]:
    """Return the adapters to activate after `names` are deleted: the other active ones or, as in peft, the first
    left."""
    names = set(names)
    chosen = list(dict.fromkeys(name for model in models for name in chosen_adapters(model)))
    left = [name for name in chosen if name not in names]
    if left or not names.intersection(chosen):
        return left
    return sorted({name for model in models for name in loaded_adapters(model)} - names)[:1]


def refuse_fused(fused: Iterable[str]) -> None:
    """Raise `ValueError` if adapters are fused: after a change they could not be removed from the weights."""
    names = sorted(fused)
    if names:
        raise ValueError(
            f"{', '.join(map(repr, names))} {'is' if len(names) == 1 else 'are'} fused into the weights; call "
            "`unfuse_lora()` first (after `unload_lora_weights()` fused adapters cannot be removed from the weights)"
        )


def refuse_loaded(adapters: dict[str, list[str]]) -> None:
    """Raise `ValueError` if adapters are loaded: a folder saved now could not be loaded as a plain model.

    Args:
        adapters: names of adapters by component.
    """
    loaded = [f"{', '.join(names)} ({part})" for part, names in adapters.items() if names]
    if loaded:
        raise ValueError(
            f"LoRA adapters are loaded: {'; '.join(loaded)}. Save them separately with `save_lora_weights`, and "
            "the pipeline or model after `unload_lora_weights()`, or after `fuse_lora()` and "
            "`unload_lora_weights()` to include them"
        )


def require_safetensors(name: str | os.PathLike) -> None:
    """Raise `ValueError` for the name of a file that is no safetensors file, such as a pickle."""
    name = Path(name).name
    if is_pickle(name):
        raise ValueError(pickle_refusal(name, "pytorch_lora_weights.safetensors"))
    if not name.endswith(SUFFIX):
        raise ValueError(f"{name} is no {SUFFIX} file; only these are read and written")


def check_adapter_name(name: Any) -> str:
    """Return the name of an adapter.

    Raises:
        ValueError: if it cannot be the name of a module.
    """
    if isinstance(name, str) and name and "." not in name and not hasattr(torch.nn.ModuleDict(), name):
        return name
    raise ValueError(
        f"`adapter_name` is {name!r}; expected text without a point that is no method of torch's module "
        f"dictionaries, such as `keys`; for example {'lora_' + re.sub('[^A-Za-z0-9]+', '_', str(name)).strip('_')!r}"
    )


class AdapterState:
    """A copy of the active adapters of a model and their weights, restored bit for bit.

    Args:
        model: the model.
        tensors: whether to copy the adapters' matrices, too.
    """

    def __init__(self, model: torch.nn.Module, tensors: bool = False):
        self._layers = [
            (layer, list(layer.active_adapters), layer.disable_adapters, copy_scaling(layer))
            for layer in adapter_layers(model)
        ]
        self._tensors = [
            (owner[1], parameter, parameter.detach().clone())
            for name, parameter in (model.named_parameters() if tensors else ())
            if (owner := _OWNER.search(name))
        ]

    def restore(self) -> None:
        """Restore everything. Layers that were wrapped after the copy stay as they are."""
        for layer, active, disabled, scaling in self._layers:
            put_back_scaling(layer, scaling)
            layer.set_adapter(active)
            if disabled != layer.disable_adapters:
                layer.enable_adapters(not disabled)
        self.restore_tensors()

    def restore_tensors(self, but_for: str | None = None) -> None:
        """Restore the copied matrices, except those of the adapter `but_for`."""
        for owner, parameter, values in self._tensors:
            if owner == but_for:
                continue
            if parameter.shape == values.shape:
                parameter.data.copy_(values)  # compiled models keep using this memory
            else:
                parameter.data = values


def _unless_fused(method: Callable) -> Callable:
    """Let a method of `MarDiniAdapterMixin` raise `ValueError` while an adapter is fused."""

    @functools.wraps(method)
    def wrapper(self: "MarDiniAdapterMixin", *args: Any, **kwargs: Any):
        refuse_fused(fused_adapters(self))
        return method(self, *args, **kwargs)

    return wrapper


class MarDiniAdapterMixin(PeftConditionsMixin):
    """Protect a model's weights while it has adapters. Stands before `ModelMixin`, whose `save_pretrained` it guards.

    While an adapter is fused, every method that changes adapters raises `ValueError`; `unfuse_lora` restores their
    former weights. After the last adapter is deleted, the model equals the one before the first, bit for bit.
    """

    _before_fusing: AdapterState | None = None
    # Names of the parameters that required gradients before the first adapter.
    _trainable_before_adapters: set[str] | None = None

    set_adapter = _unless_fused(PeftConditionsMixin.set_adapter)
    set_adapters = _unless_fused(PeftConditionsMixin.set_adapters)
    # A disabled layer would unfuse adapters the next time it runs.
    disable_adapters = _unless_fused(PeftConditionsMixin.disable_adapters)
    disable_lora = _unless_fused(PeftConditionsMixin.disable_lora)

    @_unless_fused
    def add_adapter(
        self,
        adapter_config: Any,
        adapter_name: str = "default",
        conditions: Mapping[str, int] | None = None,
        condition_info: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add an adapter for training, see [`~PeftAdapterMixin.add_adapter`]; it is the only active one.

        Args:
            adapter_config: the `LoraConfig`.
            adapter_name: its name.
            conditions, condition_info: conditions that are a part of it, see [`~ConditionsMixin.add_conditions`].

        Raises:
            ValueError: for a name that cannot be used, for a condition that cannot be added, and while an adapter is
                fused.
        """
        check_adapter_name(adapter_name)
        self._remember_trainable()
        super().add_adapter(adapter_config, adapter_name, conditions, condition_info)
        self._enable_all()

    @_unless_fused
    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        prefix: str | None = "transformer",
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load an adapter completely or not at all; it is the only active one.

        See [`~PeftAdapterMixin.load_lora_adapter`]. The pipeline's `load_lora_weights` also checks whether it fits.

        Raises:
            ValueError: for a pickle, a name that cannot be used, missing matrices, conditions, which belong to both
                models, and while an adapter is fused.
        """
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, dict):
            for name in (source if Path(source).is_file() else None, kwargs.get("weight_name")):
                if name is not None:
                    require_safetensors(name)
            kwargs["use_safetensors"] = True  # otherwise diffusers falls back to pickles
            file_arguments = {key: kwargs.pop(key, None) for key in _FILE_ARGUMENTS}
            source, kwargs["metadata"] = _fetch_state_dict(
                source, user_agent={"file_type": "attn_procs_weights"}, allow_pickle=False, **file_arguments
            )
        if strange := [key for key in source if "condition_embedder." in key and ".lora_" not in key]:
            raise ValueError(
                f"the adapter adds conditions, with tensors such as `{strange[0]}`; load it into the pipeline, whose "
                "`load_lora_weights` adds them to both models"
            )
        name = kwargs.pop("adapter_name", None)
        name = check_adapter_name(get_adapter_name(self) if name is None else name)
        if hotswap:
            before = AdapterState(self, tensors=True)
            try:
                super().load_lora_adapter(source, prefix, hotswap, adapter_name=name, **kwargs)
            except Exception:
                before.restore()
                raise
            # peft also zeroes other adapters whose tensors' names contain this name.
            before.restore_tensors(but_for=name)
            return
        taken = name in loaded_adapters(self)
        before = AdapterState(self)
        self._remember_trainable()
        try:
            super().load_lora_adapter(source, prefix, hotswap, adapter_name=name, **kwargs)
            self._refuse_unfilled(name)
        except Exception:
            if not taken:  # remove the incomplete adapter
                self._remove(name)
                before.restore()
            raise
        if name not in loaded_adapters(self):  # nothing had the prefix
            self._restore_trainable()
            return
        self._choose_conditions([name])
        self._enable_all()
        # New layers are in training mode, in which their dropout would be active.
        self.train(self.training)

    def _enable_all(self) -> None:
        """Enable the layers of former adapters, because those of a new adapter are enabled."""
        if are_disabled(self):
            self.enable_lora()

    def _refuse_unfilled(self, name: str) -> None:
        """Raise `ValueError` if a matrix of an adapter got no values."""
        empty = [
            path
            for path, module in self.named_modules()
            if path.endswith(f".{name}") and ".lora_" in path
            # Offloading keeps values elsewhere.
            and not hasattr(module, "_hf_hook") and any(parameter.is_meta for parameter in module.parameters())
        ]  # fmt: skip
        if empty:
            raise ValueError(
                f"the adapter has no values for {len(empty)} of its matrices, such as `{empty[0]}`; both matrices of "
                "every layer must be given, named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`"
            )

    def save_lora_adapter(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save one adapter, see [`~PeftAdapterMixin.save_lora_adapter`]; only as safetensors."""
        if not kwargs.get("safe_serialization", True) or (len(args) > 2 and not args[2]):
            raise ValueError("`safe_serialization=False` would write a pickle; only safetensors files are written")
        super().save_lora_adapter(save_directory, *args, **kwargs)

    @_unless_fused
    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete adapters. If no active one is left, the first of the others becomes active.

        Raises:
            ValueError: for a name that is not loaded, and while an adapter is fused.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        refuse_unknown(names, loaded_adapters(self))
        activate(self, after_deletion([self], names))  # before, because peft chooses for each layer separately
        super().delete_adapters(names)
        if not loaded_adapters(self):
            self.unload_lora()

    def unload_lora(self) -> None:
        """Delete all adapters; fused ones stay in the weights."""
        super().unload_lora()
        self._before_fusing = None
        self._restore_trainable()

    def fuse_lora(
        self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | str | None = None
    ) -> None:
        """Fuse adapters into the weights; until `unfuse_lora` no others are active.

        Args:
            lora_scale: additional factor of their weights.
            safe_fusing: whether to check for NaN first.
            adapter_names: by default all active ones.

        Raises:
            ValueError: if an adapter is fused already, is not loaded, or none is active; the weights are unchanged.
        """
        self._fuse(names_to_fuse([self], adapter_names), lora_scale, safe_fusing)

    def _fuse(self, names: list[str], lora_scale: float, safe_fusing: bool) -> None:
        """Fuse the adapters of `names` that the model has; if there are none, none is active until `unfuse_lora`."""
        if self.is_fused:
            refuse_fused(fused_adapters(self) or {"another adapter"})
        lora_scale = finite_number(lora_scale, "`lora_scale`")
        self._before_fusing = AdapterState(self)
        try:
            for layer in adapter_layers(self):
                if isinstance(layer, AdapterConditionEmbedding):  # of another adapter
                    continue
                _refuse_inexact(layer, names)
                for name in names:
                    if name in getattr(layer, "scaling", ()):
                        layer.scaling[name] *= lora_scale  # unmerging must use the same scale
                layer.merge(safe_merge=safe_fusing, adapter_names=names)
            activate(self, names)  # in a layer without these, others would stay active
        except Exception:
            self._take_out()
            raise

    @property
    def is_fused(self) -> bool:
        """Tell whether `unfuse_lora` has adapters to remove from the weights or to activate again."""
        return self._before_fusing is not None or bool(fused_adapters(self))

    def unfuse_lora(self) -> None:
        """Remove fused adapters from the weights, up to rounding; restore the adapters' weights bit for bit.

        Raises:
            ValueError: if nothing is fused.
        """
        if not self.is_fused:
            raise ValueError("there is nothing to unfuse: no adapter is fused into the weights")
        self._take_out()

    def _take_out(self) -> None:
        for layer in adapter_layers(self):
            if layer.merged_adapters:
                layer.unmerge()
        if self._before_fusing is not None:
            self._before_fusing.restore()
            self._before_fusing = None

    @functools.wraps(ModelMixin.save_pretrained)  # the pipeline's method inspects the signature
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the model, see [`~ModelMixin.save_pretrained`]; raises `ValueError` while adapters are loaded."""
        self._refuse_loaded_adapters()
        super().save_pretrained(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """Send the model to the Hub, see [`~ModelMixin.push_to_hub`]; raises `ValueError` while adapters are
        loaded."""
        self._refuse_loaded_adapters()  # before a repository is created
        return super().push_to_hub(*args, **kwargs)

    def _refuse_loaded_adapters(self) -> None:
        refuse_loaded({type(self).__name__: loaded_adapters(self)})

    def _remove(self, name: str) -> None:
        """Remove an adapter after failed loading."""
        delete_adapter_layers(self, name)
        if hasattr(self, "peft_config"):
            self.peft_config.pop(name, None)
        if not loaded_adapters(self):
            self.unload_lora()

    def _remember_trainable(self) -> None:
        if not loaded_adapters(self):
            self._trainable_before_adapters = {
                name for name, parameter in self.named_parameters() if parameter.requires_grad
            }

    def _restore_trainable(self) -> None:
        """Let the parameters require gradients that did so before the first adapter.

        peft freezes all weights of a model, and torch multiplies frozen weights with another kernel: otherwise results
        after unloading differ in the last bit.
        """
        if loaded_adapters(self):
            return
        for name, parameter in self.named_parameters():
            if name in (self._trainable_before_adapters or ()):
                parameter.requires_grad_(True)
        self._trainable_before_adapters = None


def refuse_unknown(names: list[str], loaded: Iterable[str]) -> None:
    """Raise `ValueError` if one of `names` is no loaded adapter, or is there twice."""
    loaded = list(dict.fromkeys(loaded))
    unknown = [name for name in names if name not in loaded]
    if unknown:
        raise ValueError(
            f"{', '.join(map(repr, unknown))} not in the list of present adapters: "
            f"{', '.join(map(repr, loaded)) or 'none is loaded'}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"an adapter is named twice: {', '.join(map(repr, names))}")


def names_to_fuse(models: list[torch.nn.Module], names: list[str] | str | None) -> list[str]:
    """Return the adapters to fuse: `names`, by default the active ones.

    Raises:
        ValueError: if one is not loaded, or none is active.
    """
    loaded = [name for model in models for name in loaded_adapters(model)]
    if not loaded:
        raise ValueError("there is nothing to fuse: no adapter is loaded")
    if any(map(are_disabled, models)):
        raise ValueError("there is nothing to fuse: the adapters are disabled; call `enable_lora()` first")
    names = [names] if isinstance(names, str) else names
    if names is None:
        names = list(dict.fromkeys(name for model in models for name in chosen_adapters(model)))
    if not names:
        raise ValueError("there is nothing to fuse: no adapter is active; choose with `set_adapters`")
    refuse_unknown(names, loaded)
    added = {e.adapter: condition for model in models for condition, e in adapter_conditions(model).items()}
    for name in names:
        if name in added:
            raise ValueError(
                f"{name!r} adds the condition {added[name]!r}, which has no weights in the model to be fused into; "
                "use it without fusing"
            )
    return list(names)


def _refuse_inexact(layer: torch.nn.Module, names: list[str]) -> None:
    """Raise `ValueError` if fused adapters would give other results than active ones, or could not be unfused."""
    own = [name for name in names if name in getattr(layer, "scaling", ())]
    lengths = getattr(layer, "lora_magnitude_vector", {})
    dora = [name for name in own if name in lengths]
    if dora and len(own) > 1:
        raise ValueError(
            f"{', '.join(map(repr, own))} cannot be fused together, because {dora[0]!r} is a DoRA, which scales the "
            "weights it is fused into; fuse it alone, or use the adapters without fusing"
        )
    if any((lengths[name].weight == 0).any() for name in dora):
        raise ValueError(f"{dora[0]!r} is a DoRA with lengths of 0, which cannot be unfused")
    if any(getattr(layer, "lora_bias", {}).get(name) and layer.get_base_layer().bias is None for name in own):
        raise ValueError(f"one of {', '.join(map(repr, own))} has a bias for a layer without, and cannot be fused")
