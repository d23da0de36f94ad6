"""The files of manifests: Parquet, read and written, and the JSON lines that they were before.

`manifest.py` makes them, `entries.py` reads single clips.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from diffusers_mardini.video_io import decoder_version
from training.data.entries import Entries, Entry, read_entries_file, write_entries_file
from training.data.failures import reason_lines, sentence, shown
from training.data.sources import Source
from training.files import named_write_errors, whole_file, write_whole


MANIFESTS = Path("runs/manifests")
OLD_SUFFIX = ".jsonl"  # of manifests made before they became Parquet
_VERSION = 1
_NAMED = 10_000  # of the clips left out, the census looks at so many reasons


@dataclass(frozen=True)
class Manifest:
    """All clips of a source, in its order.

    Attributes:
        source: the argument of `open_source`.
        entries: usable clips and those left out.
        path: the file.
        notes: lines on what else the source ignores; not in the file.
    """

    source: str
    entries: Entries
    path: Path
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> Entries:
        """Return the usable clips."""
        return self.entries.ok

    @property
    def left_out(self) -> Entries:
        """Return the clips that cannot be used."""
        return self.entries.left_out

    def census(self) -> str:
        """Return the census as text: counts, rates, sizes, clips left out with their reasons, and files that are not
        clips.

        If very many clips are left out, some are named and the others counted; the file has them all.
        """
        ok, left_out = self.ok, self.left_out
        lines = [f"{len(ok)} of {len(self.entries)} clips of '{shown(self.source)}' can be used"]
        if len(ok):
            lengths = {length: count for (length,), count in ok.counts("num_frames").items()}
            frames = sum(length * count for length, count in lengths.items())
            variable = sum(len(part) - part.column("timestamps").null_count for part in ok.columns("timestamps"))
            rates = _merged((f"{fps:.4g}", count) for (fps,), count in ok.counts("fps").items())
            sizes = {f"{width}x{height}": count for (width, height), count in ok.counts("width", "height").items()}
            codecs = {codec: count for (codec,), count in ok.counts("codec").items()}
            lines += [
                f"  frames: {frames} ({min(lengths)} to {max(lengths)} in a clip), {ok.total('duration'):.1f} seconds",
                f"  frames per second: {_counts(rates)}; {variable} with a variable rate",
                f"  width x height: {_counts(sizes)}",
                f"  codecs: {_counts(codecs)}",
            ]
        if len(left_out):
            lines.append(f"{len(left_out)} left out:")
            reasons = {entry.key: entry.reason for entry in islice(left_out, _NAMED)}
            lines += [f"  {line}" for line in reason_lines(reasons)]
            if (more := len(left_out) - len(reasons)) > 0:
                lines.append(f"  and {more:,} more, whose reasons are in the manifest")
        return "\n".join([*lines, *self.notes])


def default_path(spec: str | Path, folder: Path = MANIFESTS) -> Path:
    """Return the default path of a source's manifest: `<folder>/<name>-<hash of the whole name>.parquet`."""
    spec = str(spec)
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(spec).name)
    where = str(Path(spec).resolve()) if Path(spec).exists() else spec
    return folder / f"{name}-{hashlib.sha256(where.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}.parquet"


def as_parquet(path: Path) -> Path:
    """Return the path of a manifest's file, also for a name of the time when manifests were JSON lines."""
    return path.with_suffix(".parquet") if path.suffix == OLD_SUFFIX else path


def read_manifest(source: Source, path: Path) -> Manifest | None:
    """Read a manifest; return `None` if there is no file, or it belongs to another source or another decoder.

    Raises:
        ValueError: if the file is damaged.
    """
    found = _read_file(path)
    if found is None or found[0] != header_of(source.spec):
        return None
    return Manifest(source.spec, found[1], path)


def read_entries(path: Path) -> Entries:
    """Return the entries of a manifest of whatever source; none if there is no file.

    Raises:
        ValueError: if the file is damaged.
    """
    return Entries.of(()) if (found := _read_file(path)) is None else found[1]


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a copy, complete or not at all."""
    with whole_file(path) as hidden:
        shutil.copyfile(manifest.path, hidden)


def convert_manifest(path: Path) -> None:
    """Put Parquet in the place of a manifest of JSON lines, which all were at first; nothing to do without one.

    Args:
        path: of the Parquet file; the old one has the same name with `.jsonl`.

    Raises:
        ValueError: if the disk is full.
    """
    old = path.with_suffix(OLD_SUFFIX)
    if path.is_file() or not old.is_file():
        return
    try:
        header, entries = _read_old(old)
    except ValueError:
        return  # whoever reads it says so
    with named_write_errors(f"the manifest '{path}'"):
        write_entries_file(path, header, entries.batches())
        old.unlink()
    print(f"'{old}' is now '{path.name}'")


def _read_file(path: Path) -> tuple[dict[str, Any], Entries] | None:
    """Return the header and the entries of a file, also of one that is not converted; `None` if there is none."""
    path = as_parquet(path)
    if path.is_file():
        return read_entries_file(path)
    old = path.with_suffix(OLD_SUFFIX)
    return _read_old(old) if old.is_file() else None


def _read_old(path: Path) -> tuple[dict[str, Any], Entries]:
    """Return the header and the entries of a manifest of JSON lines.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        # Not `splitlines`, which would also split at characters such as U+2028 within a name.
        first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if not isinstance(header := json.loads(first), dict) or "manifest" not in header:
            raise ValueError("it is no manifest")
        return header, Entries.of(Entry.model_validate_json(line) for line in lines)
    except ValueError as error:  # of its encoding, of JSON or of an entry
        raise ValueError(f"'{path}' is damaged ({sentence(error)}); delete it, and it is made anew") from error


def whole_entries(path: Path, header: dict[str, Any]) -> Entries:
    """Return the entries of a file with the same header, all of them intact; none if it is absent or damaged."""
    old = path.with_suffix(OLD_SUFFIX)
    if not path.is_file():
        return Entries.of(read_lines(old, header))
    try:
        found, entries = read_entries_file(path)
        for _ in entries.batches():
            pass
    except ValueError as error:
        print(f"{str(error).partition('; delete it')[0]}; it is made anew")
        return Entries.of(())
    return entries if found == header else Entries.of(())


def header_of(spec: str) -> dict[str, Any]:
    """Return the header of a source's manifest: entries of another version or decoder are not used."""
    return {"manifest": _VERSION, "source": spec, "decoder": decoder_version()}


def read_lines(path: Path, header: dict[str, Any]) -> Iterable[Entry]:
    """Yield the entries of a file with the same header; none if it is absent or of another decoder."""
    if not path.is_file():
        return
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        if json.loads(first) != header:
            return
        for line in lines[:-1]:  # the last line was cut short by a kill
            yield Entry.model_validate_json(line)
    except ValueError as error:  # of its encoding, of JSON or of an entry
        print(f"'{path}' is damaged after some lines and is made anew from there ({sentence(error)})")


def write_lines(path: Path, header: dict[str, Any], entries: Iterable[Entry]) -> None:
    """Write entries as JSON lines, to which more can be appended."""
    lines = [json.dumps(header), *(entry.model_dump_json(exclude_defaults=True) for entry in entries)]
    write_whole(path, "\n".join(lines) + "\n")


def _merged(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the sums of the counts of equal names."""
    found: dict[str, int] = {}
    for name, count in counts:
        found[name] = found.get(name, 0) + count
    return found


def _counts(counts: Mapping[str, int], most: int = 8) -> str:
    common = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{value} ({count})" for value, count in common[:most])
    return shown + (f" and {len(common) - most} more" if len(common) > most else "")
