"""The windows that are scored, cut out of held-out clips (VIDIM-Bench: 9 frames, first and last given).

The windows that training draws are in `data/windows.py`; the frames of both are chosen by `data/order.py`, and the
given frames of a task are in `diffusers_mardini/masking.py`.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusers_mardini.sizes import Size, parse_size, sides, size_text
from diffusers_mardini.trained_window import TrainedWindow
from training.data.clips import FoundClip, find_clips, fit
from training.data.entries import Entry
from training.data.failures import reason_lines
from training.data.latents import frames_of
from training.data.moments import ClipError
from training.data.order import SAME_RATE, Rate, frame_indices, num_starts, why_not


PART_VALUES = 50_000_000  # of a part of a training clip: 4,069 frames of 64x64 pixels; some 200 MB, a few times
DEFAULT_SIZE, DEFAULT_STRIDE = 64, 2  # of checkpoints that do not say what they were trained on


@dataclass(frozen=True)
class EvaluationWindows:
    """The windows to be scored.

    Attributes:
        frames: in [0, 1], `(windows, frames, 3, height, width)`.
        clips: the name of each window's clip in its source.
        starts: the frame of the clip at which each window begins.
        skipped: reasons by name, for clips that gave no window.
        source: of the clips.
        entries: facts of each window's clip.
        places: the clip frames of each window.
        wholes: what each window's clip is a part of, its own name unless it is a row of a clip list. Intervals are over
            these.
        picture_fps: frames per second of the source's pictures that do not state it.
    """

    frames: torch.Tensor
    clips: list[str]
    starts: list[int]
    skipped: dict[str, str]
    source: str = ""
    entries: Sequence[Entry] = ()
    places: Sequence[tuple[int, ...]] = ()
    wholes: Sequence[str] = ()
    picture_fps: float | None = None

    def digest(self) -> str:
        """Return a digest of all pixels of all windows."""
        return digest_of(self.frames)


def size_argument(text: str) -> Size:
    """Read a size of the command line, see `parse_size`; argparse shows the error."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_window_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the options that describe a window, or `several` at different paces; `choose_window` fills in the others."""
    trained = "default: as the checkpoint was trained"
    number, folders = ("+", "; several make a folder for each, and a table of all") if several else (None, "")
    parser.add_argument("--size", type=size_argument, help=f"64 (square) or 64x128 (height x width); {trained}, or 64")
    parser.add_argument("--num-frames", type=int, help=f"frames of a window; {trained}, or 9")
    parser.add_argument(
        "--stride", type=int, nargs=number, help=f"clip frames from one window frame to the next{folders}; default: "
        "see --fps",
    )  # fmt: skip
    parser.add_argument(
        "--fps", type=float, nargs=number, help=f"frames per second of a window; {trained}, or a stride of 2"
    )


def choose_window(options: argparse.Namespace, trained: TrainedWindow) -> str:
    """Fill in, in place, what the options of `add_window_options` leave open; return a description of the window."""
    options.size = trained.size or DEFAULT_SIZE if options.size is None else options.size
    options.num_frames = trained.frames if options.num_frames is None else options.num_frames
    if options.stride is None and options.fps is None:
        options.fps = trained.fps
    options.stride = DEFAULT_STRIDE if options.stride is None else options.stride
    pace = f"every {options.stride} frames" if options.fps is None else f"{options.fps:g} frames per second"
    return f"{options.num_frames} frames of {size_text(options.size)} pixels, {pace}"


def digest_of(frames: torch.Tensor) -> str:
    """Return a digest of all pixels of `frames`, which are in [0, 1]."""
    shape = str(tuple(frames.shape)).encode()
    return hashlib.sha256(shape + to_bytes(frames).numpy().tobytes()).hexdigest()


def clip_step(clip_fps: float, stride: int, fps: float | None) -> float:
    """Return the distance of window frames in clip frames: `stride`, or what makes `fps` frames per second.

    Raises:
        ValueError: if the clip has fewer frames per second than asked for: some would have to be shown twice.
    """
    if fps is None:
        return stride
    if fps > clip_fps * SAME_RATE:
        raise ValueError(f"{clip_fps:g} frames per second, {fps:g} were asked for")
    return max(1.0, clip_fps / fps)


def window_starts(possible: int, count: int) -> list[int]:
    """Return up to `count` different ones of `possible` starts, evenly spaced from the first to the last."""
    if count == 1 or possible < 1:
        return list(range(min(possible, 1)))
    return sorted({round((possible - 1) * i / (count - 1)) for i in range(count)})


def load_windows(
    source: str | Path,
    size: Size,
    num_frames: int,
    stride: int,
    per_clip: int,
    fps: float | None = None,
    max_clips: int | None = None,
    max_windows: int | None = None,
    picture_fps: float | None = None,
) -> EvaluationWindows:
    """Cut the windows out of every clip of a source; print the clips that give none with the reasons.

    Args:
        source: a folder of clips, or another source (`sources.py`).
        size: in pixels, to which the largest centred part of its aspect ratio is resized.
        num_frames: frames of a window.
        stride: clip frames from one window frame to the next; ignored if `fps` is given.
        per_clip: most windows of a clip; one alone is its first.
        fps: frames per second of the windows, whatever the clips have.
        max_clips: take the first so many clips that give a window.
        max_windows: take so many of all these windows, evenly spaced over them.
        picture_fps: frames per second of pictures that do not state it.

    Raises:
        ValueError: if no clip is long enough, or the numbers make no window.
    """
    for name, value, least in (
        ("num_frames", num_frames, 2),
        ("stride", stride, 1),
        ("windows per clip", per_clip, 1),
        ("max_clips", 1 if max_clips is None else max_clips, 1),
        ("max_windows", 1 if max_windows is None else max_windows, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps is {fps}; give a positive number of frames per second")
    rate = Rate(stride=stride) if fps is None else Rate(fps=fps)
    skipped: dict[str, str] = {}
    drawn: list[tuple[FoundClip, tuple[int, ...]]] = []
    for clip in find_clips(source, skipped, picture_fps):
        if len({found.name for found, _ in drawn}) == max_clips:
            break
        possible = num_starts(clip.entry, num_frames, rate)
        if not possible:
            skipped[clip.name] = why_not(clip.entry, num_frames, rate)
        for start in window_starts(possible, per_clip):
            drawn.append((clip, frame_indices(clip.entry, (start + 0.5) / possible, num_frames, rate)))
    if max_windows is not None:
        drawn = [drawn[index] for index in window_starts(len(drawn), max_windows)]
    pictures: dict[str, dict[int, torch.Tensor]] = {}
    for clip in {clip.name: clip for clip, _ in drawn}.values():
        # Of a long clip only the frames of its windows are held in memory.
        wanted = np.array(sorted({index for found, places in drawn if found is clip for index in places}))
        try:
            decoded = (fit(frame[None], *sides(size))[0] for frame in frames_of(clip.source, clip.entry, wanted))
            pictures[clip.name] = dict(zip(wanted.tolist(), decoded))
        except ClipError as error:
            skipped[clip.name] = str(error)
    drawn = [(clip, places) for clip, places in drawn if clip.name in pictures]
    if skipped:
        print(f"{len(skipped)} clips of '{source}' give no window:")
        for line in reason_lines(skipped):
            print(f"  {line}")
    if not drawn:
        raise ValueError(f"no clip of '{source}' gives {num_frames} frames at {rate}; lower one of them")
    frames = [torch.stack([pictures[clip.name][index] for index in places]) for clip, places in drawn]
    return EvaluationWindows(
        torch.stack(frames).float() / 255,
        [clip.name for clip, _ in drawn],
        [places[0] for _, places in drawn],
        skipped,
        str(source),
        [clip.entry for clip, _ in drawn],
        [places for _, places in drawn],
        [clip.whole for clip, _ in drawn],
        picture_fps,
    )


def training_clips(
    source: str | Path,
    size: Size,
    stride: int,
    fps: float | None = None,
    picture_fps: float | None = None,
    part: int | None = None,
    overlap: int = 1024,
) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield clips in [0, 1], `(length, 3, height, width)`, each with the distance of window frames in its frames.

    Clips that cannot be read, or have fewer frames per second than `fps`, are left out and printed with the reasons.

    Args:
        source, size, stride, fps, picture_fps: see `load_windows`.
        part: a longer clip is yielded in parts of so many frames, so that it need not fit in memory; by default those
            of `PART_VALUES`, and half of them as overlap at most.
        overlap: frames of a part that the next one begins with, so that a window of no more frames lies in one part.
    """
    height, width = sides(size)
    if part is None:
        part = max(8, PART_VALUES // (3 * height * width))
        overlap = min(overlap, part // 2)
    left_out: dict[str, str] = {}
    for clip in find_clips(source, left_out, picture_fps):
        try:
            step = clip_step(clip.entry.fps, stride, fps)
            pictures = []
            for frame in clip.even_frames():
                if len(pictures) == part:
                    yield torch.stack(pictures).float() / 255, step
                    pictures = pictures[part - overlap :]
                pictures.append(fit(frame[None], height, width)[0])
        except ValueError as error:
            left_out[clip.name] = str(error)
            continue
        yield torch.stack(pictures).float() / 255, step
    if left_out:
        print("\n  ".join([f"{len(left_out)} training clips of '{source}' were left out:", *reason_lines(left_out)]))


def to_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Return frames in [0, 1] as `uint8`, as files hold them; these are scored, whether saved in between or not."""
    return (frames.float() * 255).round().clamp(0, 255).to(torch.uint8)
