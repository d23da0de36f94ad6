"""Conditions that an adapter adds to a model; they count while the adapter is active, with its weight.

`conditions.py` embeds conditions. `adapters.py` stands on the mixin of this file, which does for them what diffusers'
`PeftAdapterMixin` does for LoRA layers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin

from .conditions import (
    Condition,
    MarDiniConditionEmbedder,
    MarDiniConditionEmbedding,
    hidden_size,
    read_config,
)


class AdapterConditionEmbedding(MarDiniConditionEmbedding):
    """Embeds a condition that an adapter adds, and multiplies the result by the adapter's weight.

    It has the attributes and methods of peft's layers by which `adapters.py` and `lora_scale.py` choose and weigh
    adapters.
    """

    merged_adapters: tuple[str, ...] = ()  # it is never fused

    def __init__(self, condition: Condition, dim: int, adapter: str):
        super().__init__(condition, dim)
        self.adapter = adapter
        self.active_adapters = [adapter]
        self.disable_adapters = False
        self.scaling = {adapter: 1.0}

    @property
    def rests(self) -> bool:
        """Return whether the adapter is not active."""
        return self.disable_adapters or self.adapter not in self.active_adapters

    def set_adapter(self, names: Iterable[str]) -> None:
        """Make these adapters active and no others; as in peft, those that are not do not learn."""
        self.active_adapters = list(names)
        self.requires_grad_(self.adapter in self.active_adapters)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off."""
        self.disable_adapters = not enabled

    def scale_layer(self, scale: float) -> None:
        """Multiply the weight of the adapter."""
        self.scaling[self.adapter] *= scale

    def forward(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embed values, see [`MarDiniConditionEmbedding.forward`], with the weight of the adapter."""
        embedded, weight = super().forward(values, dtype), self.scaling[self.adapter]
        return embedded if weight == 1.0 else embedded * weight


def adapter_conditions(model: torch.nn.Module) -> dict[str, AdapterConditionEmbedding]:
    """Return the embeddings that adapters have added to a model, by the condition's name."""
    embedder = getattr(model, "condition_embedder", None) or {}
    return {name: embedding for name, embedding in embedder.items() if embedding.adapter is not None}


def condition_parameters(model: torch.nn.Module, adapter_name: str) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of the conditions that an adapter has added to a model, by their names in the model."""
    added = adapter_conditions(model)
    return {
        f"condition_embedder.{name}.{key}": parameter
        for name in added
        if added[name].adapter == adapter_name
        for key, parameter in added[name].named_parameters()
    }


def refuse_present(model: torch.nn.Module, names: Iterable[str]) -> None:
    """Raise `ValueError` if a model has one of the conditions that an adapter is to add."""
    embedder = getattr(model, "condition_embedder", None) or {}
    for name in names:
        if name in embedder:
            if (owner := embedder[name].adapter) is not None:
                raise ValueError(
                    f"the adapter adds the condition {name!r}, as the loaded one {owner!r} does; unload that one first"
                )
            raise ValueError(
                f"the adapter adds the condition {name!r}, which this model has already; load the base model that it "
                "was made for"
            )


def add_adapter_conditions(
    model: Any,
    adapter_name: str,
    conditions: Mapping[str, int] | None,
    condition_info: Mapping[str, Mapping[str, Any]] | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Add the conditions of an active adapter to a model, whose configuration stays as it is.

    Args:
        model: the model.
        adapter_name: the adapter.
        conditions: names to numbers of channels.
        condition_info: see `conditions.INFO`.
        tensors: values for `condition_parameters`; by default new ones, which do not change the model's output.

    Raises:
        ValueError: if a condition cannot be used, or the model has it.
    """
    read = read_config(conditions, condition_info)
    refuse_present(model, read)
    if not read:
        return
    added = {
        name: AdapterConditionEmbedding(condition, hidden_size(model), adapter_name)
        for name, condition in read.items()
    }
    if model.condition_embedder is None:
        model.condition_embedder = MarDiniConditionEmbedder()
    # Offloaded in sequence, a model is on the meta device; diffusers offloads it anew after it has loaded an adapter.
    device = "cpu" if tensors is not None and model.device.type == "meta" else model.device
    for name, embedding in added.items():
        model.condition_embedder[name] = embedding.to(device, model.dtype).train(model.training)
    if tensors is not None:
        for key, parameter in condition_parameters(model, adapter_name).items():
            parameter.data.copy_(tensors[key])


def delete_adapter_conditions(model: Any, adapter_names: Iterable[str]) -> None:
    """Remove the conditions that these adapters have added to a model."""
    names = set(adapter_names)
    for name, embedding in adapter_conditions(model).items():
        if embedding.adapter in names:
            del model.condition_embedder[name]
    if model.condition_embedder is not None and not len(model.condition_embedder):
        del model.condition_embedder
        model.condition_embedder = None


class PeftConditionsMixin(PeftAdapterMixin):
    """Let the methods of diffusers that change adapters change their conditions, too."""

    def add_adapter(
        self,
        adapter_config: Any,
        adapter_name: str = "default",
        conditions: Mapping[str, int] | None = None,
        condition_info: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add an adapter for training, see [`~PeftAdapterMixin.add_adapter`], and conditions that are a part of it."""
        refuse_present(self, read_config(conditions, condition_info))
        super().add_adapter(adapter_config, adapter_name)
        add_adapter_conditions(self, adapter_name, conditions, condition_info)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Make adapters active and no others, see [`~PeftAdapterMixin.set_adapter`]."""
        super().set_adapter(adapter_name)
        self._choose_conditions([adapter_name] if isinstance(adapter_name, str) else adapter_name)

    def set_adapters(self, adapter_names: list[str] | str, weights: Any = None) -> None:
        """Make adapters active, each with a weight, see [`~PeftAdapterMixin.set_adapters`].

        Weights of single layers leave conditions at 1.
        """
        super().set_adapters(adapter_names, weights)
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._choose_conditions(names)
        each = dict(zip(names, weights if isinstance(weights, list) else [weights] * len(names)))
        for embedding in adapter_conditions(self).values():
            if embedding.adapter in each:
                weight = each[embedding.adapter]
                embedding.scaling[embedding.adapter] = 1.0 if weight is None or isinstance(weight, dict) else weight

    def disable_adapters(self) -> None:
        """Switch all adapters off, see [`~PeftAdapterMixin.disable_adapters`]."""
        super().disable_adapters()
        self._enable_conditions(False)

    def enable_adapters(self) -> None:
        """Switch the active adapters on, see [`~PeftAdapterMixin.enable_adapters`]."""
        super().enable_adapters()
        self._enable_conditions(True)

    def disable_lora(self) -> None:
        """Switch all adapters off, see [`~PeftAdapterMixin.disable_lora`]."""
        super().disable_lora()
        self._enable_conditions(False)

    def enable_lora(self) -> None:
        """Switch the active adapters on, see [`~PeftAdapterMixin.enable_lora`]."""
        super().enable_lora()
        self._enable_conditions(True)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete adapters, see [`~PeftAdapterMixin.delete_adapters`]."""
        delete_adapter_conditions(self, [adapter_names] if isinstance(adapter_names, str) else adapter_names)
        super().delete_adapters(adapter_names)

    def unload_lora(self) -> None:
        """Delete all adapters, see [`~PeftAdapterMixin.unload_lora`]."""
        delete_adapter_conditions(self, {embedding.adapter for embedding in adapter_conditions(self).values()})
        super().unload_lora()

    def _choose_conditions(self, names: list[str]) -> None:
        """Let the conditions of these adapters count, and no others of adapters."""
        for embedding in adapter_conditions(self).values():
            embedding.set_adapter(names)

    def _enable_conditions(self, enabled: bool) -> None:
        for embedding in adapter_conditions(self).values():
            embedding.enable_adapters(enabled)
