"""Pictures in files, and folders of them."""

import os
import re
from pathlib import Path

from PIL import Image, ImageOps

from ..pictures import to_rgb
from .errors import named_file_errors


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def natural_key(path: str | os.PathLike) -> list[tuple[int, int, str]]:
    """Sorting key for file names in which numbers count as numbers: `a2` before `a10`."""
    parts = re.split(r"(\d+)", Path(path).name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts if part]


def picture_files(folder: Path) -> list[Path]:
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=natural_key)
    if not files:
        raise ValueError(f"folder '{folder}' holds no pictures; accepted are {', '.join(PICTURE_SUFFIXES)}")
    return files


def read_picture(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"no picture at '{path}'")
    with named_file_errors(f"'{path}'", "a picture"), Image.open(path) as image:
        # A telephone's JPEG may hold a preview or a map of depths beside the picture.
        if image.format != "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"it holds {count} pictures; give it as .gif, .mp4 or a folder of pictures")
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
