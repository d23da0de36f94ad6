"""What reading a file can raise, and the one place where it becomes a sentence with the file's name.

PyAV, Pillow and Python's own readers raise errors of many kinds for a damaged file; a list of them in each place that reads
would miss one somewhere. Writing is not covered: there an error is no fault of the file.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import av
from PIL import Image, UnidentifiedImageError


class UnreadableFileError(ValueError):
    """A file that cannot be used; the message begins with its name."""


# `ValueError` covers UnicodeError and json.JSONDecodeError; `OSError` covers PIL's UnidentifiedImageError.
FILE_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    SyntaxError,  # Pillow, of a damaged PNG, TIFF or EXIF
    TypeError,
    AttributeError,  # diffusers, of JSON that holds a list where it looks for keys
    LookupError,
    ArithmeticError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    av.error.FFmpegError,
    Image.DecompressionBombError,
    UnidentifiedImageError,
)


@contextmanager
def named_file_errors(label: str, wanted: str) -> Iterator[None]:
    """Turns whatever reading a file raises into one sentence.

    Args:
        label: how to call the file, such as its quoted path.
        wanted: what it was read as: "a picture", "a video", "JSON".

    Raises:
        UnreadableFileError: for every error of `FILE_ERRORS`, except those that name the file already.
    """
    try:
        yield
    except UnreadableFileError:
        raise
    except FILE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__  # some libraries break lines
        raise UnreadableFileError(f"{label} cannot be read as {wanted} ({reason})") from error
