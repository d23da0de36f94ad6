"""Crop and resize clips, and read folders of them (the layout of HF `videofolder`) into uint8 tensors.

Crops are centred and resized with antialiasing, as VIDIM-Bench scores them; `fit` takes any place.
`diffusers_mardini/video_io.py` decodes, `sources.py` has the other kinds of sources, `latents.py` encodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_mardini.sizes import Size, sides
from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import VIDEO_SUFFIXES, natural_key, read_video
from training.data.failures import reason_lines, sentence, shown
from training.data.folders import list_folder
from training.data.metadata import read_metadata


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
class Clips:
    """All clips of a folder, decoded.

    Attributes:
        frames: one `uint8` tensor `(frames, 3, height, width)` for each clip.
        names: the file of each clip, relative to the folder.
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
    listing = list_folder(folder)
    metadata = read_metadata(listing)
    names = listing.videos if metadata is None else list(metadata.rows)
    if not names:
        raise ValueError(
            f"folder '{folder}' holds no clips; accepted are {', '.join(VIDEO_SUFFIXES)}{listing.summary()}"
        )
    _print_ignored(str(folder), listing.passed_over(() if metadata is None else metadata.rows))
    return sorted((folder / name for name in names), key=natural_key)


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


def load_clip(path: str | Path, size: Size) -> tuple[torch.Tensor, float]:
    """Return a clip, `uint8` `(frames, 3, height, width)`, and its frames per second; raise `ValueError` if damaged."""
    frames, fps = read_video(path, lambda frame: fit(frame[None], *sides(size))[0].permute(1, 2, 0).numpy())
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), fps


def iterate_clips(
    folder: str | Path, size: Size, skipped: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Yield `(name, frames, fps)` of every readable clip, one in memory at a time.

    Args:
        folder: of the clips.
        size: side of the square frames, or height and width.
        skipped: is filled with the reason, by file name, for each clip that cannot be read; printed at the end.

    Raises:
        ValueError: if no clip can be read.
    """
    paths = list_clips(folder)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            frames, fps = load_clip(path, size)
        except FILE_ERRORS as error:
            skipped[name] = sentence(error)
            continue
        yield name, frames, fps
    if skipped:
        print(f"{len(skipped)} of {len(paths)} clips of '{folder}' were left out:")
        print("\n".join(f"  {line}" for line in reason_lines(skipped)))
    if len(skipped) == len(paths):
        raise ValueError(f"none of the {len(paths)} clips of '{folder}' can be read; the reasons are printed above")


def load_clips(folder: str | Path, size: Size) -> Clips:
    """Read all clips of a folder into memory; see `iterate_clips`."""
    skipped: dict[str, str] = {}
    names, frames, fps = zip(*iterate_clips(folder, size, skipped))
    return Clips(list(frames), list(names), list(fps), skipped)
