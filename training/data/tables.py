"""Clips in a column of Parquet files, here or at URLs: videos as bytes, or as `datasets` writes them (bytes and path).

A row is read with its column alone, from the beginning of its row group to itself. `stored.py` has the files.
"""

import bisect
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from diffusers_mardini.video.errors import FILE_ERRORS
from training.data.failures import sentence, shown
from training.data.folders import Listing
from training.data.metadata import RECORDING_COLUMNS, recording_of
from training.data.remote_errors import RemoteError
from training.data.spans import WholeClips
from training.data.stored import StoredFile, look_into


SUFFIX = ".parquet"
_FOOTER = 2**16  # bytes that are read at the end of a file, in which its footer mostly lies
_READ = 2**18  # bytes of a column that are read at a time
_cursors = threading.local()  # `last`: where this thread read last


@dataclass(frozen=True)
class Table:
    """What is in a Parquet file.

    Attributes:
        file: the file.
        groups: numbers of rows of its row groups.
        column: of the videos.
        recording: the column that names what a clip was cut from, or "".
    """

    file: StoredFile
    groups: tuple[int, ...]
    column: str
    recording: str

    @cached_property
    def ends(self) -> list[int]:
        """Return the row at which each row group ends."""
        return list(accumulate(self.groups))

    def place(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and the row within it."""
        group = bisect.bisect_right(self.ends, row)
        return group, row - (self.ends[group] - self.groups[group])


class ParquetClips(WholeClips):
    """Clips in a column of Parquet files; keys are `train-00000.parquet/row-12`."""

    def __init__(
        self, spec: str, files: Sequence[StoredFile], column: str = "", listing: Listing | None = None,
        manifests: Path | None = None,
    ):  # fmt: skip
        """Read the footers of the files.

        Args:
            spec: the argument of `open_source`.
            files: the files.
            column: of the videos; may be left out if there is only one.
            listing: of their folder, if it is one.
            manifests: see `look_into`.

        Raises:
            ValueError: if no file has such a column, or two have the same name.
        """
        self.spec, self._listing = spec, listing
        self._tables: dict[str, Table] = {}
        self._damaged: dict[str, str] = {}
        found = look_into(files, lambda file: _contents(file, column), f"table {column}", manifests)
        for file, contents in zip(files, found):
            if file.name in self._tables or file.name in self._damaged:
                raise ValueError(f"there are two files '{file.name}' in '{spec}'; give them names of their own")
            if damage := contents.pop("damage", ""):
                self._damaged[shown(file.name)] = damage
            else:
                self._tables[file.name] = Table(file, tuple(contents.pop("groups")), **contents)
        if not any(table.ends for table in self._tables.values()):
            reasons = "".join(f"; {name}: {reason}" for name, reason in list(self._damaged.items())[:3])
            raise ValueError(f"the Parquet files of '{spec}' have no rows with videos{reasons}")

    def __length_hint__(self) -> int:
        return sum(sum(table.groups) for table in self._tables.values())

    def keys(self) -> Iterator[str]:
        """Yield the keys file by file, in the order of the rows."""
        for name, table in self._tables.items():
            yield from (f"{name}/row-{row}" for row in range(sum(table.groups)))

    def open(self, key: str) -> bytes:
        """Return the bytes of a row's video."""
        table, row = self._find(key)
        try:
            video = _row(table, row)
        except RemoteError:
            raise
        except FILE_ERRORS as error:
            raise ValueError(f"'{table.file}' is damaged at row {row} ({sentence(error)}); write it again") from error
        data, path = (video.get("bytes"), video.get("path")) if isinstance(video, dict) else (video, None)
        if data is None:
            named = f", but only the name of '{path}'; write the bytes into the table" if path else ""
            raise ValueError(f"row {row} of '{table.file}' holds no video{named}")
        return data

    def stamp(self, key: str) -> str | None:
        """Return the stamp of its file, with the row."""
        table, row = self._find(key)
        stamp = table.file.stamp
        return None if stamp is None else f"{stamp} {row}"

    def fps(self, key: str) -> None:
        """Return `None`: videos state their own rate."""
        return None

    def recording(self, key: str) -> str | None:
        """Return the recording that a column names, `None` if there is no such column."""
        table, row = self._find(key)
        if not table.recording:
            return None
        group, within = table.place(row)
        return recording_of({table.recording: _names(table.file, table.file.stamp, group, table.recording)[within]})

    def left_out(self) -> dict[str, str]:
        """Return damaged files, and what lies beside them in their folder."""
        if self._listing is None:
            return self._damaged
        reason = "beside Parquet files, which are the clips of this folder; give videos a folder of their own"
        return self._damaged | self._listing.left_out | dict.fromkeys(self._listing.videos, reason)

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored files."""
        return () if self._listing is None else self._listing.notes([*self._tables, *self._damaged])

    def _find(self, key: str) -> tuple[Table, int]:
        name, _, row = key.rpartition("/row-")
        table = self._tables.get(name)
        if table is None or not row.isdecimal() or int(row) >= sum(table.groups):
            raise ValueError(f"there is no '{key}' in '{self.spec}'")
        return table, int(row)


@contextmanager
def _opened(file: StoredFile) -> Iterator[Any]:
    import pyarrow.parquet  # importing it takes half a second

    with file.open(_FOOTER) as stream:
        yield pyarrow.parquet.ParquetFile(stream)


def _contents(file: StoredFile, column: str) -> dict[str, Any]:
    """Return what is in a file as values of JSON, or its damage."""
    try:
        with _opened(file) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
    except RemoteError:
        raise
    except FILE_ERRORS as error:
        return {"damage": f"it is no whole Parquet file ({sentence(error)}); write it again"}
    return {
        "groups": [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)],
        "column": _column(file, schema, column),
        "recording": next((name for name in RECORDING_COLUMNS if name in schema.names), ""),
    }


def _column(file: StoredFile, schema: Any, wanted: str) -> str:
    """Return the column of videos.

    Raises:
        ValueError: if there is none, or several and no name was given.
    """
    found = _video_columns(schema)
    if wanted:
        found = [wanted] if wanted in found or wanted in _columns_of_bytes(schema) else []
    if len(found) == 1:
        return found[0]
    given = f"no column '{wanted}' of videos" if wanted else f"{len(found)} columns of videos: {', '.join(found)}"
    raise ValueError(
        f"'{file}' has {given}; its columns are {', '.join(schema.names)}. Videos are binary, or have bytes and path; "
        f"name their column as in '{file.name}#video'"
    )


def _video_columns(schema: Any) -> list[str]:
    """Return the columns that `datasets` calls videos, else those that may hold some."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        stated = [name for name in schema.names if features[name]["_type"] == "Video"]
    except (ValueError, LookupError, TypeError):
        stated = []
    return stated or _columns_of_bytes(schema)


def _columns_of_bytes(schema: Any) -> list[str]:
    import pyarrow.types as types

    found = []
    for field in schema:
        names = {inner.name: inner.type for inner in field.type} if types.is_struct(field.type) else {}
        of_bytes = names.get("bytes") if names else field.type
        if of_bytes is not None and (types.is_binary(of_bytes) or types.is_large_binary(of_bytes)):
            found.append(field.name)
    return found


class _Cursor:
    """Reads the rows of a row group one after the other; pages before a row are read, those after it are not."""

    def __init__(self, table: Table, group: int):
        self.place = (os.getpid(), str(table.file), table.file.stamp, table.column, group)
        self.next = 0
        self._batches = self._of_group(table, group)

    @staticmethod
    def _of_group(table: Table, group: int) -> Iterator[Any]:
        import pyarrow.parquet

        with table.file.open(_FOOTER) as stream:
            opened = pyarrow.parquet.ParquetFile(stream, buffer_size=_READ, pre_buffer=False)
            yield from opened.iter_batches(batch_size=1, row_groups=[group], columns=[table.column], use_threads=False)

    def read(self, row: int) -> Any:
        for batch in self._batches:
            self.next += 1
            if self.next > row:
                return batch.column(0)[0].as_py()
        raise ValueError(f"its row group ends at row {self.next}")


def _row(table: Table, row: int) -> Any:
    """Return the value of a row, going on from the one that this thread read before if it is not far back."""
    group, within = table.place(row)
    cursor = getattr(_cursors, "last", None)
    _cursors.last = None  # if reading fails, the place is unknown
    place = (os.getpid(), str(table.file), table.file.stamp, table.column, group)
    if cursor is None or cursor.place != place or cursor.next > within:
        cursor = _Cursor(table, group)
    value = cursor.read(within)
    _cursors.last = cursor
    return value


@lru_cache(maxsize=8)
def _names(file: StoredFile, _stamp: str | None, group: int, column: str) -> list:
    with _opened(file) as opened:
        return opened.read_row_group(group, columns=[column], use_threads=False).column(0).to_pylist()
