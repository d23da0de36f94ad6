"""Blocks before the denoising: how is sampled, checked before a model runs, and the noise that it starts from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from ..pipelines.inputs import whole_number
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.sampling_options import SamplingOptions
from .block import MarDiniBlock


SAMPLING_INPUTS = [
    InputParam("num_inference_steps", type_hint=int, default=25, description="Number of denoising steps."),
    InputParam("timesteps", type_hint=list[int], description="Noise levels to visit, falling, instead of a number."),
    InputParam(
        "guidance_scale",
        type_hint=float,
        description="By default 2.5 where only leading frames are given, else 1.0 (none).",
    ),
    InputParam("eta", type_hint=float, default=0.0, description="Fresh noise per step, for schedulers that take it."),
    InputParam("generator", type_hint=torch.Generator, description="Source of the noise; a list has one per video."),
    InputParam("attention_kwargs", type_hint=dict[str, Any], description='`{"scale": s}` scales LoRA layers.'),
    InputParam(
        "callback_on_step_end",
        type_hint=Callable,
        description="Called as `callback(pipe, step, timestep, tensors)`, where `pipe` is a `MarDiniPipeline` of the same parts.",
    ),
    InputParam(
        "callback_on_step_end_tensor_inputs",
        type_hint=Sequence[str],
        default=("latents",),
        description="Which tensors it gets: `latents`, `planning_signals`.",
    ),
]
NUM_VIDEOS = InputParam("num_videos_per_prompt", type_hint=int, default=1, description="Videos for each row.")
NOISE = InputParam(
    "latents", type_hint=torch.Tensor, description="The noise itself, (videos, num_frames, channels, h, w)."
)


class MarDiniSamplingOptionsStep(MarDiniBlock):
    """Checks how the window is to be sampled, before any model runs."""

    parts = ("vae", "transformer", "scheduler")

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("pixels", required=True, type_hint=torch.Tensor, description="The given frames."),
            InputParam("num_frames", type_hint=int, default=9, description="Frames of the window."),
            *SAMPLING_INPUTS,
            NUM_VIDEOS,
            NOISE,
            InputParam("output_type", type_hint=str, default="pil", description="`pil`, `np`, `pt` or `latent`."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("sampling_options", type_hint=SamplingOptions, description="The arguments, checked."),
            OutputParam(
                "latents_shape", type_hint=tuple[int, ...], description="(videos, num_frames, channels, h, w)."
            ),
        ]

    def run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        options = SamplingOptions(**{param.name: getattr(block_state, param.name) for param in SAMPLING_INPUTS})
        batch, _, _, height, width = block_state.pixels.shape
        per_row = whole_number(block_state.num_videos_per_prompt, "num_videos_per_prompt", least=1)
        shape = pipe._latents_shape(batch * per_row, block_state.num_frames, height, width)
        pipe.check_inputs(options, batch * per_row, block_state.output_type, block_state.latents, shape)
        pipe._set_timesteps(options)
        pipe._reset_call()
        block_state.sampling_options = options
        block_state.latents_shape = shape


class MarDiniPrepareLatentsStep(MarDiniBlock):
    """Draws the noise, and repeats what belongs to a row of the batch for each of its videos."""

    parts = ("scheduler",)

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("sampling_options", required=True, type_hint=SamplingOptions, description="Has the generator."),
            InputParam("latents_shape", required=True, type_hint=tuple[int, ...], description="Of the noise."),
            InputParam(
                "reference_latents", required=True, type_hint=torch.Tensor, description="A row for each of the batch."
            ),
            InputParam(
                "planning_signals", required=True, type_hint=torch.Tensor, description="A row for each of the batch."
            ),
            NUM_VIDEOS,
            NOISE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("latents", type_hint=torch.Tensor, description="The noise at the scheduler's first level."),
            OutputParam("reference_latents", type_hint=torch.Tensor, description="A row for each video."),
            OutputParam("planning_signals", type_hint=torch.Tensor, description="A row for each video."),
        ]

    def run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        for name in ("reference_latents", "planning_signals"):
            rows = getattr(block_state, name)
            setattr(block_state, name, rows.repeat_interleave(block_state.num_videos_per_prompt, dim=0))
        block_state.latents = pipe.prepare_latents(
            block_state.latents_shape, block_state.sampling_options.generator, block_state.latents
        )
