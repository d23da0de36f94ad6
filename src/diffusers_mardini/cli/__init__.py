"""`mardini`, the tasks of the pipeline from the command line; here are the steps that its commands share.

Every command says first what it will do and last where the result lies, and checks everything that it can before a
model runs. The commands are in `tasks.py` and `models.py`; they look the steps up in this package at each call.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import typer
from diffusers import ConfigMixin
from diffusers.utils import logging
from PIL import Image, ImageOps

from ..demo_files import demo_checkpoints
from ..hardware import choose_device, choose_dtype
from ..pipelines.inputs import read_window
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..sizes import parse_size, sides, size_text
from ..trained_window import TrainedWindow
from ..video.errors import named_file_errors
from ..video.reading import has_sound
from ..video.writing import keep_frames
from ..video_io import check_writable, read_images, write_video
from . import models, tasks, web
from .errors import plain_errors


__all__ = ["app", "plain_errors"]

DEFAULT_CHECKPOINT = Path("checkpoints/mardini-tiny-carracing")
DEFAULT_FPS = 8
FAR_RATE = 1.5  # rates that differ so much make visibly slower or faster motion
MOST_FRAMES = 2**31 - 1  # some counters of frames have 32 bits
SEEDS = -(2**63), 2**64 - 1  # the range of torch's generators

app = typer.Typer(
    name="mardini",
    help="Generate video with MarDini: in-between frames, moving pictures, longer clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    tasks.interpolate,
    tasks.animate,
    tasks.expand,
    tasks.slow_motion,
    tasks.extend,
    models.info,
    models.push,
):
    app.command()(command)
app.command("app")(web.page)
app.command()(web.play)


def check_options(
    output: Path, force: bool, fps: float | None, checkpoint: str | None, size: str | None, seed: int
) -> TrainedWindow:
    """Check the options of all tasks, before anything is read.

    Returns:
        The window that the checkpoint was trained on, of the size to work at.

    Raises:
        ValueError: if one of them cannot be used.
    """
    check_output(output, force, fps)
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueError(f"--seed is {seed}; give a number from {SEEDS[0]} to {SEEDS[1]} (2**64 - 1)")
    window = window_to_sample(checkpoint, size)
    check_output(output, force, fps or window.fps, (window.width, window.height))
    return window


def check_count(name: str, number: int, least: int = 1) -> None:
    """Refuse a number that is too small to do anything, or too large to count frames with.

    Raises:
        ValueError: in both cases, with the name and the range.
    """
    if not least <= number <= MOST_FRAMES:
        raise ValueError(f"{name} is {number}; give {least} to {MOST_FRAMES}")


def resolve_checkpoint(checkpoint: str | None) -> str:
    """Return the given checkpoint, else the one that MARDINI_CHECKPOINT names, else the one in the checkout, else the one
    that the extra `demo` brings.

    Raises:
        ValueError: if there is none of the four, or the name can only be a folder that does not exist.
    """
    checkpoint = checkpoint or os.environ.get("MARDINI_CHECKPOINT")
    if checkpoint:
        return _folder_or_hub_id(os.path.expanduser(checkpoint))
    if (DEFAULT_CHECKPOINT / "model_index.json").is_file():
        return str(DEFAULT_CHECKPOINT)
    for installed in demo_checkpoints():
        return str(installed)
    raise ValueError(
        "there is no checkpoint: give --checkpoint (a folder or a Hub id), set MARDINI_CHECKPOINT, run this in a "
        f"checkout that has ./{DEFAULT_CHECKPOINT}, or install the extra `demo`, which brings one"
    )


def load(checkpoint: str | None, device: str, dtype: str, task: str) -> MarDiniPipeline:
    """Say what will be done and with which model, and load the pipeline."""
    checkpoint = resolve_checkpoint(checkpoint)
    place = choose_device(device)
    data_type, why = choose_dtype(dtype, place)
    print(f"{task}, with {checkpoint} on {place} in {str(data_type).removeprefix('torch.')} ({why})", flush=True)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    with _checkpoint_errors(checkpoint):
        pipe = MarDiniPipeline.from_pretrained(checkpoint, dtype=data_type).to(place)
    pipe.set_progress_bar_config(disable=None)  # silent where there is no terminal
    return pipe


def check_output(output: Path, force: bool, fps: float | None, size: tuple[int, int] | None = None) -> None:
    """Refuse an output that cannot be written, before anything is computed.

    Raises:
        ValueError: as `check_writable` does, or if the output exists and `force` was not given.
    """
    check_writable(output, DEFAULT_FPS if fps is None else fps, size)
    if output.exists() and not force:
        raise ValueError(f"the output {output} exists; give another name, or --force to replace it")


def window_to_sample(checkpoint: str | None, size: str | None) -> TrainedWindow:
    """Return the window that a checkpoint was trained on, of the size asked for, if any.

    Raises:
        ValueError: if the size can't be read, or neither the checkpoint nor the user gives one.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    with _checkpoint_errors(checkpoint):
        vae_config = _VaeConfig.load_config(checkpoint, subfolder="vae")
        window = TrainedWindow.of_checkpoint(MarDiniPipeline.load_config(checkpoint), vae_config)
        window = read_window(**window.config)
    if size is not None:
        height, width = sides(parse_size(size))
        return replace(window, height=height, width=width)
    if window.size is None:
        raise ValueError('this checkpoint does not say which size it learned; give --size, such as "512" or "512x768"')
    return window


def fitted_to(window: TrainedWindow) -> Callable[[Image.Image], Image.Image]:
    """Return a function that crops a picture around the centre to the aspect of a window and resizes it.

    It reports the crop once for each size of picture.
    """
    reported, size = set(), (window.width, window.height)

    def fit(frame: Image.Image) -> Image.Image:
        width, height = frame.size
        if width * size[1] != height * size[0] and frame.size not in reported:
            aspect = size_text((window.height, window.width))
            print(f"Cropping {size_text((height, width))} around the centre to the aspect of {aspect}", flush=True)
            reported.add(frame.size)
        return ImageOps.fit(frame, size, Image.Resampling.BICUBIC)

    return fit


def read_clip(
    video: Path, window: TrainedWindow, output: Path, force: bool, fps: float | None
) -> tuple[list[Image.Image], float | None]:
    """Return the frames of a video or a folder of pictures, each resized as it is decoded, and their rate.

    Reports sound, which the result will not have, and refuses an output that cannot have this rate.
    """
    print(f"Reading {video}", flush=True)
    frames, rate = read_images(video, fitted_to(window))
    if has_sound(video):
        print(f"{video} has sound; the result will have none", flush=True)
    check_output(output, force, fps or rate or window.fps, (window.width, window.height))
    return frames, rate


def note_rate(video: Path, rate: float | None, window: TrainedWindow) -> None:
    """Say so if the frames of a clip that is to be continued lie further apart, or closer, than those of the
    training."""
    if rate and window.fps and not 1 / FAR_RATE < rate / window.fps < FAR_RATE:
        print(
            f"{video} has {rate:g} frames a second, but the model was trained on {window.fps:g}; the motion will be "
            "off unless the clip has about that many",
            flush=True,
        )


def save(output: Path, frames: Sequence[Image.Image], fps: float, force: bool) -> None:
    """Write the frames and say where; if writing fails after all, keep them elsewhere.

    Raises:
        ValueError: if they could not be written to `output`; it says why, and where they were kept.
    """
    try:
        write_video(output, frames, fps, overwrite=force)
    except (ValueError, OSError) as error:
        try:
            kept = keep_frames(output, frames, fps)
        except (ValueError, OSError):
            raise error from None
        raise ValueError(f"{error}; the finished frames were kept in '{kept}'") from error
    print(f"Wrote {len(frames)} frames of {size_text((frames[0].height, frames[0].width))} to {output}")


def _checkpoint_errors(checkpoint: str) -> contextlib.AbstractContextManager:
    where = "" if os.path.isdir(checkpoint) else " (no folder here, so taken for a Hub id)"
    return named_file_errors(f"'{checkpoint}'{where}", "a checkpoint")


class _VaeConfig(ConfigMixin):
    """Read the configuration of any autoencoder, from a folder or the Hub."""

    config_name = "config.json"


def _folder_or_hub_id(checkpoint: str) -> str:
    """Return `checkpoint`; refuse what can only be a local folder and is none, as the Hub's answer would mislead."""
    path = Path(checkpoint)
    if path.is_file():
        raise ValueError(
            f"'{checkpoint}' is a file; give the folder of a saved pipeline, which holds model_index.json"
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(f"folder '{checkpoint}' holds no model_index.json, so it is not a saved pipeline")
    elif path.is_absolute() or checkpoint.startswith((".", "~")) or len(path.parts) > 2 or "\\" in checkpoint:
        raise ValueError(
            f"there is no folder '{checkpoint}'; give the folder of a saved pipeline, or a Hub id (owner/name)"
        )
    return checkpoint
