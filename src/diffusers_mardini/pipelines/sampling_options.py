"""How a window is sampled: what travels from the public methods of the pipeline to its denoising loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ..masking import leading_indices


LEADING_GUIDANCE_SCALE = 2.5  # Sec. 3: for image-to-video; interpolation uses none


@dataclass(frozen=True)
class SamplingOptions:
    """The arguments of `MarDiniPipeline.__call__` of the same names; `timesteps` goes before `num_inference_steps`."""

    num_inference_steps: int = 25
    timesteps: list[int] | None = None
    guidance_scale: float | None = None
    eta: float = 0.0
    generator: torch.Generator | list[torch.Generator] | None = None
    attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    use_window_state: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.generator, tuple):  # diffusers' `randn_tensor` knows lists alone
            object.__setattr__(self, "generator", list(self.generator))

    @property
    def callback_tensor_inputs(self) -> list[str]:
        """Names of the tensors that the callback gets; diffusers' callback classes bring their own."""
        if isinstance(self.callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            return list(self.callback_on_step_end.tensor_inputs)
        return list(self.callback_on_step_end_tensor_inputs or ())

    def guidance_for(self, frame_indices: Sequence[int]) -> float:
        """The guidance scale: what the caller said, or else what the task asks for (Sec. 3)."""
        if self.guidance_scale is not None:
            return float(self.guidance_scale)
        return LEADING_GUIDANCE_SCALE if list(frame_indices) == leading_indices(len(frame_indices)) else 1.0
