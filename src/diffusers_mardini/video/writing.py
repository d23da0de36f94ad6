"""Write clips: films (mp4, mov, mkv, webm), moving pictures (gif, webp, apng) or a folder of PNG; complete or not at
all."""

import contextlib
import itertools
import math
import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..pictures import clip_to_rgb
from .encoding import ClipEncoder
from .errors import FILE_ERRORS
from .places import UNFINISHED, nearest_folder, publish, real_place, spare_names, unfinished


ACCEPTED_FRAMES = "PIL images, or uint8 shaped (frames, height, width, 3)"


@dataclass(frozen=True)
class Form:
    """What files of a suffix can hold.

    Attributes:
        name: with its article.
        most_fps: frames per second; viewers slow a gif's frames down that are shorter than two hundredths of a second,
            and some formats count thousandths.
        most_seconds: for one frame.
        most_side: in pixels.
        container, encoder: FFmpeg's names, for films.
    """

    name: str
    most_fps: float = math.inf
    most_seconds: float = math.inf
    most_side: int = 65535
    container: str = ""
    encoder: str = ""


FORMS = {
    ".mp4": Form("an mp4", 1_000_000, 1_000_000, 16384, "mp4", "libx264"),
    ".mov": Form("a mov", 1_000_000, 1_000_000, 16384, "mov", "libx264"),
    ".mkv": Form("an mkv", 500, 1_000_000, 16384, "matroska", "libx264"),
    ".webm": Form("a webm", 500, 1_000_000, 16384, "webm", "libvpx-vp9"),
    ".gif": Form("a gif", 50, 655),  # hundredths of a second in 16 bits
    ".webp": Form("a webp", 500, 16_777, 16383),  # thousandths of a second in 24 bits
    ".apng": Form("an apng", 500, 65),  # thousandths of a second in 16 bits
    "": Form("a folder of PNG"),
}
FILE_SUFFIXES = tuple(suffix for suffix in FORMS if suffix)
WRITABLE = ", ".join(f"`{suffix}`" for suffix in FILE_SUFFIXES) + " or no suffix (a folder of PNG)"
MAX_GIF_FPS = FORMS[".gif"].most_fps
WRITER = "diffusers_mardini"  # in the metadata of PNG, by which `write_video` recognises its own files
PICTURE_OPTIONS = {".gif": {}, ".webp": {"quality": 90}, ".apng": {}}


def write_video(
    path: str | os.PathLike,
    frames: Iterable[Image.Image] | np.ndarray | torch.Tensor,
    fps: float,
    crf: int = 18,
    overwrite: bool = True,
) -> Path:
    """Write frames as a film (`.mp4`, `.mov`, `.mkv`: H.264; `.webm`: VP9; yuv420p, tagged BT.709), as a moving picture
    (`.gif`, `.webp`, `.apng`) or, without a suffix, as a folder of PNG.

    The result appears complete or not at all: it is written in a hidden folder beside `path` and then renamed. The
    next call removes what a killed process left there.

    Args:
        path: file or folder to write. An existing file is replaced, or the file that a link points to; an existing
            folder only if it holds nothing but pictures whose metadata say that this function wrote them.
        frames: PIL images (anything that can be iterated), or `uint8` shaped `(frames, height, width, 3)` (array or
            tensor). In a film an odd side gets its last row or column repeated, since yuv420p needs even sides.
        fps: frames per second; a folder of PNG does not record it. The times of a gif's frames are rounded to
            hundredths of a second, those of mkv, webm, webp and apng to thousandths; equal neighbours of a moving
            picture become one frame that is held.
        crf: quality of a film, 0 (best, large) to 51; 18 looks lossless, 10 very nearly is.
        overwrite: whether to replace an existing result. If not, one that appears during the call stays, too.

    Raises:
        ValueError: for an unknown suffix, no frames, frames of different sizes, a rate that cannot be written, or
            other files in the way (`check_writable`).
        OSError: if the disk is full or fails.
    """
    place, fps = _checked(Path(path), fps)
    check_crf(crf)
    return _publish_frames(Path(path), place, iter(_as_array(frames)), fps, crf, overwrite)


def write_frames(
    path: str | os.PathLike, frames: Iterator[np.ndarray], fps: float, crf: float = 18, overwrite: bool = True
) -> Path:
    """Write frames as `write_video` does, one by one: a film and a folder of PNG need one frame in memory.

    Args:
        frames: at least one, each `uint8` shaped `(height, width, 3)`, of one size.
        path, fps, crf, overwrite: see `write_video`.
    """
    place, fps = _checked(Path(path), fps)
    check_crf(crf)
    return _publish_frames(Path(path), place, frames, fps, crf, overwrite)


def check_crf(crf: float) -> None:
    """Raise `ValueError` for a quality of films that is none."""
    if not isinstance(crf, Real) or not 0 <= crf <= 51:
        raise ValueError(f"crf must be between 0 and 51, got {crf!r}")


def _publish_frames(
    path: Path, place: Path, frames: Iterator[np.ndarray], fps: float, crf: float, overwrite: bool
) -> Path:
    first = next(frames)
    _check_size(path, *first.shape[1::-1])
    if not overwrite and place.exists():
        raise ValueError(_exists(path))
    with _named_write_errors(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(place.parent) as room:
            finished = room / "clip"
            _write(finished, path.suffix.lower(), itertools.chain([first], frames), fps, crf)
            if not path.suffix and overwrite:
                _refuse_foreign(path)  # it may have been filled meanwhile
            try:
                publish(finished, place, overwrite)
            except FileExistsError as error:
                raise ValueError(_exists(path)) from error
    return path


def check_writable(path: str | os.PathLike, fps: float, size: tuple[int, int] | None = None) -> None:
    """Make sure that `write_video` can write to `path`, before frames are made: write two tiny ones and remove them.

    Args:
        path, fps: see `write_video`.
        size: width and height, if they are known.

    Raises:
        ValueError: for an unknown suffix, a rate or a size that the format does not allow, a name or a place where
            nothing can be written, a folder in the way of a file, or a link, a file or a folder with other files
            in the way of a folder of PNG.
    """
    path = Path(path)
    place, fps = _checked(path, fps)
    if size is not None:
        _check_size(path, *size)
    place = place.absolute()
    there = nearest_folder(place)
    tiny = np.zeros((2, 16, 16, 3), np.uint8)
    tiny[1] = 255  # a gif would merge equal ones into one that is held for twice as long
    try:
        with _named_write_errors(path), unfinished(there) as room:
            _write(room / "clip", path.suffix.lower(), iter(tiny), fps, crf=18)
            named = room / "named" / place.relative_to(there)  # fails if the file system does not allow the name
            named.parent.mkdir(parents=True)
            os.replace(room / "clip", named)
    except OSError as error:
        raise ValueError(str(error)) from error


def keep_frames(path: str | os.PathLike, frames: Iterable[Image.Image] | np.ndarray, fps: float) -> Path:
    """Write frames that could not be written to `path` under a free name, and return it.

    The name is beside `path` if possible, else in the folder for temporary files; the format is that of `path` if
    possible, else PNG.

    Raises:
        ValueError, OSError: if none of these can be written.
    """
    path, array = Path(path), _as_array(frames)
    elsewhere = Path(tempfile.gettempdir(), path.name)
    failure = ValueError(f"all names like '{path}' are taken")
    for wanted in (path, path.with_suffix(""), elsewhere, elsewhere.with_suffix("")):
        for name in spare_names(wanted):
            if os.path.lexists(name):
                continue
            try:
                return write_video(name, array, fps, overwrite=False)
            except (ValueError, OSError) as error:
                failure = error
                if not name.exists():  # another number in the name would not help
                    break
    raise failure


def _checked(path: Path, fps: float) -> tuple[Path, float]:
    """Return the real place of the result and its rate, after all checks that need no writing."""
    suffix = path.suffix.lower()
    if suffix not in (*FORMS, "."):
        raise ValueError(f"cannot write '{path}': the suffix '{path.suffix}' is unknown; use {WRITABLE}")
    if path.name.lower() in FILE_SUFFIXES:
        raise ValueError(f"'{path}' is a suffix without a name; give a name such as 'out{path.name}'")
    fps = _checked_rate(fps, suffix)
    try:
        place = real_place(path, is_folder=not suffix)
        if not suffix:
            _refuse_foreign(path)
    except OSError as error:  # names that are too long, folders that may not be read
        raise ValueError(f"cannot write '{path}': {error.strerror or error}") from error
    return place, fps


def _checked_rate(fps: float, suffix: str) -> float:
    """Return the rate as a plain number, if files of this suffix can have it."""
    if isinstance(fps, bool) or not isinstance(fps, Real):
        raise ValueError(f"fps must be a number of frames per second, got {fps!r}")
    try:
        number = float(fps)
    except OverflowError:
        number = math.inf
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"fps must be positive, got {fps if math.isfinite(number) else number}")
    fps, form = number, FORMS.get(suffix, FORMS[""])
    if form.container and not (fps <= form.most_fps and 1 / fps <= form.most_seconds):
        raise ValueError(
            f"{form.name} has between {1 / form.most_seconds:f} and {form.most_fps} frames per second, got {fps:g}"
        )
    if fps > form.most_fps:
        raise ValueError(
            f"{form.name} shows at most {form.most_fps} frames per second, got {fps:g}; write .mp4, or fewer"
        )
    if 1 / fps > form.most_seconds:
        raise ValueError(
            f"{form.name} holds a picture for at most {form.most_seconds} seconds, but {fps:g} frames per second hold "
            f"it for {1 / fps:.6g}; write .mp4, or more frames per second"
        )
    return fps


def _check_size(path: Path, width: int, height: int) -> None:
    most = FORMS.get(path.suffix.lower(), FORMS[""]).most_side
    if max(width, height) > most:
        raise ValueError(f"cannot write '{path}': sides have at most {most} pixels there, got {width}x{height}")


def _exists(path: Path) -> str:
    return f"'{path}' exists by now and is left as it is"


def _refuse_foreign(folder: Path) -> None:
    """Refuse to replace files that `write_video` did not write."""
    if folder.exists() and not (folder.is_dir() and all(map(_is_ours, folder.iterdir()))):
        raise ValueError(f"'{folder}' exists and holds other files; give another output or empty it first")


def _is_ours(file: Path) -> bool:
    """Return whether `write_video` wrote this picture of a folder."""
    if not re.fullmatch(r"frame_\d{5,}\.png", file.name):
        return False
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == WRITER
    except FILE_ERRORS:
        return False


@contextlib.contextmanager
def _named_write_errors(path: Path) -> Iterator[None]:
    """Turn the errors of FFmpeg and of the disk into `OSError` with the file's name."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise OSError(f"cannot write '{path}': {error.strerror or error}") from error


def _as_array(frames: Iterable[Image.Image] | np.ndarray | torch.Tensor) -> np.ndarray:
    """Return the frames as `uint8` shaped `(frames, height, width, 3)`."""
    if isinstance(frames, (str, bytes, dict, Image.Image)) or not hasattr(frames, "__iter__"):
        raise ValueError(f"frames must be {ACCEPTED_FRAMES}, got {type(frames).__name__}")
    if not isinstance(frames, (np.ndarray, torch.Tensor)):
        frames = list(frames)
        if not frames:
            raise ValueError("there are no frames to write")
        if all(isinstance(frame, Image.Image) for frame in frames):
            pictures = clip_to_rgb(frames)
        elif all(isinstance(frame, (np.ndarray, torch.Tensor)) for frame in frames):
            pictures = [_numbers(frame) for frame in frames]
        else:
            kinds = sorted({type(frame).__name__ for frame in frames})
            raise ValueError(f"all frames must be of one kind, {ACCEPTED_FRAMES}, got {', '.join(kinds)}")
        sizes = {picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1] for picture in pictures}
        if len(sizes) > 1:
            raise ValueError(f"all frames of a video must have the same size, got (width, height) {sorted(sizes)}")
        array = np.stack(list(map(np.asarray, pictures)))
    else:
        array = _numbers(frames)
    if array.ndim and len(array) == 0:
        raise ValueError("there are no frames to write")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(f"frames must be {ACCEPTED_FRAMES}, got {array.dtype} shaped {tuple(array.shape)}")
    if array.size == 0:
        raise ValueError(f"frames of {array.shape[2]}x{array.shape[1]} have no pixels")
    return array


def _numbers(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    if array.dtype != torch.uint8:  # numpy lacks some types, such as bfloat16
        raise ValueError(f"frames must be {ACCEPTED_FRAMES}, got {array.dtype} shaped {tuple(array.shape)}")
    return array.detach().cpu().numpy()


def _write(path: Path, suffix: str, frames: Iterator[np.ndarray], fps: float, crf: float) -> None:
    form = FORMS.get(suffix, FORMS[""])
    if form.container:
        _write_film(path, frames, fps, crf, form)
    elif suffix in FILE_SUFFIXES:
        _write_moving_picture(path, frames, fps, suffix)
    else:
        _write_pictures(path, frames)


def _write_film(path: Path, frames: Iterator[np.ndarray], fps: float, crf: float, form: Form) -> None:
    first = next(frames)
    height, width, _ = first.shape
    with ClipEncoder(path, width, height, fps, crf, form.container, encoder=form.encoder) as encoder:
        for frame in itertools.chain([first], frames):
            encoder.add(frame)


def _write_moving_picture(path: Path, frames: Iterator[np.ndarray], fps: float, suffix: str) -> None:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    # Round the end of each frame, in units of the format, so that roundings do not add up.
    unit = 10 if suffix == ".gif" else 1  # thousandths of a second
    ends = [round(1000 / unit * (index + 1) / fps) for index in range(1 + len(rest))]
    durations = [unit * (end - start) for start, end in zip([0, *ends], ends)]
    form = {".gif": "GIF", ".webp": "WEBP", ".apng": "PNG"}[suffix]
    try:
        first.save(
            path, form, save_all=True, append_images=rest, duration=durations, loop=0, **PICTURE_OPTIONS[suffix]
        )
    except (OverflowError, struct.error) as error:
        raise ValueError(
            f"{FORMS[suffix].name} holds a picture for at most {FORMS[suffix].most_seconds} seconds, and equal frames "
            "are held for longer; write .mp4"
        ) from error


def _write_pictures(folder: Path, frames: Iterator[np.ndarray]) -> None:
    folder.mkdir()
    written = PngInfo()
    written.add_text("Software", WRITER)
    files = []
    # Unfinished files have another suffix, so that no reader takes them for a clip.
    for index, frame in enumerate(frames):
        files.append(folder / f"frame_{index:05d}.png")
        Image.fromarray(frame).save(f"{files[-1]}{UNFINISHED}", format="PNG", pnginfo=written)
    for file in files:
        os.replace(f"{file}{UNFINISHED}", file)
