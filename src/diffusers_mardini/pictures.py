"""Any PIL image as 8-bit RGB, which everything here works on."""

import numpy as np
from PIL import Image


def to_rgb(picture: Image.Image) -> Image.Image:
    """Makes 8-bit RGB of a picture: 16-bit greys are scaled, and what is transparent lies on white, as viewers show it.

    PIL's own conversion cuts 16-bit greys off at 255, and uncovers what lies under transparent pixels.

    Raises:
        ValueError: of 32-bit whole numbers or fractions, whose range no file tells.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):  # PNG has no 32 bits
        picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"a picture of 32-bit values (mode {picture.mode!r}) does not say what is white; scale it to 0 to 255 and convert it to 'L' or 'RGB'"
        )
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
