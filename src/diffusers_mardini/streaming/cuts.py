"""Cuts that the user names: by the numbers of the frames that begin a scene, or by their times."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


_NUMBER = r"\d{1,10}(?:\.\d{1,9})?"
_SECONDS = re.compile(rf"({_NUMBER})s")
_CLOCK = re.compile(rf"(?:(\d{{1,6}}):)?(\d{{1,6}}):({_NUMBER})")
FORMS = "the frames that begin a scene, by number counted from 0 or by time, such as 12.48s or 00:00:12.48"


def read_cut(text: str) -> int | float:
    """Return the number of a frame, or seconds, from text: `312`, `12.48s`, `0:12.48` or `00:00:12.48`.

    Raises:
        ValueError: for another form.
    """
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return int(text)
    if found := _SECONDS.fullmatch(text):
        return float(found[1])
    if found := _CLOCK.fullmatch(text):
        hours, minutes, seconds = int(found[1] or 0), int(found[2]), float(found[3])
        if seconds < 60 and (found[1] is None or minutes < 60):
            return 3600 * hours + 60 * minutes + seconds
    raise ValueError(f"{text!r} is no cut; give {FORMS}")


def read_cuts(cuts: Any) -> str | list[int | float]:
    """Check what a task gets as cuts.

    Args:
        cuts: `"keep"`, `"ignore"`, or numbers and texts as `read_cut` takes them.

    Returns:
        The word, or numbers of frames (`int`) and seconds (`float`), each rising.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(cuts, str):
        if cuts in ("keep", "ignore"):
            return cuts
        raise ValueError(f"`cuts` is {cuts!r}; give 'keep' (found and left alone), 'ignore', or a list of {FORMS}")
    if isinstance(cuts, (bytes, Mapping)) or not isinstance(cuts, Iterable):
        raise ValueError(f"`cuts` is {cuts!r}; give a list of {FORMS}")
    numbers, seconds = set(), set()
    for cut in cuts:
        value = read_cut(cut) if isinstance(cut, str) else cut
        if isinstance(value, float) and math.isfinite(value) and value >= 0:
            seconds.add(value)
        elif isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
            raise ValueError(f"`cuts` holds {cut!r}; give {FORMS}")
        else:
            numbers.add(int(value))
    return [*sorted(numbers), *sorted(seconds)]


def frames_of_cuts(cuts: Sequence[int | float], times: np.ndarray, tolerance: float) -> set[int]:
    """Return the numbers of the frames that begin a scene.

    Args:
        cuts: result of `read_cuts`. A time means the first frame that is not earlier.
        times: seconds of all frames, rising.
        tolerance: seconds by which a frame may be earlier, because times are rounded.

    Raises:
        ValueError: for a cut after the last frame.
    """
    seconds, numbers = times - times[0], set()
    for cut in cuts:
        number = cut if isinstance(cut, int) else int(np.searchsorted(seconds, cut - tolerance))
        if number >= len(times):
            what = f"frame {cut}" if isinstance(cut, int) else f"{cut:g} seconds"
            raise ValueError(
                f"`cuts` has {what}, but the video has {len(times)} frames, the last at {seconds[-1]:.3f} seconds; "
                "leave that cut out"
            )
        numbers.add(number)
    return numbers
