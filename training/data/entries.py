"""The clips of a manifest: one `Entry` each, and `Entries`, which stay in a Parquet file until they are drawn.

What is counted over all clips is read as columns, part by part; an entry with its strings is read when it is asked
for. So memory does not grow with the number of clips. `manifest.py` makes the file.
"""

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from training.data.failures import sentence
from training.files import whole_file


GROUP = 8192  # clips of a row group: what is decoded for one drawn clip
_PART = 8 * GROUP  # clips that are counted at once
_HELD = 4  # decoded row groups that are kept for the next clips
_BLOCK = 8192  # clips between two counts of a selection
SHARD = 1000  # clips that count as a shard where nothing says which clips lie together
_HEADER = b"mardini.manifest"


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
_FEW_VALUES = ["usable", "reason", "fps", "width", "height", "codec"]  # columns that are stored as a dictionary


class Selection:
    """Those places of an array of codes that have one of them: counted once, found by a search in the counts."""

    def __init__(self, codes: np.ndarray, code: int):
        self.codes, self.code = codes, code
        counts = [np.count_nonzero(codes[i : i + _BLOCK] == code) for i in range(0, len(codes), _BLOCK)]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, index: int) -> int:
        """Return the place of the selection's `index`-th member."""
        block = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[block - 1]) if block else 0
        first = block * _BLOCK
        return first + int(np.flatnonzero(self.codes[first : first + _BLOCK] == self.code)[index - before])

    def mask(self, first: int, end: int) -> np.ndarray:
        """Return which places from `first` to `end` are members."""
        return self.codes[first:end] == self.code


class Entries(Sequence[Entry]):
    """Entries that are read when they are asked for: all those of a file or of memory, or a selection of them.

    A slice is a list. Equal to any sequence of equal entries.
    """

    def __init__(self, groups: "_Groups", selection: Selection | None = None):
        self._groups, self._selection = groups, selection

    @classmethod
    def of(cls, entries: "Iterable[Entry]") -> "Entries":
        """Return entries in memory as columns; what is `Entries` already stays as it is."""
        if isinstance(entries, Entries):
            return entries
        builder = EntriesBuilder()
        for entry in entries:
            builder.append(entry)
        return builder.entries()

    def __len__(self) -> int:
        return self._groups.total if self._selection is None else len(self._selection)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._groups.entry(self.place(index))

    def place(self, index: int) -> int:
        """Return the place of an entry in the whole manifest."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} entries, number {index} was asked for")
        index = index % len(self)
        return index if self._selection is None else self._selection.place(index)

    def __iter__(self) -> Iterator[Entry]:
        return self.after(0)

    def after(self, first: int) -> Iterator[Entry]:
        """Yield the entries from the `first`-th on, faster than one by one."""
        for table in self._parts(None, GROUP):
            if first >= table.num_rows:
                first -= table.num_rows
                continue
            yield from map(_entry, table.slice(first).to_pylist())
            first = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        if len(self) != len(other):
            return False
        if isinstance(other, Entries):
            return all(a.equals(b) for a, b in zip(self._even_parts(), other._even_parts(), strict=True))
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Entries({list(self)!r})" if len(self) <= 3 else f"<{len(self)} entries>"

    def columns(self, *names: str) -> Iterator[pa.Table]:
        """Yield the columns of consecutive parts of the entries; see `SCHEMA`."""
        yield from self._parts(list(names), _PART)

    def counts(self, *names: str) -> Counter[tuple]:
        """Count the combinations of values of some columns, in the order of their first appearance."""
        found: Counter[tuple] = Counter()
        for table in self.columns(*names):
            table = table.append_column("place", _column(np.arange(len(table)), pa.int64()))
            grouped = table.group_by(list(names)).aggregate([("place", "min"), ("place", "count")])
            grouped = grouped.sort_by("place_min").select([*names, "place_count"])
            for *value, number in zip(*(column.to_pylist() for column in grouped.columns)):
                found[tuple(value)] += number
        return found

    def total(self, name: str) -> float:
        """Return the sum of a column."""
        return sum(numbers(table.column(name)).sum().item() for table in self.columns(name) if table.num_rows)

    def keys_of(self, hashes: Iterable[str]) -> dict[str, str]:
        """Return the keys of the clips with given SHA-256s, by these; the last one of several."""
        wanted = pa.array({bytes.fromhex(digest) for digest in hashes if digest}, pa.binary(32))
        found = {}
        for table in self.columns("key", "sha256"):
            table = table.filter(pc.is_in(table.column("sha256"), wanted))
            digests, keys = table.column("sha256").to_pylist(), table.column("key").to_pylist()
            found |= {digest.hex(): key for digest, key in zip(digests, keys)}
        return found

    def shard_sizes(self) -> np.ndarray:
        """Return how many consecutive clips lie in one archive or folder, by the part of their keys before the first
        slash; `SHARD` where keys have none.
        """
        names: list[str] = []
        sizes: list[np.ndarray] = []
        for table in self.columns("key"):
            parts = pc.split_pattern(table.column("key").combine_chunks(), "/", max_splits=1)
            runs = pc.run_end_encode(pc.list_element(parts, 0))
            names += runs.values.to_pylist()
            sizes.append(np.diff(numbers(runs.run_ends), prepend=0))
        if not names:
            return np.zeros(0, np.int64)
        found = np.concatenate(sizes).astype(np.int64)
        if len(found) == len(self):  # every key has a name of its own
            return np.diff([*range(0, len(self), SHARD), len(self)])
        # A shard may lie in two parts.
        begins = [place for place, name in enumerate(names) if not place or names[place - 1] != name]
        return np.add.reduceat(found, begins)

    def hashes(self) -> Iterator[np.ndarray]:
        """Yield `hashes_of` consecutive parts of the entries."""
        yield from map(hashes_of, self.columns("sha256"))

    def select(self, codes: np.ndarray, code: int = True) -> "Entries":
        """Return those entries whose code, in an array with one for each entry, is the given one."""
        if self._selection is not None:
            dtype = np.result_type(codes.dtype, np.uint8)
            other = np.iinfo(dtype).max
            assert other != code, "the largest number of the type marks what was not selected before"
            whole = np.full(self._groups.total, other, dtype)
            whole[self._selection.codes == self._selection.code] = codes
            codes = whole
        return Entries(self._groups, Selection(codes, code))

    def mask(self) -> np.ndarray:
        """Return which entries of the whole manifest these are."""
        return self._mask(0, self._groups.total)

    def within(self, mask: np.ndarray) -> "Entries":
        """Return those entries of the whole manifest that a mask selects."""
        return Entries(self._groups, Selection(mask, True))

    @property
    def whole(self) -> "Entries":
        """Return all entries of the manifest."""
        return Entries(self._groups)

    @property
    def ok(self) -> "Entries":
        """Return the usable ones."""
        return self._by_status(True)

    @property
    def left_out(self) -> "Entries":
        """Return those that cannot be used."""
        return self._by_status(False)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all columns in batches of at most `GROUP` entries."""
        for table in self._even_parts():
            yield from table.combine_chunks().to_batches()

    def _by_status(self, usable: bool) -> "Entries":
        flags = [numbers(table.column("usable")) for table in self.columns("usable")]
        flags = np.concatenate(flags) if flags else np.zeros(0, bool)
        return self if self._selection is None and (flags == usable).all() else self.select(flags, usable)

    def _mask(self, first: int, end: int) -> np.ndarray:
        return np.ones(end - first, bool) if self._selection is None else self._selection.mask(first, end)

    def _parts(self, names: list[str] | None, size: int) -> Iterator[pa.Table]:
        for first, table in self._groups.parts(names, size):
            if self._selection is not None:
                mask = self._mask(first, first + table.num_rows)
                if not mask.any():
                    continue
                table = table if mask.all() else table.filter(_column(mask, pa.bool_()))
            if table.num_rows:
                yield table

    def _even_parts(self) -> Iterator[pa.Table]:
        """Yield all columns of `GROUP` entries at a time, the last part shorter."""
        yield from _even(self._parts(None, GROUP))


class EntriesBuilder:
    """Collect entries as columns, about 150 bytes each."""

    def __init__(self):
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[Entry] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, entry: Entry) -> None:
        """Add an entry."""
        self._rows.append(entry)
        self._count += 1
        if len(self._rows) == GROUP:
            self._flush()

    def entries(self) -> Entries:
        """Return what was added."""
        self._flush()
        return Entries(_Groups([batch.num_rows for batch in self._batches], _InMemory(tuple(self._batches))))

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(_batch(self._rows))
            self._rows = []


def read_entries_file(path: Path) -> tuple[dict[str, Any], Entries]:
    """Return the header and the entries of a manifest's file; nothing but its table of contents is read yet.

    Raises:
        ValueError: if the file is damaged; also later, when a damaged part is read.
    """
    return (file := _OnDisk(path)).header, Entries(_Groups(file.counts, file))


def write_entries_file(path: Path, header: dict[str, Any], batches: Iterable[pa.RecordBatch]) -> None:
    """Write a manifest's file whole or not at all.

    Args:
        path: of the file.
        header: what `read_entries_file` returns.
        batches: of any length, in the order of the clips; see `Entries.batches`.
    """
    schema = SCHEMA.with_metadata({_HEADER: json.dumps(header).encode()})
    tables = (pa.Table.from_batches([batch]) for batch in batches)
    with (
        whole_file(path) as hidden,
        pq.ParquetWriter(
            hidden, schema, compression="zstd", use_dictionary=_FEW_VALUES, write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):  # fmt: skip
        for table in _even(tables):
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=GROUP)


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


def _column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
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


class _InMemory:
    def __init__(self, batches: tuple[pa.RecordBatch, ...]):
        self.batches = batches

    def read(self, first: int, end: int, names: list[str] | None) -> pa.Table:
        return pa.Table.from_batches(self.batches[first:end], SCHEMA).select(names or SCHEMA.names)


class _OnDisk:
    """A Parquet file.

    It is read, not mapped: mapped pages that were touched count as memory of the process until it runs short, 4 GB for
    100 million clips; those that were read count as the system's cache.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
            metadata = self._file.metadata
            self.header = json.loads((metadata.metadata or {})[_HEADER])
            if not SCHEMA.equals(self._file.schema_arrow):
                raise ValueError("it has other columns than a manifest")
            self.counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        except (ValueError, LookupError, OSError) as error:
            raise _damaged(path, error) from error

    def read(self, first: int, end: int, names: list[str] | None) -> pa.Table:
        try:
            return self._file.read_row_groups(range(first, end), names, use_threads=False)
        except (ValueError, OSError) as error:
            raise _damaged(self.path, error) from error


class _Groups:
    """Consecutive groups of entries, of which the last ones that were read are kept. Threads may share it."""

    def __init__(self, counts: Sequence[int], source: _InMemory | _OnDisk):
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._source = source
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return int(self._starts[-1])

    def entry(self, place: int) -> Entry:
        group = int(np.searchsorted(self._starts, place, side="right")) - 1
        with self._lock:
            if group not in self._held:
                self._held[group] = self._source.read(group, group + 1, None)
            self._held.move_to_end(group)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
            table = self._held[group]
        return _entry(table.slice(place - int(self._starts[group]), 1).to_pylist()[0])

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


def _even(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows as tables of `GROUP` rows, the last one shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.num_rows for each in waiting) < GROUP:
            continue
        whole = pa.concat_tables(waiting)
        full = whole.num_rows // GROUP * GROUP
        for first in range(0, full, GROUP):
            yield whole.slice(first, GROUP)
        waiting = [whole.slice(full)] if full < whole.num_rows else []
    if waiting:
        yield pa.concat_tables(waiting)


def _entry(row: dict[str, Any]) -> Entry:
    digest, times = row["sha256"], row["timestamps"]
    row["sha256"] = "" if digest is None else digest.hex()
    row["status"] = "ok" if row.pop("usable") else "left out"
    row["timestamps"] = None if times is None else tuple(times)
    return Entry.model_construct(**row)


def _batch(entries: Sequence[Entry]) -> pa.RecordBatch:
    columns = {name: [getattr(entry, name) for entry in entries] for name in SCHEMA.names if name != "usable"}
    columns["usable"] = [entry.status == "ok" for entry in entries]
    columns["sha256"] = [bytes.fromhex(digest) if digest else None for digest in columns["sha256"]]
    arrays = [pa.array(columns[name], field.type) for name, field in zip(SCHEMA.names, SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"'{path}' is damaged ({sentence(error)}); delete it, and it is made anew")
