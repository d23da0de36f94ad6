"""Refuse weights that are no safetensors or not complete, and say how to convert or repair them.

diffusers reads the weights. Files of adapters are in `loaders/lora_files.py`; `hub.py` decides which files may be
shared.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME


SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
LISTED = 3  # tensors named in a message


def is_pickle(name: str) -> bool:
    """Return whether `name` is the name of a pickle."""
    return Path(name).suffix.lower() in PICKLES


def pickle_refusal(name: str, converted: str) -> str:
    """Return the sentence that refuses the pickle `name` and says how to make `converted` of it."""
    return (
        f"{name} is a pickle, and unpickling a file can run any code in it: only {SUFFIX} is read "
        "and written. Convert a file of your own with `safetensors.torch.save_file(torch.load(file, "
        f"weights_only=True), '{converted}')`"
    )


def local_folder(path: str | os.PathLike) -> Path | None:
    """Return the folder on this machine at `path`, with `~` expanded; `None` for an id on the Hub.

    Raises:
        ValueError: for a path of nothing or of a file.
    """
    given, path = str(path), Path(path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{path} is a file; give its folder")
    # An id is owner/name.
    if given.startswith((".", "~")) or "\\" in given or path.is_absolute() or len(path.parts) > 2:
        raise ValueError(
            f"there is no folder {path}; give the folder of a saved pipeline or model, or an id on the Hub "
            "(owner/name)"
        )
    return None


def require_safetensors_argument(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `from_pretrained` with `use_safetensors=True`; by default diffusers falls back to pickles.

    Raises:
        ValueError: for `use_safetensors=False`.
    """
    if arguments.get("use_safetensors") not in (None, True):
        raise ValueError(
            f"`use_safetensors` is {arguments['use_safetensors']!r}, but weights are read from {SUFFIX} alone; leave "
            "it out"
        )
    return {**arguments, "use_safetensors": True}


def check_weight_files(folder: Path, variant: str | None = None) -> None:
    """Refuse weights in a model's folder on this machine that would be unpickled; diffusers reports missing ones.

    Raises:
        ValueError: if there are pickles and no safetensors, or an index of shards names other files than safetensors.
    """
    for index in sorted(folder.glob(f"*{SUFFIX}.index*.json")):
        for name in _shards(index):
            if not str(name).endswith(SUFFIX):
                raise ValueError(
                    f"{index} names {name}, but weights are read from {SUFFIX} alone; save the model again"
                )
    there = sorted(path.name for path in folder.glob("*"))
    for infix in (f".{variant}.", ".") if variant else (".",):  # a part of a pipeline may have no files of the variant
        wanted = [f"{infix}".join(name.rsplit(".", 1)) for name in (SAFETENSORS_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
        pickles = [name for name in there if is_pickle(name) and infix in name]
        if any(name in there for name in wanted):
            return
        if pickles:
            raise ValueError(pickle_refusal(str(folder / pickles[0]), str(folder / wanted[0])))


def check_tensors(origin: Any, model_name: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    """Raise `ValueError` if a checkpoint lacks tensors of its model, or has tensors that the model does not."""
    hint = "was the configuration edited, or a file copied or merged in part? Save or download it again"
    if missing:
        raise ValueError(f"{origin} lacks {_named(missing)} of {model_name}; {hint}")
    if unexpected:
        raise ValueError(f"{origin} holds {_named(unexpected)} for which {model_name} has no place; {hint}")


def empty_tensors(model: torch.nn.Module) -> list[str]:
    """Return the names of tensors without values; of a model that accelerate offloads, none."""
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return []
    return [name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} does not say which shard holds which tensor; save the model again") from error


def _named(tensors: Collection[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in sorted(tensors)[:LISTED])
    count = len(tensors)
    if count == 1:
        return f"the tensor {listed}"
    return f"the {count} tensors {listed}" + (" and others" if count > LISTED else "")
