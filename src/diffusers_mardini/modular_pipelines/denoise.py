"""The denoising of a window (Sec. 3) as a block."""

from typing import Any

from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.sampling_options import SamplingOptions
from .block import MarDiniBlock


class MarDiniDenoiseStep(MarDiniBlock):
    """Sample the masked frames of the window.

    The whole loop is one block, with guidance and caches as in `MarDiniPipeline`; `callback_on_step_end` runs code
    between steps.
    """

    parts = ("transformer", "scheduler")

    def __init__(self):
        super().__init__()
        self._progress_bar_config: dict[str, Any] = {}

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Set options of the progress bar; the modular pipeline's method of the same name calls it."""
        self._progress_bar_config = kwargs

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam(
                "latents", required=True, type_hint=Tensor, description="Noise at the scheduler's first level."
            ),
            InputParam(
                "reference_latents", required=True, type_hint=Tensor, description="Clean, of the given frames."
            ),
            InputParam("given_indices", required=True, type_hint=list[int], description="Their places."),
            InputParam("planning_signals", required=True, type_hint=Tensor, description="A row for each video."),
            InputParam("sampling_options", required=True, type_hint=SamplingOptions, description="How to sample."),
            InputParam("conditions", type_hint=dict[str, Tensor], description="A row for each video."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam(
                "latents", type_hint=Tensor, description="Clean, (videos, num_frames, channels, h, w), in float32."
            )
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        pipe.set_progress_bar_config(**self._progress_bar_config)
        with pipe.progress_bar(total=pipe.set_timesteps(block_state.sampling_options)) as progress_bar:
            block_state.latents = pipe.denoise(
                block_state.latents,
                block_state.reference_latents,
                block_state.given_indices,
                block_state.planning_signals,
                block_state.sampling_options,
                progress_bar,
                block_state.conditions,
            )
        pipe.maybe_free_model_hooks()  # frees features of caches
