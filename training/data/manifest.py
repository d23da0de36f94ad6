"""The manifest: facts found by decoding every clip once: exact frame counts, rates, sizes, reasons for leaving out.

    python -m training.data.manifest FOLDER [-o FILE] [--strict] [--workers N]

Headers can be wrong and files damaged, so nothing is estimated. `entries.py` has the file, in Parquet; `buckets.py`
decides which clips a stage uses.
"""

import argparse
import errno
import hashlib
import io
import os
import sys
from collections import deque
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import lru_cache
from operator import length_hint
from pathlib import Path

import av
import numpy as np

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video.times import even_rate, mean_rate
from diffusers_mardini.video_io import PictureSeries, probe_video
from training.cores import cores
from training.data.entries import Entries, EntriesBuilder, Entry, read_entries_file, write_entries_file
from training.data.failures import sentence, shown
from training.data.manifest_files import (
    MANIFESTS,
    OLD_SUFFIX,
    Manifest,
    as_parquet,
    convert_manifest,
    default_path,
    header_of,
    read_lines,
    whole_entries,
    write_lines,
)
from training.data.remote_errors import RemoteError
from training.data.sources import Clip, Source, open_source
from training.data.spans import Span
from training.files import UNFINISHED, named_write_errors
from training.locks import turn_to_write
from training.progress import Progress
from training.stopping import STOPPED, Stopped, StopRequest


MOST_HELD = 256 * 2**20  # bytes of clips that wait to be decoded
UNREACHABLE = 10  # clips in a row that their storage did not give, after which it is taken to be away
# Of file systems over a network, and of disks that fail; Windows has not all of them.
_AWAY = ("EIO", "ENXIO", "ENODEV", "ENOTCONN", "ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETUNREACH")
_AWAY_ERRNOS = {getattr(errno, name) for name in _AWAY if hasattr(errno, name)}


def make_manifest(
    source: Source,
    path: str | Path | None = None,
    workers: int = 1,
    stop: Callable[[], str | None] = lambda: None,
    only: Container[str] | None = None,
) -> Manifest:
    """Decode every clip of a source that is not in the file yet or has changed since, and write the file.

    A source of spans has the facts about whole clips from the manifests of their sources, which are made first and
    lie in the same folder; so a clip is decoded once, however many of its spans are asked for.

    After a kill, the next start continues; the file itself is complete or absent. Entries of another version of the
    decoder are not used. One process at a time makes a manifest.

    Args:
        source: see `sources.py`.
        path: the file, by default `default_path`.
        workers: threads that decode.
        stop: called every half second; returns a reason to stop, or `None`. Decoded clips are kept for the next start.
        only: keys of the clips to decode; of the others, the file keeps what it has. By default all.

    Raises:
        ValueError: if the source holds no clips at all, the disk is full, or storage stops giving clips, which says
            nothing about them: `UNREACHABLE` in a row.
        Stopped: if there was a reason to stop.
    """
    path = default_path(source.spec) if path is None else as_parquet(Path(path))
    convert_manifest(path)
    header = header_of(source.spec)
    unfinished = path.with_name(f".{path.stem}{OLD_SUFFIX}{UNFINISHED}")
    held = whole_entries(path, header)
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.spans():
        found = EntriesBuilder()
        for entry in _entries_of_spans(source, path.parent, workers, stop, only):
            found.append(entry)
    else:
        known = _Known(held, {entry.key: entry for entry in read_lines(unfinished, header)})
        with ExitStack() as stack:
            found = _Reading(source, unfinished, known, workers, stop, stack).all(only)
        for key, reason in source.left_out().items():
            found.append(Entry(key=key, status="left out", reason=reason))
        if not len(found):
            raise ValueError(f"'{source.spec}' holds no clips")
    entries = found.entries()
    if not path.is_file() or entries != held:
        with named_write_errors(f"the manifest '{path}'"):
            write_entries_file(path, header, entries.batches())
    unfinished.unlink(missing_ok=True)
    return Manifest(source.spec, read_entries_file(path)[1], path, source.notes())


def read_manifest_of(source: Source, folder: Path, stop: Callable[[], str | None] = lambda: None) -> Manifest:
    """Return the manifest of a source, decoding its new clips on all cores; one program at a time.

    Files that the source ignores because they are not clips are printed.

    Args:
        source: of the clips.
        folder: of the manifests.
        stop: called often; returns a reason to stop, or `None`.

    Raises:
        ValueError: if there are no clips.
        Stopped: if there was a reason to stop.
    """
    path = default_path(source.spec, folder)
    with turn_to_write(path.with_suffix(".lock.json"), f"the manifest {path}", stop):
        manifest = make_manifest(source, path, cores(), stop)
    if manifest.notes:
        print("\n".join([f"{shown(source.spec)}:", *(f"  {note}" for note in manifest.notes)]))
    return manifest


def open_unchanged(source: Source, entry: Entry) -> Clip:
    """Open the clip of an entry.

    Raises:
        ValueError: if it is another one than when the manifest was made, by its stamp or, of sources without stamps such
            as rows of a dataset, by its hash.
    """
    if source.stamp(entry.key) != entry.stamp:
        raise ValueError("the file has changed since the manifest was made")
    opened = source.open(entry.key)
    if entry.stamp is None and entry.sha256:
        whole = _hash_of_opened(opened)
        found = _hash_of_span(whole, entry.first_frame, entry.num_frames) if entry.clip_frames else whole
        if found != entry.sha256:
            raise ValueError("it is another clip than when the manifest was made; the source has changed")
    return opened


class _Known:
    """The entries that are known by key. Those of a file are expected in its order, and then read in one go.

    Attributes:
        newer: entries that are not in the file yet.
    """

    def __init__(self, held: Entries, newer: dict[str, Entry]):
        self.held, self.newer = held, newer
        self._places: dict[str, int] | None = None
        self._follow(0)

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key; `None` if it is not known."""
        if self._next is not None and self._next.key == key:
            found, self._next = self._next, next(self._coming, None)
            return self.newer.get(key, found)
        if key in self.newer:
            return self.newer[key]
        if self._places is None:
            keys = (key for part in self.held.columns("key") for key in part.column("key").to_pylist())
            self._places = {key: place for place, key in enumerate(keys)}
        if key not in self._places:
            return None
        self._follow(self._places[key])
        return self.get(key)

    def _follow(self, first: int) -> None:
        self._coming: Iterator[Entry] = self.held.after(first)
        self._next = next(self._coming, None)


class _Reading:
    """Decode the clips of a source on several threads, and write each entry as soon as it is there.

    Attributes:
        decoded: number of clips that were not known.
        unreachable: keys of the clips that their storage did not give.
    """

    def __init__(
        self, source: Source, unfinished: Path, known: _Known, workers: int,
        stop: Callable[[], str | None], stack: ExitStack,
    ):  # fmt: skip
        self.source, self.unfinished, self.known, self.workers, self.stop = source, unfinished, known, workers, stop
        self.stack = stack
        self.pool = stack.enter_context(ThreadPoolExecutor(max(1, workers)))
        self.progress = stack.enter_context(Progress(f"reading clips of '{shown(source.spec)}'", length_hint(source)))
        self.waiting: deque[tuple[Entry | Future, int]] = deque()  # each with the bytes that it holds
        self.entries = EntriesBuilder()
        self.decoded = self.left_out = self.unreachable_in_a_row = 0
        self.unreachable: set[str] = set()
        self.is_mounted = Path(source.spec).exists()  # a place on this machine, and no URL
        self.stopping: list[str] = []  # the reason to stop, asked for by the decoding threads
        self._file = None

    def all(self, only: Container[str] | None = None) -> EntriesBuilder:
        """Return the entries of all clips; raise `Stopped` if there was a reason to stop.

        Args:
            only: keys of the clips to decode; of the others, those are returned that are known.
        """
        try:
            for key in self.source.keys():
                if self.stopping:
                    break
                if only is not None and key not in only:
                    self.waiting += [] if (known := self.known.get(key)) is None else [(known, 0)]
                    continue
                self.waiting.append(self._start(key))
                # No more clips than that are held in memory.
                while (
                    len(self.waiting) > 4 * max(1, self.workers) or sum(held for _, held in self.waiting) > MOST_HELD
                ):
                    self._take()
            while self.waiting:
                self._take()
        except BaseException as error:
            self._end(str(error) or type(error).__name__)
            raise
        if self.stopping:
            raise Stopped(self.stopping[0])
        return self.entries

    def _start(self, key: str) -> tuple[Entry | Future, int]:
        """Open a clip here, since streams are read in order, and decode it in the pool; keep unchanged entries."""
        stamp, old = None, self.known.get(key)
        try:
            stamp, fps = self.source.stamp(key), self.source.fps(key)
            if old is not None and stamp is not None and old.stamp == stamp and fps in (None, old.fps):
                return old, 0
            opened = self.source.open(key)
        except FILE_ERRORS as error:
            return self._left_out(key, stamp, error), 0
        held = len(opened) if isinstance(opened, bytes) else 0
        return self.pool.submit(_probe, key, opened, fps, stamp, old, self._check, self._left_out), held

    def _check(self) -> None:
        if self.stopping:
            raise Stopped(self.stopping[0])

    def _left_out(self, key: str, stamp: str | None, error: BaseException) -> Entry:
        """Return the entry of a clip that cannot be read; called by the decoding threads, too."""
        causes = (error, error.__cause__)
        is_unmounted = self.is_mounted and not Path(self.source.spec).exists()
        if is_unmounted or any(_is_away(each) for each in causes):
            self.unreachable.add(key)
        # Missing memory, a disk or a permission may be there the next time though the file has not changed; without a
        # stamp the clip is tried again.
        passing = any(isinstance(each, (MemoryError, OSError)) for each in causes)
        return Entry(key=key, status="left out", reason=sentence(error), stamp=None if passing else stamp)

    def _ask(self) -> None:
        if not self.stopping and (reason := self.stop()):
            self._end(reason)

    def _end(self, reason: str) -> None:
        self.stopping.append(reason)
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> None:
        first, _ = self.waiting.popleft()
        if isinstance(first, Future):
            while not first.done():  # `wait` does not return for a cancelled future
                wait([first], timeout=0.5)
                self._ask()
                self._show()
            if first.cancelled():
                return
            try:
                first = first.result()
            except Stopped:
                return
            self.decoded += 1
            self._write(first)
            self._ask()
        self.entries.append(first)
        self.left_out += first.status != "ok"
        self.unreachable_in_a_row = self.unreachable_in_a_row + 1 if first.key in self.unreachable else 0
        if self.unreachable_in_a_row == UNREACHABLE:
            raise ValueError(
                f"the storage of '{shown(self.source.spec)}' gave none of {UNREACHABLE} clips in a row, the last was "
                f"'{shown(first.key)}': {first.reason}; what was read before is kept, so run the same command again "
                "when the storage is back"
            )
        self._show()

    def _show(self) -> None:
        done = len(self.entries)
        self.progress.update(done, done - self.decoded, f"{self.left_out:,} left out")

    def _write(self, entry: Entry) -> None:
        with named_write_errors(f"the manifest '{self.unfinished}'"):
            if self._file is None:  # nothing is written if nothing is new, so that many programs can read it at once
                write_lines(self.unfinished, header_of(self.source.spec), self.known.newer.values())
                self._file = self.stack.enter_context(io.FileIO(self.unfinished, "a"))
            line = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _probe(
    key: str, opened: Clip, fps: float | None, stamp: str | None, old: Entry | None, check: Callable[[], object],
    left_out: Callable[[str, str | None, BaseException], Entry],
) -> Entry:  # fmt: skip
    """Return the facts about a clip; `check` is called often and may raise `Stopped`."""
    try:
        sha256, size = _hash(opened, check)
        if stamp is None and old is not None and old.sha256 == sha256:
            return old
        if size == 0:
            raise ValueError("the file is empty (0 bytes)")
        facts = probe_video(opened, fps, check)
    except FILE_ERRORS as error:
        return left_out(key, stamp, error)
    return Entry(
        key=key, status="ok", stamp=stamp, sha256=sha256, size=size, num_frames=facts.num_frames, fps=facts.fps,
        width=facts.width, height=facts.height, start=facts.start, duration=facts.duration, codec=facts.codec,
        timestamps=None if facts.timestamps is None else tuple(round(float(time), 6) for time in facts.timestamps),
    )  # fmt: skip


def _entries_of_spans(
    source: Source, folder: Path, workers: int, stop: Callable[[], str | None], only: Container[str] | None
) -> list[Entry]:
    """Return the entries of a source's spans, after the manifests of the whole clips have been made; see
    `make_manifest`."""
    spans, wholes = source.spans(), {}
    for base in {id(span.source): span.source for span in spans.values()}.values():
        mine = {key: span.clip for key, span in spans.items() if span.source is base}
        named = set(mine.values())
        decoded = named if only is None else {clip for key, clip in mine.items() if key in only}
        path = default_path(base.spec, folder)
        with turn_to_write(path.with_suffix(".lock.json"), f"the manifest {path}", stop):
            manifest = make_manifest(base, path, workers, stop, decoded)
        wholes[id(base)] = {entry.key: entry for entry in manifest.entries if entry.key in named}
    return [_cut(wholes[id(span.source)].get(span.clip), key, span) for key, span in spans.items()]


def _cut(whole: Entry | None, key: str, span: Span) -> Entry:
    """Return the entry of a span, given the one of the whole clip."""
    if whole is None or whole.status != "ok":
        reason = f"there is no clip '{span.clip}' in '{span.source.spec}'" if whole is None else whole.reason
        return Entry(key=key, status="left out", reason=span.reason(reason))
    stamp = span.stamp(whole.stamp)
    try:
        first, count = _frames_of(whole, span)
    except ValueError as error:
        return Entry(key=key, status="left out", reason=span.reason(str(error)), stamp=stamp)
    if count == whole.num_frames:
        return whole.model_copy(update={"key": key, "stamp": stamp})
    times, fps, timestamps = whole.times(range(first, first + count)), whole.fps, None
    if whole.variable_rate:
        fps = even_rate(times, whole.fps)
        timestamps = None if fps else tuple(times.tolist())
    fps = fps or mean_rate(times)
    return whole.model_copy(
        update={
            "key": key, "stamp": stamp, "num_frames": count, "fps": fps, "start": float(times[0]),
            "sha256": _hash_of_span(whole.sha256, first, count),
            "duration": count / fps, "timestamps": timestamps, "first_frame": whole.first_frame + first,
            "clip_frames": whole.clip_frames or whole.num_frames,
        }
    )  # fmt: skip


def _hash_of_opened(opened: Clip) -> str:
    """Return the hash of a whole clip; a file that stays as it is, is read once in a process."""
    if isinstance(opened, Path) and opened.is_file():
        stat = opened.stat()
        return _hash_of_file(opened, stat.st_size, stat.st_mtime_ns)
    return _hash(opened, lambda: None)[0]


@lru_cache(maxsize=65536)
def _hash_of_file(path: Path, _size: int, _changed: int) -> str:
    return _hash(path, lambda: None)[0]


def _hash_of_span(whole: str, first: int, count: int) -> str:
    return hashlib.sha256(f"{whole} {first} {count}".encode()).hexdigest()


def _frames_of(whole: Entry, span: Span) -> tuple[int, int]:
    """Return the first frame and the number of frames of a span.

    Raises:
        ValueError: if the clip does not have these frames.
    """
    first = span.first_frame
    if span.seconds is not None:
        times = whole.times()
        begin, end = span.seconds
        first = int(np.abs(times - begin).argmin())
        inside = int((times[first:] < end - 0.25 / whole.fps).sum())
        if abs(times[first] - begin) > 0.5 / whole.fps or inside < (span.num_frames or 1):
            raise ValueError(
                f"'{span.clip}' has {inside} frames from {begin:g} to {end:g} seconds, "
                f"{span.num_frames} were asked for"
            )
    count = whole.num_frames - first if span.num_frames is None else span.num_frames
    if count < 1 or first + count > whole.num_frames:
        asked = f"frames {first} to {first + count - 1}" if count > 0 else f"frames from {first} on"
        raise ValueError(f"{asked} were asked for, but '{span.clip}' has {whole.num_frames} frames")
    return first, count


def _is_away(error: BaseException | None) -> bool:
    """Return whether an error is of the storage, and not of one file."""
    if isinstance(error, RemoteError):
        return error.again
    if isinstance(error, av.error.FFmpegError):  # it has such numbers for damaged files, too
        return False
    return isinstance(error, (ConnectionError, TimeoutError)) or getattr(error, "errno", None) in _AWAY_ERRNOS


def _hash(opened: Clip, check: Callable[[], object]) -> tuple[str, int]:
    """Return the SHA-256 and the size in bytes of a file, of bytes, or of all files of a folder with their names."""
    digest, size = hashlib.sha256(), 0
    if isinstance(opened, bytes):
        return hashlib.sha256(opened).hexdigest(), len(opened)
    if isinstance(opened, PictureSeries):
        for name in sorted(opened.names):
            data = opened.data(name)
            digest.update(f"{name}\n{len(data)}\n".encode("utf-8", "surrogatepass") + data)
            size += len(data)
            check()
        return digest.hexdigest(), size
    is_folder = isinstance(opened, Path) and opened.is_dir()
    files = sorted(file for file in opened.iterdir() if file.is_file()) if is_folder else [opened]
    for file in files:
        if is_folder:
            digest.update(f"{file.name}\n{file.stat().st_size}\n".encode("utf-8", "surrogatepass"))
        with open(file, "rb") if isinstance(file, Path) else file.open() as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                size += len(block)
                check()
    return digest.hexdigest(), size


def main() -> int:
    """Make the manifest of a source and print its census; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source",
        help="a folder of videos, of picture folders or of .tar or .zip archives; an archive; a video; "
        "a Parquet file; a URL of archives or Parquet files; datasets:NAME#SPLIT; lerobot:NAME#CAMERA; or a clip list "
        "(.jsonl)",
    )
    parser.add_argument("-o", "--output", type=Path, help=f"path of the manifest (default: in {MANIFESTS}/)")
    parser.add_argument(
        "--picture-fps", "--fps", dest="fps", type=float,
        help="frames per second of picture folders whose metadata do not state it",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=cores(), help="threads that decode (default: all cores)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a clip is left out")
    arguments = parser.parse_args()
    path = arguments.output or default_path(arguments.source)
    try:
        with StopRequest(path.parent) as request:
            source = open_source(arguments.source, arguments.fps, path.parent)
            manifest = make_manifest(source, path, arguments.workers, lambda: request.reason)
    except Stopped as stopped:
        print(f"stopped ({stopped}); the same command goes on with the clips that are not decoded yet")
        return STOPPED
    except (ValueError, OSError) as error:
        print(shown(str(error)), file=sys.stderr)
        return 2
    print(manifest.census())
    print(f"the manifest lies in {manifest.path}")
    return 1 if not manifest.ok or (arguments.strict and manifest.left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
