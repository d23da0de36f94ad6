"""Times of frames: whether they are even, and which frame is shown when. Knows no file."""

import numpy as np


def mean_rate(timestamps: np.ndarray) -> float:
    return float((len(timestamps) - 1) / (timestamps[-1] - timestamps[0]))


def even_rate(timestamps: np.ndarray, stated: float) -> float | None:
    """Frames per second at which each frame lies within a quarter of a frame of its place, or `None`.

    Args:
        timestamps: seconds, increasing.
        stated: what the header says; it comes first, being a clean number such as 25.
    """
    for rate in (stated, mean_rate(timestamps) if len(timestamps) > 1 else 0.0):
        if rate > 0 and np.abs(timestamps - timestamps[0] - np.arange(len(timestamps)) / rate).max() < 0.25 / rate:
            return rate
    return None


def spread(timestamps: np.ndarray, end: float) -> tuple[np.ndarray, float]:
    """Indices of the frames that are shown at even times, at the rate of most frames, and that rate.

    Args:
        timestamps: seconds of at least two frames, increasing.
        end: when the last one ends, where that is known.
    """
    gap = float(np.median(np.diff(timestamps)))
    length = max(end, timestamps[-1] + gap) - timestamps[0]
    times = timestamps[0] + np.arange(max(1, round(length / gap))) * gap
    return np.searchsorted(timestamps, times + gap / 2, side="right") - 1, 1 / gap
