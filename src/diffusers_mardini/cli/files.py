"""Read the pictures and clips of a command, and write its result: files, folders, standard input and output."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from ..sizes import size_text
from ..streaming.parts import wrote
from ..trained_window import TrainedWindow
from ..video.reading import has_sound
from ..video.writing import FILE_SUFFIXES, FORMS, WRITABLE, keep_frames
from ..video_io import check_writable, read_images, write_video
from .errors import UsageError
from .messages import note, tell, warn
from .options import FileOptions, TaskOptions


DEFAULT_FPS = 8
FAR_RATE = 1.5  # rates that differ so much make visibly slower or faster motion
STANDARD = "-"  # the name of standard input and output


def check_output(options: TaskOptions, fps: float | None, size: tuple[int, int] | None = None) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Raises:
        UsageError: for an unknown suffix, and for standard output that cannot hold a video.
        ValueError: as `check_writable` does, or if the output exists and --overwrite was not given.
    """
    output = options.output
    fps = options.fps or fps or DEFAULT_FPS
    if str(output) == STANDARD:
        _check_standard_output(options)
        with tempfile.TemporaryDirectory() as folder:
            check_writable(Path(folder, f"standard output{_suffix(options)}"), fps, size)
        return
    if options.format is not None:
        raise UsageError(
            f"--format is {options.format}, but the output {output} has its form by its suffix; leave it out"
        )
    if output.suffix.lower() not in (*FORMS, "."):
        raise UsageError(f"cannot write '{output}': the suffix '{output.suffix}' is unknown; use {WRITABLE}")
    check_writable(output, fps, size)
    # An interrupted run left what is finished under the name of the result, and its parts beside it.
    is_resumed = isinstance(options, FileOptions) and options.resume and wrote(output)
    if output.exists() and not (options.overwrite or is_resumed):
        raise ValueError(f"the output {output} exists; give another name, or --overwrite to replace it")


def read_picture(file: str) -> Image.Image:
    """Return one picture.

    Raises:
        ValueError: if the file is none, or holds several.
    """
    with named(file) as path:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give one picture")
        frames, _ = read_images(path)
    if len(frames) != 1:
        raise ValueError(f"{file} holds {len(frames)} frames; give one picture")
    return frames[0]


def read_clip(video: str, window: TrainedWindow, options: TaskOptions) -> tuple[list[Image.Image], float | None]:
    """Return the frames of a video or a folder of pictures, each resized as it is decoded, and their rate.

    Reports sound, which the result will not have, and refuses an output that cannot have this rate.
    """
    note(f"Reading {video}")
    with named(video) as path:
        frames, rate = read_images(path, fitted_to(window))
        if has_sound(path):
            warn(f"{video} has sound; the result will have none")
    check_output(options, rate or window.fps, (window.width, window.height))
    return frames, rate


def source_rate(options: FileOptions, video: str, rate: float | None, window: TrainedWindow) -> float:
    """Return the frames per second of the input: its own or, of pictures, those of --source-fps, else of the training.

    Args:
        options: of the command.
        video: its input.
        rate: that it states, if any.
        window: that the checkpoint was trained on.

    Raises:
        ValueError: if the input and --source-fps both state one, or the output cannot have it.
    """
    if rate and options.source_fps is not None:
        raise ValueError(
            f"--source-fps is for pictures, and {video} states {rate:g} frames per second; leave it out, or write the "
            "video anew with the rate that it should have"
        )
    found = rate or options.source_fps or window.fps or DEFAULT_FPS
    if not rate and options.source_fps is None:
        warn(f"{video} states no rate and is taken as {found:g} frames per second; --source-fps says another")
    check_output(options, found, (window.width, window.height))
    return found


def note_rate(video: str, rate: float | None, window: TrainedWindow) -> None:
    """Say so if the frames of a clip that is to be continued lie further apart, or closer, than those of the
    training."""
    if rate and window.fps and not 1 / FAR_RATE < rate / window.fps < FAR_RATE:
        warn(
            f"{video} has {rate:g} frames a second, but the model was trained on {window.fps:g}; the motion will be "
            "off unless the clip has about that many"
        )


def fitted_to(window: TrainedWindow) -> Callable[[Image.Image], Image.Image]:
    """Return a function that crops a picture around the centre to the aspect of a window and resizes it.

    It reports the crop once for each size of picture.
    """
    reported, size = set(), (window.width, window.height)

    def fit(frame: Image.Image) -> Image.Image:
        width, height = frame.size
        if width * size[1] != height * size[0] and frame.size not in reported:
            aspect = size_text((window.height, window.width))
            warn(f"Cropping {size_text((height, width))} around the centre to the aspect of {aspect}")
            reported.add(frame.size)
        return ImageOps.fit(frame, size, Image.Resampling.BICUBIC)

    return fit


def save(options: TaskOptions, frames: Sequence[Image.Image], fps: float | None, started: float) -> None:
    """Write the frames and say where; if writing fails after all, keep them elsewhere.

    Args:
        options: of the command.
        frames: the result.
        fps: their rate, unless --fps says another; `None` for the usual one.
        started: when the command began, by `time.monotonic`.

    Raises:
        ValueError: if they could not be written to the output; it says why, and where they were kept.
    """
    fps = options.fps or fps or DEFAULT_FPS
    size = size_text((frames[0].height, frames[0].width))
    if str(options.output) == STANDARD:
        with output_place(options) as path:
            write_video(path, frames, fps)
        note(f"Wrote {len(frames)} frames of {size} to standard output")
        return
    try:
        write_video(options.output, frames, fps, overwrite=options.overwrite)
    except (ValueError, OSError) as error:
        try:
            kept = keep_frames(options.output, frames, fps)
        except (ValueError, OSError):
            raise error from None
        raise ValueError(f"{error}; the finished frames were kept in '{kept}'") from error
    tell(
        options, f"Wrote {len(frames)} frames of {size} to {options.output}", output=options.output, frames=len(frames),
        height=frames[0].height, width=frames[0].width, fps=fps, seed=options.seed,
        seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip


@contextlib.contextmanager
def output_place(options: TaskOptions) -> Iterator[Path]:
    """Yield where to write; what is there at the end goes to standard output, if that is the output."""
    if str(options.output) != STANDARD:
        yield options.output
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"clip{_suffix(options)}")
        yield path
        try:
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError) and error.errno != errno.EINVAL:  # Windows says it so
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
            raise ValueError("whoever reads standard output closed it before it had the whole result") from error


def form_of(options: TaskOptions) -> str:
    """Return the suffix of the result's form, whether it is a file or standard output."""
    return _suffix(options) if str(options.output) == STANDARD else options.output.suffix


def _suffix(options: TaskOptions) -> str:
    return f".{(options.format or 'mp4').lower().removeprefix('.')}"


def _check_standard_output(options: TaskOptions) -> None:
    if _suffix(options) not in FILE_SUFFIXES:
        known = ", ".join(suffix[1:] for suffix in FILE_SUFFIXES)
        raise UsageError(f"--format is {options.format}; standard output takes {known}")
    if sys.stdout is None:
        raise UsageError("standard output is closed; send it to a file or a program, or give --output a name")
    if options.json:
        raise UsageError("--json and the video would both go to standard output; write the video to a file")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal; send it to a file or a program, or give --output a name")


@contextlib.contextmanager
def named(file: str) -> Iterator[Path]:
    """Yield the path of a file; standard input becomes one for as long."""
    if file != STANDARD:
        yield Path(file)
        return
    if sys.stdin is None:
        raise UsageError("standard input is closed; send a file to it, or give a name in place of -")
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal; send a file to it, or give a name in place of -")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "standard input")
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        yield path
