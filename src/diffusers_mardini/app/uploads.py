"""Read what a visitor gives, checked before it is decoded: size of the file, kind, pixels, and number of frames."""

import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..video.errors import UnreadableFileError
from ..video.opening import OnePictureError, open_film
from ..video_io import PICTURE_SUFFIXES, read_images
from .limits import Limits


# Formats that Pillow decodes by itself: others would start programs (EPS) or are none of a camera or a screen.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA")
LARGEST_SIDE = 1024  # of kept pictures: the models work on less


def read_upload(
    path: Path, limits: Limits, check: Callable[[], None] = lambda: None
) -> tuple[list[Image.Image], float | None]:
    """Return the pictures of a file, made smaller than `LARGEST_SIDE`, and the rate of a clip, `None` for a picture.

    `check` is called for every frame, and raises an error if the reading is to end.

    Raises:
        ValueError: if it is too large in any way, or neither a picture nor a video; the message names the file.
    """
    name, size = _name(path), path.stat().st_size
    if size > limits.upload_bytes:
        raise ValueError(f"'{name}' has {_mib(size)}; give a file of at most {_mib(limits.upload_bytes)}")
    try:
        is_picture = path.suffix.lower() in PICTURE_SUFFIXES
        if is_picture:
            _check_picture(path, limits)
        else:
            is_picture = not _check_video(path, limits)
            if is_picture:
                _check_picture(path, limits)
        frames, rate = read_images(path, _bounded(name, limits, check))
    except UnreadableFileError as error:
        # The readers name the file by its path on the server, which is none of the visitor's business.
        raise ValueError(str(error).replace(str(path), name)) from error
    return frames, None if is_picture else rate


def read_picture_upload(path: Path, limits: Limits) -> Image.Image:
    """Return the one picture of a file.

    Raises:
        ValueError: as `read_upload` does, and if it is a clip.
    """
    frames, _ = read_upload(path, limits)
    if len(frames) != 1:
        raise ValueError(f"'{_name(path)}' is a clip of {len(frames)} frames; a place takes one picture")
    return frames[0]


def _check_picture(path: Path, limits: Limits) -> None:
    name = _name(path)
    try:
        Image.init()
        with Image.open(path, formats=[name for name in PICTURE_FORMATS if name in Image.OPEN]) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"'{name}' has too many pixels; give at most {limits.pixels / 1e6:g} million") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"'{name}' is no picture that can be read; give a JPEG or PNG, or a video") from error
    _check_pixels(name, width, height, limits)


def _check_video(path: Path, limits: Limits) -> bool:
    """Check what a video says of itself; return `False` for a picture without the suffix of one."""
    try:
        with open_film(path) as film:
            stream = film.stream
            _check_pixels(_name(path), stream.width, stream.height, limits)
            seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
            stated = stream.frames or round(seconds * float(stream.average_rate or 0))
    except OnePictureError:
        return False
    if stated > limits.clip_frames:
        raise ValueError(_too_long(_name(path), stated, limits))
    return True


def _check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise ValueError(
            f"'{name}' has {width}x{height} pixels; give at most {limits.pixels / 1e6:g} million, such as a smaller copy"
        )


def _bounded(name: str, limits: Limits, check: Callable[[], None]) -> Callable[[Image.Image], Image.Image]:
    """Return a function that keeps a smaller copy of each frame, and ends a decoding that goes on for too long."""
    start, count = time.monotonic(), 0

    def keep(frame: Image.Image) -> Image.Image:
        nonlocal count
        check()
        count += 1
        if count > limits.clip_frames:
            raise ValueError(_too_long(name, count, limits))
        if time.monotonic() - start > limits.reading_seconds:
            raise ValueError(f"'{name}' takes too long to decode; give a shorter or smaller clip")
        frame.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        return frame

    return keep


def _too_long(name: str, frames: int, limits: Limits) -> str:
    return f"'{name}' has {frames} frames or more; give a clip of at most {limits.clip_frames}"


def _name(path: Path) -> str:
    return path.name if len(path.name) <= 60 else f"{path.name[:40]}…{path.suffix[:10]}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
