"""Crop and resize clips, find those of a source, and read them into uint8 tensors.

Crops are centred and resized with antialiasing, as VIDIM-Bench scores them; `fit` takes any place.
`diffusers_mardini/video_io.py` decodes, `sources.py` has the sources, `latents.py` encodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_mardini.sizes import Size, sides
from diffusers_mardini.video_io import iterate_frames
from training.data.clip_lists import ClipList
from training.data.entries import Entry
from training.data.failures import reason_lines
from training.data.manifest import read_manifest_of
from training.data.manifest_files import MANIFESTS
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
    """A usable clip of a source, with the facts of its manifest; its frames are decoded when they are asked for."""

    source: Source
    entry: Entry

    @property
    def name(self) -> str:
        """Return its key in the source: a path within a folder."""
        return self.entry.key

    @property
    def whole(self) -> str:
        """Return the name of the clip of which this is a row of a clip list, else its own: windows of different rows
        of one clip are not independent.
        """
        span = self.source.spans().get(self.entry.key) if isinstance(self.source, ClipList) else None
        return self.name if span is None else f"{span.source.spec}:{span.clip}"

    def even_frames(self) -> Iterator[np.ndarray]:
        """Yield as many frames as there are, at even times, one in memory at a time."""
        times = self.entry.times()
        if self.entry.variable_rate:
            times = np.linspace(times[0], times[-1], len(times))
        opened, fps = self.source.open(self.entry.key), self.source.fps(self.entry.key)
        yield from (frame for _, frame in iterate_frames(opened, fps, times.tolist()))


def find_clips(
    source: str | Path, skipped: dict[str, str] | None = None, picture_fps: float | None = None
) -> list[FoundClip]:
    """Find the usable clips of a source, whose manifest is made first.

    Args:
        source: see `open_source`.
        skipped: is filled with the reasons, by name, for clips that are left out.
        picture_fps: frames per second of pictures that do not state it.

    Raises:
        ValueError: if there are no clips.
    """
    opened = open_source(source, picture_fps)
    manifest = read_manifest_of(opened, MANIFESTS)
    left_out = {entry.key: entry.reason for entry in manifest.left_out}
    if skipped is not None:
        skipped |= left_out
    if not manifest.ok:
        reasons = "; ".join(reason_lines(left_out, 3, 3))
        raise ValueError(f"none of the {len(manifest.entries)} clips of '{source}' can be read ({reasons})")
    return [FoundClip(opened, entry) for entry in manifest.ok]


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
    # A picture of PIL cannot be written to, and torch warns of that.
    return torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2).contiguous()


def load_clip(clip: FoundClip, size: Size) -> tuple[torch.Tensor, float]:
    """Return a clip, `uint8` `(frames, 3, height, width)`, and its frames per second; raise `ValueError` if damaged."""
    frames = [fit(frame[None], *sides(size))[0] for frame in clip.even_frames()]
    return torch.stack(frames), clip.entry.fps
