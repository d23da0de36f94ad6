"""The weight of LoRA layers during one call of a model: `attention_kwargs={"scale": s}`.

Both models use it. diffusers' own decorator divides by the scale afterwards and, after a scale of 0, sets every weight
to 1, which loses the weights of `set_adapters`; here all weights are restored bit for bit.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch


def lora_scale(attention_kwargs: Mapping[str, Any] | None) -> float:
    """Return the `scale` of `attention_kwargs`, by default 1.

    Raises:
        ValueError: if it is no finite number.
    """
    if attention_kwargs is None:
        return 1.0
    if not isinstance(attention_kwargs, Mapping):
        raise ValueError(f'`attention_kwargs` is {attention_kwargs!r}; expected a dictionary such as {{"scale": 0.5}}')
    scale = attention_kwargs.get("scale")
    if scale is None:
        return 1.0
    return finite_number(scale, '`attention_kwargs["scale"]`')


def finite_number(value: Any, name: str) -> float:
    """Return `value` as a float.

    Args:
        value: a number, of NumPy too, or a tensor with one element.
        name: of the value in the error.

    Raises:
        ValueError: for text, for anything else that is no number, and for a number that is not finite.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    return number


def scales_lora(forward: Callable) -> Callable:
    """Decorate `forward`: multiply the weights of all active adapters by `attention_kwargs["scale"]` during the call.

    It raises `ValueError` for a scale that is no finite number, and for one other than 1 with gradient checkpointing
    or fused adapters.
    """
    position = list(inspect.signature(forward).parameters).index("attention_kwargs") - 1  # without `self`

    @functools.wraps(forward)
    def wrapper(self: torch.nn.Module, *args: Any, **kwargs: Any):
        scale = lora_scale(args[position] if len(args) > position else kwargs.get("attention_kwargs"))
        if scale == 1.0:
            return forward(self, *args, **kwargs)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            raise ValueError(
                f"`attention_kwargs` scales LoRA layers by {scale}, but with gradient checkpointing blocks run again "
                "when the scale is restored; choose the weight with `set_adapters` instead"
            )
        # Recognized by an attribute, so that peft need not be installed.
        layers = [module for module in self.modules() if hasattr(module, "scale_layer")]
        if any(layer.merged_adapters for layer in layers):
            raise ValueError(
                f"`attention_kwargs` scales LoRA layers by {scale}, but adapters are fused into the weights, which "
                "have one scale; choose it with `fuse_lora(lora_scale=...)`, or call `unfuse_lora()` first"
            )
        before = [copy_scaling(layer) for layer in layers]
        try:
            for layer in layers:
                layer.scale_layer(scale)
            return forward(self, *args, **kwargs)
        finally:
            for layer, weights in zip(layers, before, strict=True):
                put_back_scaling(layer, weights)

    return wrapper


def copy_scaling(layer: torch.nn.Module) -> dict[str, float | torch.Tensor]:
    """Return the weight of each adapter of a LoRA layer, independent of later changes."""
    scaling = getattr(layer, "scaling", {})  # some kinds of adapters have none
    return {name: weight.clone() if torch.is_tensor(weight) else weight for name, weight in scaling.items()}


def put_back_scaling(layer: torch.nn.Module, weights: dict[str, float | torch.Tensor]) -> None:
    """Set the weights that `copy_scaling` returned, those of adapters that the layer still has."""
    for name, weight in weights.items():
        if name not in layer.scaling:
            continue
        if torch.is_tensor(weight) and torch.is_tensor(layer.scaling[name]):
            layer.scaling[name].copy_(weight)  # compiled models that swap adapters keep using this tensor
        else:
            layer.scaling[name] = weight
