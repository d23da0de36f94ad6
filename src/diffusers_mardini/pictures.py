"""Convert any PIL image to 8-bit sRGB, the form that the whole package works on."""

import io
from functools import lru_cache
from itertools import product

import numpy as np
from diffusers.utils import logging
from PIL import Image, ImageCms


logger = logging.get_logger(__name__)

SAME_TO_THE_EYE = 2  # of 255: profiles that all mean sRGB differ from each other by about 1


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture in 8-bit sRGB as viewers show it: by its colour profile, on white, and 16-bit greys scaled.

    PIL's own conversion clips 16-bit greys at 255, shows the colours under transparent pixels, and ignores the
    profile. Here a profile that cannot be used is ignored with a warning.

    Raises:
        ValueError: for 32-bit integers or floats, whose range no file states.
    """
    profile, name = picture.info.get("icc_profile"), getattr(picture, "filename", "")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):  # PNG has no 32 bits
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
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
