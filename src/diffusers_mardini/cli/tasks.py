"""Commands that sample frames, one for each task. Their common steps are in the package, `cli/__init__.py`."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image

from .. import cli
from .errors import plain_errors
from .options import Checkpoint, Device, Dtype, Force, Fps, Guidance, Output, Seed, Size, Steps, Window


def interpolate(
    first: Annotated[Path, typer.Argument(help="The first frame, a picture.")],
    last: Annotated[Path, typer.Argument(help="The last frame, a picture.")],
    output: Output,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames of the result, the two given ones included. Else as trained.")
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
    """Sample the frames between two pictures.

    Example: mardini interpolate a.png b.png -o between.mp4 --num-frames 9
    """
    with plain_errors():
        cli.check_count("--num-frames", 3 if num_frames is None else num_frames, 3)
        window = cli.check_options(output, force, fps, checkpoint, size, seed)
        num_frames, fit = num_frames or max(3, window.frames), cli.fitted_to(window)
        frames = [_read_picture(first), _read_picture(last)]
        pipe = cli.load(checkpoint, device, dtype, f"Sampling {num_frames - 2} frames between {first} and {last}")
        first_frame, last_frame = map(fit, frames)
        result = pipe(
            image=first_frame,
            last_image=last_frame,
            num_frames=num_frames,
            height=window.height,
            width=window.width,
            **_sampling(steps, guidance, seed),
        )
        cli.save(output, result.frames[0], fps or window.fps or cli.DEFAULT_FPS, force)


def animate(
    image: Annotated[Path, typer.Argument(help="The first frame, a picture.")],
    output: Output,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames of the result, the given one included. Else as trained.")
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
    """Set a picture in motion (image-to-video).

    Example: mardini animate a.png -o moving.gif --seed 3
    """
    with plain_errors():
        cli.check_count("--num-frames", 2 if num_frames is None else num_frames, 2)
        window = cli.check_options(output, force, fps, checkpoint, size, seed)
        num_frames, fit = num_frames or window.frames, cli.fitted_to(window)
        frame = _read_picture(image)
        pipe = cli.load(checkpoint, device, dtype, f"Sampling the {num_frames - 1} frames that follow {image}")
        result = pipe(
            image=fit(frame),
            num_frames=num_frames,
            height=window.height,
            width=window.width,
            **_sampling(steps, guidance, seed),
        )
        cli.save(output, result.frames[0], fps or window.fps or cli.DEFAULT_FPS, force)


def expand(
    video: Annotated[Path, typer.Argument(help="A video or a folder of pictures: the given frames.")],
    output: Output,
    num_frames: Annotated[
        int | None, typer.Option(help="Frames of the window, the given ones included. Else as trained.")
    ] = None,
    use_frames: Annotated[
        int | None, typer.Option(help="Use only the last so many frames of the clip. Else all.")
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
    """Continue a clip to the end of one window; for more frames use `extend`.

    Example: mardini expand clip.mp4 -o longer.mp4 --use-frames 5 --num-frames 9
    """
    with plain_errors():
        cli.check_count("--num-frames", 2 if num_frames is None else num_frames, 2)
        window = cli.check_options(output, force, fps, checkpoint, size, seed)
        num_frames = num_frames or window.frames
        frames, rate = cli.read_clip(video, window, output, force, fps)
        cli.note_rate(video, rate, window)
        if use_frames is not None:
            if not 1 <= use_frames <= len(frames):
                raise ValueError(
                    f"--use-frames is {use_frames}, but {video} has {len(frames)} frames; give 1 to that many"
                )
            frames = frames[-use_frames:]
        if len(frames) >= num_frames:
            raise ValueError(
                f"{video} gives {len(frames)} frames and the window has {num_frames}, so none is left to sample; "
                f"raise --num-frames or lower --use-frames below {num_frames}"
            )
        task = f"Sampling {num_frames - len(frames)} frames that follow {len(frames)} of {video}"
        pipe = cli.load(checkpoint, device, dtype, task)
        result = pipe(video=frames, num_frames=num_frames, **_sampling(steps, guidance, seed))
        cli.save(output, result.frames[0], fps or rate or window.fps or cli.DEFAULT_FPS, force)


def slow_motion(
    video: Annotated[Path, typer.Argument(help="A video or a folder of pictures.")],
    output: Output,
    factor: Annotated[int, typer.Option(help="How many times as many frames.")] = 2,
    window: Window = None,
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
    """Sample frames between the frames of a clip; its own frames are kept.

    Example: mardini slow-motion clip.mp4 -o slow.mp4 --factor 4
    """
    with plain_errors():
        cli.check_count("--factor", factor, 2)
        trained = cli.check_options(output, force, fps, checkpoint, size, seed)
        frames, rate = cli.read_clip(video, trained, output, force, fps)
        total = (len(frames) - 1) * factor + 1
        cli.check_count(f"--factor is {factor}, so that the number of frames", total)
        task = f"Slowing the {len(frames)} frames of {video} down {factor} times, to {total}"
        pipe = cli.load(checkpoint, device, dtype, task)
        result = pipe.slow_motion(frames, factor=factor, window=window, **_sampling(steps, guidance, seed))
        cli.save(output, result.frames[0], fps or rate or trained.fps or cli.DEFAULT_FPS, force)


def extend(
    video: Annotated[Path, typer.Argument(help="A video or a folder of pictures.")],
    output: Output,
    num_new_frames: Annotated[int, typer.Option(help="Frames to add at the end.")] = 16,
    window: Window = None,
    overlap: Annotated[
        int | None, typer.Option(help="Last frames that are given to each new window. Else half of the window.")
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
    """Continue a clip window by window; the last frames of each window are given to the next.

    Example: mardini extend clip.mp4 -o longer.mp4 --num-new-frames 32
    """
    with plain_errors():
        cli.check_count("--num-new-frames", num_new_frames)
        trained = cli.check_options(output, force, fps, checkpoint, size, seed)
        frames, rate = cli.read_clip(video, trained, output, force, fps)
        cli.note_rate(video, rate, trained)
        task = f"Adding {num_new_frames} frames to the {len(frames)} of {video}"
        pipe = cli.load(checkpoint, device, dtype, task)
        result = pipe.extend(
            frames, num_new_frames=num_new_frames, window=window, overlap=overlap, **_sampling(steps, guidance, seed)
        )
        cli.save(output, result.frames[0], fps or rate or trained.fps or cli.DEFAULT_FPS, force)


def _read_picture(path: Path) -> Image.Image:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one picture")
    frames, _ = cli.read_images(path)
    if len(frames) != 1:
        raise ValueError(f"{path} holds {len(frames)} frames; give one picture")
    return frames[0]


def _sampling(steps: int, guidance: float | None, seed: int) -> dict:
    return {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": torch.Generator().manual_seed(seed),
    }
