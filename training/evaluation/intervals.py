"""95% intervals of scores, by bootstrap.

Clips are resampled, because windows of one clip are not independent. Differences are paired, because all methods are
scored on the same windows.
"""

from collections.abc import Mapping, Sequence

import torch

from training.evaluation.metrics import RATIOS


RESAMPLES = 2000
LEVEL = 0.95


class Bootstrap:
    """Resamples of the clips, drawn once and shared by all methods and differences.

    A single clip cannot be resampled: its intervals are "not a number".

    Args:
        clips: the clip of each window.
        seed: of the resamples.
    """

    def __init__(self, clips: Sequence[str], seed: int = 0):
        names = sorted(set(clips))
        drawn = torch.randint(len(names), (RESAMPLES, len(names)), generator=torch.Generator().manual_seed(seed))
        counts = torch.zeros(RESAMPLES, len(names), dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        self.weights = counts[:, [names.index(clip) for clip in clips]]  # (resamples, windows)
        if len(names) == 1:
            self.weights = torch.full_like(self.weights, torch.nan)

    def interval(self, scores: Mapping[str, torch.Tensor], name: str) -> tuple[float, float]:
        """Return the interval of the mean over windows, for `RATIOS` of the ratio of sums."""
        return _range(self._resampled(scores, name))

    def difference(
        self, scores: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], name: str
    ) -> tuple[float, float]:
        """Return the interval of the paired difference between two methods."""
        return _range(self._resampled(scores, name) - self._resampled(others, name))

    def _resampled(self, scores: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        below = scores[RATIOS[name]] if name in RATIOS else torch.ones_like(scores[name])
        return (self.weights @ scores[name].double()) / (self.weights @ below.double())  # (resamples,)


def _range(values: torch.Tensor) -> tuple[float, float]:
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = values.nanquantile(ends).tolist()
    return low, high
