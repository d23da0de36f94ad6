"""Which held-out windows are painted and shown: fixed, evenly spaced over all that there are, as tensors of clean latents.

`painting.py` fills in their frames, `quality.py` scores them, `samples.py` draws them.
"""

from dataclasses import dataclass

import torch

from .data.buckets import Sampling
from .data.windows import Windows
from .randomness import step_generator


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


def heldout_windows(data: Windows, sampling: Sampling, count: int, seed: int) -> HeldoutWindows:
    """At most `count` windows of what a stage holds out; the same for the same seed, whenever and by whichever process asked for."""
    draws = data.heldout(sampling, count)
    generators = [step_generator(seed, "heldout", "latents", number) for number in range(len(draws))]
    latents, planner_latents = data.batch(draws, generators)
    return HeldoutWindows(latents, planner_latents, tuple(map(str, draws)), data.fps(draws[0]))
