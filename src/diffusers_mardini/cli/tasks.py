"""Commands that sample frames, one for each task."""

import time
from typing import Annotated

import typer
from PIL import Image

from ..pipelines.leading_frames import read_leading_frames
from ..streaming import extend_file, retime_file, slow_motion_file
from ..streaming.parts import folder_of, has_parts
from ..trained_window import TrainedWindow
from . import checkpoints, files, streams
from .checks import as_usage_errors, check_count, check_one_standard_input, check_sampling_options, read_places
from .errors import UsageError
from .messages import warn
from .options import (
    Anchors,
    Batch,
    Cuts,
    FileOptions,
    Frames,
    KeyframeInterval,
    NewFrames,
    Overlap,
    Picture,
    TaskOptions,
    Video,
    Window,
    command,
)  # fmt: skip


@command(TaskOptions)
def interpolate(first: Picture, last: Picture, options: TaskOptions, frames: Frames = None) -> None:
    """Sample the frames between two pictures.

    Example: mardini interpolate a.png b.png -o between.mp4 --frames 9
    """
    started = time.monotonic()
    check_count("--frames", frames, 3)
    window = _check(options, first, last)
    frames = frames or max(3, window.frames)
    pictures = _read_pictures(first, last, window=window)
    pipe, arguments = checkpoints.load(options, f"Sampling {frames - 2} frames between {first} and {last}")
    result = pipe(
        image=pictures[0], last_image=pictures[1], num_frames=frames, height=window.height, width=window.width,
        **arguments,
    )  # fmt: skip
    files.save(options, result.frames[0], window.fps, started)


@command(TaskOptions)
def animate(image: Picture, options: TaskOptions, frames: Frames = None) -> None:
    """Set a picture in motion (image-to-video).

    Example: mardini animate a.png -o moving.gif --seed 3
    """
    started = time.monotonic()
    check_count("--frames", frames, 2)
    window = _check(options, image)
    frames = frames or window.frames
    (picture,) = _read_pictures(image, window=window)
    pipe, arguments = checkpoints.load(options, f"Sampling the {frames - 1} frames that follow {image}")
    result = pipe(image=picture, num_frames=frames, height=window.height, width=window.width, **arguments)
    files.save(options, result.frames[0], window.fps, started)


@command(TaskOptions)
def expand(
    video: Video,
    options: TaskOptions,
    frames: Frames = None,
    use_frames: Annotated[
        int | None, typer.Option(help="Use only the last so many frames of the clip. Else all.")
    ] = None,
) -> None:
    """Continue a clip to the end of one window; for more frames use `extend`.

    Example: mardini expand clip.mp4 -o longer.mp4 --use-frames 5 --frames 9
    """
    started = time.monotonic()
    check_count("--frames", frames, 2)
    check_count("--use-frames", use_frames)
    window = _check(options, video)
    frames = frames or window.frames
    clip, rate = files.read_clip(video, window, options)
    files.note_rate(video, rate, window)
    if use_frames is not None:
        if use_frames > len(clip):
            raise ValueError(f"--use-frames is {use_frames}, but {video} has {len(clip)} frames; give 1 to that many")
        clip = clip[-use_frames:]
    if len(clip) >= frames:
        raise ValueError(
            f"{video} gives {len(clip)} frames and the window has {frames}, so none is left to sample; raise --frames "
            f"or lower --use-frames below {frames}"
        )
    pipe, arguments = checkpoints.load(
        options, f"Sampling {frames - len(clip)} frames that follow {len(clip)} of {video}"
    )
    result = pipe(video=clip, num_frames=frames, **arguments)
    files.save(options, result.frames[0], rate or window.fps, started)


@command(TaskOptions)
def fill(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PLACE=FILE", help="Pictures and their places, from 0 on; one FILE may be -."),
    ],
    options: TaskOptions,
    frames: Annotated[
        int | None, typer.Option(help="Frames of the result. Else the last picture ends it, or as trained.")
    ] = None,
    window: Window = None,
    batch: Batch = 1,
) -> None:
    """Sample a video of any length around pictures at any places; a last or a middle one alone is enough.

    Example: mardini fill 0=a.png 5=b.png 16=c.png -o filled.mp4
    """
    started = time.monotonic()
    places = read_places(pictures)
    check_count("--frames", frames, 2)
    _check_windows(window, batch)
    trained = _check(options, *places.values())
    # A picture at place 0 alone has nothing before it.
    frames = frames or (max(places) + 1 if max(places) else trained.frames)
    if max(places) >= frames:
        raise UsageError(
            f"the picture at place {max(places)} lies beyond --frames {frames}; give {max(places) + 1} or more"
        )
    if len(places) == frames:
        raise UsageError(f"all {frames} frames are given, so that none is left to sample; raise --frames")
    given = dict(zip(places, _read_pictures(*places.values(), window=trained)))
    pipe, arguments = checkpoints.load(options, f"Sampling {frames - len(given)} frames around {len(given)} pictures")
    result = pipe.fill(
        given, frames, window=window, window_batch_size=batch, height=trained.height, width=trained.width, **arguments
    )
    files.save(options, result.frames[0], trained.fps, started)


@command(TaskOptions)
def views(
    first: Picture, last: Picture, options: TaskOptions, frames: Frames = None, window: Window = None,
    batch: Batch = 1,
) -> None:  # fmt: skip
    """Sample the views on the path between two pictures of one thing.

    Example: mardini views left.png right.png -o around.mp4 --frames 9
    """
    started = time.monotonic()
    check_count("--frames", frames, 3)
    _check_windows(window, batch)
    trained = _check(options, first, last)
    frames = frames or max(3, trained.frames)
    pictures = _read_pictures(first, last, window=trained)
    pipe, arguments = checkpoints.load(options, f"Sampling {frames - 2} views between {first} and {last}")
    result = pipe.views(
        *pictures, frames, window=window, window_batch_size=batch, height=trained.height, width=trained.width,
        **arguments,
    )  # fmt: skip
    files.save(options, result.frames[0], trained.fps, started)


@command(FileOptions)
def slow_motion(
    video: Video,
    options: FileOptions,
    factor: Annotated[int, typer.Option(help="How many times as many frames.")] = 2,
    cuts: Cuts = None,
    window: Window = None,
    batch: Batch = 1,
) -> None:
    """Sample frames between the frames of a video of any length; its own frames are kept where their times
    are even, its sound is stretched.

    Example: mardini slow-motion clip.mp4 -o slow.mp4 --factor 4
    """
    started = time.monotonic()
    check_count("--factor", factor, 2, streams.MOST_FACTOR)
    _check_windows(window, batch)
    streams.check(options, video, ("stretch", "drop"))
    if options.blend:
        _check_blending(options, cuts)
    trained = _check(options, video)
    task = f"Slowing {video} down {factor} times"
    if not options.blend:
        streams.run(
            options, video, trained, task, slow_motion_file, started, factor=factor, fps=options.fps,
            cuts=streams.cuts_of(cuts), window=window, window_batch_size=batch,
        )  # fmt: skip
        return
    clip, rate = files.read_clip(video, trained, options)
    rate = files.source_rate(options, video, rate, trained)
    if len(clip) < 2:
        raise ValueError(f"{video} has 1 frame, and slow motion goes between frames; give at least 2")
    warn("With --blend cuts are not looked for: frames are sampled across them, too")
    pipe, arguments = checkpoints.load(options, task)
    result = pipe.slow_motion(clip, factor=factor, window=window, window_batch_size=batch, **arguments)
    files.save(options, result.frames[0], rate, started)


@command(FileOptions)
def retime(video: Video, options: FileOptions, cuts: Cuts = None, window: Window = None, batch: Batch = 1) -> None:
    """Give a video of any length another rate, --fps; frames between its own are sampled, its sound is kept.

    Example: mardini retime clip.mp4 -o smooth.mp4 --fps 20
    """
    started = time.monotonic()
    _check_windows(window, batch)
    streams.check(options, video, ("keep", "drop"))
    if options.fps is None:
        raise UsageError("--fps is missing; give the frames per second of the result")
    if options.blend:
        raise UsageError("--blend is not for retime, whose frames need not lie at those of the clip; leave it out")
    trained = _check(options, video)
    streams.run(
        options, video, trained, f"Giving {video} {options.fps:g} frames per second", retime_file, started,
        fps=options.fps, cuts=streams.cuts_of(cuts), window=window, window_batch_size=batch,
    )  # fmt: skip


@command(FileOptions)
def extend(
    video: Video,
    options: FileOptions,
    new_frames: NewFrames = 16,
    window: Window = None,
    overlap: Overlap = None,
    anchors: Anchors = None,
    keyframe_interval: KeyframeInterval = 1,
) -> None:
    """Continue a clip window by window; the last frames of each window are given to the next.

    Example: mardini extend clip.mp4 -o longer.mp4 --new-frames 32
    """
    started = time.monotonic()
    check_count("--new-frames", new_frames)
    _check_windows(window, least=2)
    check_count("--overlap", overlap)
    check_count("--anchors", anchors, 0)
    check_count("--keyframe-interval", keyframe_interval)
    streams.check(options, video, ("keep", "drop"))
    if options.blend:
        _check_blending(options)
    trained = _check(options, video)
    with as_usage_errors():
        leading = read_leading_frames(window or trained.frames, overlap, anchors or 0)
    if anchors is None:
        anchors = checkpoints.measured_anchors(options.checkpoint, leading.overlap)
    task = f"Adding {new_frames} frames to {video}"
    if not options.blend:
        streams.run(
            options, video, trained, task, extend_file, started, is_continued=True, num_new_frames=new_frames,
            fps=options.fps, window=window, overlap=overlap, anchors=anchors, keyframe_interval=keyframe_interval,
        )  # fmt: skip
        return
    clip, rate = files.read_clip(video, trained, options)
    rate = files.source_rate(options, video, rate, trained)
    files.note_rate(video, rate, trained)
    pipe, arguments = checkpoints.load(options, task)
    result = pipe.extend(
        clip, num_new_frames=new_frames, window=window, overlap=overlap, anchors=anchors,
        keyframe_interval=keyframe_interval, **arguments,
    )  # fmt: skip
    files.save(options, result.frames[0], rate, started)


@command(TaskOptions)
def loop(
    video: Video,
    options: TaskOptions,
    new_frames: NewFrames = None,
    new_frames_only: Annotated[
        bool, typer.Option("--new-frames-only", help="Write the new frames without the clip.")
    ] = False,
    window: Window = None,
    overlap: Overlap = None,
    batch: Batch = 1,
) -> None:
    """Close a clip to a loop: sample frames that lead from its last frame to its first, without a double.

    Example: mardini loop clip.mp4 -o round.gif --new-frames 5
    """
    started = time.monotonic()
    check_count("--new-frames", new_frames)
    _check_windows(window, batch)
    check_count("--overlap", overlap)
    if options.paste_given and new_frames_only:
        raise UsageError(
            "--paste-given is for the frames of the clip, and --new-frames-only leaves these out; give one"
        )
    trained = _check(options, video)
    clip, rate = files.read_clip(video, trained, options)
    files.note_rate(video, rate, trained)
    pipe, arguments = checkpoints.load(options, f"Closing the {len(clip)} frames of {video} to a loop")
    result = pipe.loop(
        clip, new_frames, window=window, overlap=overlap, new_frames_only=new_frames_only, window_batch_size=batch,
        **arguments,
    )  # fmt: skip
    files.save(options, result.frames[0], rate or trained.fps, started)


def _check(options: TaskOptions, *inputs: str) -> TrainedWindow:
    """Check the options of all tasks, before anything is read.

    Returns:
        The window that the checkpoint was trained on, of the size to work at.

    Raises:
        ValueError: if one of them cannot be used.
    """
    check_one_standard_input(*inputs)
    check_sampling_options(options)
    files.check_output(options, None)
    window = checkpoints.window_to_sample(options.checkpoint, options.size)
    files.check_output(options, window.fps, (window.width, window.height))
    return window


def _check_blending(options: FileOptions, cuts: str | None = None) -> None:
    """Refuse what only files that stream can have: blending needs all frames in memory."""
    given = [
        ("--cuts", cuts is not None),
        ("--sound", options.sound not in (None, "drop")),
        ("--resume", options.resume),
    ]
    for name, is_given in given:
        if is_given:
            raise UsageError(f"{name} and --blend cannot go together: blending holds the whole clip in memory")
    if has_parts(options.output):
        raise ValueError(
            f"{folder_of(options.output)} holds parts of an earlier run, which --blend can neither use nor replace; give "
            "another output, or remove that folder"
        )


def _check_windows(window: int | None, batch: int = 1, least: int = 3) -> None:
    check_count("--window", window, least)
    check_count("--batch", batch)


def _read_pictures(*names: str, window: TrainedWindow) -> list[Image.Image]:
    fit = files.fitted_to(window)
    return [fit(files.read_picture(name)) for name in names]
