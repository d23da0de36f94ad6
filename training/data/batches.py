"""Rows of a step's global batch, with their generators, and the tensors that a process trains on in one forward pass.

`deal` says which rows a process has, `curriculum.py` draws a `Batch` for a `Draw`; the order of the clips is in
`order.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise

import torch

from training.data.order import StepRows
from training.randomness import step_generator


def deal(total: int, rank: int, ranks: int, parts: int) -> list[range]:
    """Return the rows of a rank in each of its parts: consecutive ones, of all ranks together each row once.

    A rank has at most one row more than another, and so has a part of it: where rows are fewer, some have none.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} is none of 0 to {ranks - 1}")
    mine = range(total * rank // ranks, total * (rank + 1) // ranks)
    ends = [len(mine) * part // parts for part in range(parts + 1)]
    return [mine[first:last] for first, last in pairwise(ends)]


@dataclass(frozen=True)
class Draw:
    """The rows that one process draws: `count` of the `total` rows of the global batch, from row `first` on.

    `shared` generators decide what all rows have in common, `rows` what belongs to one row; so a global batch is the
    same for any number of processes and accumulated parts.

    Args:
        seed, stage, step: the run's seed, the stage's name, the step within the stage.
        first, count, total: the rows.
        attempt: how often the run has gone back to a checkpoint before this step; another number draws other batches.
        counts: whether the rows are this process's; if not, it trains on them without effect, since the others need
            its part in gathering weights and gradients.
    """

    seed: int
    stage: str
    step: int
    first: int
    count: int
    total: int
    attempt: int = 0
    counts: bool = True

    @classmethod
    def of_rows(cls, seed: int, stage: str, step: int, rows: range, total: int, attempt: int = 0) -> "Draw":
        """Return the draw of dealt rows; of none, that of a row which does not count."""
        first = rows.start if rows else min(rows.start, total - 1)
        return cls(seed, stage, step, first, max(1, len(rows)), total, attempt, counts=bool(rows))

    @property
    def share(self) -> Fraction:
        """Return the share of the step's mean loss that the rows have; those of all processes add up to 1."""
        return Fraction(self.count if self.counts else 0, self.total)

    def shared(self, purpose: str) -> torch.Generator:
        """Return a generator that is the same for all rows of the step."""
        return step_generator(self.seed, self.stage, self.step, self.attempt, purpose)

    def rows(self, purpose: str) -> list[torch.Generator]:
        """Return a generator for each row."""
        return [step_generator(self.seed, self.stage, self.step, self.attempt, purpose, row) for row in self._rows]

    def places(self) -> StepRows:
        """Return the same rows for the order of the clips."""
        return StepRows(self.seed, self.step, self.total, tuple(self._rows), self.attempt)

    @property
    def _rows(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Batch:
    """The input of a training step for one process.

    Args:
        latents: `(batch, frames, channels, height, width)`, clean.
        planner_latents: `(batch, frames, channels, low height, low width)`, clean.
        reference_mask: `(batch, frames)` bool.
        num_masked_frames: masked frames of every row.
        noise: like `latents`.
        timesteps: `(batch,)` integers.
        planning_signals_mask: `(batch,)` bool, False where the planning signals are dropped.
        reference_timesteps: `(batch,)` integers, timesteps of the reference frames, 0 where they are clean; `None` where
            they are clean in all rows.
        planner_noise: like `planner_latents`, for these frames; `None` with `reference_timesteps`.
        windows: the source of each row in words, for reports.
        conditions: values of each frame by name, `(batch, frames, channels)`, NaN where a value is missing or dropped.
    """

    latents: torch.Tensor
    planner_latents: torch.Tensor
    reference_mask: torch.Tensor
    num_masked_frames: int
    noise: torch.Tensor
    timesteps: torch.Tensor
    planning_signals_mask: torch.Tensor
    reference_timesteps: torch.Tensor | None = None
    planner_noise: torch.Tensor | None = None
    windows: tuple[str, ...] = ()
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; the host does not wait for tensors that are `pinned`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory, from which a GPU copies by itself; without what is on the GPU already."""
        return self._each(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        changed = {k: change(v) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **changed, conditions={k: change(v) for k, v in self.conditions.items()})
