"""Read the frames of a stream: a clip that need not be in memory, and whose length may be unknown.

The checks are those of `inputs.py`, frame by frame. Nothing here runs a model; `streams.py` does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from numbers import Real
from typing import Any

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image

from .inputs import ACCEPTED_PICTURES, Picture, are_signed, is_picture, output_size, split_videos, to_pixels


MOST_HELD = 0.25  # seconds; equal frames that last longer are a pause, and stay one


class PictureStream:
    """The frames of one clip, in order.

    Args:
        video: anything that can be iterated over: a list, an array `(frames, ...)`, a generator, a reader.
        least: number of frames that it must have; so many are read at once.
        height, width: size of the output in pixels; by default that of the first frame.
        size_multiple: divisor of valid heights and widths.
        processor: makes tensors of pictures.

    Raises:
        ValueError: for anything else, too few frames, or unusable ones.
    """

    def __init__(
        self,
        video: Any,
        least: int,
        height: int | None,
        width: int | None,
        size_multiple: int,
        processor: VideoProcessor,
    ):
        frames = _iterator(video)
        first = list(islice(frames, least))
        if len(first) < least:
            frames_of = "frame" if least == 1 else "frames"
            raise ValueError(f"`video` gave {len(first)} frames; give at least {least} {frames_of}")
        if not is_picture(first[0]) and (isinstance(first[0], list | tuple) or getattr(first[0], "ndim", 0) > 3):
            raise ValueError("`video` is a batch of clips; a stream, and `retime`, take one clip: call it for each")
        split_videos(first)
        self.first: Picture = first[0]
        self.height, self.width = output_size([first], height, width, size_multiple)
        self._frames = chain(first, frames)
        self._processor = processor
        self._signed: bool | None = None
        self.call: object = None  # of the pipeline, set by it

    def __iter__(self) -> Iterator[Picture]:
        """Yield the frames, unchecked; `pixels` checks them."""
        return self._frames

    def pixels(self, frames: Sequence[Picture]) -> torch.Tensor:
        """Make one tensor of the next frames: `(1, frames, 3, height, width)`, float32 in [-1, 1].

        Raises:
            ValueError: for pictures that cannot be used, or of another kind or size than the first; and for floats
                below 0 if the first frames that were read had none.
        """
        split_videos([self.first, *frames])
        if self._signed is None:
            self._signed = are_signed([list(frames)])
        elif not self._signed and are_signed([list(frames)], warn=False):
            raise ValueError(
                "`video` holds floats below 0, but its first frames had none and were taken as [0, 1]; give all frames "
                "in [0, 1]: `picture / 2 + 0.5` if they are in [-1, 1]"
            )
        return to_pixels([list(frames)], self.height, self.width, self._processor, self._signed)


def in_chunks(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of up to `size` items; `itertools.batched` of Python 3.12."""
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk


def frame_times(video: Any, source_fps: float | None, times: Iterable[float] | None) -> Iterator[float]:
    """Return the times of the frames of a clip in seconds, endless if they come from a rate.

    Raises:
        ValueError: unless one of both is given, and for times whose number is not that of the frames, if both are
            known.
    """
    if (source_fps is None) == (times is None):
        raise ValueError(
            "give `source_fps`, the rate of `video`, or `times`, the seconds of each of its frames"
            + ("" if times is None else ", not both")
        )
    if times is None:
        rate = positive(source_fps, "source_fps")
        return (number / rate for number in count())
    if isinstance(times, (str, bytes, Mapping)) or not hasattr(times, "__iter__"):
        raise ValueError(f"`times` is {times!r}; give the seconds of each frame of `video`, rising")
    lengths = [len(each) for each in (video, times) if hasattr(each, "__len__")]
    if len(lengths) == 2 and lengths[0] != lengths[1]:
        raise ValueError(f"`times` has {lengths[1]} values, but `video` {lengths[0]} frames; give one for each")
    return iter(times)


def kept_frames(frames: Iterable[tuple[float, Any, bool, bool]]) -> Iterator[tuple[float, Any, bool, bool]]:
    """Leave out held frames, which look like those before them, and frames that are not later than these.

    A frame that is held for no longer than `MOST_HELD` is one frame: the motion goes on through its time. A longer
    pause, and one that a cut ends, stays a pause, between its first and its last frame.

    Args:
        frames: times in seconds, frames, whether each equals the one before, and whether it begins a scene.

    Yields:
        Times, frames, whether each ends a pause that began with the frame yielded before, and whether it begins a
        scene.
    """
    begin: float | None = None  # time of the last frame that differed from the one before
    held: tuple[float, Any] | None = None  # the last frame that equals it
    last, is_cut = float("-inf"), False
    for time, frame, equal, begins_scene in frames:
        is_cut |= begins_scene
        if not time > last:
            continue
        last = time
        if equal and begin is not None and not is_cut:
            held = time, frame
            continue
        if held is not None and begin is not None and (is_cut or time - begin > MOST_HELD):
            yield *held, True, False
        begin, held = time, None
        yield time, frame, False, is_cut
        is_cut = False
    if held is not None:
        yield *held, True, False


def with_equality(frames: Iterable[tuple[float, Picture]]) -> Iterator[tuple[float, Picture, bool]]:
    """Add to times and frames whether each frame equals the one before, in every pixel."""
    before: Picture | None = None
    for time, frame in frames:
        yield time, frame, before is not None and _equal(before, frame)
        before = frame


def positive(value: Any, name: str) -> float:
    """Return a rate as a plain number.

    Raises:
        ValueError: for anything but a positive, finite number.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise ValueError(f"`{name}` is {value!r}; give a positive number of frames per second")
    return float(value)


def checked_cuts(cuts: Iterable[int], video: Any = None) -> frozenset[int]:
    """Return the numbers of the frames that begin a scene.

    Raises:
        ValueError: for anything but whole numbers, and for numbers beyond the end of `video`, if its length is known.
    """
    numbers = None if isinstance(cuts, (str, bytes, Mapping)) or not hasattr(cuts, "__iter__") else list(cuts)
    if numbers is None or any(isinstance(n, bool) or not hasattr(n, "__index__") or n < 0 for n in numbers):
        raise ValueError(f"`cuts` is {cuts!r}; give the numbers of the frames that begin a scene, counted from 0")
    if numbers and hasattr(video, "__len__") and max(numbers) >= len(video):
        raise ValueError(f"`cuts` holds {max(numbers)}, but `video` has {len(video)} frames, counted from 0")
    return frozenset(int(number) for number in numbers)


def timed(frames: Iterable[Picture], times: Iterator[float]) -> Iterator[tuple[float, Picture]]:
    """Pair frames with their times.

    Raises:
        ValueError: if the times end before the frames, or are no finite numbers.
    """
    for number, frame in enumerate(frames):
        time = next(times, None)
        if time is None:
            raise ValueError(f"`times` has {number} values, but `video` more frames; give one for each")
        if isinstance(time, bool) or not isinstance(time, Real) or not abs(float(time)) < float("inf"):
            raise ValueError(f"`times` holds {time!r} for frame {number}; give seconds, finite numbers")
        yield float(time), frame


def _iterator(video: Any) -> Iterator[Any]:
    if isinstance(video, (np.ndarray, torch.Tensor)) and video.ndim != 4:
        raise ValueError(
            f"`video` is an array shaped {tuple(video.shape)}; a stream, and `retime`, take one clip, which has 4 axes"
        )
    if video is None or isinstance(video, (str, bytes, Mapping, Image.Image)) or not hasattr(video, "__iter__"):
        raise ValueError(
            f"`video` is of type {type(video).__name__}; a stream, and `retime`, take the frames of one clip, as a list, "
            f"an array or an iterator. {ACCEPTED_PICTURES}"
        )
    return iter(video)


def _equal(one: Picture, other: Picture) -> bool:
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))
