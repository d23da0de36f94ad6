"""Decode a clip once, at low resolution, for its scenes, its motion, its still stretches and its fingerprints.

The frames are those of `diffusers_mardini/video_io.py`. Memory does not grow with the clip, except by fingerprints.
`look.py` reads the clips of a source with it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from diffusers_mardini.video.scenes import WIDTH, SceneFinder
from diffusers_mardini.video_io import iterate_frames
from training.own_clips.fingerprints import PrintMaker, Prints


DISTANCES = (0.04, 0.1, 0.2, 0.5, 1.0)  # seconds between two frames whose difference is measured
STILL_STEP = 0.5  # seconds between the frames that are compared for still stretches
STILL_FROM = 2.0  # seconds; shorter stretches are not reported
_STILL_CHANGE, _STILL_SHARE = 8, 0.001  # grey levels, and the share of small pixels that may change by more
_MOST_HELD = 512  # small frames in memory, whatever the rate


@dataclass(frozen=True)
class ClipLook:
    """What decoding a clip shows.

    Attributes:
        scenes: first frame and number of frames of each scene; frames of one colour belong to none.
        motion: mean difference of two frames in grey levels (0 to 255), by the seconds between them.
        stills: start and length, in seconds from the first frame, of each stretch in which nothing moves.
        all_still: whether nothing moves in the whole clip.
        prints: its fingerprints.
    """

    scenes: tuple[tuple[int, int], ...]
    motion: dict[float, float]
    stills: tuple[tuple[float, float], ...]
    all_still: bool
    prints: Prints

    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        motion = {str(distance): round(value, 3) for distance, value in self.motion.items()}
        return {"scenes": self.scenes, "motion": motion, "stills": self.stills, "all_still": self.all_still,
                "prints": self.prints.record()}  # fmt: skip

    @classmethod
    def of(cls, record: dict[str, Any]) -> "ClipLook":
        """Read what `record` returned."""
        return cls(
            tuple((int(first), int(count)) for first, count in record["scenes"]),
            {float(distance): float(value) for distance, value in record["motion"].items()},
            tuple((float(start), float(length)) for start, length in record["stills"]),
            bool(record["all_still"]),
            Prints.of(record["prints"]),
        )


def look_at_clip(
    opened: Path | bytes,
    fps: float,
    num_frames: int,
    stop: Callable[[], bool] = lambda: False,
    times: Sequence[float] | None = None,
) -> ClipLook | None:
    """Decode a clip once and return what it shows.

    Args:
        opened: what the source's `open` returned.
        fps: frames per second of its manifest's entry.
        num_frames: of its manifest's entry; frames beyond are not read.
        stop: asked every 64 frames; `None` is returned if it says so.
        times: of the frames of a span, on the clock of the whole clip; by default the clip is read from its beginning.
    """
    scenes, motion, stills, prints = SceneFinder(), _Motion(fps), _Stills(), PrintMaker(fps)
    begin = None
    for index, (time, frame) in enumerate(iterate_frames(opened, fps, times)):
        if index == num_frames:
            break
        if index % 64 == 0 and stop():
            return None
        height, width = frame.shape[:2]
        small = cv2.resize(
            frame, (WIDTH, min(4 * WIDTH, max(8, round(WIDTH * height / width)))), interpolation=cv2.INTER_AREA
        )
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        begin = time if begin is None else begin
        scenes.add(small, grey)
        motion.add(grey)
        stills.add(time - begin, grey)
        prints.add(time - begin, grey)
    if begin is None:
        raise ValueError("it holds no frame; it has changed since it was read before")
    found, all_still = stills.finish(1 / fps)
    return ClipLook(tuple(scenes.finish()), motion.finish(), found, all_still, prints.finish())


class _Motion:
    """Mean differences of frames at several distances in time, in whole frames of the mean rate."""

    def __init__(self, fps: float):
        self._held: deque[np.ndarray] = deque(maxlen=min(_MOST_HELD, round(max(DISTANCES) * fps) + 1))
        steps = {distance: round(distance * fps) for distance in DISTANCES}
        # A distance below that of two frames has no difference.
        self._steps = {distance: step for distance, step in steps.items() if 1 <= step < _MOST_HELD}
        self._sums = {distance: [0.0, 0] for distance in self._steps}

    def add(self, grey: np.ndarray) -> None:
        """Take the next frame."""
        self._held.append(grey)
        for distance, step in self._steps.items():
            if step < len(self._held):
                total = self._sums[distance]
                total[0] += float(cv2.absdiff(grey, self._held[-1 - step]).mean())
                total[1] += 1

    def finish(self) -> dict[float, float]:
        """Return the means; none for distances that exceed the clip."""
        return {distance: total / count for distance, (total, count) in self._sums.items() if count}


class _Stills:
    """Stretches whose frames, two in a second, all look like the first of them."""

    def __init__(self):
        self._first: tuple[float, np.ndarray] | None = None
        self._next, self._last = 0.0, 0.0
        self._found: list[tuple[float, float]] = []
        self._moved = False

    def add(self, time: float, grey: np.ndarray) -> None:
        """Take the next frame."""
        self._last = time
        if time < self._next - 1e-6:
            return
        self._next = time + STILL_STEP
        if self._first is None:
            self._first = time, grey
        elif (cv2.absdiff(grey, self._first[1]) > _STILL_CHANGE).mean() > _STILL_SHARE:
            self._moved = True
            self._close(time)
            self._first = time, grey

    def finish(self, frame: float) -> tuple[tuple[tuple[float, float], ...], bool]:
        """Return the stretches, and whether the whole clip is one; the last frame is shown for `frame` seconds."""
        self._close(self._last + frame)
        return tuple(self._found), not self._moved and self._last > 0

    def _close(self, end: float) -> None:
        if self._first is not None and end - self._first[0] >= STILL_FROM:
            self._found.append((round(self._first[0], 2), round(end - self._first[0], 2)))
