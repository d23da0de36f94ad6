"""Which held-out windows are painted and shown: fixed, evenly spaced over all that there are, as tensors of clean latents.

`painting.py` fills in their frames, `quality.py` scores them, `samples.py` draws them.
"""

from dataclasses import dataclass

import torch

from .config import StageConfig
from .data.latents import LatentClips


@dataclass(frozen=True)
class HeldoutWindows:
    """Windows to be painted.

    Attributes:
        latents: clean, `(windows, frames, channels, height, width)`.
        planner_latents: the same frames as the planner sees them, `(windows, frames, channels, h, w)`.
        captions: where each window was cut out, in words.
        fps: frames per second at which they are shown.
    """

    latents: torch.Tensor
    planner_latents: torch.Tensor
    captions: tuple[str, ...]
    fps: float


def heldout_windows(data: LatentClips, stage: StageConfig, count: int) -> HeldoutWindows:
    """At most `count` windows of a stage's length, at the distance of frames that it draws most often."""
    stride = max(stage.strides, key=stage.strides.get)
    starts = data.windows(stage.num_frames, stride)
    chosen = starts[torch.linspace(0, len(starts) - 1, min(count, len(starts))).long()]
    latents, planner_latents = data.gather(chosen, stage.num_frames, stride)
    captions = tuple(data.describe(start, stride) for start in chosen.tolist())
    return HeldoutWindows(latents, planner_latents, captions, data.fps[0] / stride)
