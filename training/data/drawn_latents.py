"""Latents of some frames of clips, in the shards of a folder to which frames are added.

For runs that see little of long or many clips: `drawn_windows.py` knows which frames their steps draw. A cache of every
frame is in `latents.py`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from diffusers_mardini.video.errors import FILE_ERRORS
from training.data.clips import View
from training.data.entries import Entry
from training.data.latent_shards import ShardReader, ShardWriter, chunks_of
from training.data.latents import SHARD_BYTES, SHARD_SECONDS, frames_at_once, frames_of
from training.data.moments import ClipError, Moments, Rows, encode_frames, moments_of, suffix, tensor_names, tensors_of
from training.data.sources import Source
from training.progress import Progress
from training.stopping import Stopped


FRAME_POLICY = "drawn frames, upright"
_FRAMES = "frames"  # a tensor of each chunk: the numbers of its frames


@dataclass(frozen=True)
class Wanted:
    """Frames of a clip that are to be encoded, by view: their numbers, rising."""

    entry: Entry
    frames: dict[View, np.ndarray]


class DrawnLatents(ShardReader):
    """The frames at one size that the shards of a folder hold when it is opened.

    Attributes:
        damaged: shards that cannot be read, whose frames are missing.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.damaged: list[Path] = []
        self._shards: list[str] = []
        # By hash and view: frame, shard, chunk and row of each frame, rising by frames, (4, frames).
        self._held: dict[tuple[str, str], np.ndarray] = {}
        found: dict[tuple[str, str], list[np.ndarray]] = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            try:
                for key, chunk, frames in _frames_in(path):
                    place = [np.full_like(frames, number) for number in (len(self._shards), chunk)]
                    found.setdefault(key, []).append(np.stack([frames, *place, np.arange(len(frames))]))
            except (SafetensorError, *FILE_ERRORS):
                self.damaged.append(path)
            self._shards.append(path.name)
        for key, parts in found.items():
            places = np.concatenate(parts, axis=1)
            self._held[key] = places[:, np.unique(places[0], return_index=True)[1]]

    def missing(self, entry: Entry, view: View, frames: np.ndarray) -> np.ndarray:
        """Return those of some frames, all different, that it does not hold."""
        held = self._held.get((entry.sha256, _frames_name(view)))
        return frames if held is None else np.setdiff1d(frames, held[0], assume_unique=True)

    def read(self, entry: Entry, indices: Iterable[int], view: View = View()) -> Moments:  # noqa: B008
        """Return the moments of some frames of a clip, in the stored type.

        Raises:
            ClipError: if it does not hold them, or its files were damaged since it was opened.
        """
        wanted = np.fromiter(indices, dtype=int)
        if len(self.missing(entry, view, np.unique(wanted))):
            raise ClipError(f"'{self.folder}' does not hold them")
        held = self._held[entry.sha256, _frames_name(view)]
        places = held[:, np.searchsorted(held[0], wanted)]
        parts: Rows = {}
        for shard, chunk in dict.fromkeys(zip(*places[1:3].tolist())):
            frames, _, _, rows = places[:, (places[1] == shard) & (places[2] == chunk)]
            low, high = rows.min(), rows.max() + 1
            for key, name in tensor_names(view):
                tensor = self.rows(self._shards[shard], f"{chunk}.{name}", low, high)
                if tensor is not None:
                    parts.setdefault(key, {}).update(zip(frames.tolist(), tensor[rows - low]))
        return moments_of(parts, wanted.tolist())


def _frames_in(path: Path) -> Iterator[tuple[tuple[str, str], int, np.ndarray]]:
    """Yield hash and view, number and frames of each chunk of a shard."""
    with safe_open(path, framework="pt") as file:
        hashes = [sha for sha, *_ in chunks_of(file)]
        for name in file.keys():
            number, _, rest = name.partition(".")
            if rest.startswith(_FRAMES):
                yield (hashes[int(number)], rest), int(number), file.get_tensor(name).numpy().astype(np.int64)


def _frames_name(view: View) -> str:
    return f"{_FRAMES}{suffix(view)}"


def encode_drawn(
    source: Source, wanted: Sequence[Wanted], vae: torch.nn.Module, planner_downscale: int, size: tuple[int, int],
    folder: Path, rank: int, stop: Callable[[], str | None],
) -> dict[str, str]:  # fmt: skip
    """Encode frames of clips into shards; return the reasons for clips that could not be read, by key.

    Args:
        source, vae, planner_downscale, size, stop: see `latents.build_latent_cache`.
        wanted: the clips of this process.
        folder: of the latents of these settings.
        rank: number of this process, for names.

    Raises:
        ValueError: if the moments of a clip are not finite, or the disk is full.
        Stopped: if there was a reason to stop; what is encoded is kept.
    """
    failed: dict[str, str] = {}
    writer = ShardWriter(folder, rank, SHARD_BYTES, SHARD_SECONDS, torch.float16)
    count, done = sum(len(frames) for each in wanted for frames in each.frames.values()), 0
    try:
        with Progress(f"encoding drawn frames at {size[0]}x{size[1]}", count) as progress:
            for number, each in enumerate(wanted):
                try:
                    for view, numbers, rows, batch in _batches(source, each, size):
                        tensors = tensors_of(encode_frames(vae, batch, planner_downscale), view)
                        writer.begin(each.entry)
                        writer.add(0, {_frames_name(view): numbers} | {k: v[rows] for k, v in tensors.items()})
                        writer.end()
                        done += len(numbers)
                        progress.update(done, 0, f"clip {number + 1:,} of {len(wanted):,}")
                        if reason := stop():
                            raise Stopped(reason)
                except ClipError as error:
                    failed[each.entry.key] = str(error)
    finally:
        writer.flush()
    return failed


def _batches(
    source: Source, wanted: Wanted, size: tuple[int, int]
) -> Iterator[tuple[View, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield views, frame numbers, their rows in a batch, and the batch; the clip is decoded once.

    A batch is one of those in which every frame would be encoded, black where a frame is not wanted: what an autoencoder
    makes of a frame depends, in its last bits, on the size of the batch.
    """
    numbers = np.unique(np.concatenate(list(wanted.frames.values())))
    seen_in = {view: set(frames.tolist()) for view, frames in wanted.frames.items()}
    at_once = frames_at_once(size)
    for begin, block in itertools.groupby(
        zip(numbers.tolist(), frames_of(source, wanted.entry, numbers)), lambda each: each[0] // at_once * at_once
    ):
        waiting: dict[View, dict[int, torch.Tensor]] = {view: {} for view in wanted.frames}
        for number, frame in block:
            for view, pictures in waiting.items():
                if number in seen_in[view]:
                    pictures[number] = view.of(frame[None], *size)[0]
        for view, pictures in waiting.items():
            if pictures:
                drawn = torch.tensor(list(pictures), dtype=torch.int32)
                batch = torch.zeros(min(at_once, wanted.entry.num_frames - begin), 3, *size, dtype=torch.uint8)
                batch[drawn - begin] = torch.stack(list(pictures.values()))
                yield view, drawn, drawn - begin, batch
