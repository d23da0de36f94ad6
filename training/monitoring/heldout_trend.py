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
    squares = sum((value - mean - slope * (place - middle)) ** 2 for place, value in enumerate(values))
    error = math.sqrt(squares / (count - 2) / spread)
    if abs(slope) <= 2 * error or abs(slope) * (count - 1) <= LEAST_FALL * abs(mean):
        return "flat"
    return "falling" if slope < 0 else "rising"


def is_flat(values: Sequence[float], measurements: int) -> bool:
    """Return whether the last so many values have not fallen; False if there are fewer."""
    return len(values) >= measurements and trend(values[-measurements:]) in ("flat", "rising")
