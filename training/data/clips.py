"""Reads folders of clips (the layout of HF `videofolder`) into square uint8 tensors.

Every clip is cropped to its centred square and resized with antialiasing: what VIDIM-Bench scores; `fit` does the same for any
aspect ratio, and beside the centre. Decoding itself is the business of `diffusers_mardini/video_io.py`, other sources are in `sources.py`, and latents
are made by `latents.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import VIDEO_SUFFIXES, natural_key, read_video
from training.data.failures import reason_lines, sentence, shown
from training.data.folders import list_folder
from training.data.metadata import read_metadata


CROP_POLICY = "centre of the aspect ratio, PIL bicubic"
# Where a crop lies along the side that is longer than it: 0 is its beginning, 1 its end.
CENTRE, OFF_CENTRE = 0.5, (0.0, 0.25, 0.75, 1.0)


@dataclass(frozen=True, order=True)
class View:
    """What of a picture is shown.

    Attributes:
        crop: place of the crop, `CENTRE` or one of `OFF_CENTRE`.
        flip: whether it is mirrored left to right.
    """

    crop: float = CENTRE
    flip: bool = False

    def __str__(self) -> str:
        return ("" if self.crop == CENTRE else f", cropped at {self.crop}") + (", mirrored" if self.flip else "")

    def of(self, frames: np.ndarray, height: int, width: int) -> torch.Tensor:
        """`uint8` `(frames, height, width, 3)` as `(frames, 3, height, width)`, cropped, resized and mirrored."""
        fitted = fit(frames, height, width, self.crop)
        return fitted.flip(-1) if self.flip else fitted


@dataclass(frozen=True)
class Clips:
    """All clips of a folder, decoded.

    Attributes:
        frames: one `uint8` tensor `(frames, 3, size, size)` for each clip.
        names: the file of each clip, relative to the folder.
        fps: frames per second of each clip.
        skipped: reasons by file name, for clips that could not be read.
    """

    frames: list[torch.Tensor]
    names: list[str]
    fps: list[float]
    skipped: dict[str, str]


def list_clips(folder: str | Path) -> list[Path]:
    """List the videos of a folder and the folders in it, in natural order; with metadata, exactly those that they name.

    What is passed over is printed, once in a process.

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
    _tell(str(folder), listing.passed_over(() if metadata is None else metadata.rows))
    return sorted((folder / name for name in names), key=natural_key)


@cache
def _tell(folder: str, passed_over: tuple[str, ...]) -> None:
    if passed_over:
        print("\n  ".join([f"passed over in '{shown(folder)}':", *passed_over]))


def square(frames: np.ndarray, size: int) -> torch.Tensor:
    """Crops `uint8` `(frames, height, width, 3)` to the centred square and resizes: `(frames, 3, size, size)`."""
    return fit(frames, size, size)


def fit(frames: np.ndarray, height: int, width: int, crop: float = CENTRE) -> torch.Tensor:
    """Crops `uint8` `(frames, height, width, 3)` to the largest part of an aspect ratio and resizes with antialiasing.

    Args:
        frames: pictures.
        height: of the result in pixels.
        width: of the result in pixels.
        crop: where the part lies along the side that is longer than it, in [0, 1].

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


def load_clip(path: str | Path, size: int) -> tuple[torch.Tensor, float]:
    """One clip as `uint8` `(frames, 3, size, size)` and its frames per second; `ValueError` if it can't be read."""
    frames, fps = read_video(path, lambda frame: square(frame[None], size)[0].permute(1, 2, 0).numpy())
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), fps


def iterate_clips(folder: str | Path, size: int, skipped: dict[str, str]) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Yields `(name, frames, fps)` of every readable clip, one in memory at a time.

    Args:
        skipped: filled with the reason, by file name, of each clip that could not be read; printed at the end.

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
        raise ValueError(f"none of the {len(paths)} clips of '{folder}' can be read; the reasons stand above")


def load_clips(folder: str | Path, size: int) -> Clips:
    """All clips of a folder in memory; see `iterate_clips`."""
    skipped: dict[str, str] = {}
    names, frames, fps = zip(*iterate_clips(folder, size, skipped))
    return Clips(list(frames), list(names), list(fps), skipped)
