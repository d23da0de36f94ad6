"""95% intervals of scores, by bootstrap.

Clips are resampled, because windows of one clip are not independent. Differences are paired, because all methods are
scored on the same windows.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from training.evaluation.metrics import RATIOS


RESAMPLES = 2000
LEVEL = 0.95
SURE = 5  # clips; an interval over fewer is hardly more than the smallest and the largest of them
# Quantiles of the standard normal distribution and of Student's t, by degrees of freedom from 1, two-sided for `LEVEL`
NORMAL = 1.96
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12)


class Bootstrap:
    """Resamples of the clips, drawn once and shared by all methods and differences.

    A single clip cannot be resampled: its intervals are "not a number".

    Args:
        clips: the clip of each window.
        seed: of the resamples.

    Attributes:
        count: number of clips.
    """

    def __init__(self, clips: Sequence[str], seed: int = 0):
        names = sorted(set(clips))
        self.count = len(names)
        drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(seed))
        counts = torch.zeros(RESAMPLES, len(names), dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        self.weights = counts[:, [names.index(clip) for clip in clips]]  # (resamples, windows)
        if len(names) == 1:
            self.weights = torch.full_like(self.weights, torch.nan)

    def interval(self, scores: Mapping[str, torch.Tensor], name: str) -> tuple[float, float]:
        """Return the interval of the mean over windows, for `RATIOS` of the ratio of sums."""
        return interval_of(self.resampled(scores, name))

    def difference(
        self, scores: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], name: str
    ) -> tuple[float, float]:
        """Return the interval of the paired difference between two methods."""
        return interval_of(self.resampled(scores, name) - self.resampled(others, name))

    def resampled(self, scores: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """Return the mean, or ratio of sums, of each resample, float64 `(RESAMPLES,)`."""
        below = scores[RATIOS[name]] if name in RATIOS else torch.ones_like(scores[name])
        return (self.weights @ scores[name].double()) / (self.weights @ below.double())


def least_difference(trainings: Sequence[Sequence[float]], interval: tuple[float, float]) -> float:
    """Return from which size on a difference between two methods is clear beside the chance of trainings and clips.

    The bound of a two-sided t-test whose variance is that of trainings, pooled over all methods, and that of the paired
    difference over clips. A true difference of this size is found in about half of all cases.

    Args:
        trainings: a score of each training of each method, two or more of each.
        interval: of a paired difference, over clips.
    """
    freedom = sum(len(scores) - 1 for scores in trainings)
    squares = sum(torch.tensor(scores, dtype=torch.float64).var().item() * (len(scores) - 1) for scores in trainings)
    fewest = min(len(scores) for scores in trainings)
    of_clips = (interval[1] - interval[0]) / (2 * NORMAL)
    return STUDENT[min(freedom, len(STUDENT)) - 1] * math.sqrt(squares / freedom * 2 / fewest + of_clips**2)


def interval_of(values: torch.Tensor) -> tuple[float, float]:
    """Return the interval that holds `LEVEL` of the resamples' values; those that are no number do not count."""
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = values.nanquantile(ends).tolist()
    return low, high
