"""Last block: from latents to pictures."""

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from ..pipelines.pipeline_mardini import MarDiniPipeline
from .block import MarDiniBlock
from .encoders import CHUNK_SIZE


class MarDiniDecoderStep(MarDiniBlock):
    """Decode the window, given frames included."""

    parts = ("vae",)

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="Clean latents of all frames."),
            InputParam("output_type", type_hint=str, default="pil", description="`pil`, `np`, `pt` or `latent`."),
            CHUNK_SIZE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam(
                "videos",
                type_hint=torch.Tensor | np.ndarray | list[list[PIL.Image.Image]],
                description="As `MarDiniPipelineOutput.frames`.",
            )
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        block_state.videos = pipe.decode(block_state.latents, block_state.output_type, block_state.decode_chunk_size)
