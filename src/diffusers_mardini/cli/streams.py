"""Share the steps of `slow-motion`, `retime` and `extend`: from file to file, so that no video is in memory as a whole.

The work is that of `diffusers_mardini.streaming`; the commands are in `tasks.py`.
"""

import importlib.util
import math
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from ..sizes import size_text
from ..streaming import FileResult
from ..streaming.cuts import FORMS, read_cut
from ..streaming.parts import folder_of, has_parts
from ..streaming.running import can_have_sound
from ..trained_window import TrainedWindow
from ..video.reading import frames_of_numbers, stated_facts
from . import checkpoints, files
from .errors import UsageError
from .messages import note, progress_line, tell, warn
from .options import FileOptions


MOST_FACTOR = 1000  # times slower; the places of the frames of one gap are in memory


def check(options: FileOptions, video: str, sounds: tuple[str, str]) -> None:
    """Check the options of these commands, before anything is read.

    Args:
        options: of the command.
        video: its input.
        sounds: what it can do with sound.

    Raises:
        UsageError: for options that do not fit the command, or each other.
        ValueError: if parts of an earlier run are in the way.
    """
    if options.sound not in (None, *sounds):
        raise UsageError(f"--sound is {options.sound}; this command takes {' or '.join(sounds)}")
    if options.resume and files.STANDARD in (video, str(options.output)):
        raise UsageError("--resume goes on with parts beside the output; give names in place of -")
    if has_parts(options.output) and not (options.resume or options.overwrite):
        raise ValueError(
            f"{folder_of(options.output)} holds parts of an earlier run; --resume goes on with them, --overwrite begins "
            "anew"
        )
    if options.source_fps is not None and not (math.isfinite(options.source_fps) and options.source_fps > 0):
        raise UsageError(f"--source-fps is {options.source_fps:g}; give a positive number of frames per second")


def cuts_of(cuts: str | None) -> str | list[int | float]:
    """Return what the layer of files takes as cuts.

    Without the option they are found, if PySceneDetect is installed.

    Raises:
        ValueError: for a file that cannot be read, or holds anything but numbers of frames and times.
    """
    if cuts is None:
        if importlib.util.find_spec("scenedetect") is not None:
            return "keep"
        warn(
            'Cuts are not looked for, because PySceneDetect is not installed (`pip install ".[cuts]"` in the checkout); '
            "--cuts ignore says that there are none"
        )
        return "ignore"
    if cuts in ("keep", "ignore"):
        return cuts
    try:
        words = re.findall(r"[^\s,]+", Path(cuts).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--cuts is {cuts!r}, which cannot be read as a text file; give keep, ignore or such a file"
        ) from error
    if not words:
        raise ValueError(f"{cuts} holds no cut; give {FORMS}, or --cuts ignore")
    try:
        return [read_cut(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{cuts} holds {error}") from error


def run(
    options: FileOptions,
    video: str,
    trained: TrainedWindow,
    task: str,
    make: Callable[..., FileResult],
    started: float,
    is_continued: bool = False,
    **arguments: Any,
) -> None:
    """Make a file of another, and say where it lies.

    Args:
        options: of the command.
        video: its input.
        trained: the window that the checkpoint was trained on, of the size to work at.
        task: what will be done, in words.
        make: `retime_file` or one like it.
        started: when the command began, by `time.monotonic`.
        is_continued: whether the frames should lie as far apart in time as those of the training.
        arguments: further ones of `make`.

    Raises:
        typer.Exit: with the code of an interruption, if Ctrl-C ended it; the whole windows are written.
    """
    with files.named(video) as source, files.output_place(options) as output:
        source_fps = _look_at(options, video, source, trained, is_continued)
        pipe, sampling = checkpoints.load(options, task)
        pipe.set_progress_bar_config(disable=True)  # it would count the steps of each part anew
        for name in ("generator", "blend"):  # each part has noise of its own; `blend` needs frames that are to come
            del sampling[name]
        with progress_line() as progress:
            result = make(
                pipe, source, output, source_fps=source_fps, seed=options.seed % 2**64, height=trained.height,
                width=trained.width, resume=options.resume, overwrite=options.overwrite, progress=progress,
                **({} if options.sound is None else {"sound": options.sound}), **sampling, **arguments,
            )  # fmt: skip
    _tell(options, result, trained, started)


def _look_at(options: FileOptions, video: str, source: Path, window: TrainedWindow, is_continued: bool) -> float:
    """Read the first frame; report what will be lost, refuse an output that cannot have the rate, and return that."""
    note(f"Reading {video}")
    files.fitted_to(window)(Image.fromarray(next(frames_of_numbers(source, [0]))))
    stated = stated_facts(source)
    rate = files.source_rate(options, video, stated.fps, window)
    if is_continued:
        files.note_rate(video, rate, window)
    if options.sound != "drop" and stated.sounds and not can_have_sound(Path(f"result{files.form_of(options)}")):
        warn(f"{video} has sound; the result will have none")
    return rate


def _tell(options: FileOptions, result: FileResult, window: TrainedWindow, started: float) -> None:
    size = size_text((window.height, window.width))
    rest = "" if result.is_whole else ", up to the last whole window; --resume goes on"
    if str(options.output) == files.STANDARD:
        note(
            f"Wrote {result.num_frames} frames of {size} to standard output{'' if result.is_whole else ', unfinished'}"
        )
    else:
        tell(
            options, f"Wrote {result.num_frames} frames of {size} to {options.output}{rest}", output=options.output,
            frames=result.num_frames, height=window.height, width=window.width, fps=result.fps, seed=options.seed,
            seconds=round(time.monotonic() - started, 2), sound=result.sound, cuts=result.num_cuts,
            frames_resumed=result.frames_resumed, whole=result.is_whole,
        )  # fmt: skip
    if not result.is_whole:
        warn("interrupted")
        raise typer.Exit(128 + signal.SIGINT)
