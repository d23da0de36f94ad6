"""Convert any PIL image to 8-bit sRGB, the form that the whole package works on."""

import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from diffusers.utils import logging
from PIL import Image, ImageCms


logger = logging.get_logger(__name__)

WHITES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))  # of the numbers of bits that cameras use
SAME_TO_THE_EYE = 2  # of 255: profiles that all mean sRGB differ from each other by about 1


def to_rgb(picture: Image.Image, white: int | None = None) -> Image.Image:
    """Return a picture in 8-bit sRGB as viewers show it: by its colour profile, on white, and 16-bit greys scaled.

    PIL's own conversion clips 16-bit greys at 255, shows the colours under transparent pixels, and ignores the
    profile. Here a profile that cannot be used is ignored with a warning.

    Args:
        picture: the picture.
        white: the value of white in a 16-bit grey; by default that of the bits that the picture uses, see `white_of`.

    Raises:
        ValueError: for 32-bit integers or floats, whose range no file states.
    """
    profile, name = picture.info.get("icc_profile"), getattr(picture, "filename", "")
    if is_deep_grey(picture):
        values = np.asarray(picture)
        picture = to_8_bits(values, white or white_of([int(values.max())]))
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"a picture of 32-bit values (mode {picture.mode!r}) does not say what is white; scale it to 0 to 255 and "
            "convert it to 'L' or 'RGB'"
        )
    if profile:
        picture = _by_profile(picture, profile, f"'{name}'" if name else "a picture")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    picture.info.pop("icc_profile", None)  # otherwise the next reader would apply it again
    return picture


def clip_to_rgb(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Return the pictures of one clip as `to_rgb` does, all of them scaled by the same white."""
    deep = [int(np.asarray(picture).max()) for picture in pictures if is_deep_grey(picture)]
    white = white_of(deep) if deep else None
    return [to_rgb(picture, white) for picture in pictures]


def is_deep_grey(picture: Image.Image) -> bool:
    """Return whether a picture is a grey one of 16 bits."""
    return picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")  # PNG has no 32 bits


def white_of(peaks: Iterable[int]) -> int:
    """Return the value that means white in 16-bit pictures of a clip, from the highest value of each.

    Cameras store 10, 12 or 14 bits in files of 16 without saying so; taken for 16 bits, they would be nearly black.
    So white is the highest number of the least of 8, 10, 12, 14 and 16 bits that hold all values. A warning names it
    unless it is that of 16 bits.
    """
    highest = 0
    for peak in peaks:
        highest = max(highest, peak)
        if highest > WHITES[-2]:
            return WHITES[-1]
    white = next(white for white in WHITES if highest <= white)
    _warn_of_bits(white.bit_length())
    return white


@lru_cache
def _warn_of_bits(bits: int) -> None:
    logger.warning(f"16-bit pictures hold {bits} bits only and are scaled by these, so that they are not too dark")


def to_8_bits(values: np.ndarray, white: int) -> Image.Image:
    """Return a picture of `(height, width)` or `(height, width, channels)` values, of which `white` becomes 255."""
    return Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))


def _by_profile(picture: Image.Image, profile: bytes, label: str) -> Image.Image:
    """Return a picture in sRGB, `RGB` or `RGBA`; the picture itself if the profile means sRGB or cannot be used."""
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    colours = picture if picture.mode in ("L", "CMYK") else picture.convert("L" if picture.mode == "LA" else "RGB")
    try:
        kind = _colour_space(profile)
        if colours.mode == "L" and kind == "RGB":
            colours = colours.convert("RGB")
        transform = _transform(profile, colours.mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError) as error:
        logger.warning(f"{label} has a colour profile that cannot be used ({error}); its colours are taken for sRGB")
        return picture
    if transform is None:
        return picture
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None, "only in-place transforms return None"
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


@lru_cache(maxsize=32)
def _colour_space(profile: bytes) -> str:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile's colours to sRGB; `None` if it would change nothing."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
    )
    if mode == "CMYK":
        return transform
    shades = range(0, 256, 15)
    colours = [(shade,) * 3 for shade in range(256)] if mode == "L" else list(product(shades, repeat=3))
    probe = np.array(colours, np.uint8)[None]
    changed = ImageCms.applyTransform(Image.fromarray(probe[..., 0] if mode == "L" else probe), transform)
    return None if np.abs(np.asarray(changed).astype(int) - probe).max() <= SAME_TO_THE_EYE else transform
