"""Read pictures, and list the pictures of a folder or of another series that is a clip."""

import io
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..pictures import WHITES, is_deep_grey, to_8_bits, to_rgb, white_of
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


class PictureSeries:
    """The pictures of a clip in natural order, wherever they lie.

    Attributes:
        label: name of the clip in messages.
        names: of its files, in order.
    """

    def __init__(self, label: str, names: Iterable[str], find: Callable[[str], Path | bytes]):
        """Make a series whose files `find` returns by their names, as a path or as bytes."""
        self.label = label
        self.names = tuple(sorted(names, key=natural_key))
        self._find = find

    @classmethod
    def of_folder(cls, folder: Path) -> "PictureSeries":
        """Return the series of a folder; raise `ValueError` if it holds no pictures."""
        series = cls(f"folder '{folder}'", (file.name for file in picture_files(folder)), folder.joinpath)
        first = folder / series.names[0]
        if _is_deep(first):  # looked up, because a folder is opened anew for every window
            series.white = _white_of_folder(folder, folder.stat().st_mtime_ns, first.stat().st_mtime_ns)
        return series

    def __len__(self) -> int:
        return len(self.names)

    def data(self, name: str) -> bytes:
        """Return the bytes of a file."""
        found = self._find(name)
        return found if isinstance(found, bytes) else found.read_bytes()

    def read(self, index: int) -> Image.Image:
        """Return a picture as `read_picture` does, in the brightness of the whole clip."""
        name = self.names[index]
        found = self._find(name)
        label = f"'{name}' of {self.label}" if isinstance(found, bytes) else f"'{found}'"
        return _decode(found, label, self.white)

    @cached_property
    def white(self) -> int | None:
        """Return the value of white in pictures of 16 bits, one for all of them; `None` if they have fewer bits."""
        if not _is_deep(self._find(self.names[0])):
            return None
        return white_of(peak for name in self.names if (peak := _peak(self._find(name), name)) is not None)


def read_picture(path: Path) -> Image.Image:
    """Return a picture as viewers show it: upright, RGB, 16 bits scaled by what they hold; ignore damaged EXIF.

    Raises:
        ValueError: if there is no such file, or it is not one readable picture.
    """
    if not path.is_file():
        raise ValueError(f"no picture at '{path}'")
    return _decode(path, f"'{path}'")


def _decode(file: Path | bytes, label: str, white: int | None = None) -> Image.Image:
    with named_file_errors(label, "a picture"), _opened(file) as image:
        # A phone's JPEG may hold a preview or a depth map beside the picture.
        if image.format != "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"it holds {count} pictures; give it as .gif, .mp4 or a folder of pictures")
        deep_colours = _has_deep_colours(image)
        image.load()  # here, so that damage of the picture itself is not suppressed below
        if deep_colours and white != WHITES[-1] and _highest_byte(image) * 256 <= WHITES[-2]:
            image = _deep_colours(file, image, white)
        with suppress(*FILE_ERRORS):
            ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image, white)


def _opened(file: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError as error:
        raise ValueError("this Pillow does not know its format; save it as JPEG or PNG") from error


def _has_deep_colours(image: Image.Image) -> bool:
    """Return whether a picture that is not loaded yet has colours of 16 bits, of which Pillow keeps the upper 8."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)


def _highest_byte(image: Image.Image) -> int:
    return int(np.asarray(image)[..., : 1 if image.mode == "LA" else 3].max())


def _is_deep(file: Path | bytes) -> bool:
    """Return whether a picture has 16 bits; `False` for a damaged one, whose reading fails later."""
    with suppress(*FILE_ERRORS), _opened(file) as image:
        return is_deep_grey(image) or _has_deep_colours(image)
    return False


def _peak(file: Path | bytes, name: str) -> int | None:
    """Return the highest value of a picture of 16 bits, `None` for another one."""
    with named_file_errors(f"'{name}'", "a picture"), _opened(file) as image:
        grey, colours = is_deep_grey(image), _has_deep_colours(image)
        if colours:
            upper = _highest_byte(image)
            return int(_colours_of_16_bits(file)[..., :3].max()) if upper * 256 <= WHITES[-2] else upper * 256 + 255
        return int(np.asarray(image).max()) if grey else None


def _deep_colours(file: Path | bytes, image: Image.Image, white: int | None) -> Image.Image:
    """Return a picture with colours of 16 bits, scaled by `white`, with the profile and the orientation of `image`."""
    values = _colours_of_16_bits(file)  # (height, width, 4)
    white = white or white_of([int(values[..., :3].max())])
    colours, alpha = to_8_bits(values[..., :3], white), to_8_bits(values[..., 3], WHITES[-1])
    if alpha.getextrema()[0] < 255:
        colours.putalpha(alpha)
    colours.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    with suppress(*FILE_ERRORS):
        colours.info["exif"] = image.getexif().tobytes()
    return colours


def _colours_of_16_bits(file: Path | bytes) -> np.ndarray:
    with av.open(io.BytesIO(file) if isinstance(file, bytes) else io.FileIO(file)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="rgba64le")


@lru_cache(maxsize=4096)
def _white_of_folder(folder: Path, _changed: int, _first_changed: int) -> int | None:
    return PictureSeries("", [file.name for file in picture_files(folder)], folder.joinpath).white
