"""Turn a decoded frame into the picture that a player shows: cropped, upright, with square pixels, 8-bit sRGB."""

from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from .colour import frame_to_rgb


MOST_UNSQUARE = 16  # the most that a pixel's width and height may differ, as a ratio; more is damage


class Screen:
    """The screen that the frames of one stream are shown on.

    Args:
        stream: the stream.
        crop: rows and columns that the container hides: above, below, left, right.
        warn: called with a sentence, without its subject, about what is lost or ignored.
    """

    def __init__(self, stream: av.VideoStream, crop: tuple[int, int, int, int], warn: Callable[[str], None]):
        self._stream = stream
        self._crop = crop
        self._warn = warn
        self._reformatter = VideoReformatter()  # one for all frames: a new one starts a thread for each core
        self._orientations: dict[int, tuple[bool, bool, bool]] = {}

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return height and width of the picture that `show` returns."""
        height, width = self._square_pixels(*self._window(frame)[1])
        return (width, height) if self._orientation(frame)[0] else (height, width)

    def show(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as `uint8` `(height, width, 3)` in memory of its own."""
        window, stored = self._window(frame)
        height, width = self._square_pixels(*stored)
        array = frame_to_rgb(frame, self._stream, self._reformatter, self._warn)[window]
        if width != stored[1]:
            array = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
        swap, flip_rows, flip_columns = self._orientation(frame)
        array = array.swapaxes(0, 1) if swap else array
        array = array[::-1] if flip_rows else array
        return np.ascontiguousarray(array[:, ::-1] if flip_columns else array)

    def _window(self, frame: av.VideoFrame) -> tuple[tuple[slice, slice], tuple[int, int]]:
        """Return the rows and columns that the container's crop leaves, and their numbers."""
        above, below, left, right = self._crop
        height, width = frame.height - above - below, frame.width - left - right
        if min(self._crop) < 0 or height < 1 or width < 1:
            self._warn("asks for a crop that leaves nothing; it is ignored")
            self._crop = (0, 0, 0, 0)
            return self._window(frame)
        return (slice(above, above + height), slice(left, left + width)), (height, width)

    def _square_pixels(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width with square pixels: DVD, DV and HDV store theirs narrower than shown."""
        stated = self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio
        aspect = float(stated) if stated else 1.0
        if stated and not 1 / MOST_UNSQUARE <= aspect <= MOST_UNSQUARE:
            self._warn(
                f"states pixels of {stated.numerator}:{stated.denominator}, which cannot be; they are taken for square"
            )
            aspect = 1.0
        return height, max(1, round(width * aspect))

    def _orientation(self, frame: av.VideoFrame) -> tuple[bool, bool, bool]:
        """Return `_orientation` of a frame, read once for each angle.

        Whoever asks PyAV for the side data of a frame keeps its picture until the garbage is collected: hundreds.
        """
        angle = getattr(
            frame, "rotation", 0
        )  # older versions of PyAV lack it; a film is then turned as its first frame
        if angle not in self._orientations:
            self._orientations[angle] = _orientation(frame)
        return self._orientations[angle]


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return the steps that turn a stored frame upright: swap its axes, flip it top to bottom, flip it left to right.

    FFmpeg's display matrix maps x to `a x + c y` and y to `b x + d y`; phones write turns by 90 degrees and mirrors.
    """
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5]
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)
