"""Shards of the latent cache: safetensors files of chunks of clips, each complete or absent.

`latents.py` encodes the clips and reads the chunks.
"""

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusers_mardini.video.errors import FILE_ERRORS
from training.data.entries import Entry
from training.data.failures import sentence
from training.data.moments import ClipError
from training.files import named_write_errors, whole_file


_PLACES = ("number", "offset", "first", "end")


@dataclass(frozen=True)
class Chunk:
    """Frames `first` to `end` of a clip, in the tensors `number` of a shard, whose first row is frame `offset`."""

    shard: str
    number: int
    offset: int
    first: int
    end: int


class ChunkIndex:
    """The chunks of each clip, sorted by the hash of its bytes: arrays that are memory-mapped, 52 bytes a chunk."""

    def __init__(self, table: pa.Table):
        """Use the columns of a table as `of` makes it; `open` maps a file's."""
        self._table = table.combine_chunks()  # nothing is copied: it has one chunk
        digests = self._table.column("sha256").chunk(0) if len(table) else None
        self._digests = (
            np.zeros(0, "S32") if digests is None else np.frombuffer(digests.buffers()[1], "S32", len(table))
        )
        self._shards: list[str] = json.loads(table.schema.metadata[b"shards"])

    @classmethod
    def of(cls, clips: Mapping[str, Sequence[Chunk]]) -> "ChunkIndex":
        """Return the index of chunks in memory, by hash."""
        shards = sorted({chunk.shard for chunks in clips.values() for chunk in chunks})
        numbers = {shard: number for number, shard in enumerate(shards)}
        # numpy's order of byte strings, by which they are searched, is Python's
        rows = [(bytes.fromhex(sha), chunk) for sha in sorted(clips) for chunk in clips[sha]]
        columns = {
            "sha256": pa.array([sha for sha, _ in rows], pa.binary(32)),
            "shard": pa.array([numbers[chunk.shard] for _, chunk in rows], pa.int32()),
            **{name: pa.array([getattr(chunk, name) for _, chunk in rows], pa.int32()) for name in _PLACES},
        }
        return cls(pa.table(columns, metadata={"shards": json.dumps(shards)}))

    @classmethod
    def open(cls, path: Path) -> "ChunkIndex":
        """Read a file that `write` has written; raise `ValueError` or `OSError` if it is damaged.

        It is mapped where a mapped file can be replaced, which Windows does not allow.
        """
        if os.name == "nt":
            with pa.OSFile(str(path)) as file:
                return cls(pa.ipc.open_file(file).read_all())
        return cls(pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def write(self, path: Path) -> None:
        """Write a file, complete or not at all."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self._table.schema) as writer:
            writer.write_table(self._table)
        with whole_file(path) as hidden:
            hidden.write_bytes(sink.getvalue())

    def __contains__(self, sha: str) -> bool:
        return bool(sha) and bool(self.holds(np.array([bytes.fromhex(sha)], "S32"))[0])

    def hashes(self) -> list[str]:
        """Return the hashes of all clips."""
        return [digest.hex() for digest in self._table.column("sha256").unique().to_pylist()]

    def holds(self, digests: np.ndarray) -> np.ndarray:
        """Return which hashes, `(clips,)` of 32 bytes each, are those of clips here."""
        if not len(self._digests):
            return np.zeros(len(digests), bool)
        places = np.searchsorted(self._digests, digests)
        return self._digests[np.minimum(places, len(self._digests) - 1)] == digests

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkIndex) and self._table.equals(other._table, check_metadata=True)

    __hash__ = None  # type: ignore[assignment]

    def chunks(self, sha: str) -> list[Chunk]:
        """Return the chunks of a clip in the order of its frames."""
        digest = np.array([bytes.fromhex(sha)], "S32")
        first, end = (int(np.searchsorted(self._digests, digest, side=side)[0]) for side in ("left", "right"))
        rows = self._table.slice(first, end - first).drop_columns("sha256").to_pylist()
        return [Chunk(**{**row, "shard": self._shards[row["shard"]]}) for row in rows]


MOST_OPEN = 1024  # shards: a system allows a process some ten thousand mappings


class ShardReader:
    """Read rows of tensors from the memory-mapped shards of a folder, which are opened when they are needed; those used
    longest ago are closed again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: OrderedDict[str, tuple[safe_open, frozenset[str]]] = OrderedDict()
        self._turn = threading.Lock()

    def rows(self, shard: str, name: str, low: int, high: int) -> torch.Tensor | None:
        """Return the rows from `low` to `high` of a tensor; `None` if the shard does not have it.

        Raises:
            ClipError: if the shard was damaged since.
        """
        path = self.folder / shard
        try:
            with self._turn:
                if shard not in self._files:
                    file = safe_open(path, framework="pt")
                    self._files[shard] = file, frozenset(file.keys())
                self._files.move_to_end(shard)
                file, names = self._files[shard]
                while len(self._files) > MOST_OPEN:
                    self._files.popitem(last=False)
            return file.get_slice(name)[low:high] if name in names else None
        except (SafetensorError, *FILE_ERRORS) as error:
            raise ClipError(f"'{path}' cannot be read ({sentence(error)}); delete it, and it is made anew") from error


class ShardWriter:
    """Collect chunks, and write a shard when there are enough or the last one is long ago.

    Args:
        folder: of the cache.
        rank: number of this process, for names.
        shard_bytes: size at which a shard is written.
        shard_seconds: seconds after which a smaller one is written, so that a kill costs no more work than that.
        dtype: of the stored tensors.
    """

    def __init__(self, folder: Path, rank: int, shard_bytes: int, shard_seconds: float, dtype: torch.dtype):
        self.folder, self.rank, self.dtype = folder, rank, dtype
        self.shard_bytes, self.shard_seconds = shard_bytes, shard_seconds
        taken = [int(path.stem.split("-")[2]) for path in folder.glob(f"shard-{rank}-*.safetensors")]
        self._number = max(taken, default=-1) + 1
        self._entry: Entry | None = None
        # (entry, first frame, pieces by name); those of the current clip are kept apart until it ends or the shard is
        # written
        self._chunks: list[tuple[Entry, int, dict[str, list[torch.Tensor]]]] = []
        self._open: tuple[Entry, int, dict[str, list[torch.Tensor]]] | None = None
        self._bytes = 0
        self._written = time.monotonic()

    def begin(self, entry: Entry) -> None:
        """Begin a clip."""
        self._entry = entry

    def add(self, first: int, tensors: dict[str, torch.Tensor]) -> None:
        """Add tensors of the frames of the current clip from `first` on.

        Raises:
            ValueError: if they are not finite, or the disk is full.
        """
        if self._open is None:
            self._open = (self._entry, first, {})
        if (
            first > self._open[1] and tensors.keys() != self._open[2].keys()
        ):  # this batch lacks a variance by chance, or the ones before do
            self._close()
            self._open = (self._entry, first, {})
        for name, tensor in tensors.items():
            stored = (tensor.to(self.dtype) if tensor.is_floating_point() else tensor).contiguous()
            if not torch.isfinite(stored).all():
                raise ValueError(
                    f"the latents of clip '{self._entry.key}' are not finite as {self.dtype}; run the autoencoder in "
                    "float32, or check its scaling factor"
                )
            self._open[2].setdefault(name, []).append(stored)
            self._bytes += stored.nbytes
        if self._bytes >= self.shard_bytes or time.monotonic() - self._written >= self.shard_seconds:
            self.flush()

    def end(self) -> None:
        """End the current clip."""
        self._close()

    def abandon(self) -> None:
        """Drop the current clip; parts of it that are already in shards are incomplete and so never used."""
        if self._open is not None:
            self._bytes -= sum(piece.nbytes for pieces in self._open[2].values() for piece in pieces)
            self._open = None

    def _close(self) -> None:
        if self._open is not None:
            self._chunks.append(self._open)
        self._open = None

    def flush(self) -> None:
        """Write what there is as a shard; the current clip may go on in the next one."""
        self._close()
        self._written = time.monotonic()
        if not self._chunks:
            return
        header = [
            [entry.sha256, first, sum(map(len, next(iter(pieces.values())))), entry.num_frames]
            for entry, first, pieces in self._chunks
        ]
        tensors = {
            f"{number}.{name}": torch.cat(parts)
            for number, (_, _, pieces) in enumerate(self._chunks)
            for name, parts in pieces.items()
        }
        path = self.folder / f"shard-{self.rank}-{self._number:05d}.safetensors"
        with named_write_errors(f"the latent cache '{path}'"), whole_file(path) as unfinished:
            save_file(tensors, unfinished, metadata={"chunks": json.dumps(header)})
        self._number += 1
        self._chunks, self._bytes = [], 0


def chunks_of(file: safe_open) -> list[tuple[str, int, int, int]]:
    """Return of each chunk of an open shard: the clip's hash, the first frame, the number of frames, the clip's."""
    return [(sha, first, count, total) for sha, first, count, total in json.loads(file.metadata()["chunks"])]


@dataclass(frozen=True)
class Scan:
    """What the shards of a cache hold.

    Attributes:
        clips: the chunks, by hash, of all clips that they hold completely.
        begun: how many first frames they hold of the others.
        damaged: shards that cannot be read.
    """

    clips: dict[str, list[Chunk]]
    begun: dict[str, int]
    damaged: list[Path]


def scan(folder: Path, rank: int | None = None) -> Scan:
    """Read the headers of all shards, or of those of one rank."""
    pieces: dict[str, list[tuple[int, int, str, int]]] = {}
    totals: dict[str, int] = {}
    damaged = []
    for path in sorted(folder.glob(f"shard-{'*' if rank is None else rank}-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:  # refuses a file whose length does not fit its header
                header = chunks_of(file)
        except (SafetensorError, *FILE_ERRORS):
            damaged.append(path)
            continue
        for number, (sha, first, count, total) in enumerate(header):
            pieces.setdefault(sha, []).append((first, first + count, path.name, number))
            totals[sha] = total
    complete, begun = {}, {}
    for sha, total in totals.items():
        chunks, position = [], 0
        for first, end, shard, number in sorted(pieces[sha]):
            # Parts written before a kill may overlap those of a later start.
            if first <= position < end:
                chunks.append(Chunk(shard, number, first, position, end))
                position = end
        if position == total:
            complete[sha] = chunks
        elif position:
            begun[sha] = position
    return Scan(complete, begun, damaged)
