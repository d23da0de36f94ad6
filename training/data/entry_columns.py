"""The columns of a manifest: what an entry is, where the columns lie, and groups of rows that are read as needed.

`entries.py` selects and counts; nothing else reads columns.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from training.data.failures import sentence


HEADER = b"mardini.manifest"  # key of a file's header
_HELD = 4  # decoded row groups that are kept for the next clips


class Entry(BaseModel):
    """One clip. Sizes are those of upright frames; times are seconds on the file's own clock."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    status: Literal["ok", "left out"]
    reason: str = ""
    stamp: str | None = Field(
        None, description="Size and time of change; a clip whose stamp differs is decoded again."
    )
    sha256: str = Field("", description="Of the clip's bytes; the key of the latent cache.")
    size: int = Field(0, description="Bytes.")
    num_frames: int = 0
    fps: float = Field(0.0, description="The mean if the rate varies.")
    width: int = 0
    height: int = 0
    start: float = Field(0.0, description="Time of the first frame.")
    duration: float = 0.0
    codec: str = ""
    timestamps: tuple[float, ...] | None = Field(None, description="Of all frames, if the rate varies.")
    first_frame: int = Field(0, description="Of a span: index of its first frame in the whole clip.")
    clip_frames: int = Field(0, description="Of a span: frames of the whole clip; 0: the entry is a whole clip.")

    @property
    def variable_rate(self) -> bool:
        """Return whether the time between frames varies."""
        return self.timestamps is not None

    def times(self, indices: Iterable[int] | None = None) -> np.ndarray:
        """Return the times of some frames, by default of all, `(frames,)`."""
        indices = np.arange(self.num_frames) if indices is None else np.fromiter(indices, dtype=int)
        if self.timestamps is not None:
            return np.array(self.timestamps)[indices]
        return self.start + indices / self.fps


SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("usable", pa.bool_()), ("reason", pa.string()), ("stamp", pa.string()),
        ("sha256", pa.binary(32)), ("size", pa.int64()), ("num_frames", pa.int32()), ("fps", pa.float64()),
        ("width", pa.int32()), ("height", pa.int32()), ("start", pa.float64()), ("duration", pa.float64()),
        ("codec", pa.string()), ("timestamps", pa.list_(pa.float64())), ("first_frame", pa.int64()),
        ("clip_frames", pa.int64()),
    ]
)  # fmt: skip
FEW_VALUES = ["usable", "reason", "fps", "width", "height", "codec"]  # columns that are stored as a dictionary


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a column of numbers or booleans without nulls; pyarrow's own way imports pandas, 40 MB."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.zeros(0, bool if pa.types.is_boolean(array.type) else array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if pa.types.is_boolean(array.type):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[array.offset : array.offset + len(array)].astype(bool)
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)


def as_column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Return the opposite of `numbers`."""
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def hashes_of(part: pa.Table) -> np.ndarray:
    """Return the SHA-256s of clips, `(clips,)` of 32 bytes each, zeros where there is none."""
    column = part.column("sha256").combine_chunks()
    if not len(column):
        return np.zeros(0, "S32")
    found = np.frombuffer(column.buffers()[1], "S32", len(column), column.offset * 32)
    return np.where(numbers(column.is_valid()), found, b"") if column.null_count else found


def entry_of(row: dict[str, Any]) -> Entry:
    """Return the entry of a row of columns."""
    digest, times = row["sha256"], row["timestamps"]
    row["sha256"] = "" if digest is None else digest.hex()
    row["status"] = "ok" if row.pop("usable") else "left out"
    row["timestamps"] = None if times is None else tuple(times)
    return Entry.model_construct(**row)


def batch_of(entries: Sequence[Entry]) -> pa.RecordBatch:
    """Return entries as columns."""
    columns = {name: [getattr(entry, name) for entry in entries] for name in SCHEMA.names if name != "usable"}
    columns["usable"] = [entry.status == "ok" for entry in entries]
    columns["sha256"] = [bytes.fromhex(digest) if digest else None for digest in columns["sha256"]]
    arrays = [pa.array(columns[name], field.type) for name, field in zip(SCHEMA.names, SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class InMemory:
    """Groups of rows in memory."""

    def __init__(self, batches: tuple[pa.RecordBatch, ...]):
        self.batches = batches

    def read(self, first: int, end: int, names: list[str] | None) -> pa.Table:
        """Return columns of consecutive groups; all columns without names."""
        return pa.Table.from_batches(self.batches[first:end], SCHEMA).select(names or SCHEMA.names)


class OnDisk:
    """A Parquet file.

    It is read, not mapped: mapped pages that were touched count as memory of the process until it runs short, 4 GB for
    100 million clips; those that were read count as the system's cache.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            metadata = self._file.metadata
            self.header = json.loads((metadata.metadata or {})[HEADER])
            if not SCHEMA.equals(self._file.schema_arrow):
                raise ValueError("it has other columns than a manifest")
            self.counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        except (ValueError, LookupError, OSError) as error:
            raise _damaged(path, error) from error
        if os.name == "nt":  # where no file is replaced that is open
            self._file.close()

    def read(self, first: int, end: int, names: list[str] | None) -> pa.Table:
        """Return columns of consecutive groups; all columns without names."""
        try:
            if os.name == "nt":
                with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
                    return file.read_row_groups(range(first, end), names, use_threads=False)
            return self._file.read_row_groups(range(first, end), names, use_threads=False)
        except (ValueError, OSError) as error:
            raise _damaged(self.path, error) from error


class Groups:
    """Consecutive groups of entries, of which the last ones that were read are kept. Threads may share it."""

    def __init__(self, counts: Sequence[int], source: InMemory | OnDisk):
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._source = source
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Return the number of entries."""
        return int(self._starts[-1])

    def entry(self, place: int) -> Entry:
        """Return one entry by its place."""
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with self._lock:
            if group not in self._held:
                self._held[group] = self._source.read(group, group + 1, None)
            self._held.move_to_end(group)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
            table = self._held[group]
        return entry_of(table.slice(place - int(self._starts[group]), 1).to_pylist()[0])

    def parts(self, names: list[str] | None, size: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield columns of whole groups, of about `size` entries at a time, each with the place of its first entry."""
        group, last = 0, len(self._starts) - 1
        while group < last:
            end = int(np.searchsorted(self._starts, self._starts[group] + size, side="right")) - 1
            end = min(max(end, group + 1), last)
            with self._lock:
                table = self._source.read(group, end, names)
            yield int(self._starts[group]), table
            group = end


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"'{path}' is damaged ({sentence(error)}); delete it, and it is made anew")
