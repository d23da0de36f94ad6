"""What a decoded frame looks like on a screen: upright, with square pixels, 8-bit RGB."""

import av
import numpy as np
from PIL import Image


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored frame becomes upright: swap its axes, then flip it top to bottom, then left to right.

    FFmpeg's display matrix maps x to `a x + c y` and y to `b x + d y`; phones write turns by 90 degrees and mirrors.
    """
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5]
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)


def _square_pixels(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Height and width at which a stored frame has square pixels: DVD, DV and HDV store theirs narrower than they are shown."""
    return frame.height, round(frame.width * float(stream.sample_aspect_ratio or 1))


def upright_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Height and width of what `upright` returns."""
    size = _square_pixels(frame, stream)
    return size[::-1] if _orientation(frame)[0] else size


def upright(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    height, width = _square_pixels(frame, stream)
    array = frame.to_ndarray(format="rgb24")
    if width != frame.width:
        array = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    swap, flip_rows, flip_columns = _orientation(frame)
    array = array.swapaxes(0, 1) if swap else array
    array = array[::-1] if flip_rows else array
    return np.ascontiguousarray(array[:, ::-1] if flip_columns else array)
