"""Times of frames: test whether they are even, and choose the frame to show at each even time. Knows no files."""

from dataclasses import dataclass

import numpy as np


PICTURE_FPS = 8.0  # of a single frame, which has no rate
FINEST_GRID = 4  # how many times finer than the usual gap even times may be, for frames shown for less
FEW = 0.02  # the share of frames that may be left out rather than make the grid finer for all
LONGEST_PAUSE = 10.0  # the most seconds for which a frame is repeated
MOST_REPEATED = 4  # the result has at most so many times as many frames as the file
ALWAYS_ALLOWED = 300  # frames of the result, however few the file has


@dataclass(frozen=True)
class Showing:
    """The frames to show at even times.

    Attributes:
        order: index of the frame at each time.
        fps: times per second.
        left_out: indices of frames that are never shown, because others are nearer to every time.
        longest: seconds of the longest pause.
        cut: seconds of pauses that are not filled.
    """

    order: np.ndarray
    fps: float
    left_out: tuple[int, ...]
    longest: float
    cut: float


def mean_rate(timestamps: np.ndarray) -> float:
    """Return the mean number of frames per second of at least two increasing times."""
    return float((len(timestamps) - 1) / (timestamps[-1] - timestamps[0]))


def even_rate(timestamps: np.ndarray, stated: float) -> float | None:
    """Return the rate at which each frame lies within a quarter of a frame of its even time, or `None`.

    Args:
        timestamps: seconds, increasing.
        stated: the rate in the header; it is tried first, being a round number such as 25.
    """
    for rate in (stated, mean_rate(timestamps) if len(timestamps) > 1 else 0.0):
        if rate > 0 and np.abs(timestamps - timestamps[0] - np.arange(len(timestamps)) / rate).max() < 0.25 / rate:
            return rate
    return None


def usual_gap(gaps: np.ndarray) -> float:
    """Return the usual gap: the mean of the gaps near the median, which alone is as coarse as the clock."""
    middle = np.sort(gaps)[(len(gaps) - 1) // 2]
    return float(gaps[np.abs(gaps - middle) <= 0.25 * middle].mean())


def spread(
    timestamps: np.ndarray, last: float, rate: float | None, exact: bool = False, longest: float | None = None
) -> Showing:
    """Choose the frame to show at each even time: each until the next one's time, as a player does.

    Args:
        timestamps: seconds of at least two frames, increasing.
        last: seconds for which the last frame is shown; 0 if unknown.
        rate: frames per second if the times are even; `None` for the rate of most frames, or a multiple of it
            if many frames are shown for less.
        exact: whether the times were chosen, like a gif's, and not measured: they are then kept if possible.
        longest: the most seconds for which a frame is repeated, however many frames that makes; by default
            `LONGEST_PAUSE`, and as much as memory bears.
    """
    gap, starts, finer = (1 / rate, np.arange(len(timestamps)), 1) if rate else _grid(timestamps, last, exact)
    # How many times each frame is shown. One that begins halfway between two times belongs to the earlier one.
    counts = np.append(np.diff(starts), max(1, round(last / gap)) if last else finer).astype(np.int64)
    shown = np.minimum(counts, round(longest / gap) if longest else _longest_allowed(counts, gap, finer))
    return Showing(
        order=np.repeat(np.arange(len(timestamps)), shown),
        fps=rate or 1 / gap,
        left_out=tuple(np.flatnonzero(counts == 0).tolist()),
        longest=float(counts.max() * gap),
        cut=float((counts - shown).sum() * gap),
    )


def _grid(timestamps: np.ndarray, last: float, exact: bool) -> tuple[float, np.ndarray, int]:
    """Return the gap between even times, the time at which each frame begins (an index), and usual gap over gap."""
    gaps = np.diff(timestamps)
    if exact:
        gaps = np.append(gaps, last or gaps[-1])
        ends = np.append(0, np.cumsum(gaps))
        for gap in (_common_gap(gaps, usual_gap(gaps)), _common_gap(gaps, gaps.min())):
            places = ends / gap
            if np.abs(places - places.round()).max() < 0.3 and np.diff(places.round()).min() > 0:
                return gap, places[:-1].round(), max(1, round(usual_gap(gaps) / gap))
    usual, fewest = usual_gap(gaps), len(timestamps)
    best = usual, np.arange(len(timestamps)), 1
    for finer in range(1, FINEST_GRID + 1):
        gap = usual / finer
        starts = np.ceil((timestamps - timestamps[0]) / gap - 0.5 - 1e-6)
        left_out = int((np.diff(starts) == 0).sum())
        if left_out < fewest:
            fewest, best = left_out, (gap, starts, finer)
        if left_out <= FEW * len(timestamps):
            break
    return best


def _common_gap(gaps: np.ndarray, near: float) -> float:
    """Return the length of which all gaps are multiples up to rounding; each gap is counted by the shorter ones."""
    seconds, count = 0.0, 0
    for gap in np.sort(gaps):
        seconds, count = seconds + gap, count + max(1, round(gap / near))
        near = seconds / count
    return float(near)


def _longest_allowed(counts: np.ndarray, gap: float, finer: int) -> int:
    """Return how often a frame may be shown, so that neither one pause nor all of them fill the memory."""
    allowed = max(round(LONGEST_PAUSE / gap), MOST_REPEATED * finer)
    most = max(MOST_REPEATED * finer * len(counts), ALWAYS_ALLOWED)
    low, high = 1, allowed
    while low < high:  # the largest number with which all fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= most else (low, middle - 1)
    return low
