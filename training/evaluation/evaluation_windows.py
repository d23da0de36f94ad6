"""The windows that are scored, cut out of held-out clips (VIDIM-Bench: 9 frames, first and last given).

The windows that training draws are in `data/windows.py`; both take every n-th frame by `data/order.py`, and the given
frames of a task are in `diffusers_mardini/masking.py`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from training.data.clips import list_clips, load_clip
from training.data.manifest import Entry
from training.data.order import SAME_RATE, frames_at_stride


@dataclass(frozen=True)
class EvaluationWindows:
    """The windows to be scored.

    Attributes:
        frames: in [0, 1], `(windows, frames, 3, size, size)`.
        clips: the file of each window's clip, relative to the folder.
        starts: the frame of the clip at which each window begins.
        skipped: reasons by file name, for clips that gave no window.
        folder: of the clips.
        entries: facts of each window's clip.
        places: the clip frames of each window.
    """

    frames: torch.Tensor
    clips: list[str]
    starts: list[int]
    skipped: dict[str, str]
    folder: str = ""
    entries: Sequence[Entry] = ()
    places: Sequence[tuple[int, ...]] = ()

    def digest(self) -> str:
        """Return a digest of all pixels of all windows."""
        return digest_of(self.frames)


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


def window_starts(length: int, span: int, count: int) -> list[int]:
    """Return up to `count` different starts, evenly spaced from the first to the last possible one.

    Args:
        length: frames of the clip; too few give no start.
        span: clip frames from the first to the last frame of a window, both included.
        count: most starts.
    """
    last = length - span
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
) -> EvaluationWindows:
    """Cut the windows out of every clip of a folder; print the clips that give none with the reasons.

    Args:
        folder: folder of clips.
        size: side in pixels to which the centred square is resized.
        num_frames: frames of a window.
        stride: clip frames from one window frame to the next; ignored if `fps` is given.
        per_clip: most windows of a clip.
        fps: frames per second of the windows, whatever the clips have.
        max_clips: stop after this many clips that give a window; no further clips are decoded.

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
    frames, clips, starts, skipped, entries, places = [], [], [], {}, [], []
    for path in list_clips(folder):
        if len(set(clips)) == max_clips:
            break
        name = path.relative_to(folder).as_posix()
        try:
            clip, clip_fps = load_clip(path, size)
            step = clip_step(clip_fps, stride, fps)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        span = frames_at_stride(0, num_frames, step)[-1] + 1
        found = window_starts(len(clip), span, per_clip)
        if not found:
            skipped[name] = f"{len(clip)} frames, a window needs {span}"
        entry = Entry(key=name, status="ok", num_frames=len(clip), fps=clip_fps)
        for start in found:
            entries.append(entry)
            places.append(frames_at_stride(start, num_frames, step))
            frames.append(clip[list(places[-1])])
            clips.append(name)
            starts.append(start)
    if skipped:
        print(f"{len(skipped)} clips of '{folder}' give no window:")
        for skipped_name, reason in skipped.items():
            print(f"  {skipped_name}: {reason}")
    if not frames:
        wanted = f"at stride {stride}" if fps is None else f"at {fps:g} frames per second"
        raise ValueError(f"no clip of '{folder}' gives {num_frames} frames {wanted}; lower one of them")
    return EvaluationWindows(torch.stack(frames).float() / 255, clips, starts, skipped, str(folder), entries, places)


def training_clips(
    folder: str | Path, size: int, stride: int, fps: float | None = None
) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield clips in [0, 1], `(length, 3, size, size)`, each with the distance of window frames in its frames.

    Clips that cannot be read, or have fewer frames per second than `fps`, are left out and printed with the reasons.
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
    """Return frames in [0, 1] as `uint8`, as files hold them; these are scored, whether saved in between or not."""
    return (frames.float() * 255).round().clamp(0, 255).to(torch.uint8)
