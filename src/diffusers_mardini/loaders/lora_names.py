"""Interpret the names of a LoRA's tensors: those of peft, diffusers and other trainers.

First the ends of the names are converted to peft's form (`in_peft_form`), then their beginnings to layers of the
planner and the transformer (`by_component`). A file is understood completely or refused.
"""

import re
from collections.abc import Callable
from typing import Any

import torch

from .lora_fit import adaptable_layers


COMPONENTS = ("planner", "transformer")
ACCEPTED = (
    "accepted are `planner.<layer>.lora_A.weight`, `transformer.<layer>.lora_B.weight` and so on; the same without "
    "the model's name, or with `diffusion_model.` or peft's `base_model.model.` before it, if the layers fit one of "
    "the models only; and kohya's `lora_unet_<layer, joined by _>.lora_down.weight`"
)
# From the names of the two matrices in files of other trainers to peft's.
_PEFT_NAMES = {
    f".{prefix}{old}.weight": f".lora_{new}.weight"
    for prefix in ("lora_", "lora.", "lora_linear_layer.")
    for old, new in (("down", "A"), ("up", "B"))
}
# Layer, kind of tensor, and the name of the adapter, which stays in a state dict of peft's that is saved unchanged.
_MATRIX = re.compile(r"(?P<layer>.+)\.(?P<kind>lora_A|lora_B)(?:\.(?P<adapter>[^.]+))?\.(?P<end>weight|bias)")
_LENGTHS = re.compile(
    r"(?P<layer>.+)\.(?P<kind>lora_magnitude_vector)(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
_ALPHA = ".alpha"
_WRAPPERS = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "_orig_mod.", "module.")


def in_peft_form(tensors: dict[str, torch.Tensor], has_alpha: bool) -> dict[str, torch.Tensor]:
    """Return the tensors under peft's names, which end in `lora_A.weight`, `lora_B.weight` and so on.

    If a file has a tensor `alpha` for each layer, the matrix B is multiplied by alpha over rank, so that the scale
    becomes 1.

    Args:
        tensors: tensors by name.
        has_alpha: whether the header gives alpha.

    Raises:
        ValueError: for names that are not understood, for two adapters, and for an alpha that is given twice or
            belongs to no layer.
    """
    if not tensors:
        raise ValueError("the LoRA holds no tensors")
    if wrong := [name for name, tensor in tensors.items() if not (isinstance(name, str) and torch.is_tensor(tensor))]:
        raise ValueError(f"the LoRA has tensors by name, but `{wrong[0]}` is a {type(tensors[wrong[0]]).__name__}")
    alphas = {name.removesuffix(_ALPHA): tensor for name, tensor in tensors.items() if name.endswith(_ALPHA)}
    renamed, adapters, strange = {}, {}, []
    for name, tensor in tensors.items():
        if name.endswith(_ALPHA):
            continue
        parts = _end_of(name)
        if parts is None:
            strange.append(name)
            continue
        layer, end, adapter = parts
        if f"{layer}.{end}" in renamed:
            raise ValueError(f"the LoRA has two tensors `{layer}.{end}`, one of them under the name `{name}`")
        renamed[f"{layer}.{end}"] = tensor
        adapters[adapter] = name
    _refuse_strange(strange, len(tensors))
    if len(adapters) > 1:
        raise ValueError(
            f"the LoRA holds several adapters: {', '.join(f'`{name}`' for name in adapters.values())}; give one"
        )
    if alphas and has_alpha:
        raise ValueError(
            f"the LoRA gives alpha twice, in its header and as a tensor, `{next(iter(alphas))}{_ALPHA}`; remove one "
            "of them"
        )
    for layer, alpha in alphas.items():
        _multiply_by_alpha(renamed, layer, alpha)
    return renamed


def _end_of(name: str) -> tuple[str, str, str | None] | None:
    """Split a name into the layer, the end in peft's form, and the name of the adapter, if that is in it."""
    old = next((old for old in _PEFT_NAMES if name.endswith(old)), "")
    name = name.removesuffix(old) + _PEFT_NAMES.get(old, "")
    if match := _LENGTHS.fullmatch(name):
        return match["layer"], match["kind"], match["adapter"]
    match = _MATRIX.fullmatch(name)
    if match is None or (match["kind"], match["end"]) == ("lora_A", "bias"):
        return None
    return match["layer"], f"{match['kind']}.{match['end']}", match["adapter"]


def _refuse_strange(strange: list[str], total: int) -> None:
    no_lora = [name for name in strange if "lora" not in name]
    if no_lora:
        raise ValueError(
            f"this is not a LoRA: {len(no_lora)} of its {total} tensors have names without `lora`, such as "
            f"{no_lora[0]}; {ACCEPTED}"
        )
    if strange:
        raise ValueError(
            f"{len(strange)} of the {total} tensors of the LoRA are not understood, such as `{strange[0]}`; {ACCEPTED}"
        )


def _multiply_by_alpha(tensors: dict[str, torch.Tensor], layer: str, alpha: torch.Tensor) -> None:
    down, up = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
    if down not in tensors or up not in tensors or alpha.numel() != 1 or not alpha.float().isfinite().all():
        raise ValueError(
            f"`{layer}{_ALPHA}` of the LoRA is not a number that belongs to a pair of matrices `{down}` and `{up}`"
        )
    rank = len(tensors[down]) if tensors[down].ndim else 0
    if rank:  # otherwise the shape is refused later, with the model at hand
        for name in (up, f"{layer}.lora_B.bias"):
            if name in tensors:
                tensors[name] = tensors[name] * (alpha.item() / rank)


def by_component(
    tensors: dict[str, torch.Tensor],
    models: dict[str, torch.nn.Module],
    check: Callable[[str, dict[str, torch.Tensor]], Any],
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors by component, under their names within it and in a fixed order.

    Args:
        tensors: tensors in peft's form.
        models: the models of the pipeline, by component.
        check: a function that raises `ValueError` if tensors do not fit a component.

    Raises:
        ValueError: if names are not understood, or could mean either model.
    """
    unwrapped = {_unwrapped(name): tensor for name, tensor in sorted(tensors.items())}
    if len(unwrapped) < len(tensors):
        raise ValueError(
            "the LoRA has tensors that differ only in a prefix of the layer's name, such as `module.`; give one of "
            "each"
        )
    native = [name for name in unwrapped if name.split(".")[0] in COMPONENTS]
    if native and len(native) < len(unwrapped):
        other = next(name for name in unwrapped if name not in native)
        raise ValueError(
            f"{len(unwrapped) - len(native)} of the {len(unwrapped)} tensors of the LoRA belong to neither planner "
            f"nor transformer, such as `{other}`; a file that fits only in part is not loaded"
        )
    if native:
        return _grouped((*name.split(".", 1), tensor) for name, tensor in unwrapped.items())
    found = {part: _renamed(unwrapped, part, model) for part, model in models.items()}
    for name in unwrapped:
        if not any(name in names for names in found.values()):
            raise ValueError(
                f"the LoRA's tensor `{name}` is of no layer of {' or '.join(models) or 'a model that is loaded'}; "
                f"{ACCEPTED}"
            )
    owners = {name: [part for part, names in found.items() if name in names] for name in unwrapped}
    if all(len(parts) == 1 for parts in owners.values()):
        return _grouped((parts[0], found[parts[0]][name], unwrapped[name]) for name, parts in owners.items())
    return _the_one_that_fits(unwrapped, found, check)


def _the_one_that_fits(
    tensors: dict[str, torch.Tensor],
    found: dict[str, dict[str, str]],
    check: Callable[[str, dict[str, torch.Tensor]], Any],
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors under the component that has all their layers, in the right sizes."""
    fitting, reasons = {}, []
    for part, names in found.items():
        missing = [name for name in tensors if name not in names]
        if missing:
            reasons.append(f"the {part} has no layer of `{missing[0]}`")
            continue
        candidate = {names[name]: tensor for name, tensor in tensors.items()}
        try:
            check(part, candidate)
        except ValueError as error:
            reasons.append(f"{part}: {error}")
        else:
            fitting[part] = candidate
    example = next(iter(tensors))
    if len(fitting) > 1:
        raise ValueError(
            f"the LoRA's names, such as `{example}`, do not say which model it is for, and it fits "
            f"{' and '.join(fitting)}; put `planner.` or `transformer.` before each name"
        )
    if not fitting:
        raise ValueError(f"the LoRA, with names such as `{example}`, fits no model ({'; '.join(reasons)}); {ACCEPTED}")
    return fitting


def _grouped(named) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for part, name, tensor in named:
        parts.setdefault(part, {})[name] = tensor
    return {part: parts[part] for part in COMPONENTS if part in parts}


def _unwrapped(name: str) -> str:
    """Remove the prefixes that wrappers of models put before names."""
    while prefix := next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def _renamed(tensors: dict[str, torch.Tensor], part: str, model: torch.nn.Module) -> dict[str, str]:
    """Return names within the model, by name in the file, for the tensors whose layers it has."""
    layers = adaptable_layers(model)
    joined: dict[str, list[str]] = {}
    for layer in layers:
        joined.setdefault(layer.replace(".", "_"), []).append(layer)
    renamed = {}
    for name in tensors:
        path, _, end = name.partition(".lora_")
        if path not in layers:
            candidates = [
                joined.get(path.removeprefix(prefix), [])
                for prefix in ("lora_unet_", f"lora_{part}_", "lora_")
                if path.startswith(prefix)
            ]
            matches = next(filter(None, candidates), [])
            path = matches[0] if len(matches) == 1 else None
        if path is not None:
            renamed[name] = f"{path}.lora_{end}"
    return renamed
