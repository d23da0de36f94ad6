"""Clips for the tests of `training/data`: good ones, and every kind of bad one."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def noise(num_frames: int, height: int = 32, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (num_frames, height, width, 3), dtype=np.uint8)


def write_clip(
    path: Path, frames: np.ndarray, fps: int = 25, times: list[int] | None = None, rotation: int | None = None
) -> Path:
    """A video of any format with small groups of pictures; frame `i` lies at `times[i]` milliseconds where they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *frames.shape[1:3], "yuv420p", 8
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = times[index] if times else round(1000 * index / fps), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path
