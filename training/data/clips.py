"""Crop and resize clips, and read whole sources of them into uint8 tensors.

Crops are centred and resized with antialiasing, as VIDIM-Bench scores them; `fit` takes any place.
`diffusers_mardini/video_io.py` decodes, `sources.py` has the sources, `latents.py` encodes.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_mardini.sizes import Size, sides
from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import VIDEO_SUFFIXES, EvenVideo, iterate_frames, natural_key, read_video
from training.data.entries import Entry
from training.data.failures import reason_lines, sentence, shown
from training.data.folders import list_folder
from training.data.lerobot import refuse_plain
from training.data.manifest import make_manifest
from training.data.metadata import read_metadata
from training.data.sources import Source, open_source


CROP_POLICY = "centre of the aspect ratio, PIL bicubic"
# Places of a crop along the side that exceeds it: 0 is the beginning, 1 the end.
CENTRE, OFF_CENTRE = 0.5, (0.0, 0.25, 0.75, 1.0)


@dataclass(frozen=True, order=True)
class View:
    """The visible part of a picture.

    Attributes:
        crop: place of the crop, `CENTRE` or one of `OFF_CENTRE`.
        flip: whether the picture is mirrored left to right.
    """

    crop: float = CENTRE
    flip: bool = False

    def __str__(self) -> str:
        return ("" if self.crop == CENTRE else f", cropped at {self.crop}") + (", mirrored" if self.flip else "")

    def of(self, frames: np.ndarray, height: int, width: int) -> torch.Tensor:
        """Crop, resize and mirror `uint8` `(frames, height, width, 3)` to `(frames, 3, height, width)`."""
        fitted = fit(frames, height, width, self.crop)
        return fitted.flip(-1) if self.flip else fitted


@dataclass(frozen=True)
class FoundClip:
    """A clip that `load_clip` reads.

    Attributes:
        name: its path within the folder, or its key in another source.
        path: the video of a folder.
        source, entry: of a clip of another source, and the facts of its manifest.
    """

    name: str
    path: Path | None = None
    source: Source | None = None
    entry: Entry | None = None

    def stamp(self) -> list:
        """Return what changes with the clip: the size and time of change of a video, else the content."""
        if self.entry is not None:
            return [self.entry.sha256]
        assert self.path is not None, "a clip has a path or an entry"
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns]


@dataclass(frozen=True)
class Clips:
    """All clips of a source, decoded.

    Attributes:
        frames: one `uint8` tensor `(frames, 3, height, width)` for each clip.
        names: the name of each clip in its source.
        fps: frames per second of each clip.
        skipped: reasons by file name, for clips that could not be read.
    """

    frames: list[torch.Tensor]
    names: list[str]
    fps: list[float]
    skipped: dict[str, str]


def list_clips(folder: str | Path) -> list[Path]:
    """List the videos of a folder and its subfolders in natural order; with metadata, exactly those that they name.

    Files that are ignored are printed, once per process.

    Raises:
        ValueError: if the folder is missing or has no clips.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder of clips at '{folder}'")
    refuse_plain(folder)
    listing = list_folder(folder)
    metadata = read_metadata(listing)
    names = listing.videos if metadata is None else list(metadata.rows)
    if not names:
        raise ValueError(
            f"folder '{folder}' holds no clips; accepted are {', '.join(VIDEO_SUFFIXES)}{listing.summary()}"
        )
    _print_ignored(str(folder), listing.passed_over(() if metadata is None else metadata.rows))
    return sorted((folder / name for name in names), key=natural_key)


def find_clips(source: str | Path) -> list[FoundClip]:
    """Find the clips of a folder of videos, see `list_clips`, or of any other source, whose manifest is made first.

    Clips that are left out are printed with their reasons.

    Raises:
        ValueError: if there are no clips.
    """
    if Path(source).is_dir():
        return [FoundClip(path.relative_to(source).as_posix(), path) for path in list_clips(source)]
    opened = open_source(source)
    manifest = make_manifest(opened, workers=os.cpu_count() or 1)
    _print_ignored(str(source), tuple(reason_lines({entry.key: entry.reason for entry in manifest.left_out})))
    if not manifest.ok:
        raise ValueError(f"none of the {len(manifest.entries)} clips of '{source}' can be read; see the reasons above")
    return [FoundClip(entry.key, source=opened, entry=entry) for entry in manifest.ok]


@cache
def _print_ignored(folder: str, passed_over: tuple[str, ...]) -> None:
    if passed_over:
        print("\n  ".join([f"passed over in '{shown(folder)}':", *passed_over]))


def fit(frames: np.ndarray, height: int, width: int, crop: float = CENTRE) -> torch.Tensor:
    """Crop `uint8` `(frames, height, width, 3)` to the largest part of an aspect ratio and resize with antialiasing.

    Args:
        frames: pictures.
        height: of the result in pixels.
        width: of the result in pixels.
        crop: place of the part along the side that exceeds it, in [0, 1].

    Returns:
        `uint8` shaped `(frames, 3, height, width)`.
    """
    _, given_height, given_width, _ = frames.shape
    crop_height = max(1, min(given_height, round(given_width * height / width)))
    crop_width = max(1, min(given_width, round(given_height * width / height)))
    top, left = int((given_height - crop_height) * crop), int((given_width - crop_width) * crop)
    frames = frames[:, top : top + crop_height, left : left + crop_width]
    if (crop_height, crop_width) != (height, width):
        frames = np.stack(
            [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
        )
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class EvenClip:
    """A clip of a source at even times, decoded when frames are asked for; see `EvenVideo`, which reads a video."""

    source: Source
    entry: Entry

    @property
    def fps(self) -> float:
        """Return frames per second."""
        return self.entry.fps

    def __len__(self) -> int:
        return self.entry.num_frames

    def frames(self, indices: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """Yield frames, by default all, at increasing indices, one in memory at a time."""
        times = self.entry.times()
        if self.entry.variable_rate:  # as many frames as there are, at even times
            times = np.linspace(times[0], times[-1], len(times))
        wanted = times if indices is None else times[np.fromiter(indices, dtype=int)]
        opened, fps = self.source.open(self.entry.key), self.source.fps(self.entry.key)
        yield from (frame for _, frame in iterate_frames(opened, fps, wanted.tolist()))


def open_clip(clip: FoundClip) -> EvenVideo | EvenClip:
    """Open a clip of any length, of which not all frames are wanted at once; raise `ValueError` if it is damaged."""
    if clip.source is not None and clip.entry is not None:
        return EvenClip(clip.source, clip.entry)
    assert clip.path is not None, "a clip has a path or an entry"
    return EvenVideo.open(clip.path)


def load_clip(clip: str | Path | FoundClip, size: Size) -> tuple[torch.Tensor, float]:
    """Return a clip, `uint8` `(frames, 3, height, width)`, and its frames per second; raise `ValueError` if damaged."""

    def prepare(frame: np.ndarray) -> np.ndarray:
        return fit(frame[None], *sides(size))[0].permute(1, 2, 0).numpy()

    if isinstance(clip, FoundClip) and clip.entry is not None:
        opened = open_clip(clip)
        frames, fps = np.stack([prepare(frame) for frame in opened.frames()]), opened.fps
    else:
        frames, fps = read_video(clip.path if isinstance(clip, FoundClip) else clip, prepare)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), fps


def iterate_clips(
    source: str | Path, size: Size, skipped: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Yield `(name, frames, fps)` of every readable clip, one in memory at a time.

    Args:
        source: of the clips.
        size: side of the square frames, or height and width.
        skipped: is filled with the reason, by name, for each clip that cannot be read; printed at the end.

    Raises:
        ValueError: if no clip can be read.
    """
    clips = find_clips(source)
    for clip in clips:
        try:
            frames, fps = load_clip(clip, size)
        except FILE_ERRORS as error:
            skipped[clip.name] = sentence(error)
            continue
        yield clip.name, frames, fps
    if skipped:
        print(f"{len(skipped)} of {len(clips)} clips of '{source}' were left out:")
        print("\n".join(f"  {line}" for line in reason_lines(skipped)))
    if len(skipped) == len(clips):
        raise ValueError(f"none of the {len(clips)} clips of '{source}' can be read; the reasons are printed above")


def load_clips(source: str | Path, size: Size) -> Clips:
    """Read all clips of a source into memory; see `iterate_clips`."""
    skipped: dict[str, str] = {}
    names, frames, fps = zip(*iterate_clips(source, size, skipped))
    return Clips(list(frames), list(names), list(fps), skipped)
