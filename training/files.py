"""Write files and folders whole or not at all; read the JSON files that runs write.

New contents get a hidden name that ends with `.part`, are flushed to the disk, and are renamed. Readers name the
damaged file: a damaged line of a JSON lines file is left out with a message, a damaged JSON file is an error.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError

from diffusers_mardini.video.errors import named_file_errors


UNFINISHED = ".part"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden path to write to, which becomes `path` when the block ends and is removed when it raises.

    The hidden name is this call's own, so that several processes, also on several machines, may write the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{UNFINISHED}")
    try:
        yield hidden
        flush(hidden)
        os.replace(hidden, path)
        flush(path.parent)
    finally:
        hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def named_write_errors(what: str) -> Iterator[None]:
    """Turn errors of writing, such as a full disk, into one sentence; use it around nothing that reads.

    Args:
        what: what is written, with its path.

    Raises:
        ValueError: with the reason and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(
            f"cannot write {what} ({reason}); make room or make its folder writable, then type the same command again: "
            "what was finished before is kept"
        ) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; text as UTF-8."""
    with whole_file(path) as hidden:
        hidden.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden new folder, which takes the place of `path` when the block ends and is removed when it raises.

    One process at a time may write a folder.
    """
    hidden = hidden_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.mkdir()
        yield hidden
        for each in [*hidden.rglob("*"), hidden]:
            flush(each)
        take_place(hidden, path)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def hidden_folder(path: Path) -> Path:
    """Return the path of the folder in which the contents of `path` are written."""
    return path.with_name(f".{path.name}{UNFINISHED}")


def take_place(new: Path, path: Path) -> None:
    """Rename a folder whose contents are on the disk to `path`; one that was there is removed."""
    old = _hide(path) if path.exists() else None
    try:
        new.rename(path)
    except OSError:
        if old is not None:
            old.rename(path)
        raise
    flush(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder under a hidden name, so that no half of it keeps the name."""
    shutil.rmtree(_hide(path), ignore_errors=True)


def _hide(path: Path) -> Path:
    old = path.with_name(f".{path.name}.old{UNFINISHED}")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    return old


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk; Windows can do so for files only."""
    is_folder, is_windows = path.is_dir(), os.name == "nt"
    if is_folder and is_windows:
        return
    try:
        descriptor = os.open(path, (os.O_RDWR if is_windows else os.O_RDONLY) | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not is_folder:  # some network file systems refuse to flush folders
            raise


def read_lines(path: Path, keys: Mapping[str, type] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Return the records of a JSON lines file; none if there is no file.

    Every damaged line is left out with a message, except a last line that was cut short.

    Args:
        path: the file.
        keys: keys that a record must have, with their types; other lines are damaged.
    """
    return [record for _, record in whole_lines(path, keys)]


def whole_lines(path: Path, keys: Mapping[str, type] = MappingProxyType({})) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each undamaged line with its record; see `read_lines`."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.strip(b"\0 \t\r").decode("utf-8"))  # a power cut leaves zeros
            missing = [key for key, kind in keys.items() if type(record[key]) is not kind]
            if missing or not isinstance(record, dict):
                raise ValueError(f"{missing or record} is not what it should be")
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):
                print(f"{path}, line {number}: damaged, left out ({type(error).__name__}: {error})")
            continue
        yield line + b"\n", record


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a JSON lines file, on a new line even if the last line was cut short."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: if it holds none, or one without some of `keys`; names the file.
    """
    with named_file_errors(f"'{path}'", "JSON"):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"it has no {', no '.join(missing)}")
        return value
