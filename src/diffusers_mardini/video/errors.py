"""The errors that reading a file can raise, and the one place that turns them into a sentence with the file's name.

PyAV, Pillow and Python's own readers raise errors of many kinds for a damaged file; a list of them in each place
that reads would miss one somewhere. Errors of writing are not covered, because they are not the file's fault.
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
    SyntaxError,  # Pillow, for a damaged PNG, TIFF or EXIF
    TypeError,
    AttributeError,  # diffusers, for JSON that holds a list instead of keys
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
# Pillow's readers (AVIF) and PyAV's converters raise these too. They are not in the list above, because torch raises
# them when no file is at fault.
READERS_ERRORS = (*FILE_ERRORS, RuntimeError, AttributeError, AssertionError)


@contextmanager
def named_file_errors(label: str, wanted: str, verb: str = "read") -> Iterator[None]:
    """Turn any error of reading a file into one sentence.

    Args:
        label: the file in the message, such as its quoted path.
        wanted: the kind of file that was expected: "a picture", "a video", "JSON".
        verb: the action that failed.

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
