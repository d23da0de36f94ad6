"""Conditions in LoRA files: check that the tensors are those that the header describes, and that they fit the models.

The tensors have the models' own names, `planner.condition_embedder.<condition>.linear_1.weight` and so on.
`models/adapter_conditions.py` adds the conditions to a model.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..models.adapter_conditions import adapter_conditions, refuse_present
from ..models.conditions import MarDiniConditionEmbedding, hidden_size, read_config
from .lora_fit import check_values
from .lora_names import COMPONENTS


# The tensors of one condition.
_KEYS = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias", "null")
_NAME = re.compile(rf"({'|'.join(COMPONENTS)})\.condition_embedder\.\w+\.({'|'.join(map(re.escape, _KEYS))})")


def split_conditions(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the LoRA layers of a file, and its tensors of conditions; both under their names in the file."""
    conditions = {name: tensor for name, tensor in tensors.items() if _NAME.fullmatch(str(name))}
    return {name: tensor for name, tensor in tensors.items() if name not in conditions}, conditions


def refuse_disagreement(
    tensors: Mapping[str, torch.Tensor], conditions: Mapping[str, int] | None, info: Mapping[str, Any] | None
) -> None:
    """Raise `ValueError` unless a file has exactly the tensors of the described conditions, and layers of both models.

    Args:
        tensors: all of the file.
        conditions, info: the description.
    """
    described = read_config(conditions, info)
    layers, given = split_conditions(tensors)
    expected = {
        f"{part}.condition_embedder.{name}.{key}" for part in COMPONENTS for name in described for key in _KEYS
    }
    if more := sorted(given.keys() - expected):
        raise ValueError(
            f"the LoRA has tensors of conditions that its header does not describe, such as `{more[0]}`; give the file "
            "as it was written, header included"
        )
    if missing := sorted(expected - given.keys()):
        raise ValueError(
            f"the header of the LoRA describes the conditions {', '.join(described)}, but {len(missing)} of their "
            f"tensors are missing, such as `{missing[0]}`; get a whole file"
        )
    adapted = {name.split(".")[0] for name in layers}
    if described and adapted != set(COMPONENTS):
        raise ValueError(
            f"the LoRA adds the conditions {', '.join(described)} to both models, and changes layers of "
            f"{' and '.join(sorted(adapted)) or 'neither'}; one that adds conditions must change layers of both"
        )


def check_conditions(
    models: Mapping[str, torch.nn.Module],
    tensors: Mapping[str, torch.Tensor],
    conditions: Mapping[str, int] | None,
    info: Mapping[str, Any] | None,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Return the LoRA layers of a file, and the tensors of its conditions by component, after checking these.

    Args:
        models: by component.
        tensors: all of the file.
        conditions, info: its description.

    Raises:
        ValueError: if tensors and description disagree, a model has one of the conditions, or a tensor has another
            shape or no finite values.
    """
    refuse_disagreement(tensors, conditions, info)
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in models}
    for name, condition in read_config(conditions, info).items():
        for part, model in models.items():
            refuse_present(model, [name])
            with torch.device("meta"):
                expected = MarDiniConditionEmbedding(condition, hidden_size(model)).state_dict()
            for key in _KEYS:
                within = f"condition_embedder.{name}.{key}"
                tensor = tensors[f"{part}.{within}"]
                check_values(f"{part}.{within}", tensor)
                if tensor.shape != expected[key].shape:
                    raise ValueError(
                        f"`{part}.{within}` of the LoRA has the shape {tuple(tensor.shape)}, but its header and this "
                        f"{part} ask for {tuple(expected[key].shape)}; load the base model that it was made for"
                    )
                parts[part][within] = tensor
    return split_conditions(tensors)[0], parts


def refuse_swapped_conditions(
    models: Mapping[str, torch.nn.Module], adapter_name: str | None, conditions: Mapping[str, int] | None
) -> None:
    """Raise `ValueError` if a loaded adapter, or the one that is to replace it, adds conditions."""
    embeddings = [each for model in models.values() for each in adapter_conditions(model).values()]
    added = {each.condition.name for each in embeddings if each.adapter == adapter_name}
    if names := sorted(added.union(conditions or {})):
        raise ValueError(
            f"cannot swap the adapter {adapter_name!r}, since conditions would be added or taken away: "
            f"{', '.join(names)}; delete it with `delete_adapters`, and load the new one without `hotswap`"
        )
