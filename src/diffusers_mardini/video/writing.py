"""Clips into files: mp4, gif, or a folder of PNG; whole or not at all."""

import math
import os
import re
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo


WRITABLE = "`.mp4`, `.gif` or no suffix (a folder of PNG)"
MAX_GIF_FPS = 50  # viewers show frames of less than two hundredths of a second for longer
WRITER = "diffusers_mardini"  # in the metadata of the PNG that `write_video` writes, by which it knows them again


def write_video(
    path: str | os.PathLike,
    frames: Sequence[Image.Image] | np.ndarray,
    fps: float,
    crf: int = 18,
) -> Path:
    """Writes frames as `.mp4` (H.264, yuv420p), as `.gif`, or, where `path` has no suffix, as a folder of PNG.

    The result appears whole or not at all: it is written under a temporary name beside `path` and then renamed.

    Args:
        path: where to; an existing file is replaced, an existing folder only where it holds nothing but pictures
            that this function wrote, as their metadata say.
        frames: PIL images, or `uint8` shaped `(frames, height, width, 3)` (array or tensor). For mp4 an odd side gets
            its last row or column repeated, since yuv420p needs even sides.
        fps: frames per second; a folder of PNG does not record it. The times of a gif's frames are rounded to hundredths of a second, and
            equal neighbours become one frame that is held.
        crf: quality of the mp4, 0 (best, large) to 51; 18 looks lossless, 10 very nearly is.

    Raises:
        ValueError: on an unknown suffix, no frames, frames of different sizes, a rate that is not positive, or where something
            else stands (`check_writable`).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_writable(path, fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be between 0 and 51, got {crf}")
    array = _as_array(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{suffix}")
    try:
        if suffix == ".mp4":
            _write_mp4(temporary, array, fps, crf)
        elif suffix == ".gif":
            first, *rest = [Image.fromarray(frame) for frame in array]
            # Ends in hundredths of a second, so that roundings do not add up.
            ends = [round(100 * (index + 1) / fps) for index in range(len(array))]
            durations = [10 * (end - start) for start, end in zip([0, *ends], ends)]
            first.save(temporary, save_all=True, append_images=rest, duration=durations, loop=0)
        else:
            temporary.mkdir()
            written = PngInfo()
            written.add_text("Software", WRITER)
            for index, frame in enumerate(array):
                Image.fromarray(frame).save(temporary / f"frame_{index:05d}.png", pnginfo=written)
            check_writable(path, fps)  # it may have been filled meanwhile
            if path.is_dir():
                shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return path


def check_writable(path: str | os.PathLike, fps: float) -> None:
    """Whether `write_video` can write there, and will lose nothing but what it wrote itself; for asking before frames are made.

    Raises:
        ValueError: on an unknown suffix, a rate that is not positive or too high for a gif, a place where nothing can be written, a folder in the
            way of a file, or, in the way of a folder of PNG, a link, a file or a folder that holds anything else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ("", ".mp4", ".gif"):
        raise ValueError(f"cannot write '{path}': the suffix '{suffix}' is unknown; use {WRITABLE}")
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be positive, got {fps}")
    if suffix == ".gif" and fps > MAX_GIF_FPS:
        raise ValueError(f"a gif shows at most {MAX_GIF_FPS} frames per second, got {fps:g}; write .mp4, or fewer")
    there = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ValueError(f"cannot write '{path}': '{there}' is {'write-protected' if there.is_dir() else 'a file'}")
    if suffix and path.is_dir():
        raise ValueError(f"'{path}' is a folder; give the name of a file")
    if not suffix and path.exists():
        if path.is_symlink():
            raise ValueError(f"'{path}' is a link to '{path.resolve()}'; give that itself")
        if not path.is_dir() or not all(map(_is_ours, path.iterdir())):
            raise ValueError(f"'{path}' exists and holds other files; give another output or empty it first")


def _is_ours(file: Path) -> bool:
    """Whether `write_video` wrote this picture of a folder."""
    if not re.fullmatch(r"frame_\d{5}\.png", file.name):
        return False
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == WRITER
    except (UnidentifiedImageError, OSError):
        return False


def _as_array(frames: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
    if len(frames) == 0:
        raise ValueError("there are no frames to write")
    if isinstance(frames[0], Image.Image):
        sizes = {frame.size for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"all frames of a video must have the same size, got (width, height) {sorted(sizes)}")
        return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(
            f"frames must be PIL images or uint8 shaped (frames, height, width, 3), got {array.dtype} shaped "
            f"{tuple(array.shape)}"
        )
    return array


def _write_mp4(path: Path, array: np.ndarray, fps: float, crf: int) -> None:
    _, height, width, _ = array.shape
    array = np.pad(array, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), mode="w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = array.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        # One thread: the picture then does not depend on how many cores the machine has.
        stream.codec_context.thread_count = 1
        for frame in array:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
