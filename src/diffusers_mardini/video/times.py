"""Times of frames: whether they are even, and which frame is shown when. Knows no file."""

from dataclasses import dataclass

import numpy as np


PICTURE_FPS = 8.0  # of what has one frame, whose rate nothing tells
FINEST_GRID = 4  # times as fine as the usual gap, for frames that stand for less
FEW = 0.02  # a share of frames that may be left out rather than make the grid finer for all
LONGEST_PAUSE = 10.0  # seconds for which a frame is repeated at most
MOST_REPEATED = 4  # times as many frames as there were, at most
ALWAYS_ALLOWED = 300  # frames, however few there were


@dataclass(frozen=True)
class Showing:
    """Which frames are shown at even times.

    Attributes:
        order: index of the frame at each time.
        fps: times per second.
        left_out: indices of frames that are never shown, because others stand at the nearest times.
        longest: seconds of the longest pause.
        cut: seconds of pauses that are not filled.
    """

    order: np.ndarray
    fps: float
    left_out: tuple[int, ...]
    longest: float
    cut: float


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


def usual_gap(gaps: np.ndarray) -> float:
    """Seconds between most frames: the mean of those near the middle one, which is as coarse as the clock."""
    middle = np.sort(gaps)[(len(gaps) - 1) // 2]
    return float(gaps[np.abs(gaps - middle) <= 0.25 * middle].mean())


def spread(timestamps: np.ndarray, last: float, rate: float | None, exact: bool = False) -> Showing:
    """Shows each frame until the next one's time, as a player does, at even times.

    Args:
        timestamps: seconds of at least two frames, increasing.
        last: seconds for which the last one stands; 0 where that is not known.
        rate: frames per second where the frames' times are even; `None` for that of most frames, or a multiple of it
            where many frames stand for less.
        exact: whether times are meant, as those of a gif are, and not measured: they are then kept where that can be.
    """
    gap, starts, finer = (1 / rate, np.arange(len(timestamps)), 1) if rate else _grid(timestamps, last, exact)
    # How many times each is shown. A frame that begins in the middle between two times belongs to the earlier one.
    counts = np.append(np.diff(starts), max(1, round(last / gap)) if last else finer).astype(np.int64)
    shown = np.minimum(counts, _longest_allowed(counts, gap, finer))
    return Showing(
        order=np.repeat(np.arange(len(timestamps)), shown),
        fps=rate or 1 / gap,
        left_out=tuple(np.flatnonzero(counts == 0).tolist()),
        longest=float(counts.max() * gap),
        cut=float((counts - shown).sum() * gap),
    )


def _grid(timestamps: np.ndarray, last: float, exact: bool) -> tuple[float, np.ndarray, int]:
    """Seconds between even times, at which of them each frame begins, and how much finer than usual they are."""
    gaps = np.diff(timestamps)
    if exact:
        gaps = np.append(gaps, last or gaps[-1])
        ends = np.append(0, np.cumsum(gaps))
        for gap in (_common_gap(gaps, usual_gap(gaps)), _common_gap(gaps, gaps.min())):
            places = ends / gap
            if np.abs(places - places.round()).max() < 0.3 and np.diff(places.round()).min() > 0:
                return gap, places[:-1].round(), max(1, round(usual_gap(gaps) / gap))
    usual, fewest, best = usual_gap(gaps), len(timestamps), None
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
    """What all gaps are multiples of, but for rounding: each is counted by what the shorter ones tell."""
    seconds, count = 0.0, 0
    for gap in np.sort(gaps):
        seconds, count = seconds + gap, count + max(1, round(gap / near))
        near = seconds / count
    return float(near)


def _longest_allowed(counts: np.ndarray, gap: float, finer: int) -> int:
    """How many times one frame may be shown, so that neither a pause nor all of them together fill the memory."""
    allowed = max(round(LONGEST_PAUSE / gap), MOST_REPEATED * finer)
    most = max(MOST_REPEATED * finer * len(counts), ALWAYS_ALLOWED)
    low, high = 1, allowed
    while low < high:  # the largest number with which all fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= most else (low, middle - 1)
    return low
