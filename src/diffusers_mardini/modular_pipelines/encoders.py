"""Blocks that run once per window, before the denoising: the autoencoder at both resolutions, and the planner (Sec.
2.2)."""

from typing import Any

from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from ..pipelines.inputs import whole_number
from ..pipelines.long_video import DECODE_CHUNK_SIZE
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.sampling_options import check_attention_kwargs
from .block import MarDiniBlock


CHUNK_SIZE = InputParam(
    "decode_chunk_size",
    type_hint=int,
    default=DECODE_CHUNK_SIZE,
    description="Most frames that the VAE encodes or decodes at once, which bounds the memory.",
)


class MarDiniVaeEncoderStep(MarDiniBlock):
    """Encode the given frames at the resolution of the transformer and, made smaller, at that of the planner."""

    parts = ("vae",)

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam("pixels", required=True, type_hint=Tensor, description="The given frames, in [-1, 1]."),
            CHUNK_SIZE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam("reference_latents", type_hint=Tensor, description="(batch, given frames, channels, h, w)."),
            OutputParam(
                "planner_latents", type_hint=Tensor, description="(batch, given frames, channels, h_low, w_low)."
            ),
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        chunk_size = whole_number(block_state.decode_chunk_size, CHUNK_SIZE.name, least=1)
        block_state.reference_latents = pipe.encode_frames(block_state.pixels, chunk_size)
        block_state.planner_latents = pipe.encode_low_frames(block_state.pixels, chunk_size)


class MarDiniPlannerStep(MarDiniBlock):
    """Compute the planning signals of the window: run the planner, once."""

    parts = ("planner",)

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam("planner_latents", required=True, type_hint=Tensor, description="Of the given frames, low."),
            InputParam("given_indices", required=True, type_hint=list[int], description="Their places."),
            InputParam("num_frames", required=True, type_hint=int, description="Frames of the window."),
            InputParam("attention_kwargs", type_hint=dict[str, Any], description='`{"scale": s}` scales LoRA layers.'),
            InputParam("conditions", type_hint=dict[str, Tensor], description="(batch, num_frames, channels) each."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam(
                "planning_signals", type_hint=Tensor, description="(batch, num_frames, rows, columns, planning_dim)."
            )
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        check_attention_kwargs(block_state.attention_kwargs)
        block_state.planning_signals = pipe.plan(
            block_state.planner_latents,
            block_state.given_indices,
            block_state.num_frames,
            block_state.attention_kwargs,
            block_state.conditions,
        )
