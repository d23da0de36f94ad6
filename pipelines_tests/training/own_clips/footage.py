"""Footage for the tests of `training/own_clips`: worlds of blobs that a camera passes, and files of them."""

from pathlib import Path

import av
import cv2
import numpy as np


def world(seed: int, size: int = 400) -> np.ndarray:
    """A large picture of soft blobs of many colours; another seed is another place."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (size // 20, size // 20, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def shot(seed: int, num_frames: int, speed: float = 2.0, height: int = 48, width: int = 64) -> np.ndarray:
    """A camera that swings over a world; 0 is a still picture."""
    place = world(seed)
    swing = np.cumsum(speed * (1.2 + np.sin(0.35 * np.arange(num_frames) + seed)) / 1.2) - speed
    # Forth and back, without a jump
    x, y = (
        np.abs(way % (2 * most) - most).astype(int)
        for way, most in ((swing, 400 - width), (0.3 * swing, 400 - height))
    )
    return np.stack([place[b : b + height, a : a + width] for a, b in zip(x, y)])


def write(path: Path, frames: np.ndarray, fps: int = 20, crf: int = 18) -> Path:
    """An H.264 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
