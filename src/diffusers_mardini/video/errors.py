"""What reading a file can raise, and the one place where it becomes a sentence with the file's name.

PyAV, Pillow and Python's own readers raise errors of many kinds for a damaged file; a list of them in each place
that reads would miss one somewhere. Writing is not covered: there an error is no fault of the file.
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
# Raised by Pillow's readers (AVIF) and PyAV's converters, too; not in the list above, because torch raises them when
# no file is at fault.
READERS_ERRORS = (*FILE_ERRORS, RuntimeError, AttributeError, AssertionError)


@contextmanager
def named_file_errors(label: str, wanted: str, verb: str = "read") -> Iterator[None]:
    """Turns whatever reading a file raises into one sentence.

    Args:
        label: how to call the file, such as its quoted path.
        wanted: what it was read as: "a picture", "a video", "JSON".
        verb: what cannot be done with it.

    Raises:
        UnreadableFileError: for every error of `READERS_ERRORS`, except those that name the file already.
    """
    try:
        yield
    except UnreadableFileError:
        raise
    except READERS_ERRORS as error:
        # FFmpeg's text would name the file once more, as FFmpeg knows it; some libraries break lines.
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise UnreadableFileError(f"{label} cannot be {verb} as {wanted} ({reason})") from error
