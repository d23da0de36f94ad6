"""`mardini`: the tasks of the pipeline from the command line.

Every command says first what it will do and last where the result lies, and checks everything that can be checked
before a model runs. Sizes and costs of models are counted in `costs.py`, uploads checked and sent in `hub.py`.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import ConfigMixin
from diffusers.utils import logging
from huggingface_hub.utils import disable_progress_bars
from PIL import Image, ImageOps

from . import costs, hub
from .cards import learned_size
from .hardware import choose_device, choose_dtype, is_lack_of_memory
from .pipelines.pipeline_mardini import MarDiniPipeline
from .video.errors import named_file_errors
from .video.reading import has_sound
from .video.writing import keep_frames
from .video_io import check_writable, read_images, write_video


DEFAULT_CHECKPOINT = Path("checkpoints/mardini-tiny-carracing")
DEFAULT_FPS = 8
MOST_FRAMES = 2**31 - 1  # what counts them has 32 bits in places
SEEDS = -(2**63), 2**64 - 1  # what torch's generators take

app = typer.Typer(
    name="mardini",
    help="Generates video with MarDini: in-between frames, moving pictures, longer clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Where to: .mp4, .gif, or no suffix for a folder of PNG.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Folder or Hub id. Else $MARDINI_CHECKPOINT, else ./checkpoints/mardini-tiny-carracing."),
]
Size = Annotated[
    str | None,
    typer.Option(
        help='"64" (square) or "96x64" (width x height), in pixels. Else the size the checkpoint learned, where it says so.'
    ),
]
Steps = Annotated[int, typer.Option(help="Denoising steps: fewer are faster and blurrier.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance on the planning signal. Else what suits the task.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same frames.")]
Fps = Annotated[float | None, typer.Option(help="Frames per second of the result. Else as the input, or 8.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


@app.command()
def interpolate(
    first: Annotated[Path, typer.Argument(help="The first frame, a picture.")],
    last: Annotated[Path, typer.Argument(help="The last frame, a picture.")],
    output: Output,
    num_frames: Annotated[int, typer.Option(help="Frames of the result, the two given ones included.")] = 9,
    checkpoint: Checkpoint = None,
    size: Size = None,
    steps: Steps = 25,
    guidance: Guidance = None,
    seed: Seed = 0,
    fps: Fps = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Force = False,
) -> None:
    """Samples the frames between two pictures.

    Example: mardini interpolate a.png b.png -o between.mp4 --num-frames 9
    """
    with plain_errors():
        check_count("--num-frames", num_frames, 3)
        fit = fitted_to(begin(output, force, fps, checkpoint, size, seed))
        frames = [_read_one(first), _read_one(last)]
        pipe = load(checkpoint, device, dtype, f"Sampling {num_frames - 2} frames between {first} and {last}")
        first_frame, last_frame = map(fit, frames)
        result = pipe(
            image=first_frame, last_image=last_frame, num_frames=num_frames, **_sampling(steps, guidance, seed)
        )
        save(output, result.frames[0], fps or DEFAULT_FPS, force)


@app.command()
def animate(
    image: Annotated[Path, typer.Argument(help="The first frame, a picture.")],
    output: Output,
    num_frames: Annotated[int, typer.Option(help="Frames of the result, the given one included.")] = 9,
    checkpoint: Checkpoint = None,
    size: Size = None,
    steps: Steps = 25,
    guidance: Guidance = None,
    seed: Seed = 0,
    fps: Fps = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Force = False,
) -> None:
    """Sets a picture in motion (image-to-video).

    Example: mardini animate a.png -o moving.gif --seed 3
    """
    with plain_errors():
        check_count("--num-frames", num_frames, 2)
        fit = fitted_to(begin(output, force, fps, checkpoint, size, seed))
        frame = _read_one(image)
        pipe = load(checkpoint, device, dtype, f"Sampling the {num_frames - 1} frames that follow {image}")
        result = pipe(image=fit(frame), num_frames=num_frames, **_sampling(steps, guidance, seed))
        save(output, result.frames[0], fps or DEFAULT_FPS, force)


@app.command()
def expand(
    video: Annotated[Path, typer.Argument(help="A video or a folder of pictures: the leading frames.")],
    output: Output,
    num_frames: Annotated[int, typer.Option(help="Frames of the window, the given ones included.")] = 9,
    use_frames: Annotated[
        int | None, typer.Option(help="Lead with the last so many frames only. Else with all.")
    ] = None,
    checkpoint: Checkpoint = None,
    size: Size = None,
    steps: Steps = 25,
    guidance: Guidance = None,
    seed: Seed = 0,
    fps: Fps = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Force = False,
) -> None:
    """Continues a clip to the end of one window; `extend` goes on for longer.

    Example: mardini expand clip.mp4 -o longer.mp4 --use-frames 5 --num-frames 9
    """
    with plain_errors():
        check_count("--num-frames", num_frames, 2)
        frames, rate = read_clip(video, begin(output, force, fps, checkpoint, size, seed), output, force, fps)
        if use_frames is not None:
            if not 1 <= use_frames <= len(frames):
                raise ValueError(
                    f"--use-frames is {use_frames}, but {video} has {len(frames)} frames; give 1 to that many"
                )
            frames = frames[-use_frames:]
        if len(frames) >= num_frames:
            raise ValueError(
                f"{video} leads with {len(frames)} frames and the window has {num_frames}, so that none is left to sample; "
                f"raise --num-frames or lower --use-frames below {num_frames}"
            )
        task = f"Sampling {num_frames - len(frames)} frames that follow {len(frames)} of {video}"
        pipe = load(checkpoint, device, dtype, task)
        result = pipe(video=frames, num_frames=num_frames, **_sampling(steps, guidance, seed))
        save(output, result.frames[0], fps or rate or DEFAULT_FPS, force)


@app.command()
def slow_motion(
    video: Annotated[Path, typer.Argument(help="A video or a folder of pictures.")],
    output: Output,
    factor: Annotated[int, typer.Option(help="How many times as many frames.")] = 2,
    window: Annotated[int, typer.Option(help="Frames that are sampled together, as the checkpoint learned it.")] = 9,
    checkpoint: Checkpoint = None,
    size: Size = None,
    steps: Steps = 25,
    guidance: Guidance = None,
    seed: Seed = 0,
    fps: Fps = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Force = False,
) -> None:
    """Samples frames between the frames of a clip; its own frames stay where they belong.

    Example: mardini slow-motion clip.mp4 -o slow.mp4 --factor 4
    """
    with plain_errors():
        check_count("--factor", factor, 2)
        frames, rate = read_clip(video, begin(output, force, fps, checkpoint, size, seed), output, force, fps)
        total = (len(frames) - 1) * factor + 1
        check_count(f"--factor is {factor}, so that the number of frames", total)
        task = f"Slowing the {len(frames)} frames of {video} down {factor} times, to {total}"
        pipe = load(checkpoint, device, dtype, task)
        result = pipe.slow_motion(frames, factor=factor, window=window, **_sampling(steps, guidance, seed))
        save(output, result.frames[0], fps or rate or DEFAULT_FPS, force)


@app.command()
def extend(
    video: Annotated[Path, typer.Argument(help="A video or a folder of pictures.")],
    output: Output,
    num_new_frames: Annotated[int, typer.Option(help="Frames to add at the end.")] = 16,
    window: Annotated[int, typer.Option(help="Frames of a window, as the checkpoint learned it.")] = 9,
    overlap: Annotated[int, typer.Option(help="Last frames that lead each new window.")] = 4,
    checkpoint: Checkpoint = None,
    size: Size = None,
    steps: Steps = 25,
    guidance: Guidance = None,
    seed: Seed = 0,
    fps: Fps = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Force = False,
) -> None:
    """Continues a clip window by window, each led by the last frames.

    Example: mardini extend clip.mp4 -o longer.mp4 --num-new-frames 32
    """
    with plain_errors():
        check_count("--num-new-frames", num_new_frames)
        frames, rate = read_clip(video, begin(output, force, fps, checkpoint, size, seed), output, force, fps)
        task = f"Adding {num_new_frames} frames to the {len(frames)} of {video}"
        pipe = load(checkpoint, device, dtype, task)
        result = pipe.extend(
            frames, num_new_frames=num_new_frames, window=window, overlap=overlap, **_sampling(steps, guidance, seed)
        )
        save(output, result.frames[0], fps or rate or DEFAULT_FPS, force)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A preset (such as mardini-l-t) or the folder of a checkpoint.")],
    num_frames: Annotated[int | None, typer.Option(help="Frames of the window. Else the preset's, or 9.")] = None,
    size: Size = None,
    steps: Steps = 25,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: what the memory is counted for.")
    ] = "bfloat16",
) -> None:
    """Counts parameters, floating-point operations and memory of each part. Allocates and downloads nothing.

    Example: mardini info mardini-l-t --size 512
    """
    with plain_errors():
        data_type, _ = choose_dtype(dtype, torch.device("cpu")) if dtype != "auto" else (torch.bfloat16, "")
        width, height = parse_size(size) if size else (None, None)
        print(f"Counting {model} for one window with a first and a last frame, {steps} steps, {data_type}")
        print(costs.report(model, num_frames, height, width, steps, data_type))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A saved pipeline, or a folder of LoRA weights.")],
    repo: Annotated[str, typer.Argument(help="Where to on the Hub, owner/name. Made if it is not there.")],
    yes: Annotated[bool, typer.Option("--yes", "--no-dry-run", help="Really send. Else only look and show.")] = False,
    facts: Annotated[
        Path | None, typer.Option(help="JSON with what the card should say, where the folder has no README.md.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new.")] = False,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Propose the commit only.")] = False,
) -> None:
    """Shows what of a folder would go to the Hub, and its card; with --yes sends it. Unsafe or partial folders are refused.

    The token is that of `hf auth login` or of the environment variable HF_TOKEN.

    Example: mardini push checkpoints/mardini-tiny-carracing you/mardini-tiny-carracing
    """
    with plain_errors():
        print(f"Looking through {folder}", flush=True)
        upload = hub.plan_upload(folder, repo, hub.read_facts_file(facts) if facts else None)
        print(hub.describe(upload))
        if not yes:
            print(f"\nNothing was sent. --yes sends this to {repo}.")
            return
        print(f"\nSending to {repo}", flush=True)
        if not sys.stderr.isatty():
            disable_progress_bars()
        address = hub.push(upload, message, private or None, create_pr=pull_request)
        print(f"Sent {len(upload.files) + 1} files: {address}")


def begin(
    output: Path, force: bool, fps: float | None, checkpoint: str | None, size: str | None, seed: int
) -> tuple[int, int]:
    """Check what all tasks have in common, before anything is read; return the width and height to work at.

    Raises:
        ValueError: where one of them cannot be used.
    """
    check_output(output, force, fps)
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueError(f"--seed is {seed}; give a number from {SEEDS[0]} to {SEEDS[1]} (2**64 - 1)")
    resolve_checkpoint(checkpoint)
    width_and_height = target_size(checkpoint, size)
    check_output(output, force, fps, width_and_height)
    return width_and_height


def check_count(what: str, number: int, least: int = 1) -> None:
    """Refuse numbers of frames that are too small to do anything, or that nothing can count.

    Raises:
        ValueError: of both.
    """
    if not least <= number <= MOST_FRAMES:
        raise ValueError(f"{what} is {number}; give {least} to {MOST_FRAMES}")


def resolve_checkpoint(checkpoint: str | None) -> str:
    """Return what was given, else the environment variable MARDINI_CHECKPOINT, else the one in the checkout.

    Raises:
        ValueError: if none of the three is there, or what was given can only be a folder and there is none.
    """
    checkpoint = checkpoint or os.environ.get("MARDINI_CHECKPOINT")
    if checkpoint:
        return _folder_or_hub_id(os.path.expanduser(checkpoint))
    if (DEFAULT_CHECKPOINT / "model_index.json").is_file():
        return str(DEFAULT_CHECKPOINT)
    raise ValueError(
        f"there is no checkpoint: give --checkpoint (a folder or a Hub id), set MARDINI_CHECKPOINT, or run this in a "
        f"checkout that has ./{DEFAULT_CHECKPOINT}"
    )


def load(checkpoint: str | None, device: str, dtype: str, task: str) -> MarDiniPipeline:
    """Say what will be done with what, and load the pipeline."""
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
        ValueError: as `check_writable` does, or where something stands already and `force` was not given.
    """
    check_writable(output, DEFAULT_FPS if fps is None else fps, size)
    if output.exists() and not force:
        raise ValueError(f"the output {output} exists; give another name, or --force to replace it")


def parse_size(size: str) -> tuple[int, int]:
    """`"64"` to (64, 64), `"96x64"` to (96, 64): width, height."""
    parts = size.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise ValueError(f'the size is {size!r}; write "64" for a square or "96x64" for width x height in pixels')
    return int(parts[0]), int(parts[-1])


def target_size(checkpoint: str | None, size: str | None) -> tuple[int, int]:
    """Width and height to work at: as asked for, or the square that the autoencoder's configuration says it learned (`learned_size`)."""
    if size is not None:
        return parse_size(size)
    checkpoint = resolve_checkpoint(checkpoint)
    with _checkpoint_errors(checkpoint):
        _, class_name = MarDiniPipeline.load_config(checkpoint)["vae"]
        learned = learned_size(class_name, _VaeConfig.load_config(checkpoint, subfolder="vae"))
    if not isinstance(learned, int) or learned < 1:
        raise ValueError('this checkpoint does not say which size it learned; give --size, such as "512" or "768x512"')
    return learned, learned


def fitted_to(size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """Crops around the centre to the wanted aspect and resizes to (width, height); says so once for each aspect that changes."""
    told = set()

    def fit(frame: Image.Image) -> Image.Image:
        width, height = frame.size
        if width * size[1] != height * size[0] and frame.size not in told:
            print(f"Cropping {width}x{height} around the centre to the aspect of {size[0]}x{size[1]}", flush=True)
            told.add(frame.size)
        return ImageOps.fit(frame, size, Image.Resampling.BICUBIC)

    return fit


def read_clip(
    video: Path, size: tuple[int, int], output: Path, force: bool, fps: float | None
) -> tuple[list[Image.Image], float | None]:
    """Return the frames of a video or a folder of pictures, each made small as it is decoded, and their rate.

    Says where sound is lost, and refuses an output that cannot have this rate.
    """
    print(f"Reading {video}", flush=True)
    frames, rate = read_images(video, fitted_to(size))
    if has_sound(video):
        print(f"{video} has sound; the result will have none", flush=True)
    check_output(output, force, fps or rate, size)
    return frames, rate


def save(output: Path, frames: Sequence[Image.Image], fps: float, force: bool) -> None:
    """Write the frames and say where; where that fails after all, keep them elsewhere.

    Raises:
        ValueError: which says why they were not written to `output`, and where they are.
    """
    try:
        write_video(output, frames, fps, overwrite=force)
    except (ValueError, OSError) as error:
        try:
            kept = keep_frames(output, frames, fps)
        except (ValueError, OSError):
            raise error from None
        raise ValueError(f"{error}; the finished frames were kept in '{kept}'") from error
    print(f"Wrote {len(frames)} frames of {frames[0].width}x{frames[0].height} to {output}")


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Show what a user can mend (`ValueError`, `OSError`, too little memory) as one line, without a traceback.

    An interruption and SIGTERM end the command in order, so that nothing unfinished stays on the disk.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files may have letters that the terminal lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with _exit_on_sigterm():
        try:
            yield
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(128 + signal.SIGINT) from error
        except Exception as error:
            if is_lack_of_memory(error):
                told = (
                    f"there is too little memory ({_first_line(error)}); ask for fewer frames, a smaller --size or "
                    "--dtype bfloat16. `mardini info` counts what a model needs, docs/install.md says what else helps"
                )
            elif isinstance(error, (ValueError, OSError)):
                told = str(error) or type(error).__name__
            else:
                raise
            typer.echo(f"error: {told}", err=True)
            raise typer.Exit(1) from error


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an exit that runs every `finally`; by default it kills at once."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _checkpoint_errors(checkpoint: str) -> contextlib.AbstractContextManager:
    where = "" if os.path.isdir(checkpoint) else " (no folder here, so taken for a Hub id)"
    return named_file_errors(f"'{checkpoint}'{where}", "a checkpoint")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _VaeConfig(ConfigMixin):
    """Reads the configuration of any autoencoder, from a folder or the Hub."""

    config_name = "config.json"


def _folder_or_hub_id(checkpoint: str) -> str:
    """The same, unless it can only be a folder of this machine and is none: the Hub's answer would mislead."""
    path = Path(checkpoint)
    if path.is_file():
        raise ValueError(
            f"'{checkpoint}' is a file; give the folder of a saved pipeline, which holds model_index.json"
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(f"folder '{checkpoint}' holds no model_index.json, so it is no saved pipeline")
    elif path.is_absolute() or checkpoint.startswith((".", "~")) or len(path.parts) > 2 or "\\" in checkpoint:
        raise ValueError(
            f"there is no folder '{checkpoint}'; give the folder of a saved pipeline, or a Hub id (owner/name)"
        )
    return checkpoint


def _read_one(path: Path) -> Image.Image:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one picture")
    frames, _ = read_images(path)
    if len(frames) != 1:
        raise ValueError(f"{path} holds {len(frames)} frames; give one picture")
    return frames[0]


def _sampling(steps: int, guidance: float | None, seed: int) -> dict:
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": torch.Generator().manual_seed(seed),
    }


if __name__ == "__main__":
    app()
