"""Read and write `metadata.jsonl` and `metadata.csv` of a folder of clips (the layout of HF `videofolder`).

`folders.py` lists the folder itself.
"""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.failures import is_utf8, sentence
from training.data.folders import METADATA_FILES, Listing
from training.files import write_whole


# Columns of metadata, or of a dataset, that say what a clip was cut from; the first one that is there counts.
RECORDING_COLUMNS = ("recording", "episode", "source")


@dataclass(frozen=True)
class Metadata:
    """The content of a file of metadata.

    Attributes:
        path: the file.
        rows: by path of the clip within the folder; the last of several rows for one clip.
        repeated: number of rows that name a clip again.
    """

    path: Path
    rows: dict[str, dict]
    repeated: int

    @property
    def notes(self) -> tuple[str, ...]:
        """Return lines on the rows that are not used."""
        if not self.repeated:
            return ()
        return (f"rows of {self.path.name} that name a clip again: {self.repeated}; each clip is used once",)


def write_metadata(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `metadata.jsonl`, complete or not at all: a folder that has one is complete."""
    write_whole(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_metadata(listing: Listing) -> Metadata | None:
    """Read the metadata of a folder; return `None` if there are none.

    Raises:
        ValueError: if both files exist, or the file cannot be read, names no clip, or has a row without a usable
            file_name.
    """
    found = [
        path for name in METADATA_FILES if os.path.lexists(path := Path(listing.root, name)) and not path.is_dir()
    ]
    if len(found) > 1:
        raise ValueError(f"folder '{listing.root}' has {' and '.join(METADATA_FILES)}; keep one of them")
    if not found:
        return None
    (path,) = found
    text, rows, repeated = utf8_text(path), {}, 0
    for number, row in _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text):
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip() or "\0" in name or not is_utf8(name):
            raise _unusable(path, number, row)
        key = _key(name, listing)
        if key is None:
            raise ValueError(f"line {number} of '{path}' names {name!r}, which does not lie in '{listing.root}'")
        if key in rows:
            repeated += 1
            if rows[key].get("fps") != row.get("fps"):
                raise ValueError(
                    f"line {number} of '{path}' gives '{key}' another fps than an earlier line; keep one of them"
                )
        rows[key] = row
    if not rows:
        raise ValueError(
            f"'{path}' names no clip, and only clips that it names are used; add rows with a file_name, or delete it"
        )
    return Metadata(path, rows, repeated)


def recording_of(row: Mapping) -> str | None:
    """Return the first of `RECORDING_COLUMNS` that a row fills, as text; numbers of episodes count, too."""
    for name in RECORDING_COLUMNS:
        if row.get(name) not in (None, ""):
            return str(row[name])
    return None


def utf8_text(path: Path) -> str:
    """Read a text file; raise `ValueError` if it is no file or not UTF-8."""
    if not path.is_file():
        raise ValueError(f"'{path}' is a link to nothing, or no file; mend or delete it")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark before the first column
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read ({sentence(error)})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 ({sentence(error)}); save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without a byte order mark can look like UTF-8
        raise ValueError(f"'{path}' is not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"line {number} of '{path}' must be a JSON object with a file_name ({sentence(error)}), "
                f"got {line[:80]!r}"
            ) from error
        if not isinstance(row, dict):
            raise _unusable(path, number, row)
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    try:
        for values in reader:
            if not any(value.strip() for value in values):  # spreadsheets keep emptied rows
                continue
            if columns is None:
                columns = [value.strip() for value in values]
                _once([(column, None) for column in columns])
                continue
            if "file_name" not in columns:
                raise ValueError(
                    f"must have a file_name, but the columns are {columns}; name one of them file_name, and put "
                    "commas between them"
                )
            if len(values) > len(columns):
                raise ValueError(
                    f"has {len(values)} values for {len(columns)} columns; put quotes around values that hold commas"
                )
            yield reader.line_num, dict(zip(columns, values))
    except ValueError as error:
        raise ValueError(f"line {reader.line_num} of '{path}' {error}") from error
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num} of '{path}' cannot be read as CSV ({error}); a quote may be missing"
        ) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a row as a dictionary; raise `ValueError` if a column that is used comes twice."""
    names = [name for name, _ in pairs]
    for name in ("file_name", "fps"):
        if names.count(name) > 1:
            raise ValueError(f"has {name} twice")
    return dict(pairs)


def _unusable(path: Path, number: int, row: Any) -> ValueError:
    wanted = "have a file_name" if path.suffix == ".csv" else "be a JSON object with a file_name"
    return ValueError(f"line {number} of '{path}' must {wanted}, a path within its folder, got {str(row)[:80]}")


def _key(name: str, listing: Listing) -> str | None:
    """Return the path within the folder by which the listing knows a clip, `None` if the name leads out of the folder.

    A name may be a full path, begin with `./`, have backslashes as on Windows, or blanks around it. A missing clip
    keeps its name, so that the census can report it.
    """
    if name in listing.known:
        return name
    keys = [_relative(text, listing) for text in (name, name.strip(), name.strip().replace("\\", "/"))]
    for key in filter(None, keys):
        if key in listing.known:
            return key
        if os.path.exists(os.path.join(listing.root, key)):  # Windows and macOS do not distinguish a.mp4 and A.MP4
            same = listing.folded.get(unicodedata.normalize("NFC", key).casefold())
            is_same = same is not None and os.path.samefile(
                os.path.join(listing.root, same), os.path.join(listing.root, key)
            )
            return same if is_same else key
    return keys[-1]


def _relative(name: str, listing: Listing) -> str | None:
    folder, base = os.path.split(os.path.normpath(os.path.join(os.path.abspath(listing.root), name)))
    real = os.path.realpath(folder)
    if real in listing.folders:
        return "/".join(filter(None, (listing.folders[real], base)))
    root = os.path.realpath(listing.root)
    inner = (
        os.path.relpath(os.path.join(real, base), root)
        if os.path.splitdrive(real)[0] == os.path.splitdrive(root)[0]
        else ".."
    )
    return None if inner.split(os.sep)[0] in ("..", ".") else inner.replace(os.sep, "/")
