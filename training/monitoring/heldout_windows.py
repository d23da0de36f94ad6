"""Which held-out windows are scored, sampled and shown: fixed, evenly spaced over all that there are, as tensors of clean latents.

`heldout.py` computes their losses, `sampling.py` fills in their frames, `quality.py` scores them, `samples.py` draws them.
"""

from dataclasses import dataclass, field

import torch

from training.data.buckets import WindowRequest
from training.data.windows import ClipWindows
from training.randomness import step_generator


@dataclass(frozen=True)
class HeldoutWindows:
    """Windows to be scored or sampled.

    Attributes:
        latents: clean, `(windows, frames, channels, height, width)`.
        planner_latents: the same frames as the planner sees them, `(windows, frames, channels, h, w)`.
        captions: where each window was cut out, in words.
        fps: frames per second at which they are shown.
        numbers: of the windows, out of `range(total)`; their noise and masks follow from them.
        total: windows that were chosen, of which these may be one process's share.
        counted: how many of these count; the others are there because every process needs one.
        conditions: what each frame is told, `(windows, frames, channels)` by name.
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
    """At most `count` windows of what a stage holds out, or this process's share of them; the same for the same seed, whenever and by
    whichever process asked for."""
    draws = data.heldout(request, count)
    numbers = range(process, len(draws), processes)
    # Fewer windows than processes: it has one that does not count, since shards of a model are gathered together.
    present = numbers or range(1)
    mine = [draws[number] for number in present]
    generators = [step_generator(seed, "heldout", "latents", number) for number in present]
    latents, planner_latents = data.batch(mine, generators)
    return HeldoutWindows(
        latents, planner_latents, tuple(map(str, mine)), data.fps(mine[0]), tuple(present), len(draws), len(numbers),
        data.conditions(mine, latents),
    )  # fmt: skip
