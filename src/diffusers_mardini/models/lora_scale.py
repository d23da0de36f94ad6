"""The weight of LoRA layers during one call of a model: `attention_kwargs={"scale": s}`.

Both models use it. diffusers' own decorator divides by the scale afterwards and, after a scale of 0, sets every weight to 1,
so that what `set_adapters` had chosen is lost; here all weights are put back as they were, to the bit.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def scales_lora(forward: Callable) -> Callable:
    """Decorates `forward`: multiplies the weights of all active adapters by `attention_kwargs["scale"]` meanwhile.

    It raises `ValueError` for a scale other than 1 where that cannot be: with gradient checkpointing, and of adapters that are fused.
    """
    position = list(inspect.signature(forward).parameters).index("attention_kwargs") - 1  # without `self`

    @functools.wraps(forward)
    def wrapper(self: torch.nn.Module, *args: Any, **kwargs: Any):
        attention_kwargs = args[position] if len(args) > position else kwargs.get("attention_kwargs")
        scale = 1.0 if attention_kwargs is None else attention_kwargs.get("scale", 1.0)
        if scale == 1.0:
            return forward(self, *args, **kwargs)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            raise ValueError(
                f"`attention_kwargs` scales LoRA layers by {scale}, but with gradient checkpointing blocks run again when the scale has been "
                "put back; choose the weight with `set_adapters` instead"
            )
        # Known by what they have, so that peft need not be there to be asked.
        layers = [module for module in self.modules() if hasattr(module, "scale_layer")]
        if any(layer.merged_adapters for layer in layers):
            raise ValueError(
                f"`attention_kwargs` scales LoRA layers by {scale}, but adapters are fused into the weights, which have one scale; choose it with "
                "`fuse_lora(lora_scale=...)`, or call `unfuse_lora()` first"
            )
        before = [_copy(layer.scaling) for layer in layers]
        try:
            for layer in layers:
                layer.scale_layer(scale)
            return forward(self, *args, **kwargs)
        finally:
            for layer, weights in zip(layers, before, strict=True):
                _put_back(layer.scaling, weights)

    return wrapper


def _copy(scaling: dict[str, float | torch.Tensor]) -> dict[str, float | torch.Tensor]:
    return {name: weight.clone() if torch.is_tensor(weight) else weight for name, weight in scaling.items()}


def _put_back(scaling: dict[str, float | torch.Tensor], weights: dict[str, float | torch.Tensor]) -> None:
    for name, weight in weights.items():
        if torch.is_tensor(weight):
            scaling[name].copy_(weight)  # compiled models that swap adapters hold on to this tensor
        else:
            scaling[name] = weight
