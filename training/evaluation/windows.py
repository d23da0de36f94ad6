"""Which windows of which clips are scored, and which of their frames are given (VIDIM-Bench's protocol: 9 frames, first and last given)."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusers_mardini.masking import interpolation_indices, leading_indices
from training.data.clips import list_clips, load_clip
from training.data.order import SAME_RATE


TASKS = ("interpolation", "image-to-video", "expansion")


@dataclass(frozen=True)
class Windows:
    """The windows to be scored.

    Attributes:
        frames: in [0, 1], `(windows, frames, 3, size, size)`.
        clips: the file of each window's clip, relative to the folder.
        starts: the frame of the clip at which each window begins.
        skipped: reasons by file name, for clips that gave no window.
    """

    frames: torch.Tensor
    clips: list[str]
    starts: list[int]
    skipped: dict[str, str]

    def digest(self) -> str:
        """Changes with any pixel of any window."""
        return digest_of(self.frames)


def digest_of(frames: torch.Tensor) -> str:
    """Changes with any pixel of `frames`, which are in [0, 1]."""
    shape = str(tuple(frames.shape)).encode()
    return hashlib.sha256(shape + to_bytes(frames).numpy().tobytes()).hexdigest()


def given_indices(task: str, num_frames: int) -> list[int]:
    """The frames that a task gives: first and last, the first, or the leading half (rounded up)."""
    if task == "interpolation":
        return interpolation_indices(num_frames)
    if task == "image-to-video":
        return leading_indices(1)
    if task == "expansion":
        return leading_indices((num_frames + 1) // 2)
    raise ValueError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")


def frame_offsets(num_frames: int, step: float) -> list[int]:
    """Where the frames of a window lie in its clip, counted from its first one.

    Args:
        num_frames: of the window.
        step: clip frames from one window frame to the next; the nearest ones are taken where it is not whole, the earlier of two as
            near, as in training (`data/order.py`).
    """
    return [math.ceil(index * step - 0.5) for index in range(num_frames)]


def clip_step(clip_fps: float, stride: int, fps: float | None) -> float:
    """Clip frames from one window frame to the next: `stride`, or what makes `fps` frames per second.

    Raises:
        ValueError: if the clip has fewer frames per second than asked for: some would have to be shown twice.
    """
    if fps is None:
        return stride
    if fps > clip_fps * SAME_RATE:
        raise ValueError(f"{clip_fps:g} frames per second, {fps:g} were asked for")
    return max(1.0, clip_fps / fps)


def window_starts(length: int, offsets: list[int], count: int) -> list[int]:
    """At most `count` different starts, evenly spaced from the first possible to the last possible one; none for short clips."""
    last = length - 1 - offsets[-1]
    if last < 0:
        return []
    if count == 1:
        return [0]
    return sorted({round(last * i / (count - 1)) for i in range(count)})


def load_windows(
    folder: str | Path,
    size: int,
    num_frames: int,
    stride: int,
    per_clip: int,
    fps: float | None = None,
    max_clips: int | None = None,
) -> Windows:
    """Cuts the windows out of every clip of a folder; clips that give none are counted and named.

    Args:
        folder: of clips.
        size: side of the centred square, to which it is resized.
        num_frames: of a window.
        stride: clip frames from one window frame to the next; does not count where `fps` is given.
        per_clip: at most so many windows.
        fps: frames per second of the windows, whatever the clips have.
        max_clips: the first so many clips that give a window; no further ones are decoded.

    Raises:
        ValueError: if no clip is long enough, or the numbers make no window.
    """
    for name, value, least in (
        ("num_frames", num_frames, 2),
        ("stride", stride, 1),
        ("windows per clip", per_clip, 1),
        ("max_clips", 1 if max_clips is None else max_clips, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps is {fps}; give a positive number of frames per second")
    frames, clips, starts, skipped = [], [], [], {}
    for path in list_clips(folder):
        if len(set(clips)) == max_clips:
            break
        name = path.relative_to(folder).as_posix()
        try:
            clip, clip_fps = load_clip(path, size)
            offsets = frame_offsets(num_frames, clip_step(clip_fps, stride, fps))
        except ValueError as error:
            skipped[name] = str(error)
            continue
        found = window_starts(len(clip), offsets, per_clip)
        if not found:
            skipped[name] = f"{len(clip)} frames, a window needs {offsets[-1] + 1}"
        for start in found:
            frames.append(clip[[start + offset for offset in offsets]])
            clips.append(name)
            starts.append(start)
    if skipped:
        print(f"{len(skipped)} clips of '{folder}' give no window:")
        for skipped_name, reason in skipped.items():
            print(f"  {skipped_name}: {reason}")
    if not frames:
        wanted = f"at stride {stride}" if fps is None else f"at {fps:g} frames per second"
        raise ValueError(f"no clip of '{folder}' gives {num_frames} frames {wanted}; lower one of them")
    return Windows(torch.stack(frames).float() / 255, clips, starts, skipped)


def training_clips(
    folder: str | Path, size: int, stride: int, fps: float | None = None
) -> Iterator[tuple[torch.Tensor, float]]:
    """Clips in [0, 1], `(length, 3, size, size)`, each with the step between neighbouring window frames; one at a time.

    Clips that can't be read, or have fewer frames per second than `fps`, are left out, counted and named.
    """
    left_out = []
    for path in list_clips(folder):
        try:
            clip, clip_fps = load_clip(path, size)
            step = clip_step(clip_fps, stride, fps)
        except ValueError as error:
            left_out.append(f"{path.relative_to(folder)}: {error}")
            continue
        yield clip.float() / 255, step
    if left_out:
        print(f"{len(left_out)} training clips of '{folder}' were left out:\n  " + "\n  ".join(left_out))


def to_bytes(frames: torch.Tensor) -> torch.Tensor:
    """Frames in [0, 1] as a file holds them, `uint8`: what is scored, so that a result does not depend on having been kept."""
    return (frames.float() * 255).round().clamp(0, 255).to(torch.uint8)
