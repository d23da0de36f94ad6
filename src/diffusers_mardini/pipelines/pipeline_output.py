"""The output of `MarDiniPipeline`."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class MarDiniPipelineOutput(BaseOutput):
    """The sampled videos, given frames included.

    Args:
        frames: for `output_type="pil"` a list of videos, each a list of pictures; for `"np"` an array shaped
            `(batch, frames, height, width, 3)` in [0, 1]; for `"pt"` a tensor shaped
            `(batch, frames, 3, height, width)` in [0, 1]; for `"latent"` a tensor shaped
            `(batch, frames, channels, h, w)`.
    """

    frames: torch.Tensor | np.ndarray | list[list[PIL.Image.Image]]
