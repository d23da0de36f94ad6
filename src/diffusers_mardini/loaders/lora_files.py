"""Read and write LoRA files: safetensors, with a description of the adapter in the header.

Tensors are named `planner.…` and `transformer.…`. The header holds the configuration of the adapter in the form that
all diffusers loaders read, and the adapter's origin and conditions under a key of ours. `lora.py` puts adapters into
models, `lora_names.py` and `lora_conditions.py` interpret names.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE, _fetch_state_dict

from ..format_version import LORA_DESCRIPTION_KEY
from ..models.adapters import require_safetensors
from ..weights import SUFFIX, is_pickle
from .lora_conditions import split_conditions
from .lora_names import in_peft_form


HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
PEFT_CONFIG = "adapter_config.json"  # beside weights that peft saved


@dataclass(frozen=True)
class LoraDescription:
    """The content of a LoRA file's header.

    Attributes:
        adapters: for each component that the file adapts, the arguments of peft's `LoraConfig`: `r`, `lora_alpha`,
            `target_modules`, `use_dora` and so on. Empty for a file without them; under `""` for a file of one model
            that does not name it.
        base_model: the folder or Hub id of the pipeline that the adapter was trained on, if known.
        training_config: the configuration of its training, if known.
        conditions: names to numbers of channels of the conditions that the adapter adds to both models.
        condition_info: names of their channels, units, ranges and more, as in the models' configurations.
    """

    adapters: dict[str, dict[str, Any]]
    base_model: str | None = None
    training_config: dict[str, Any] | None = None
    conditions: dict[str, int] | None = None
    condition_info: dict[str, dict[str, Any]] | None = None


def write_lora_file(
    folder: str | os.PathLike, weight_name: str | None, tensors: dict[str, torch.Tensor], description: LoraDescription
) -> Path:
    """Write tensors and their description; an older file of the same name is replaced in one step or not at all.

    Raises:
        ValueError: for a name without the suffix of safetensors, or a folder that is a file.
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
    ours = {key: value for key, value in vars(description).items() if key != "adapters" and value is not None}
    if ours:
        metadata[LORA_DESCRIPTION_KEY] = _to_json(ours)

    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{weight_name}.unfinished"
    # Cloned: safetensors refuses views of one storage, and a state dict may hold them.
    safetensors.torch.save_file(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, unfinished, metadata
    )
    os.replace(unfinished, folder / weight_name)
    return folder / weight_name


def read_lora(
    source: str | os.PathLike | dict[str, torch.Tensor],
    weight_name: str | None = None,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    **hub_arguments: Any,
) -> tuple[dict[str, torch.Tensor], LoraDescription]:
    """Return the tensors of a LoRA, with names that end as peft's do, and its description.

    Args:
        source: a folder, a file, an id on the Hub, or the tensors themselves.
        weight_name: the file in the folder.
        subfolder: a folder within the folder.
        use_safetensors: as in diffusers; `False` is refused.
        hub_arguments: those of `HUB_ARGUMENTS`.

    Raises:
        ValueError: for pickles, ambiguous folders, damaged files and tensors that belong to no LoRA.
    """
    unknown = sorted(hub_arguments.keys() - set(HUB_ARGUMENTS))
    if unknown:
        raise ValueError(f"unknown arguments {unknown}; accepted are {', '.join(HUB_ARGUMENTS)}")
    if use_safetensors is False:
        raise ValueError("`use_safetensors=False` would unpickle a file; only .safetensors is read")
    if isinstance(source, dict):
        return _in_our_form(source, has_alpha=False), LoraDescription({})
    file = local_lora_file(source, weight_name, subfolder)
    hub_arguments = {name: hub_arguments.get(name) for name in HUB_ARGUMENTS}
    try:
        tensors, _, header = _fetch_state_dict(
            str(source if file is None else file),
            weight_name=weight_name if file is None else None,
            use_safetensors=True,
            subfolder=subfolder if file is None else None,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            return_file_metadata=True,
            **hub_arguments,
        )
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{file or source} cannot be read as a LoRA in safetensors ({error})") from error
    description = read_description(header, str(file or source))
    if not description.adapters and any(name.startswith("base_model.") for name in tensors):
        config = _peft_config(source, file, subfolder, hub_arguments)
        description = replace(description, adapters={"": config} if config else {})
    return _in_our_form(tensors, has_alpha=bool(description.adapters)), description


def _in_our_form(tensors: dict[str, torch.Tensor], has_alpha: bool) -> dict[str, torch.Tensor]:
    """Return LoRA layers under peft's names, and conditions under the models' own."""
    layers, conditions = split_conditions(tensors)
    return conditions | (in_peft_form(layers, has_alpha) if layers or not conditions else {})


def read_description(metadata: Mapping[str, str] | None, file: str) -> LoraDescription:
    """Return the description in the header of a LoRA file.

    Raises:
        ValueError: if it cannot be read.
    """
    metadata = metadata or {}
    try:
        adapters: dict[str, dict[str, Any]] = {}
        for key, value in json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}")).items():
            component, _, argument = key.rpartition(".")
            adapters.setdefault(component, {})[argument] = value
        return LoraDescription(adapters=adapters, **json.loads(metadata.get(LORA_DESCRIPTION_KEY, "{}")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"the header of {file} cannot be read as that of a LoRA ({error})") from error


def _peft_config(
    source: str | os.PathLike, file: Path | None, subfolder: str | None, hub_arguments: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the configuration that peft saves beside weights, `None` if there is none."""
    from peft import LoraConfig, PeftConfig

    if file is not None:
        if not (file.parent / PEFT_CONFIG).is_file():
            return None
        source, subfolder, hub_arguments = file.parent, None, {}
    try:
        given = {name: value for name, value in hub_arguments.items() if value is not None}
        config = PeftConfig.from_pretrained(str(source), subfolder=subfolder, **given)
    except (ValueError, TypeError, KeyError, OSError) as error:
        if file is None:
            return None  # most repositories on the Hub have none
        raise ValueError(
            f"{file.parent / PEFT_CONFIG} cannot be read as the configuration of a LoRA ({error})"
        ) from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{source} is an adapter of the kind {config.peft_type}; only LoRA is loaded")
    return config.to_dict()


def local_lora_file(path: str | os.PathLike, weight_name: str | None, subfolder: str | None) -> Path | None:
    """Return the safetensors file that a local path means; `None` if it is not a local path but an id on the Hub.

    Raises:
        ValueError: for pickles, for a path that does not exist and for a folder with several files to choose from.
    """
    if weight_name is not None:
        require_safetensors(weight_name)
    looks_local = str(path).startswith((".", "~"))
    path = Path(path).expanduser()
    if path.is_file():
        require_safetensors(path.name)
        return path
    if not path.exists() and (looks_local or path.is_absolute() or len(path.parts) > 2):  # an id is owner/name
        raise ValueError(f"there is no {path}; give a folder, a {SUFFIX} file or an id on the Hub")
    if not path.is_dir():
        return None
    folder = path / subfolder if subfolder else path
    files = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if weight_name is not None:
        if not (folder / weight_name).is_file():
            raise ValueError(f"there is no {folder / weight_name}; the folder holds {', '.join(files) or 'no LoRA'}")
        return folder / weight_name
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


def _to_json(value: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return sorted(value)
        raise TypeError(f"a {type(value).__name__} ({value!r}) cannot be written into the header of a LoRA file")

    return json.dumps(value, indent=2, sort_keys=True, default=plain)
