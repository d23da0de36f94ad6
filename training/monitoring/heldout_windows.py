"""Read the fixed held-out windows of a run, evenly spaced over all that there are, as clean latents.

`heldout_losses.py` computes their losses, `heldout_sampler.py` samples them, `heldout_scores.py` scores the samples,
and `samples.py` writes pictures of them.
"""

from dataclasses import dataclass, field

import torch

from training.data.buckets import WindowRequest
from training.data.windows import ClipWindows
from training.randomness import step_generator


@dataclass(frozen=True)
class HeldoutWindows:
    """Held-out windows, or one process's share of them.

    Attributes:
        latents: clean, `(windows, frames, channels, height, width)`.
        planner_latents: the same frames as the planner sees them, `(windows, frames, channels, h, w)`.
        captions: clip and frames of each window.
        fps: frames per second at which they are shown.
        numbers: of the windows, out of `range(total)`; noise and masks depend on them.
        total: number of windows over all processes.
        counted: number of these windows that count; others are there because every process needs one.
        conditions: of each frame, `(windows, frames, channels)` by name.
    """

    latents: torch.Tensor
    planner_latents: torch.Tensor
    captions: tuple[str, ...]
    fps: float
    numbers: tuple[int, ...]
    total: int
    counted: int
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)


def heldout_windows(
    data: ClipWindows, request: WindowRequest, count: int, seed: int, process: int = 0, processes: int = 1
) -> HeldoutWindows:
    """Read at most `count` held-out windows of a stage, or this process's share; a seed always gives the same ones."""
    draws = data.heldout(request, count)
    numbers = range(process, len(draws), processes)
    # Give idle processes a window that does not count: FSDP needs every process.
    present = numbers or range(1)
    mine = [draws[number] for number in present]
    generators = [step_generator(seed, "heldout", "latents", number) for number in present]
    latents, planner_latents = data.batch(mine, generators)
    return HeldoutWindows(
        latents, planner_latents, tuple(map(str, mine)), data.fps(mine[0]), tuple(present), len(draws), len(numbers),
        data.conditions(mine, latents),
    )  # fmt: skip
