"""Summarize a stage's held-out losses in one number for each measurement, and say whether they still fall."""

import math
from collections.abc import Mapping, Sequence


LEAST_FALL = 0.005  # of the level; a smaller fall counts as none
LEAST_POINTS = 4  # of which a trend can be seen
TREND_OVER = 6  # last measurements, for panel and report
_PATTERNS = ("task/", "masked/")


def mean_loss(heldout: Mapping[str, float | str], trains: str) -> float | None:
    """Return the mean over all patterns of the loss by which a stage learns; `None` if there is none.

    Args:
        heldout: held-out losses by name, see `heldout_losses`.
        trains: what the stage trains; the planner alone has its reconstruction loss, others the diffusion loss.
    """
    part = "planner" if trains == "planner" else "diffusion"
    values = [
        float(value)
        for name, value in heldout.items()
        if name.startswith(f"{part}/") and name.removeprefix(f"{part}/").startswith(_PATTERNS)
    ]
    return sum(values) / len(values) if values else None


def trend(values: Sequence[float]) -> str:
    """Return `falling`, `flat` or `rising` by a line through equally distant values; "" if there are too few.

    A change counts if it is larger than twice its standard error and than `LEAST_FALL` of the level.
    """
    count = len(values)
    if count < LEAST_POINTS or not all(map(math.isfinite, values)):
        return ""
    mean, middle = sum(values) / count, (count - 1) / 2
    spread = sum((place - middle) ** 2 for place in range(count))
    slope = sum((place - middle) * (value - mean) for place, value in enumerate(values)) / spread
    error = _noise(values) / math.sqrt(spread)
    if abs(slope) <= 2 * error or abs(slope) * (count - 1) <= LEAST_FALL * abs(mean):
        return "flat"
    return "falling" if slope < 0 else "rising"


def is_flat(values: Sequence[float], measurements: int) -> bool:
    """Return whether none of the last so many values is lower than all before by more than noise; False if too few."""
    before, last = values[:-measurements], values[-measurements:]
    if not before:
        return False
    least_fall = max(2 * _noise([*before[-2:], *last]), LEAST_FALL * abs(min(before)))
    return min(before) - min(last) <= least_fall


def _noise(values: Sequence[float]) -> float:
    """Return the standard deviation of values around a smooth curve, by their second differences."""
    bends = [before - 2 * value + after for before, value, after in zip(values, values[1:], values[2:])]
    return math.sqrt(sum(bend**2 for bend in bends) / len(bends) / 6)
