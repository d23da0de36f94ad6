"""Look at a person's clips before training: what they are, where they are cut, what is left out, what is there twice.

Every clip is decoded once for the manifest (`data/manifest.py`) and once more, small, in several processes
(`reading.py`). What was read is kept beside the manifest: a second look takes no time, and a killed one goes on.
`hold_out.py` splits the scenes; `report.py` says in sentences what was found.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import cv2

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import PictureSeries, decoder_version
from training.cores import cores, pool_size
from training.data.entries import Entry
from training.data.failures import sentence, shown
from training.data.manifest import make_manifest
from training.data.manifest_files import MANIFESTS, default_path
from training.data.sources import Clip as SourceClip
from training.data.sources import Source, open_source
from training.files import append_line, read_lines, write_whole
from training.locks import turn_to_write
from training.own_clips.fingerprints import find_copies
from training.own_clips.reading import ClipLook, look_at_clip
from training.stopping import Stopped


WINDOW = 9  # frames; shorter scenes are left out
FROZEN = 0.2  # grey levels: a still clip whose frames differ by less is one picture, and teaches nothing
TRAIN, HELD_OUT = "train", "held out"
_SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "heldout", "held_out", "held-out"), HELD_OUT),
    **dict.fromkeys(("test", "testing"), "test"),
}
_VERSION = 2
_FEW_FRAMES = 10_000  # are read here: other processes need seconds to begin
_SECONDS_BETWEEN_LINES = 5.0
_stopping = threading.Event()  # of a worker: set when its parent stops


def name_of(source: str, key: str) -> str:
    """Return the name of a clip for messages: its key, and the split of a dataset, whose keys are numbers of rows."""
    split = source.partition("#")[2]
    return f"{split}/{key}" if split else key


@dataclass(frozen=True)
class Clip:
    """A usable clip.

    Attributes:
        source: argument of `open_source`.
        entry: its facts.
        look: what decoding it showed.
        split: the side on which its source puts it, as folders `train` and `val` do; `None` if there are no sides.
        recording: what its source says that it is part of, such as a column of a table; `None` if it says nothing.
    """

    source: str
    entry: Entry
    look: ClipLook
    split: str | None = None
    recording: str | None = None

    @property
    def name(self) -> str:
        """Return the name for messages."""
        return name_of(self.source, self.entry.key)

    @property
    def scenes(self) -> tuple[tuple[int, int], ...]:
        """Return first frame and number of frames of the scenes that hold a window."""
        return tuple(scene for scene in self.look.scenes if scene[1] >= WINDOW)


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        spec: what was looked at.
        clips: the usable clips.
        left_out: reasons by clip, or by scene of a clip.
        copies: pairs of clips with the same footage, and the seconds by which the second begins later.
        notes: lines on what else the source ignores.
    """

    spec: str
    clips: tuple[Clip, ...]
    left_out: dict[str, str]
    copies: tuple[tuple[int, int, float], ...]
    notes: tuple[str, ...]


def look(
    spec: str | Path,
    manifests: Path = MANIFESTS,
    fps: float | None = None,
    workers: int | None = None,
    stop: Callable[[], str | None] = lambda: None,
    say: Callable[[str], object] = print,
) -> Look:
    """Read every clip of a source and return what was found.

    Args:
        spec: see `open_source`; `datasets:NAME` without a split means all splits of the dataset.
        manifests: folder for the manifest and, beside it, for what was read.
        fps: frames per second of picture folders whose metadata do not state it.
        workers: processes that read; all cores unless given.
        stop: called between clips; returns a reason to stop, or `None`. What was read is kept.
        say: is called with lines on the progress.

    Raises:
        ValueError: if there is no such source, or no usable clip.
        Stopped: if there was a reason to stop.
    """
    workers = workers or cores()
    clips, left_out, notes = [], {}, []
    sources = list(_sources(str(spec), fps, manifests))
    for source, split in sources:
        path = default_path(source.spec, manifests)
        with turn_to_write(path.with_suffix(".lock.json"), f"the manifest {path}", stop):
            if not path.is_file():
                say(f"counting the frames of every clip of '{shown(source.spec)}', once ...")
            manifest = make_manifest(source, path, workers, stop)
            looks, failed = _read(source, manifest.ok, path.with_suffix(".look.jsonl"), workers, stop, say)
        reasons = {entry.key: entry.reason for entry in manifest.left_out} | failed
        left_out |= {name_of(source.spec, key): reason for key, reason in reasons.items()}
        notes += manifest.notes
        sides = _sides(entry.key for entry in manifest.ok)
        clips += [
            Clip(
                source.spec,
                entry,
                looks[entry.key],
                split or sides.get(entry.key),
                source.recording(entry.key),
            )
            for entry in manifest.ok
            if entry.key in looks
        ]
    clips = _usable(clips, left_out)
    if not clips:
        reasons = "; ".join(f"{shown(key)}: {reason}" for key, reason in list(left_out.items())[:3])
        raise ValueError(f"no clip of '{shown(str(spec))}' can be used ({reasons})")
    copies = find_copies([clip.look.prints for clip in clips])
    return Look(str(spec), tuple(clips), left_out, tuple(copies), tuple(notes))


def _sources(spec: str, fps: float | None, manifests: Path) -> Iterator[tuple[Source, str | None]]:
    """Yield the sources that a name means, with the sides that they state: a dataset may have several splits."""
    kind, _, name = spec.partition(":")
    if kind in ("datasets", "datasets-stream") and "#" not in name:
        sides = {split: _SPLITS.get(split.lower()) for split in _dataset_splits(spec, name)}
        if TRAIN in sides.values() and len(set(sides.values())) > 1:
            for split, side in sides.items():
                yield open_source(f"{spec}#{split}", fps), side or split
            return
    yield open_source(spec, fps, manifests), None


def _dataset_splits(spec: str, name: str) -> list[str]:
    import datasets

    of_videos = {"path": "videofolder", "data_dir": name} if Path(name).is_dir() else {"path": name}
    try:
        return list(datasets.get_dataset_split_names(**of_videos))
    except (*FILE_ERRORS, datasets.exceptions.DatasetsError):  # `open_source` says what is wrong, if anything is
        return []


def _sides(keys: Iterable[str]) -> dict[str, str]:
    """Return the sides by key, if the clips lie in folders that are called train, and val or test."""
    inner = {key: short for key, short in without_common_folder(keys).items() if "/" in short}
    top = {key: short.split("/")[0] for key, short in inner.items()}
    sides = {key: _SPLITS.get(name.lower()) for key, name in top.items()}
    found = set(sides.values())
    if TRAIN not in found or not found & {HELD_OUT, "test"}:
        return {}
    return {key: side or f"the folder '{shown(top[key])}'" for key, side in sides.items()}


def without_common_folder(keys: Iterable[str]) -> dict[str, str]:
    """Return keys, by themselves, without the folders that all of them lie in, such as the name of an archive."""
    keys = list(keys)
    common = 0
    for names in zip(*(key.split("/")[:-1] for key in keys)):
        if len(set(names)) > 1:
            break
        common += 1
    return {key: "/".join(key.split("/")[common:]) for key in keys}


def _usable(clips: list[Clip], left_out: dict[str, str]) -> list[Clip]:
    """Return the clips that hold footage that no clip before them holds; add the others to `left_out`."""
    kept, seen = set(), {}
    # The copy that is held out stays: what is trained on must not be in it.
    for clip in sorted(clips, key=lambda clip: clip.split == TRAIN):
        name = clip.name
        first = seen.setdefault(clip.entry.sha256, name)
        if first != name:
            left_out[name] = f"a copy of '{shown(first)}', to the byte"
        elif clip.look.all_still and max(clip.look.motion.values(), default=0.0) < FROZEN:
            left_out[name] = "it shows one picture throughout"
        elif not clip.scenes:
            longest = max((count for _, count in clip.look.scenes), default=0)
            left_out[name] = (
                f"its longest scene has {longest} frames, a window needs {WINDOW}"
                if longest
                else "it shows one colour"
            )
        else:
            kept.add(name)
            for begin, count in set(clip.look.scenes) - set(clip.scenes):
                left_out[f"{name}, frames {begin} to {begin + count - 1}"] = (
                    f"a scene shorter than {WINDOW} frames, between two cuts"
                )
    return [clip for clip in clips if clip.name in kept]


def _read(
    source: Source, entries: tuple[Entry, ...], path: Path, workers: int, stop: Callable[[], str | None],
    say: Callable[[str], object],
) -> tuple[dict[str, ClipLook], dict[str, str]]:  # fmt: skip
    """Return what each clip shows, and the reasons for those that cannot be read; new clips are added to the file."""
    made_by = f"look {_VERSION}, {decoder_version()}"
    records = read_lines(path, {"key": str, "sha256": str, "made_by": str})
    current_records = (record for record in records if record["made_by"] == made_by)
    # Pictures may be given another rate than before, and what is measured is by seconds.
    known = {(record["key"], record["sha256"], record["fps"]): record for record in current_records}
    new = [entry for entry in entries if _key(entry) not in known]
    progress, failed = _Progress(sum(entry.num_frames for entry in new), len(new), say), {}
    for entry, found in _look_at(source, new, workers, stop):
        if isinstance(found, str):
            failed[entry.key] = found
        else:
            record = {"key": entry.key, "sha256": entry.sha256, "fps": entry.fps, "made_by": made_by, **found}
            append_line(path, record)
            known[_key(entry)] = record
        progress.done(entry.num_frames)
    current = [known[_key(entry)] for entry in entries if _key(entry) in known]
    if len(records) + len(new) - len(failed) > len(current):  # lines of clips that changed or went
        write_whole(path, "".join(json.dumps(record) + "\n" for record in current))
    return {record["key"]: ClipLook.of(record) for record in current}, failed


def _key(entry: Entry) -> tuple[str, str, float]:
    return entry.key, entry.sha256, entry.fps


def _look_at(
    source: Source, entries: list[Entry], workers: int, stop: Callable[[], str | None]
) -> Iterator[tuple[Entry, dict | str]]:
    """Yield each clip with its record, or with the reason why it cannot be read, in any order."""
    if workers == 1 or sum(entry.num_frames for entry in entries) < _FEW_FRAMES:
        for entry in entries:
            if reason := stop():
                raise Stopped(reason)
            opened = _open(source, entry)
            found = opened if isinstance(opened, str) else _record(opened, entry, lambda: stop() is not None)
            if found is None:
                raise Stopped(stop() or "asked to stop")
            yield entry, found
        return
    # The trainer is imported once, by the server that the processes are forked from; Windows has none.
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([__name__])
    stopping, waiting = context.Event(), {}
    todo = deque(entries)
    with ProcessPoolExecutor(pool_size(workers), context, _begin_worker, (stopping,)) as pool:
        try:
            while todo or waiting:
                while todo and len(waiting) < 2 * workers:  # no more clips than that are held in memory
                    entry = todo.popleft()
                    opened = _open(source, entry)
                    if isinstance(opened, str):
                        yield entry, opened
                    elif isinstance(opened, PictureSeries):  # reads an open archive, which stays in this process
                        found = _record(opened, entry, lambda: stop() is not None)
                        if found is None:
                            raise Stopped(stop() or "asked to stop")
                        yield entry, found
                    else:
                        waiting[pool.submit(_in_worker, opened, entry)] = entry
                finished, _ = wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
                for future in finished:
                    yield waiting.pop(future), _result(future)
                if reason := stop():
                    raise Stopped(reason)
        finally:
            stopping.set()  # a long clip is not read to its end
            pool.shutdown(wait=True, cancel_futures=True)


def _open(source: Source, entry: Entry) -> SourceClip | str:
    """Open a clip here, since streams are read in order; return the reason as text if that fails."""
    try:
        return source.open(entry.key)
    except FILE_ERRORS as error:
        return sentence(error)


def _result(future: Future) -> dict | str:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that reads clips was ended from outside, mostly for lack of memory; start again, with fewer "
            "workers if it happens again: what was read is kept"
        ) from error


def _record(opened: SourceClip, entry: Entry, stop: Callable[[], bool]) -> dict | str | None:
    times = (
        entry.times().tolist() if entry.clip_frames else None
    )  # `opened` is the whole clip, of which this is a span
    try:
        found = look_at_clip(opened, entry.fps, entry.num_frames, stop, times)
    except FILE_ERRORS as error:
        return sentence(error)
    return None if found is None else found.record()


def _begin_worker(stopping) -> None:
    """Prepare a process: Ctrl-C is its parent's, and it ends when its parent is killed."""
    global _stopping
    _stopping = stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _in_worker(opened: Path | bytes, entry: Entry) -> dict | str | None:
    return _record(opened, entry, _stopping.is_set)


class _Progress:
    """Lines on the progress, with the time left, every few seconds."""

    def __init__(self, frames: int, clips: int, say: Callable[[str], object]):
        self._frames, self._clips, self._say = frames, clips, say
        self._said = time.monotonic()
        self._begun = 0.0  # when the first clip was done: before, processes began
        self._done_frames, self._done_clips = 0, 0

    def done(self, frames: int) -> None:
        """Count a clip that was read."""
        now = time.monotonic()
        self._done_clips += 1
        if self._done_clips == 1:
            self._begun, self._frames = now, self._frames - frames
            return
        self._done_frames += frames
        if now - self._said < _SECONDS_BETWEEN_LINES or self._done_clips == self._clips:
            return
        self._said = now
        left = (now - self._begun) / max(1, self._done_frames) * (self._frames - self._done_frames)
        minutes = f"{left / 60:.0f} minutes" if left >= 90 else f"{left:.0f} seconds"
        self._say(f"looked at {self._done_clips:,} of {self._clips:,} clips, about {minutes} left")


def state_of(source: Source, clips: str) -> str | None:
    """Return a digest of the names and stamps of clips in a folder or file; `None` of others, which may be far away."""
    if not Path(clips).exists():
        return None
    with suppress(OSError):
        state = [(key, source.stamp(key)) for key in source.keys()]
        return hashlib.sha256(json.dumps(state).encode("utf-8", "surrogatepass")).hexdigest()
    return None
