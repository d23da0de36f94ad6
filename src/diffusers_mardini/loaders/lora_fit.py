"""Check that an adapter fits a model before anything changes, so that it is loaded completely or refused.

`lora_names.py` has interpreted its names before.
"""

import math
import re
from typing import Any

import torch
from diffusers.utils.peft_utils import get_peft_kwargs

from ..models.adapter_conditions import adapter_conditions
from ..models.adapters import adapter_layers


A, B, BIAS, LENGTHS = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"
# Initializations that change the model's own weights; the file then only fits the changed weights.
_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Options of a configuration that adapt anything but linear layers.
_NOT_LAYERS = ("modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices")


def adaptable_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the linear layers of a model by name, including those that have adapters already."""
    model = getattr(model, "_orig_mod", model)  # `torch.compile(model)`
    others = tuple(f"condition_embedder.{name}." for name in adapter_conditions(model))  # go with their adapter
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "in_features", None)
        and not re.search(r"\.(base_layer|lora_\w+)(\.|$)", name)
        and not name.startswith(others)
    }


def plain_config(part: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return a configuration with a scale of 1 for every layer, for a file that has none."""
    # As diffusers does for a file without one.
    ranks = {f"^{name}": tensor.shape[1] for name, tensor in part.items() if name.endswith(B)}
    return get_peft_kwargs(ranks, None, part)


def check_fit(
    model: torch.nn.Module,
    component: str,
    part: dict[str, torch.Tensor],
    config: dict[str, Any] | None,
    base_model: str | None,
) -> dict[str, Any]:
    """Return the configuration to load `part` with: `config`, or a plain one.

    Args:
        model: the model to adapt.
        component: its name.
        part: tensors under peft's names.
        config: arguments of peft's `LoraConfig`, from the file.
        base_model: the model that the adapter was trained on, for the message.

    Raises:
        ValueError: if a layer is missing here or has another size, if not every layer has both matrices of one rank,
            or if values or configuration cannot be used.
    """
    hint = f" It was trained on {base_model}." if base_model else ""
    layers = adaptable_layers(model)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in part.items():
        path, _, end = name.partition(".lora_")
        tensors.setdefault(path, {})[f"lora_{end}"] = tensor
    for path, own in tensors.items():
        if path not in layers:
            raise ValueError(
                f"the adapter changes `{path}` of the {component}, but the {component} of this pipeline has no such "
                f"layer, or it is not linear; load the base model that it was made for.{hint}"
            )
        for end, tensor in own.items():
            check_values(f"{component}.{path}.{end}", tensor)
        _check_layer(component, path, layers[path], own, hint)
    for end in (LENGTHS, BIAS):
        having = [path for path, own in tensors.items() if end in own]
        if having and len(having) < len(tensors):
            lacking = next(path for path in tensors if path not in having)
            raise ValueError(
                f"`{having[0]}` of the {component} has `{end}` in the LoRA and `{lacking}` has not; all layers or none"
            )
    config = plain_config(part) if config is None else config
    _check_config(component, tensors, config)
    return config


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Raise `ValueError` unless a tensor holds finite floating-point numbers."""
    if tensor.is_meta or not tensor.is_floating_point():
        kind = "no values" if tensor.is_meta else f"values of type {tensor.dtype}"
        raise ValueError(f"`{name}` of the LoRA has {kind}; expected floating-point numbers")
    if not torch.isfinite(tensor.float()).all():
        raise ValueError(
            f"`{name}` of the LoRA holds values that are not finite; it was damaged, or its training diverged"
        )


def _check_layer(component: str, path: str, layer: torch.nn.Module, own: dict[str, torch.Tensor], hint: str) -> None:
    """Raise `ValueError` unless the LoRA has both matrices of a layer, of its size and of one rank."""
    for end, _other in ((A, B), (B, A)):
        if end not in own:
            raise ValueError(
                f"the LoRA has `{component}.{path}.{next(iter(own))}` but no `{end}` for that layer; it needs {A} and "
                f"{B}"
            )
        if own[end].ndim != 2:
            raise ValueError(
                f"`{component}.{path}.{end}` of the LoRA has the shape {tuple(own[end].shape)}; expected a matrix"
            )
    for end, side, axis in ((A, "in_features", 1), (B, "out_features", 0)):
        if own[end].shape[axis] != getattr(layer, side):
            raise ValueError(
                f"the adapter was made for another {component}: `{path}` has {side} of {own[end].shape[axis]} there "
                f"and {getattr(layer, side)} here; load the base model that it was made for.{hint}"
            )
    ranks = own[A].shape[0], own[B].shape[1]
    if ranks[0] != ranks[1] or not ranks[0]:
        raise ValueError(
            f"`{path}` of the {component} has a matrix A of rank {ranks[0]} and a matrix B of rank {ranks[1]} in the "
            "LoRA; both need one rank of 1 or more"
        )
    for end in (LENGTHS, BIAS):
        if end in own and own[end].shape != (layer.out_features,):
            raise ValueError(
                f"`{component}.{path}.{end}` of the LoRA has the shape {tuple(own[end].shape)}; expected "
                f"({layer.out_features},)"
            )


def _check_config(component: str, tensors: dict[str, dict[str, torch.Tensor]], config: dict[str, Any]) -> None:
    """Raise `ValueError` if a configuration contradicts the tensors, or adapts anything but linear layers."""
    from peft import LoraConfig

    where = f"the configuration of the {component}'s adapter"
    try:
        lora = LoraConfig(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where} is not a LoraConfig that the installed peft knows ({error}); a newer peft may know it"
        ) from error
    asked = [key for key in _NOT_LAYERS if getattr(lora, key, None)]
    if asked:
        raise ValueError(f"{where} has `{asked[0]}`; only adapters of linear layers are loaded")
    if str(lora.init_lora_weights).startswith(_CHANGING_INITS):
        raise ValueError(
            f"{where} has `init_lora_weights={lora.init_lora_weights!r}`, which changes the model's own weights; "
            "save it as a plain LoRA with peft's `path_initial_model_for_weight_conversion`"
        )
    for key, end in (("use_dora", LENGTHS), ("lora_bias", BIAS)):
        having = all(end in own for own in tensors.values())
        if bool(getattr(lora, key)) != having:
            raise ValueError(
                f"{where} says {key}={getattr(lora, key)}, but its layers have {'' if having else 'no '}`{end}`"
            )
    for path, own in tensors.items():
        rank, alpha = _rank_and_alpha(lora, path)
        if rank != own[A].shape[0]:
            raise ValueError(f"{where} says rank {rank} for `{path}`, but its matrices have rank {own[A].shape[0]}")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise ValueError(f"{where} says alpha {alpha!r} for `{path}`; expected a finite number")


def _rank_and_alpha(lora: Any, path: str) -> tuple[int, float]:
    """Return rank and alpha that a `LoraConfig` gives to a layer."""
    from peft.utils.other import get_pattern_key

    return (
        lora.rank_pattern.get(get_pattern_key(lora.rank_pattern, path), lora.r),
        lora.alpha_pattern.get(get_pattern_key(lora.alpha_pattern, path), lora.lora_alpha),
    )


def check_swap(
    model: torch.nn.Module, component: str, part: dict[str, torch.Tensor], config: dict[str, Any], adapter_name: str
) -> None:
    """Raise `ValueError` if an adapter changes other layers than the one that it replaces, or is of another kind."""
    layers = adaptable_layers(model)
    paths = sorted({name.partition(".lora_")[0] for name in part})
    new = [path for path in paths if adapter_name not in getattr(layers[path], "lora_A", {})]
    if new:
        raise ValueError(
            f"cannot swap the adapter {adapter_name!r}: the new one changes {len(new)} layers of the {component} "
            f"that it does not, such as `{new[0]}`; load it under a name of its own, without `hotswap`"
        )
    old = model.peft_config[adapter_name]
    kinds = {key: (bool(getattr(old, key)), bool(config.get(key))) for key in ("use_dora", "use_rslora", "lora_bias")}
    differing = [key for key, (before, after) in kinds.items() if before != after]
    if differing or old.use_dora:
        raise ValueError(
            f"cannot swap the adapter {adapter_name!r} of the {component}: "
            + (f"`{differing[0]}` differs" if differing else "peft does not swap a DoRA")
            + "; load it under a name of its own, without `hotswap`"
        )


def settle_swap(
    model: torch.nn.Module, part: dict[str, torch.Tensor], config: dict[str, Any], adapter_name: str
) -> None:
    """Give swapped layers their rank and alpha.

    peft keeps the old ones, from which `set_adapters` would compute the new strength.
    """
    from peft import LoraConfig

    lora = LoraConfig(**config)
    paths = {name.partition(".lora_")[0] for name in part}
    layers = adaptable_layers(model)
    for path in paths:
        layer = layers[path]
        layer.r[adapter_name], layer.lora_alpha[adapter_name] = _rank_and_alpha(lora, path)
        scaling = layer.lora_alpha[adapter_name] / (
            math.sqrt(layer.r[adapter_name]) if lora.use_rslora else layer.r[adapter_name]
        )
        if torch.is_tensor(layer.scaling[adapter_name]):
            layer.scaling[adapter_name].fill_(scaling)  # compiled models keep a reference to this tensor
        else:
            layer.scaling[adapter_name] = scaling


def refuse_not_finite(model: torch.nn.Module, names: list[str]) -> None:
    """Raise `ValueError` if an adapter holds NaN or infinity: once fused, it could not be removed again."""
    for layer in adapter_layers(model):
        for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
            for name in names:
                if name in getattr(layer, kind, {}) and not all(
                    parameter.isfinite().all() for parameter in getattr(layer, kind)[name].parameters()
                ):
                    raise ValueError(f"NaNs detected, or infinite values, in the adapter {name!r}; it cannot be fused")
