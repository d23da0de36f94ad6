"""Parts of a source, each prepared alone: its manifest and latents. `merge` makes of them what a run reads.

A part is claimed by a lock file, so that any number of processes on machines that share the folder may work on it; a
part that is done is only looked at. `prepare.py` is the program, with the pool of processes and Ray.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import torch

from diffusers_mardini.hardware import choose_device
from training.data.buckets import WindowRequest, assign, clips_by_size
from training.data.entries import Entries, read_entries_file, write_entries_file
from training.data.failures import sentence
from training.data.latents import cache_folder, cache_settings, encode_part, merge_parts
from training.data.manifest import make_manifest
from training.data.manifest_files import Manifest, default_path
from training.data.sources import Clip, Source, open_source
from training.data.spans import Span
from training.files import named_write_errors, read_json, write_whole
from training.locks import OwnedError, Owner, turn_to_write
from training.stopping import STOP_FILE, Stopped


MANIFEST = "manifest.parquet"  # of a part; other files beside it are those of the sources of its spans
_loaded: dict[str, torch.nn.Module] = {}  # by name
_worker = 0  # number of this process among those of a pool on this machine, which share its GPUs
DONE, KEYS = "done.json", "keys.jsonl"


@dataclass(frozen=True)
class Job:
    """What is prepared, for every process that takes part.

    Attributes:
        source, fps: see `open_source`.
        out: the folder; all machines share it.
        requests: windows for which clips are encoded; without any, only manifests are made.
        planner_downscale: see `build_latent_cache`.
        vae: a name for the autoencoder: another one encodes anew.
        load_vae: returns it; a function that another process can import.
        began: when this job began, on the clock of the folder's file system; parts done since then are not looked at.
        name: of this job among those of other machines.
    """

    source: str
    fps: float | None
    out: Path
    requests: tuple[WindowRequest, ...] = ()
    planner_downscale: int = 1
    vae: str = ""
    load_vae: Callable[[], torch.nn.Module] | None = None
    began: float = 0.0
    name: str = "job"

    @property
    def stop_file(self) -> Path:
        """Return the file that asks the processes of this job to stop; `stop` in `out` asks those of all jobs."""
        return self.out / f".stop-{self.name}"

    def stop(self) -> str | None:
        """Return the reason to stop, or `None`."""
        asked = (path for path in (self.out / STOP_FILE, self.stop_file) if path.exists())
        return next((f"the file {path}" for path in asked), None)

    @property
    def manifests(self) -> Path:
        """Return the folder of the manifests, and of what archives and tables at URLs hold."""
        return self.out / "manifests"

    @property
    def latents(self) -> Path:
        """Return the folder of the latents, as a run with `data.cache` in `out` finds it."""
        return self.out / "latents" / default_path(self.source).stem

    def open_source(self) -> Source:
        """Open the source."""
        return open_source(self.source, self.fps, self.manifests)

    @property
    def parts(self) -> Path:
        """Return the folder of the parts of this source; `out` may hold those of several."""
        return self.out / "parts" / default_path(self.source).stem

    def part(self, number: int) -> Path:
        """Return the folder of a part."""
        return self.parts / f"{number:06d}"

    def digest(self) -> str:
        """Return a text that differs for what has to be done differently."""
        what = (self.source, self.fps, self.requests, self.planner_downscale, self.vae)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes:
        number: of the part.
        state: `done`; `elsewhere`, another process works on it; `failed`; or `stopped`.
        clips, usable: numbers of clips.
        reason: why it failed, or was stopped.
    """

    number: int
    state: str
    clips: int = 0
    usable: int = 0
    reason: str = ""


class PartOf:
    """Some clips of a source, as a source with the same name."""

    def __init__(self, source: Source, keys: Sequence[str]):
        self.source, self.spec, self._keys = source, source.spec, tuple(keys)

    def __length_hint__(self) -> int:
        return len(self._keys)

    def keys(self) -> Iterator[str]:
        """Yield the keys of the part."""
        yield from self._keys

    def open(self, key: str) -> Clip:
        """Open a clip."""
        return self.source.open(key)

    def stamp(self, key: str) -> str | None:
        """Return what changes with the clip."""
        return self.source.stamp(key)

    def fps(self, key: str) -> float | None:
        """Return the frames per second of a folder of pictures."""
        return self.source.fps(key)

    def spans(self) -> Mapping[str, Span]:
        """Return the spans of the part's clips."""
        spans = self.source.spans()
        return {key: spans[key] for key in self._keys if key in spans}

    def rows(self, key: str, columns: Sequence[str]) -> Mapping[str, Sequence] | None:
        """Return the numbers of a clip's frames."""
        return self.source.rows(key, columns)

    def recording(self, key: str) -> str | None:
        """Return the recording of a clip."""
        return self.source.recording(key)

    def left_out(self) -> dict[str, str]:
        """Return nothing: this is told of the whole source."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Return nothing: this is told of the whole source."""
        return ()


def divide(job: Job, source: Source, clips: int) -> list[int]:
    """Divide a source into parts, and return their numbers; parts stay as they are, new clips get new ones.

    Args:
        job: gets the keys of each part in its folder.
        source: the clips.
        clips: of a part, about; those of one archive or folder stay together if they are no more.
    """
    with turn_to_write(job.parts / "lock.json", f"the parts of '{source.spec}' in {job.out}"):
        numbers = sorted(int(path.parent.name) for path in job.parts.glob(f"*/{KEYS}"))
        known = {key for number in numbers for key in _keys_of(job, number)}
        new = (key for key in source.keys() if key not in known)
        for keys in _portions(new, clips):
            numbers.append(numbers[-1] + 1 if numbers else 0)
            with named_write_errors(f"a part of '{job.out}'"):
                write_whole(job.part(numbers[-1]) / KEYS, "".join(json.dumps(key) + "\n" for key in keys))
    if not numbers:
        raise ValueError(f"'{source.spec}' holds no clips")
    return numbers


def done_part(job: Job, number: int) -> Outcome | None:
    """Return the outcome of a part that was done since the job began; `None` if it is not."""
    path = job.part(number) / DONE
    if not path.is_file() or path.stat().st_mtime < job.began:
        return None
    record = read_json(path, ("job", "clips", "usable"))
    return Outcome(number, "done", **record) if record.pop("job") == job.digest() else None


def is_free(job: Job, number: int) -> bool:
    """Return whether no living process works on a part."""
    try:
        with _claim(job, number):
            return True
    except OwnedError:
        return False


def _claim(job: Job, number: int) -> Owner:
    return Owner(job.part(number) / "lock.json", f"part {number} of {job.out}")


def prepare_part(job: Job, number: int) -> Outcome:
    """Prepare one part, unless another process does or has; errors become the outcome `failed`."""
    try:
        with _claim(job, number):
            if done := done_part(job, number):
                return done
            manifest = _prepare(job, number)
            outcome = Outcome(number, "done", len(manifest.entries), len(manifest.ok))
            record = {"job": job.digest(), "clips": outcome.clips, "usable": outcome.usable}
            write_whole(job.part(number) / DONE, json.dumps(record) + "\n")
            return outcome
    except OwnedError:
        return Outcome(number, "elsewhere")
    except Stopped as error:
        return Outcome(number, "stopped", reason=str(error))
    except Exception as error:  # of whatever kind: one part must not end the others
        return Outcome(number, "failed", reason=sentence(error))


def _prepare(job: Job, number: int) -> Manifest:
    if reason := job.stop():
        raise Stopped(reason)
    source = PartOf(_source(job.source, job.fps, job.manifests, job.began), _keys_of(job, number))
    manifest = make_manifest(source, job.part(number) / MANIFEST, 1, job.stop)
    if job.load_vae is not None and job.requests:
        vae = _vae(job)
        for size, clips in _needed(job, manifest.entries).items():
            folder = cache_folder(job.latents, cache_settings(vae, size, job.planner_downscale, _views(job)))
            encode_part(source, clips, vae, job.planner_downscale, _views(job), folder, number, size, job.stop)
    return manifest


def merge(job: Job, numbers: Sequence[int]) -> Manifest:
    """Write the manifest and the indices of the latents of all parts that are done; return the manifest.

    Clips of parts that are not done are missing, and are added by the next merge.
    """
    source, manifests = job.open_source(), job.manifests
    files: dict[str, list[Path]] = {}
    for number in numbers:
        for path in sorted(job.part(number).glob("*.parquet")) if (job.part(number) / DONE).is_file() else ():
            files.setdefault(path.name, []).append(path)
    path = default_path(source.spec, manifests)
    for name, paths in files.items():
        merged = path if name == MANIFEST else manifests / name
        with turn_to_write(merged.with_suffix(".lock.json"), f"the manifest {merged}"):
            header = read_entries_file(paths[0])[0]
            with named_write_errors(f"the manifest '{merged}'"):
                # A clip of which two parts have spans is described by both.
                write_entries_file(merged, header, _joined(paths, once=name != MANIFEST))
    with turn_to_write(path.with_suffix(".lock.json"), f"the manifest {path}"):
        manifest = make_manifest(source, path, only=())  # puts them into the order of the source; decodes nothing
    if job.load_vae is not None and job.requests:
        vae = _vae(job)
        with turn_to_write(job.latents / "lock.json", f"the latent cache {job.latents}"):
            for size in _needed(job, manifest.entries):
                settings = cache_settings(vae, size, job.planner_downscale, _views(job))
                merge_parts(cache_folder(job.latents, settings), settings)
    return manifest


def now(out: Path) -> float:
    """Return the time by the clock of a folder's file system, which all machines share."""
    out.mkdir(parents=True, exist_ok=True)
    probe = out / f".now-{time.monotonic_ns()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@lru_cache(maxsize=1)
def _source(spec: str, fps: float | None, manifests: Path, _began: float) -> Source:
    """Open a source once for a job in a process: a later job may find other clips."""
    return open_source(spec, fps, manifests)


def _vae(job: Job) -> torch.nn.Module:
    """Return the autoencoder on this process's device, loaded once in a process."""
    if job.vae not in _loaded:
        assert job.load_vae is not None
        _loaded.clear()
        _loaded[job.vae] = job.load_vae().to(device_of_worker())
    return _loaded[job.vae]


def set_worker(number: int) -> None:
    """Say which process of a pool this is."""
    global _worker
    _worker = number


def device_of_worker() -> torch.device:
    """Return the device of this process: the GPUs of a machine are dealt out to the processes of a pool."""
    device = choose_device()
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", _worker % torch.cuda.device_count())
    return device


def _views(job: Job) -> tuple:
    return tuple(dict.fromkeys(view for request in job.requests for view in request.views))


def _needed(job: Job, entries: Entries) -> dict[tuple[int, int], Entries]:
    """Return the clips that are encoded at each size."""
    needed = clips_by_size(assign(entries, request) for request in job.requests)
    return {size: clips for size, clips in needed.items() if len(clips)}


def _keys_of(job: Job, number: int) -> list[str]:
    text = (job.part(number) / KEYS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def _portions(keys: Iterator[str], clips: int) -> Iterator[list[str]]:
    """Yield keys in portions that end where an archive or folder does, as far as they are not too large."""
    portion: list[str] = []
    for _, group in groupby(keys, lambda key: key.partition("/")[0] if "/" in key else ""):
        together = list(group)
        if portion and len(portion) + len(together) > clips:
            yield portion
            portion = []
        portion += together
        while len(portion) > clips:
            yield portion[:clips]
            portion = portion[clips:]
    if portion:
        yield portion


def _joined(paths: Sequence[Path], once: bool) -> Iterator[pa.RecordBatch]:
    """Yield the rows of several manifests; each key once, if asked for."""
    if not once:
        for path in paths:
            yield from read_entries_file(path)[1].batches()
        return
    entries = {entry.key: entry for path in paths for entry in read_entries_file(path)[1]}
    yield from Entries.of(entries.values()).batches()
