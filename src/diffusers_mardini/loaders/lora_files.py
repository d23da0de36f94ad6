"""LoRA files: safetensors, with what is to be known about the adapter in the header.

Tensors are named `planner.…` and `transformer.…`. The header holds the configuration of the adapter in the form that
all diffusers loaders read, and under a key of ours where the adapter comes from. Putting adapters into models is
`lora.py`'s.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE

from ..weights import SUFFIX, is_pickle, pickle_refusal


COMPONENTS = ("planner", "transformer")
DESCRIPTION_KEY = "mardini_lora"
# Names of the two matrices in files of other trainers, and peft's.
PEFT_NAMES = {
    f".{prefix}{old}.weight": f".lora_{new}.weight"
    for prefix in ("lora_", "lora.", "lora_linear_layer.")
    for old, new in (("down", "A"), ("up", "B"))
}
ALPHA = ".alpha"


@dataclass(frozen=True)
class LoraDescription:
    """What the header of a LoRA file tells.

    Args:
        adapters: for each component that the file adapts, the arguments of peft's `LoraConfig`: `r`, `lora_alpha`,
            `target_modules`, `use_dora` and so on. Empty for files that were saved without.
        base_model: the folder or Hub id of the pipeline that the adapter was trained on, where it is known.
        training_config: how it was trained, where it is known.
    """

    adapters: dict[str, dict[str, Any]]
    base_model: str | None = None
    training_config: dict[str, Any] | None = None


def write_lora_file(
    folder: str | os.PathLike, weight_name: str | None, tensors: dict[str, torch.Tensor], description: LoraDescription
) -> Path:
    """Writes `tensors` and their description; an older file of the same name is replaced at once or not at all.

    Raises:
        ValueError: for a name that is not a safetensors file's, or a folder that is a file.
    """
    folder = Path(folder)
    weight_name = LORA_WEIGHT_NAME_SAFE if weight_name is None else weight_name
    require_safetensors(weight_name)
    if folder.is_file():
        raise ValueError(f"`save_directory` is {folder}, which is a file; give a folder")
    metadata = {"format": "pt"}
    config = {f"{name}.{key}": value for name, keys in description.adapters.items() for key, value in keys.items()}
    if config:
        metadata[LORA_ADAPTER_METADATA_KEY] = _to_json(config)
    origin = {"base_model": description.base_model, "training_config": description.training_config}
    origin = {key: value for key, value in origin.items() if value is not None}
    if origin:
        metadata[DESCRIPTION_KEY] = _to_json(origin)

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{weight_name}.unfinished"
    # Cloned: safetensors refuses views of one storage, and a state dict may hold them.
    safetensors.torch.save_file(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, unfinished, metadata
    )
    os.replace(unfinished, folder / weight_name)
    return folder / weight_name


def read_description(metadata: Mapping[str, str] | None) -> LoraDescription:
    """Reads the header of a LoRA file; tensors handed over in memory have none (`None`)."""
    metadata = metadata or {}
    config = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    adapters = {name: _with_prefix(config, name) for name in COMPONENTS}
    return LoraDescription(
        adapters={name: keys for name, keys in adapters.items() if keys},
        **json.loads(metadata.get(DESCRIPTION_KEY, "{}")),
    )


def local_lora_file(path: str | os.PathLike, weight_name: str | None, subfolder: str | None) -> Path | None:
    """The safetensors file that a path on this machine means; `None` where it is none, but an id on the Hub.

    Raises:
        ValueError: for pickles, for a path that leads nowhere and for a folder that leaves open which file is meant.
    """
    if weight_name is not None:
        require_safetensors(weight_name)
    looks_local = str(path).startswith((".", "~"))
    path = Path(path)
    if path.is_file():
        require_safetensors(path.name)
        return path
    if not path.exists() and (looks_local or path.is_absolute() or len(path.parts) > 2):  # an id is owner/name
        raise ValueError(f"there is no {path}; give a folder, a {SUFFIX} file or an id on the Hub")
    if not path.is_dir():
        return None
    folder = path / subfolder if subfolder else path
    if weight_name is not None:
        return folder / weight_name
    files = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if LORA_WEIGHT_NAME_SAFE in files:
        return folder / LORA_WEIGHT_NAME_SAFE
    if len(files) == 1:
        return folder / files[0]
    if files:
        raise ValueError(f"{folder} holds {', '.join(files)}; choose one with `weight_name`")
    for file in sorted(folder.glob("*")):
        if is_pickle(file.name):
            require_safetensors(file.name)
    raise ValueError(f"{folder} holds no LoRA; expected a file such as {LORA_WEIGHT_NAME_SAFE}")


def require_safetensors(name: str) -> None:
    """Raises `ValueError` for the name of a file that is not read or written, pickles above all."""
    if is_pickle(name):
        raise ValueError(pickle_refusal(name, LORA_WEIGHT_NAME_SAFE))
    if not name.endswith(SUFFIX):
        raise ValueError(f"{name} is no {SUFFIX} file; only these are read and written")


def in_peft_form(tensors: dict[str, torch.Tensor], description: LoraDescription) -> dict[str, torch.Tensor]:
    """The tensors under peft's names, `…lora_A.weight` and `…lora_B.weight`.

    Where a file has a tensor `alpha` for each layer, the matrix B is multiplied by alpha over rank, so that a scale of 1 is meant.

    Raises:
        ValueError: where the header names an alpha, too, or one belongs to no layer.
    """
    renamed = {}
    for name, tensor in tensors.items():
        old = next((old for old in PEFT_NAMES if name.endswith(old)), "")
        renamed[name.removesuffix(old) + PEFT_NAMES.get(old, "")] = tensor
    alphas = {name.removesuffix(ALPHA): renamed.pop(name) for name in list(renamed) if name.endswith(ALPHA)}
    if alphas and description.adapters:
        raise ValueError(
            f"the LoRA tells alpha twice, in its header and as a tensor, `{next(iter(alphas))}{ALPHA}`; remove one of them"
        )
    for layer, alpha in alphas.items():
        down, up = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        if down not in renamed or up not in renamed or alpha.numel() != 1:
            raise ValueError(
                f"`{layer}{ALPHA}` of the LoRA is no number that belongs to a pair of matrices `{down}` and `{up}`"
            )
        renamed[up] = renamed[up] * (alpha.item() / len(renamed[down]))
    return renamed


def split_by_component(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by component, under their names within it and in a fixed order; others are left out."""
    parts = {name: _with_prefix(dict(sorted(tensors.items())), name) for name in COMPONENTS}
    return {name: part for name, part in parts.items() if part}


def check_fit(model: torch.nn.Module, component: str, part: dict[str, torch.Tensor], base_model: str | None) -> None:
    """Raises `ValueError` where an adapter was made for a model of another shape; reads names and shapes only."""
    hint = f" It was trained on {base_model}." if base_model else ""
    for name, tensor in part.items():
        path, _, rest = name.partition(".lora_")
        try:
            layer = model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(
                f"the adapter changes `{path}` of the {component}, but the {component} of this pipeline has no such "
                f"layer; load the base model that it was made for.{hint}"
            ) from error
        side, axis = ("in_features", -1) if rest.startswith("A") else ("out_features", 0)
        expected = getattr(layer, side, None)
        if tensor.ndim == 2 and expected is not None and tensor.shape[axis] != expected:
            raise ValueError(
                f"the adapter was made for another {component}: `{path}` has {side} of {tensor.shape[axis]} there and "
                f"{expected} here; load the base model that it was made for.{hint}"
            )


def check_swap(model: torch.nn.Module, component: str, part: dict[str, torch.Tensor], adapter_name: str) -> None:
    """Raises `ValueError` where an adapter changes layers that the one in whose place it is put does not."""
    paths = sorted({name.partition(".lora_")[0] for name in part})
    new = [path for path in paths if adapter_name not in getattr(model.get_submodule(path), "lora_A", {})]
    if new:
        raise ValueError(
            f"cannot swap the adapter {adapter_name!r}: the new one changes {len(new)} layers of the {component} that it does not, such as "
            f"`{new[0]}`; load it under a name of its own, without `hotswap`"
        )


def _with_prefix(items: Mapping[str, Any], component: str) -> dict[str, Any]:
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in items.items() if name.startswith(prefix)}


def _to_json(value: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return sorted(value)
        raise TypeError(f"a {type(value).__name__} ({value!r}) cannot be written into the header of a LoRA file")

    return json.dumps(value, indent=2, sort_keys=True, default=plain)
