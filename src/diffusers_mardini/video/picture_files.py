"""Read pictures, and list the pictures of a folder."""

import os
import re
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..pictures import to_rgb
from .errors import FILE_ERRORS, named_file_errors


PICTURE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm",
    ".tga",
)  # fmt: skip


def natural_key(path: str | os.PathLike) -> tuple:
    """Return a sorting key that compares numbers in file names by value: `a2` before `a10`; no two names share one."""
    name = Path(path).name
    # Other digits, such as superscripts, are text.
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    # Compare numbers by length without leading zeros first: names may have more digits than `int` takes.
    numbers = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
    return (
        [(1, 0, part.lower()) if number is None else (0, len(number), number) for part, number in zip(parts, numbers)],
        name,
    )


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in natural order, without hidden ones such as macOS's `._x.png`."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] != "."]
    if not files:
        raise ValueError(f"folder '{folder}' holds no pictures; accepted are {', '.join(PICTURE_SUFFIXES)}")
    return sorted(files, key=natural_key)


def read_picture(path: Path) -> Image.Image:
    """Return a picture as viewers show it: upright, RGB; damaged EXIF is ignored.

    Raises:
        ValueError: if there is no such file, or it is not one readable picture.
    """
    if not path.is_file():
        raise ValueError(f"no picture at '{path}'")
    with named_file_errors(f"'{path}'", "a picture"), _opened(path) as image:
        # A phone's JPEG may hold a preview or a depth map beside the picture.
        if image.format != "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"it holds {count} pictures; give it as .gif, .mp4 or a folder of pictures")
        image.load()  # here, so that damage of the picture itself is not suppressed below
        with suppress(*FILE_ERRORS):
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError("this Pillow does not know its format; save it as JPEG or PNG") from error
