"""Options of sampling, and their checks: they travel from the public methods of the pipeline to its denoising loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..masking import leading_indices
from .inputs import whole_number


LEADING_GUIDANCE_SCALE = 2.5  # Sec. 3: for image-to-video; interpolation uses none


@dataclass(frozen=True)
class SamplingOptions:
    """The arguments of `MarDiniPipeline.__call__` and, `generated_noise`, of `extend` of the same names; `timesteps`
    overrides `num_inference_steps`."""

    num_inference_steps: int = 25
    timesteps: list[int] | None = None
    guidance_scale: float | None = None
    eta: float = 0.0
    generator: torch.Generator | list[torch.Generator] | None = None
    attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    use_window_state: bool = True
    generated_noise: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.generator, tuple):  # diffusers' `randn_tensor` knows lists alone
            object.__setattr__(self, "generator", list(self.generator))
        if isinstance(self.callback_on_step_end_tensor_inputs, str):  # one name, not its letters
            object.__setattr__(self, "callback_on_step_end_tensor_inputs", (self.callback_on_step_end_tensor_inputs,))

    @property
    def callback_tensor_inputs(self) -> list[str]:
        """Names of the tensors that the callback gets; diffusers' callback classes have their own."""
        if isinstance(self.callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            return list(self.callback_on_step_end.tensor_inputs)
        return list(self.callback_on_step_end_tensor_inputs or ())

    def guidance_for(self, given_indices: Sequence[int]) -> float:
        """Return the guidance scale of the caller or, by default, that of the task (Sec. 3)."""
        if self.guidance_scale is not None:
            return float(self.guidance_scale)
        return LEADING_GUIDANCE_SCALE if list(given_indices) == leading_indices(len(given_indices)) else 1.0


def check_options(options: SamplingOptions, num_videos: int, tensor_inputs: Sequence[str], most_steps: int) -> None:
    """Check the options of a caller; `schedulers/compatibility.py` checks whether the scheduler supports them.

    Args:
        options: as the caller gave them.
        num_videos: number of videos to sample.
        tensor_inputs: names of the tensors that a callback may get.
        most_steps: noise levels of the scheduler.

    Raises:
        ValueError: for every argument that cannot be used.
    """
    if options.timesteps is None:
        steps = whole_number(options.num_inference_steps, "num_inference_steps", least=1)
        if steps > most_steps:
            raise ValueError(
                f"`num_inference_steps` is {steps}, but the scheduler has {most_steps} noise levels; lower it"
            )
    elif not _are_numbers(options.timesteps):
        raise ValueError(f"`timesteps` is {options.timesteps!r}; give a list of noise levels, falling")
    if options.guidance_scale is not None and not _is_number(options.guidance_scale):
        raise ValueError(f"`guidance_scale` is {options.guidance_scale!r}; give a finite number")
    if not _is_number(options.eta) or not 0 <= options.eta <= 1:
        raise ValueError(f"`eta` is {options.eta!r}; give 0 (deterministic) to 1 (as much fresh noise as DDPM adds)")
    if not isinstance(options.use_window_state, (bool, np.bool_)):
        raise ValueError(f"`use_window_state` is {options.use_window_state!r}; give True or False")
    if not _is_number(options.generated_noise) or not 0 <= options.generated_noise < 1:
        raise ValueError(
            f"`generated_noise` is {options.generated_noise!r}; give a share of the noise levels, from 0 (none) to "
            "below 1"
        )
    check_attention_kwargs(options.attention_kwargs)
    _check_generator(options.generator, num_videos)
    _check_callback(options, tensor_inputs)


def check_attention_kwargs(attention_kwargs: Any) -> None:
    """Raise `ValueError` for anything but `None` and a dictionary with a finite `scale`."""
    if attention_kwargs is None:
        return
    if not isinstance(attention_kwargs, dict):
        raise ValueError(f"`attention_kwargs` is {attention_kwargs!r}; give a dictionary or `None`")
    unknown = [key for key in attention_kwargs if key != "scale"]
    if unknown:
        raise ValueError(f"`attention_kwargs` names {unknown}, which are not used; give `scale` alone")
    if "scale" in attention_kwargs and not _is_number(attention_kwargs["scale"]):
        raise ValueError(
            f"`attention_kwargs` has a `scale` of {attention_kwargs['scale']!r}; give a finite number, or leave it out"
        )


def tensors_of_callback(returned: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `tensors`, replaced by those that a callback returned; `None` replaces none.

    Raises:
        ValueError: for anything but a dictionary, and for tensors of another shape.
    """
    if returned is None:
        return dict(tensors)
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"`callback_on_step_end` returned something of type {type(returned).__name__}; return the dictionary of "
            "tensors that it was given, changed or not, or `None` to change nothing"
        )
    kept = {name: returned.get(name, tensor) for name, tensor in tensors.items()}
    for name, tensor in kept.items():
        shape = tuple(tensors[name].shape)
        if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
            got = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"`callback_on_step_end` returned `{name}` as {got}; return a tensor shaped {shape}")
    return kept


def _check_generator(generator: Any, num_videos: int) -> None:
    generators = generator if isinstance(generator, list) else [generator]
    if isinstance(generator, list) and len(generators) != num_videos:
        raise ValueError(
            f"`generator` is a list of {len(generators)}, but {num_videos} videos are sampled (batch times "
            "`num_videos_per_prompt`); give one generator for each, or a single one for all"
        )
    for one in generators:
        if one is not None and not isinstance(one, torch.Generator):
            raise ValueError(
                f"`generator` holds something of type {type(one).__name__}; give a `torch.Generator`, for "
                "instance `torch.Generator().manual_seed(0)`, or a list of them"
            )


def _check_callback(options: SamplingOptions, tensor_inputs: Sequence[str]) -> None:
    callback = options.callback_on_step_end
    if callback is not None and not callable(callback):
        raise ValueError(f"`callback_on_step_end` is of type {type(callback).__name__}; give a function")
    try:
        names = options.callback_tensor_inputs
    except TypeError as error:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` is {options.callback_on_step_end_tensor_inputs!r}; give a list "
            f"with some of {list(tensor_inputs)}"
        ) from error
    unknown = [name for name in names if name not in tensor_inputs]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` names {unknown}; choose from {list(tensor_inputs)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    """Return whether `values` is a list, an array or a tensor of finite numbers, and not empty."""
    try:
        if np.ndim(values) != 1 or len(values) == 0:
            return False
        return all(math.isfinite(value) and not isinstance(value, (bool, np.bool_)) for value in values)
    except (TypeError, ValueError):
        return False
