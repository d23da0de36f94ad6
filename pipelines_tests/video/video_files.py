"""Small video files of awkward kinds, made with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that carry their number as eight squares along the upper edge; `numbers` reads it."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (40, 90, 160)
    for index, frame in enumerate(frames):
        for bit in range(8):
            frame[:8, bit * width // 8 : (bit + 1) * width // 8] = 255 if index >> bit & 1 else 0
        frame[24:36, 4 * index % 52 : 4 * index % 52 + 12] = (220, 120, 40)
    return frames


def numbers(frames) -> list[int]:
    """Which frames of `numbered` these are."""
    side = np.asarray(frames[0]).shape[1] // 8
    return [
        sum(int(np.asarray(frame)[1:6, bit * side + 2 : (bit + 1) * side - 2].mean() > 127) << bit for bit in range(8))
        for frame in frames
    ]


def plain(colour, count: int = 2, height: int = 48, width: int = 64, dtype=np.uint8) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype), (count, height, width, len(colour))).copy()


def encode(
    path,
    frames: np.ndarray,
    codec: str = "libx264",
    source: str = "rgb24",
    pix_fmt: str = "yuv420p",
    rate: int = 10,
    options: dict | None = None,
    tags: dict | None = None,
    matrix: int | None = None,
    full_range: bool = False,
) -> Path:
    """Writes frames of the pixel format `source`, converted by `matrix` (swscale's number) and tagged with `tags`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=rate, options=options or ({"crf": "1"} if codec == "libx264" else {})
        )
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.thread_count = 1
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=source)
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=2 if full_range else 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def timed(path, frames: np.ndarray, times: list[int], last: int | None = None, clock: int = 1000, **tags) -> Path:
    """Frame `i` at `times[i]` ticks, stored in that order; `last`: length of the last one; `clock`: ticks per second.

    MP4 and QuickTime keep a coarser clock than milliseconds only where `video_track_timescale` says so.
    """
    options = {} if clock == 1000 else {"video_track_timescale": str(clock)}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base, stream.codec_context.thread_count = Fraction(1, clock), 1
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        packets = []
        for array, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, clock)
            packets += stream.encode(frame)
        packets += stream.encode()
        if last is not None:
            packets[-1].duration = last
        container.mux(packets)
    return Path(path)
