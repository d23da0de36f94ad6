"""Reads folders of clips (the layout of HF `videofolder`) into square uint8 tensors.

Every clip is cropped to its centred square and resized with antialiasing: what VIDIM-Bench scores. Decoding itself is
the business of `diffusers_mardini/video_io.py`; latents are made from these tensors by `training/data/latents.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_mardini.video_io import VIDEO_SUFFIXES, natural_key, read_video


CROP_POLICY = "centre square, PIL bicubic"


@dataclass(frozen=True)
class Clips:
    """All clips of a folder, decoded.

    Attributes:
        frames: one `uint8` tensor `(frames, 3, size, size)` for each clip.
        names: the file name of each clip.
        fps: frames per second of each clip.
        skipped: reasons by file name, for clips that could not be read.
    """

    frames: list[torch.Tensor]
    names: list[str]
    fps: list[float]
    skipped: dict[str, str]


def read_metadata(folder: Path) -> dict[str, dict]:
    """The lines of `metadata.jsonl` by `file_name`; empty where there is none.

    Raises:
        ValueError: if a line is not JSON or names no file.
    """
    path = Path(folder) / "metadata.jsonl"
    if not path.is_file():
        return {}
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[row["file_name"]] = row
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of '{path}' must be a JSON object with a file_name, got {line[:80]!r}"
            ) from error
    return rows


def list_clips(folder: str | Path) -> list[Path]:
    """Video files of a folder in natural order; with a `metadata.jsonl`, exactly those that it names.

    Raises:
        ValueError: if the folder is missing or has no clips.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder of clips at '{folder}'")
    rows = read_metadata(folder)
    if rows:
        paths = [folder / name for name in rows]
    else:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise ValueError(f"folder '{folder}' holds no clips; accepted are {', '.join(VIDEO_SUFFIXES)}")
    return sorted(paths, key=natural_key)


def square(frames: np.ndarray, size: int) -> torch.Tensor:
    """Crops `uint8` `(frames, height, width, 3)` to the centred square and resizes: `(frames, 3, size, size)`."""
    _, height, width, _ = frames.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    frames = frames[:, top : top + side, left : left + side]
    if side != size:
        frames = np.stack(
            [np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)) for frame in frames]
        )
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()


def load_clip(path: str | Path, size: int) -> tuple[torch.Tensor, float]:
    """One clip as `uint8` `(frames, 3, size, size)` and its frames per second; `ValueError` if it can't be read."""
    frames, fps = read_video(path)
    return square(frames, size), fps


def iterate_clips(folder: str | Path, size: int, skipped: dict[str, str]) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Yields `(name, frames, fps)` of every readable clip, one in memory at a time.

    Args:
        skipped: filled with the reason, by file name, of each clip that could not be read; printed at the end.

    Raises:
        ValueError: if no clip can be read.
    """
    paths = list_clips(folder)
    for path in paths:
        try:
            frames, fps = load_clip(path, size)
        except ValueError as error:
            skipped[path.name] = str(error)
            continue
        yield path.name, frames, fps
    if skipped:
        print(f"{len(skipped)} of {len(paths)} clips of '{folder}' were left out:")
        for name, reason in skipped.items():
            print(f"  {name}: {reason}")
    if len(skipped) == len(paths):
        raise ValueError(f"none of the {len(paths)} clips of '{folder}' can be read; the reasons stand above")


def load_clips(folder: str | Path, size: int) -> Clips:
    """All clips of a folder in memory; see `iterate_clips`."""
    skipped: dict[str, str] = {}
    names, frames, fps = zip(*iterate_clips(folder, size, skipped))
    return Clips(list(frames), list(names), list(fps), skipped)
