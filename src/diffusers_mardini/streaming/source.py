"""Look through a video once before anything is sampled: times of its frames, held ones, and cuts."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import logging
from PIL import Image, ImageOps

from ..pipelines.stream_inputs import kept_frames
from ..video.reading import frames_of_numbers, iterate_frames, pictures_of, stated_facts
from ..video.scenes import SceneFinder
from ..video.times import PICTURE_FPS, even_rate, mean_rate, spread, usual_gap
from .cuts import frames_of_cuts, read_cuts


logger = logging.get_logger(__name__)

# Seconds by which times may differ from even ones, because files round them to milliseconds; some have a coarser clock:
# QuickTime of 1/600, gifs of 1/100 of a second.
ROUNDED = 0.0005
LONGEST_PAUSE = 3600.0  # seconds for which a frame is repeated at even times
NEAR = 0.002  # seconds by which a frame may be earlier than the cut that names it


@dataclass(frozen=True)
class KeptFrame:
    """A frame that is given to the pipeline.

    Attributes:
        number: of the frame in the file, counted from 0.
        time: seconds from the first frame.
        is_cut: whether it begins a scene.
        is_still: whether it ends a pause that began with the kept frame before.
    """

    number: int
    time: float
    is_cut: bool
    is_still: bool


@dataclass(frozen=True)
class SourceVideo:
    """A video that was looked through.

    Attributes:
        path: of a video, a folder of pictures or a picture.
        kept: its frames, without held ones and those whose time is not later than that of the one before.
        num_frames: of the file.
        fps: frames per second; the usual rate if it varies.
        start: time of the first frame on the file's own clock.
        has_sound: whether it has any.
        num_cuts: scenes less one.
    """

    path: Path
    kept: list[KeptFrame]
    num_frames: int
    fps: float
    start: float
    has_sound: bool
    num_cuts: int


class FrameReader:
    """Read the kept frames of a video, part after part, by one decoder that goes on; one frame is in memory at a time.

    Args:
        video: that was looked through.
        size: width and height to which frames are resized, cropped around the centre to its aspect.
    """

    def __init__(self, video: SourceVideo, size: tuple[int, int]):
        self.video, self.size = video, size
        self._frames: Iterator[np.ndarray] = iter(())
        self._next: int | None = None  # index of the kept frame that the decoder gives next
        self._last: Image.Image | None = None  # the one before, with which the next part may begin

    def read(self, first: int, stop: int) -> Iterator[Image.Image]:
        """Yield the kept frames with these indices."""
        if self._next is None or first not in (self._next - 1, self._next):
            self._frames = frames_of_numbers(self.video.path, [one.number for one in self.video.kept[first:]])
            self._next, self._last = first, None
        if first < self._next and self._last is not None:
            yield self._last
            first += 1
        for _ in range(first, stop):
            self._last = self._fitted(next(self._frames))
            self._next += 1
            yield self._last

    def at(self, places: Sequence[int]) -> Iterator[Image.Image]:
        """Yield the kept frames with these indices, rising, by a decoder of their own."""
        for frame in frames_of_numbers(self.video.path, [self.video.kept[place].number for place in places]):
            yield self._fitted(frame)

    def _fitted(self, frame: np.ndarray) -> Image.Image:
        return ImageOps.fit(Image.fromarray(frame), self.size, Image.Resampling.BICUBIC)


def look_through(
    path: str | os.PathLike,
    fps: float | None,
    cuts: str | Iterable[int | float | str],
    found: dict[str, Any] | None = None,
    is_even: bool = False,
) -> tuple[SourceVideo, dict[str, Any]]:
    """Decode a video once, keeping nothing but facts.

    Args:
        path: a video file, a folder of pictures or a picture.
        fps: rate of pictures, which have none; 8 by default.
        cuts: `"keep"` finds cuts, `"ignore"` does not; else the frames that begin a scene, see `read_cuts`.
        found: what an earlier call returned for the same arguments, which saves the work.
        is_even: whether frames are wanted at even times, held ones included: those that a player shows then.

    Returns:
        The video, and the facts as JSON holds them.

    Raises:
        ValueError: if it cannot be read, or its frames have no times.
    """
    cuts = read_cuts(cuts)
    facts = found or _facts(path, fps, cuts == "keep")
    times, even, stated = np.array(facts["times"]), fps or PICTURE_FPS, stated_facts(path)
    if stated.tick:  # of pictures, times are exact
        times, even = _even(times, stated.fps, stated.tick)
    more = [("sound", stated.sounds - 1), ("subtitles", stated.subtitles)]
    if left := " and ".join(f"{count} of {kind}" for kind, count in more if count > 0):
        logger.warning(f"'{path}' has more tracks, which are left out: {left}")
    scenes = set(facts["scenes"] if isinstance(cuts, str) else frames_of_cuts(cuts, times, NEAR)) - {0}
    rising = np.unique(times)
    rate = even or (1 / usual_gap(np.diff(rising)) if len(rising) > 1 else fps or PICTURE_FPS)
    if is_even:
        kept, rate = _shown_evenly(path, times, rate)
    else:
        kept = _changing(times, scenes, set(facts["equal"]))
    start = float(facts["times"][0])
    return SourceVideo(Path(path), kept, len(times), rate, start, stated.sounds > 0, len(scenes)), facts


def _changing(times: np.ndarray, scenes: set[int], equal: set[int]) -> list[KeptFrame]:
    """Return the frames that are later than those before and differ from them."""
    known = ((time, number, number in equal, number in scenes) for number, time in enumerate(times.tolist()))
    return [
        KeptFrame(number, time - times[0], is_cut, is_still) for time, number, is_still, is_cut in kept_frames(known)
    ]


def _shown_evenly(path: str | os.PathLike, times: np.ndarray, rate: float) -> tuple[list[KeptFrame], float]:
    """Return the frames to show at even times, and their rate: as `read_video` has them, with pauses of any length."""
    order: Iterable[int] = range(len(times))
    if len(times) > 1 and (np.diff(times) > 0).all() and even_rate(times, rate) is None:
        showing = spread(times, 0.0, None, longest=LONGEST_PAUSE)
        if showing.cut > 0:
            raise ValueError(
                f"'{path}' holds a frame for {showing.longest:,.0f} seconds, and at most {LONGEST_PAUSE:,.0f} are "
                "shown; cut the video there"
            )
        order, rate = showing.order.tolist(), showing.fps
    return [KeptFrame(number, place / rate, False, False) for place, number in enumerate(order)], rate


def _facts(path: str | os.PathLike, fps: float | None, find_cuts: bool) -> dict[str, Any]:
    finder = SceneFinder() if find_cuts else None
    times, equal, before = [], [], None
    pictures = pictures_of(path)
    rate = None if pictures is None else fps or PICTURE_FPS
    for number, (time, frame) in enumerate(iterate_frames(pictures or path, rate, warns=True)):
        times.append(time)
        if before is not None and np.array_equal(before, frame):
            equal.append(number)
        if finder is not None:
            finder.add_frame(frame)
        before = frame
    if not times:
        raise ValueError(f"'{path}' holds no frame; it is damaged or empty")
    scenes = [] if finder is None else finder.borders()
    return {"times": times, "equal": equal, "scenes": scenes}


def _even(times: np.ndarray, stated: float, tick: float) -> tuple[np.ndarray, float | None]:
    """Return times without the rounding of the file, and their rate, if they are even; else as they are, and `None`.

    Args:
        times: seconds of all frames.
        stated: the rate that the file states; 0 if it states none.
        tick: seconds of the file's clock. If a frame lasts fewer than three, times are taken as exact to half a
            millisecond, or a missing frame could pass for rounding.
    """
    if len(times) == 1:
        return times, stated or None
    if times[-1] <= times[0]:
        return times, None
    rounded = max(ROUNDED, tick / 2) if 3 * tick <= np.median(np.diff(times)) + 1e-9 else ROUNDED
    mean = mean_rate(times)  # inexact, because the first and the last time are rounded
    # An unusual rate in a header is such a mean, too.
    first = [stated] if stated > 0 and min(abs(stated - rate) for rate in _usual_rates(stated)) < 1e-4 else []
    best = min([stated, *_usual_rates(mean)], key=lambda rate: np.ptp(_late(times, rate)))
    for rate in (*first, best, mean):
        late = _late(times, rate)
        if np.ptp(late) <= 2 * rounded + 1e-9:
            return times - late + (late.max() + late.min()) / 2, rate  # no frame is moved by more than the rounding
    return times, None


def _usual_rates(rate: float) -> list[float]:
    """Return the whole, the half and the NTSC rate next to a rate."""
    return [round(rate), round(2 * rate) / 2, round(rate * 1.001) / 1.001]


def _late(times: np.ndarray, rate: float) -> np.ndarray:
    """Return the seconds by which frames are later than at even times; no rate is as if all were at once."""
    return times - (np.arange(len(times)) / rate if rate > 0 else 0.0)
