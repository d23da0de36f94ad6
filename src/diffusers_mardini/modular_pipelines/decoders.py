"""Last block: from latents to pictures."""

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from ..pipelines.pasting import OwnPixels
from ..pipelines.pipeline_mardini import MarDiniPipeline
from .before_denoise import NUM_VIDEOS, PASTING_INPUTS
from .block import MarDiniBlock
from .encoders import CHUNK_SIZE


class MarDiniDecoderStep(MarDiniBlock):
    """Decode the window, given frames included, or put their own pixels there."""

    parts = ("vae",)

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="Clean latents of all frames."),
            InputParam("output_type", type_hint=str, default="pil", description="`pil`, `np`, `pt` or `latent`."),
            CHUNK_SIZE,
            InputParam("pixels", type_hint=torch.Tensor, description="The given frames, in [-1, 1]; to be pasted."),
            InputParam("given_indices", type_hint=list[int], description="Their places; to be pasted."),
            *PASTING_INPUTS,
            NUM_VIDEOS,
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
        own = None
        if block_state.paste_given:
            if block_state.pixels is None or block_state.given_indices is None:
                raise ValueError("`paste_given` needs the given frames, `pixels` and `given_indices`; pass both")
            pixels = block_state.pixels.repeat_interleave(block_state.num_videos_per_prompt, dim=0)
            own = OwnPixels(pixels, block_state.given_indices, block_state.blend)
        block_state.videos = pipe.decode(
            block_state.latents, block_state.output_type, block_state.decode_chunk_size, own
        )
