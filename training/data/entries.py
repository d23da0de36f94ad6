"""The clips of a manifest: one `Entry` each, and `Entries`, which stay in a Parquet file until they are drawn.

What is counted over all clips is read as columns, part by part; an entry with its strings is read when it is asked
for. So memory does not grow with the number of clips. `manifest.py` makes the file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.data.entry_columns import (
    FEW_VALUES,
    HEADER,
    SCHEMA,
    Entry,
    Groups,
    InMemory,
    OnDisk,
    as_column,
    batch_of,
    entry_of,
    hashes_of,
    numbers,
)
from training.files import whole_file


GROUP = 8192  # clips of a row group: what is decoded for one drawn clip
_PART = 8 * GROUP  # clips that are counted at once
_BLOCK = 8192  # clips between two counts of a selection
SHARD = 1000  # clips that count as a shard where nothing says which clips lie together


class Selection:
    """Find the places of an array that have one of its codes: counted once, then found by a search in the counts."""

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

    def __init__(self, groups: Groups, selection: Selection | None = None):
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
            yield from map(entry_of, table.slice(first).to_pylist())
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
            table = table.append_column("place", as_column(np.arange(len(table)), pa.int64()))
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
                table = table if mask.all() else table.filter(as_column(mask, pa.bool_()))
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
        return Entries(Groups([batch.num_rows for batch in self._batches], InMemory(tuple(self._batches))))

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(batch_of(self._rows))
            self._rows = []


def read_entries_file(path: Path) -> tuple[dict[str, Any], Entries]:
    """Return the header and the entries of a manifest's file; nothing but its table of contents is read yet.

    Raises:
        ValueError: if the file is damaged; also later, when a damaged part is read.
    """
    return (file := OnDisk(path)).header, Entries(Groups(file.counts, file))


def write_entries_file(path: Path, header: dict[str, Any], batches: Iterable[pa.RecordBatch]) -> None:
    """Write a manifest's file whole or not at all.

    Args:
        path: of the file.
        header: what `read_entries_file` returns.
        batches: of any length, in the order of the clips; see `Entries.batches`.
    """
    schema = SCHEMA.with_metadata({HEADER: json.dumps(header).encode()})
    tables = (pa.Table.from_batches([batch]) for batch in batches)
    with (
        whole_file(path) as hidden,
        pq.ParquetWriter(
            hidden, schema, compression="zstd", use_dictionary=FEW_VALUES, write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):  # fmt: skip
        for table in _even(tables):
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=GROUP)


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
