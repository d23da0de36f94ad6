"""The latent cache: latents of all frames of all clips, encoded once by several processes, in safetensors shards.

The shards hold the moments of the autoencoder's posterior (`moments.py`), so that each epoch samples new latents. Clips
come from `sources.py` and `manifest.py`; `windows.py` cuts out windows.
"""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import decoder_version, iterate_frames
from training.data.clips import CENTRE, CROP_POLICY, View
from training.data.entries import Entries, Entry
from training.data.failures import reason_lines, sentence
from training.data.latent_shards import Chunk, ChunkIndex, ShardReader, ShardWriter, scan
from training.data.manifest import open_unchanged
from training.data.moments import SIZES, ClipError, Moments, Rows, encode_frames, moments_of, tensor_names, tensors_of
from training.data.sources import Source
from training.digests import tensors_digest
from training.files import UNFINISHED, named_write_errors, write_whole
from training.progress import Progress
from training.stopping import Stopped


INDEX = "index.arrow"  # where the chunks of each clip lie; older caches have that in `index.json`
SHARD_BYTES, SHARD_SECONDS = 256 * 2**20, 60.0  # a shard is written at this size, or after that time
FRAME_POLICY = "every frame, upright"


class LatentCache(ShardReader):
    """Moments of clips at one size, read from memory-mapped shards.

    Attributes:
        size: height and width of the frames in pixels.
        views: the views of the frames that it holds.
        left_out: reasons by key, for clips that could not be encoded.
        index: where the chunks of each clip lie.
        stopped: why the processes stopped before the cache was complete; `None` if they did not.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        with _damage(folder / "index.json"):
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            settings = index["settings"]
            self.size: tuple[int, int] = tuple(settings["size"])
            self.views = frozenset(
                View(crop, flip)
                for crop in settings.get("crops", [CENTRE])
                for flip in ((False, True) if settings["flips"] else (False,))
            )
            self.left_out: dict[str, str] = dict(index["left_out"])
            self.stopped: str | None = index.get("stopped")
        with _damage(folder / INDEX):
            self.index = ChunkIndex.open(folder / INDEX) if (folder / INDEX).is_file() else _old_index(index)

    def __contains__(self, entry: Entry) -> bool:
        return entry.sha256 in self.index

    def holds(self, digests: np.ndarray) -> np.ndarray:
        """Return which clips it holds, by their hashes: `(clips,)` of 32 bytes each."""
        return self.index.holds(digests)

    def read(self, entry: Entry, indices: Iterable[int], view: View = View()) -> Moments:  # noqa: B008
        """Return the moments of some frames of a clip, in the stored type.

        Raises:
            ValueError: if the cache does not hold them.
            ClipError: if its files were damaged since it was opened.
        """
        if view not in self.views:
            raise ValueError(
                f"the cache in '{self.folder}' holds no {view!r}, but {sorted(self.views)}; build it with that one too"
            )
        if entry not in self:
            raise ValueError(f"the cache in '{self.folder}' does not hold clip '{entry.key}'")
        indices = np.fromiter(indices, dtype=int)
        if not 0 <= indices.min() <= indices.max() < entry.num_frames:
            raise ValueError(f"clip '{entry.key}' has {entry.num_frames} frames, asked for were {indices.tolist()}")
        parts: Rows = {}
        for chunk in self.index.chunks(entry.sha256):
            mine = (chunk.first <= indices) & (indices < chunk.end)
            if not mine.any():
                continue
            low, high = indices[mine].min(), indices[mine].max() + 1
            first, end = low - chunk.offset, high - chunk.offset
            for key, name in tensor_names(view):
                tensor = self.rows(chunk.shard, f"{chunk.number}.{name}", first, end)
                if tensor is not None:
                    parts.setdefault(key, {}).update(zip(range(low, high), tensor))
        for size in SIZES:
            if not parts.get((size, "mean"), {}).keys() >= set(indices.tolist()):
                raise ClipError(
                    f"the shards in '{self.folder}' lack frames of clip '{entry.key}'; delete the folder, and it is "
                    "made anew"
                )
        return moments_of(parts, indices.tolist())


def build_latent_cache(
    source: Source,
    entries: Iterable[Entry],
    vae: torch.nn.Module,
    size: tuple[int, int],
    planner_downscale: int,
    cache_dir: str | Path,
    views: Sequence[View] = (View(),),
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
    stop: Callable[[], str | None] = lambda: None,
) -> LatentCache:
    """Encode the clips that the cache does not hold yet, and open it. Every process of a run calls this.

    The settings (autoencoder's config and weights, sizes, crop, frame and flip policy, decoder, storage type) choose a
    folder in `cache_dir`; within it clips are identified by the hash of their bytes. So stale latents are never used,
    a killed build continues with the frames that no complete shard holds, and clips may be added and removed. One run
    at a time builds a cache.

    Args:
        source: opens the clips.
        entries: the usable clips.
        vae: an image autoencoder with `AutoencoderKL`'s interface; runs on its own device in its own dtype.
        size: height and width of the frames in pixels.
        planner_downscale: how many times smaller the planner's frames are.
        views: the views of the frames to store, each separately: latents of mirrored frames are not mirrored latents.
            Either every crop is also stored mirrored, or none.
        batch_size: frames encoded at once.
        dtype: of the stored moments.
        shard_bytes: size at which a shard is written.
        shard_seconds: seconds after which a shard is written whatever its size.
        rank, world: this process encodes the clips `rank`, `rank + world`, ...
        wait: returns when all processes have called it, such as `accelerator.wait_for_everyone`.
        stop: called after every batch; returns a reason to stop, or `None`. Encoded frames are kept for the next
            start, also those of a clip that is not finished.

    Raises:
        ValueError: if no clip is left, the moments of a clip are not finite, or the disk is full.
        Stopped: on every process, if one of them had a reason to stop.
    """
    settings = cache_settings(vae, size, planner_downscale, views, dtype)
    folder = cache_folder(cache_dir, settings)
    entries = Entries.of(entries)
    # Shared by place in the list of all clips: processes may not agree on which ones are missing.
    mine = entries.select(np.arange(len(entries)) % world == rank)
    found = scan(folder)
    missing = mine.select(_not_among(mine, found.clips))
    if world == 1 and not missing and (folder / "index.json").is_file():
        cache = LatentCache(folder)
        if not cache.left_out and all(cache.holds(part).all() for part in entries.hashes()):
            return cache  # nothing is written if nothing is new, so that many programs can read it at once
    if len(missing):
        print(f"encoding {len(missing)} of {len(mine)} clips of '{source.spec}' into '{folder}'")
    writer = ShardWriter(folder, rank, shard_bytes, shard_seconds, dtype)
    work = _Encoding(source, vae, size, planner_downscale, views, batch_size, writer, stop, found.begun)
    work.all_of_rank(missing, rank)
    wait()
    if rank == 0:
        _write_index(folder, settings, range(world))
    wait()
    cache = LatentCache(folder)
    if cache.stopped is not None:
        raise Stopped(cache.stopped)
    if not any(cache.holds(part).any() for part in entries.hashes()):
        raise ValueError(
            f"none of the {len(entries)} clips of '{source.spec}' could be encoded; the first reason: "
            + next(iter(cache.left_out.values()), "there are no clips")
        )
    return cache


def cache_settings(
    vae: torch.nn.Module, size: tuple[int, int], planner_downscale: int, views: Sequence[View],
    dtype: torch.dtype = torch.float16, frames: str = FRAME_POLICY,
) -> dict[str, Any]:  # fmt: skip
    """Return what latents depend on, apart from the clips; see `build_latent_cache`."""
    settings = {
        "vae": tensors_digest(vae.state_dict(), vae.config),
        "size": list(size),
        "planner_downscale": planner_downscale,
        "crop": CROP_POLICY,
        "frames": frames,
        "flips": any(view.flip for view in views),
        "decoder": decoder_version(),
        "dtype": str(dtype),
    }
    crops = sorted({view.crop for view in views})
    return settings if crops == [CENTRE] else settings | {"crops": crops}  # a cache of the centre is named without


def cache_folder(cache_dir: str | Path, settings: dict[str, Any]) -> Path:
    """Return the folder of the latents of some settings; it is created."""
    folder = _cache_path(cache_dir, settings)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def has_cache(
    cache_dir: str | Path, vae: torch.nn.Module, size: tuple[int, int], planner_downscale: int, views: Sequence[View]
) -> bool:
    """Return whether `build_latent_cache` has made a cache with these settings, be it of these clips or of others."""
    return (_cache_path(cache_dir, cache_settings(vae, size, planner_downscale, views)) / "index.json").is_file()


def _cache_path(cache_dir: str | Path, settings: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path(cache_dir) / f"{settings['size'][0]}x{settings['size'][1]}-{digest[:16]}"


def frames_at_once(size: tuple[int, int]) -> int:
    """Return how many frames are encoded at once, at most the memory of 64 frames of 256x256."""
    return max(1, min(64, 64 * 256**2 // (size[0] * size[1])))


def encode_part(
    source: Source, entries: Entries, vae: torch.nn.Module, planner_downscale: int, views: Sequence[View],
    folder: Path, number: int, size: tuple[int, int], stop: Callable[[], str | None],
) -> None:  # fmt: skip
    """Encode one part of a source's clips; parts may be encoded at the same time, and `merge_parts` joins them.

    Args:
        source, vae, planner_downscale, views, size, stop: see `build_latent_cache`.
        entries: the clips of the part.
        folder: `cache_folder` of the settings.
        number: of the part; one process at a time encodes it.

    Raises:
        Stopped: if there was a reason to stop; what is encoded is kept.
    """
    found = scan(folder, number)
    for path in found.damaged:
        path.unlink()
    writer = ShardWriter(folder, number, SHARD_BYTES, SHARD_SECONDS, torch.float16)
    work = _Encoding(
        source, vae, size, planner_downscale, views, frames_at_once(size), writer, stop, found.begun
    )  # fmt: skip
    if stopped := work.all_of_rank(entries.select(_not_among(entries, found.clips)), number):
        raise Stopped(stopped)


def merge_parts(folder: Path, settings: dict[str, Any]) -> LatentCache:
    """Join the latents of all parts that are encoded so far into one cache; other parts may be on their way."""
    _write_index(folder, settings)
    return LatentCache(folder)


class _Encoding:
    """Encode clips batch by batch into shards.

    Args:
        source, vae, size, planner_downscale, views, batch_size, stop: see `build_latent_cache`.
        writer: of the shards.
        begun: by hash, how many first frames of a clip the shards hold already.
    """

    def __init__(
        self, source: Source, vae: torch.nn.Module, size: tuple[int, int], planner_downscale: int,
        views: Sequence[View], batch_size: int, writer: ShardWriter, stop: Callable[[], str | None],
        begun: Mapping[str, int],
    ):  # fmt: skip
        self.source, self.vae, self.size, self.planner_downscale = source, vae, size, planner_downscale
        self.views, self.batch_size, self.writer, self.stop, self.begun = views, batch_size, writer, stop, begun

    def all(self, entries: Sequence[Entry]) -> tuple[dict[str, str], str | None]:
        """Encode clips; return the reasons for those left out, and the reason why it stopped before the end."""
        left_out, stopped, self._frames_before = {}, None, 0
        frames = sum(entry.num_frames for entry in entries)
        with Progress(f"encoding frames at {self.size[0]}x{self.size[1]}", frames) as self._progress:
            for number, entry in enumerate(entries):
                self._note = f"clip {number + 1:,} of {len(entries):,}, {len(left_out):,} left out"
                try:
                    self._encode(entry)
                except ClipError as error:
                    self.writer.abandon()
                    left_out[entry.key] = str(error)
                except Stopped as error:
                    stopped = str(error)
                    break
                self._frames_before += entry.num_frames
        self.writer.flush()
        return left_out, stopped

    def all_of_rank(self, entries: Sequence[Entry], rank: int) -> str | None:
        """Encode the clips of a process, write for the index which ones could not be; return the reason to stop."""
        left_out, stopped = self.all(entries)
        with named_write_errors(f"the latent cache '{self.writer.folder}'"):
            outcome = json.dumps({"left_out": left_out, "stopped": stopped})
            write_whole(self.writer.folder / f"left-out-{rank}.json", outcome)
        return stopped

    def _encode(self, entry: Entry) -> None:
        """Encode a clip from the first frame on that no shard holds."""
        done, batch = 0, []
        begun = self.begun.get(entry.sha256, 0)
        self.writer.begin(entry)
        for frame in frames_of(self.source, entry):
            if done + len(batch) < begun:
                done += 1
                continue
            # Frame by frame: a batch of 4K frames would take 1.6 GB.
            batch.append([view.of(frame[None], *self.size) for view in self.views])
            if len(batch) == self.batch_size:
                done += self._add(done, batch)
                self._progress.update(self._frames_before + done, 0, self._note)
                if done < entry.num_frames:
                    self._ask()
        if batch:
            done += self._add(done, batch)
        if done != entry.num_frames:
            raise ClipError(f"has {done} frames, the manifest says {entry.num_frames}; the file has changed")
        self.writer.end()
        self._ask()

    def _ask(self) -> None:
        if reason := self.stop():
            raise Stopped(reason)

    def _add(self, first: int, batch: list[list[torch.Tensor]]) -> int:
        """Encode a batch of frames, empty it, and return its length."""
        tensors = {}
        for view, pictures in zip(self.views, zip(*batch)):
            tensors |= tensors_of(encode_frames(self.vae, torch.cat(pictures), self.planner_downscale), view)
        self.writer.add(first, tensors)
        count = len(batch)
        batch.clear()
        return count


def frames_of(source: Source, entry: Entry, numbers: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield frames of a clip, by default all of them; decoding begins before the first of `numbers`, which rise.

    Raises:
        ClipError: if it cannot be read, or has changed since the manifest was made.
    """
    try:
        opened = open_unchanged(source, entry)
        some = numbers is not None or entry.clip_frames  # of a span, only its frames
        times = entry.times(numbers).tolist() if some else None
        for _, frame in iterate_frames(opened, source.fps(entry.key), times):
            yield frame
    except FILE_ERRORS as error:
        raise ClipError(sentence(error)) from error


def _not_among(entries: Entries, known: Container[str]) -> np.ndarray:
    """Return which clips are not known by their hash, each hash once."""
    seen: set[bytes] = set()
    found = []
    for part in entries.hashes():
        for digest in part.tolist():
            found.append(digest not in seen and digest.ljust(32, b"\0").hex() not in known)
            seen.add(digest)
    return np.array(found, bool)


def _old_index(index: dict) -> ChunkIndex:
    """Return the index of a cache whose chunks are in `index.json`."""
    return ChunkIndex.of({sha: [Chunk(*chunk) for chunk in chunks] for sha, chunks in index["clips"].items()})


def _write_index(folder: Path, settings: dict[str, Any], ranks: Iterable[int] | None = None) -> None:
    """Write the index of all shards.

    Args:
        folder, settings: of the cache.
        ranks: of the processes that have encoded, all of which are done; `None`: all parts, of which others may be on
            their way, so that nothing is deleted.
    """
    found = scan(folder)
    for path in found.damaged:
        print(f"'{path}' is damaged and was deleted; its clips are encoded again")
        path.unlink()
    left_out, reasons = {}, []
    told = (
        sorted(folder.glob("left-out-*.json"))
        if ranks is None
        else [folder / f"left-out-{rank}.json" for rank in ranks]
    )
    for file in told:
        with _damage(file):
            outcome = json.loads(file.read_text(encoding="utf-8"))
            left_out |= outcome["left_out"]
            reasons += [outcome["stopped"]] if outcome["stopped"] and ranks is not None else []
    if ranks is not None:
        for path in (*told, *folder.glob(f".shard-*{UNFINISHED}")):  # the latter of a killed build
            path.unlink()
    if left_out:
        print(f"{len(left_out)} clips could not be encoded:")
        print("\n".join(f"  {line}" for line in reason_lines(left_out)))
    index = {"settings": settings, "left_out": left_out}
    with named_write_errors(f"the latent cache '{folder}'"):
        ChunkIndex.of(found.clips).write(folder / INDEX)
        write_whole(folder / "index.json", json.dumps(index | ({"stopped": reasons[0]} if reasons else {})))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn errors of reading a file of the cache into one that names the file and says what to do."""
    try:
        yield
    except FILE_ERRORS as error:
        raise ValueError(
            f"'{path}' is damaged ({sentence(error)}); delete the folder '{path.parent}', and it is made anew"
        ) from error
