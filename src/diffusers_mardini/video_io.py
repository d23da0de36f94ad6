"""Clips in and out of files: mp4, gif, or a folder of pictures. The only module that names PyAV.

Frames are numpy `uint8` arrays shaped `(frames, height, width, 3)` or PIL images; tensors in [-1, 1] are made by the
pipeline's video processor, and crops by `training/data/clips.py`.
"""

import os
import re
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
WRITABLE = "`.mp4`, `.gif` or no suffix (a folder of PNG)"


def read_video(path: str | os.PathLike) -> tuple[np.ndarray, float]:
    """Decodes every frame of a video.

    Args:
        path: a video file (anything FFmpeg decodes, gif included).

    Returns:
        The frames, `uint8` shaped `(frames, height, width, 3)`, and their number per second.

    Raises:
        ValueError: if the file is missing, is not a video, is damaged, or holds no frame.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no video file at '{path}'" + ("; it is a folder" if path.is_dir() else ""))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"'{path}' has no video stream; give a video file such as .mp4 or .gif")
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise ValueError(f"'{path}' is one picture, not a video; give a video or a folder of pictures")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except av.error.FFmpegError as error:
        raise ValueError(f"'{path}' cannot be decoded as a video ({error}); it is damaged or no video") from error
    if not frames:
        raise ValueError(f"'{path}' holds no frame; it is damaged or empty")
    if fps <= 0:
        raise ValueError(f"'{path}' does not say how many frames it has per second; encode it again as .mp4")
    return np.stack(frames), fps


def read_images(path: str | os.PathLike) -> tuple[list[Image.Image], float | None]:
    """Reads a picture, a folder of pictures (in natural order: 2 before 10) or a video as PIL images.

    Returns:
        RGB images, and the frames per second where the source says so (a video), else `None`.

    Raises:
        ValueError: if nothing readable is there.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted((f for f in path.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=natural_key)
        if not files:
            raise ValueError(f"folder '{path}' holds no pictures; accepted are {', '.join(PICTURE_SUFFIXES)}")
        return [_read_picture(file) for file in files], None
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return [_read_picture(path)], None
    frames, fps = read_video(path)
    return [Image.fromarray(frame) for frame in frames], fps


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
            that this function wrote.
        frames: PIL images, or `uint8` shaped `(frames, height, width, 3)` (array or tensor). For mp4 an odd side gets
            its last row or column repeated, since yuv420p needs even sides.
        fps: frames per second; a folder of PNG does not record it, a gif rounds it to hundredths of a second.
        crf: quality of the mp4, 0 (best, large) to 51; 18 looks lossless, 10 very nearly is.

    Raises:
        ValueError: on an unknown suffix, no frames, frames of different sizes, or a rate that is not positive.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ("", ".mp4", ".gif"):
        raise ValueError(f"cannot write '{path}': the suffix '{suffix}' is unknown; use {WRITABLE}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
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
            first.save(temporary, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        else:
            temporary.mkdir()
            for index, frame in enumerate(array):
                Image.fromarray(frame).save(temporary / f"frame_{index:05d}.png")
            _remove_own_folder(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return path


def natural_key(path: str | os.PathLike) -> list[tuple[int, int, str]]:
    """Sorting key for file names in which numbers count as numbers: `a2` before `a10`."""
    parts = re.split(r"(\d+)", Path(path).name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts if part]


def _read_picture(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"no picture at '{path}'")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"'{path}' cannot be read as a picture ({error})") from error


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


def _remove_own_folder(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir() or any(not re.fullmatch(r"frame_\d{5}\.png", f.name) for f in path.iterdir()):
        raise ValueError(f"'{path}' exists and holds other files; give another output or empty it first")
    shutil.rmtree(path)
