"""Blocks before the denoising: validate the sampling options before any model runs; draw the noise."""

from dataclasses import fields
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from ..pipelines.conditions import read_conditions
from ..pipelines.inputs import whole_number
from ..pipelines.pasting import check_pasting
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.sampling_options import SamplingOptions
from .block import MarDiniBlock


# Names, types and defaults are those of `SamplingOptions`.
DESCRIPTIONS = {
    "num_inference_steps": "Number of denoising steps.",
    "timesteps": "Noise levels to visit, falling; overrides `num_inference_steps`.",
    "guidance_scale": "By default 2.5 if only leading frames are given, otherwise 1.0 (none).",
    "eta": "Fresh noise per step, for schedulers that accept it.",
    "generator": "Source of the noise; a list has one per video.",
    "attention_kwargs": '`{"scale": s}` scales LoRA layers.',
    "callback_on_step_end": (
        "Called as `callback(pipe, step, timestep, tensors)`, where `pipe` is a `MarDiniPipeline` of the same parts."
    ),
    "callback_on_step_end_tensor_inputs": "Names of the tensors it gets: `latents`, `planning_signals`.",
}
SAMPLING_INPUTS = [
    InputParam(
        option.name,
        type_hint=option.type,
        default=option.default,
        description=DESCRIPTIONS.get(option.name, "As in `MarDiniPipeline.__call__`."),
    )
    for option in fields(SamplingOptions)
    if option.name != "generated_noise"  # of videos longer than a window
]
PASTING_INPUTS = [
    InputParam("paste_given", type_hint=bool, default=False, description="Given frames keep their own pixels."),
    InputParam("blend", type_hint=int, default=0, description="Sampled frames over which these fade in."),
]
NUM_VIDEOS = InputParam("num_videos_per_prompt", type_hint=int, default=1, description="Videos for each row.")
NOISE = InputParam(
    "latents", type_hint=torch.Tensor, description="The noise itself, (videos, num_frames, channels, h, w)."
)

CONDITIONS = InputParam(
    "conditions",
    type_hint=dict[str, Any],
    description="Conditions of the frames, by name; (num_frames, channels) each.",
)


class MarDiniSamplingOptionsStep(MarDiniBlock):
    """Validate the sampling options, before any model runs."""

    parts = ("vae", "transformer", "scheduler")

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam("pixels", required=True, type_hint=torch.Tensor, description="The given frames."),
            InputParam("given_indices", required=True, type_hint=list[int], description="Their places."),
            InputParam("num_frames", required=True, type_hint=int, description="Frames of the window."),
            *SAMPLING_INPUTS,
            NUM_VIDEOS,
            NOISE,
            InputParam("output_type", type_hint=str, default="pil", description="`pil`, `np`, `pt` or `latent`."),
            *PASTING_INPUTS,
            CONDITIONS,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam("sampling_options", type_hint=SamplingOptions, description="The arguments, checked."),
            OutputParam(
                "latents_shape", type_hint=tuple[int, ...], description="(videos, num_frames, channels, h, w)."
            ),
            OutputParam(
                "conditions", type_hint=dict[str, torch.Tensor], description="(batch, num_frames, channels) each."
            ),
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        options = SamplingOptions(**{param.name: getattr(block_state, param.name) for param in SAMPLING_INPUTS})
        batch, _, _, height, width = block_state.pixels.shape
        per_row = whole_number(block_state.num_videos_per_prompt, "num_videos_per_prompt", least=1)
        shape = pipe.latents_shape(batch * per_row, block_state.num_frames, height, width)
        pipe.check_inputs(
            options, batch * per_row, block_state.output_type, block_state.latents, shape, block_state.given_indices
        )
        check_pasting(block_state.paste_given, block_state.blend, block_state.output_type)
        block_state.conditions = read_conditions(
            block_state.conditions, pipe.conditions, batch, block_state.num_frames
        )
        pipe.set_timesteps(options)
        pipe._reset_call()
        block_state.sampling_options = options
        block_state.latents_shape = shape


class MarDiniPrepareLatentsStep(MarDiniBlock):
    """Draw the noise, and repeat the tensors of a row of the batch for each of its videos."""

    parts = ("scheduler",)

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam("sampling_options", required=True, type_hint=SamplingOptions, description="Has the generator."),
            InputParam("latents_shape", required=True, type_hint=tuple[int, ...], description="Of the noise."),
            InputParam(
                "reference_latents", required=True, type_hint=torch.Tensor, description="A row for each of the batch."
            ),
            InputParam(
                "planning_signals", required=True, type_hint=torch.Tensor, description="A row for each of the batch."
            ),
            CONDITIONS,
            NUM_VIDEOS,
            NOISE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam("latents", type_hint=torch.Tensor, description="The noise at the scheduler's first level."),
            OutputParam("reference_latents", type_hint=torch.Tensor, description="A row for each video."),
            OutputParam("planning_signals", type_hint=torch.Tensor, description="A row for each video."),
            OutputParam("conditions", type_hint=dict[str, torch.Tensor], description="A row for each video."),
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        for name in ("reference_latents", "planning_signals"):
            rows = getattr(block_state, name)
            setattr(block_state, name, rows.repeat_interleave(block_state.num_videos_per_prompt, dim=0))
        block_state.conditions = {
            name: rows.repeat_interleave(block_state.num_videos_per_prompt, dim=0)
            for name, rows in (block_state.conditions or {}).items()
        }
        block_state.latents = pipe.prepare_latents(
            block_state.latents_shape, block_state.sampling_options.generator, block_state.latents
        )
