"""Sizes of pictures as text, in one form everywhere: `64` for a square, `64x128` for height x width in pixels."""

import re


Size = int | tuple[int, int]  # the side of a square, or height and width


def parse_size(text: str) -> Size:
    """Read "64" or "64x128" (height x width); a square is one number.

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?", text.strip().lower())
    if found is None:
        raise ValueError(f'the size is {text!r}; write "64" for a square or "64x128" for height x width in pixels')
    height, width = int(found[1]), int(found[2] or found[1])
    return height if height == width else (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def size_text(size: Size) -> str:
    """Return "64x128" for height 64 and width 128, and "64x64" for 64."""
    return "{}x{}".format(*sides(size))
