"""Files that hold many clips, on this machine or at URLs, and what was found in them.

What is in a file at a URL takes many requests to find, so it is kept beside the manifests, as long as the file does
not change. `archives.py` and `tables.py` read the clips.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from diffusers_mardini.video_io import FileSection
from training.data.folders import existing, stat_stamp
from training.data.remote import AT_ONCE, RemoteFile
from training.files import named_write_errors, write_whole


CONTENTS = "contents"  # the folder of what was found, in that of the manifests
_VERSION = 1


class StoredFile(Protocol):
    """A file of which parts are read; as text it is its path or URL."""

    @property
    def name(self) -> str:
        """Return its name without the folder."""
        ...

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        ...

    @property
    def stamp(self) -> str | None:
        """Return a text that changes whenever the file does; `None` if it is missing."""
        ...

    def open(self, buffer: int = ...) -> io.BufferedReader:
        """Open it for reading, at least `buffer` bytes at a time."""
        ...

    def section(self, offset: int, length: int) -> FileSection:
        """Return a part of it."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Return its name without the folder."""
        return self.path.name

    @property
    def size(self) -> int:
        """Return its size in bytes; raise `ValueError` if it is missing."""
        return existing(self.path).stat().st_size

    @property
    def stamp(self) -> str | None:
        """Return its size and time of change; `None` if it is missing."""
        return stat_stamp(self.path) if self.path.exists() else None

    def open(self, buffer: int = io.DEFAULT_BUFFER_SIZE) -> io.BufferedReader:
        """Open it for reading."""
        return io.BufferedReader(io.FileIO(self.path), buffer)

    def section(self, offset: int, length: int) -> FileSection:
        """Return a part of it."""
        return FileSection(self.path, offset, length)


def look_into(
    files: Sequence[StoredFile], look: Callable[[StoredFile], dict[str, Any]], kind: str, manifests: Path | None = None
) -> list[dict[str, Any]]:
    """Return what was found in each file.

    Args:
        files: of one source.
        look: returns what is in a file, as values of JSON.
        kind: of what is found; other kinds are kept apart.
        manifests: the folder of the manifests, which keeps what was found in files at URLs; `None` keeps nothing.
    """
    if not any(isinstance(file, RemoteFile) for file in files):
        return [look(file) for file in files]
    folder = None if manifests is None else manifests / CONTENTS
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(lambda file: _kept(file, look, kind, folder), files))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error


def _kept(
    file: StoredFile, look: Callable[[StoredFile], dict[str, Any]], kind: str, folder: Path | None
) -> dict[str, Any]:
    if folder is None:
        return look(file)
    header = {"version": _VERSION, "kind": kind, "file": str(file), "stamp": file.stamp}
    path = folder / f"{hashlib.sha256(f'{kind} {file}'.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["header"] == header:
            return known["found"]
    except (OSError, ValueError, LookupError, TypeError):  # not there yet, or damaged
        pass
    found = look(file)
    with named_write_errors(f"what is in '{file}'"):
        write_whole(path, json.dumps({"header": header, "found": found}))
    return found
