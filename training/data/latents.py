"""Latents of all frames of all clips: made once, by several processes, and kept in safetensors shards.

Stored are the moments of the autoencoder's posterior, so that each epoch samples anew. Clips come from `sources.py` and
`manifest.py`; windows are cut out by `windows.py`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusers_mardini.latents import downscale_video, encode_moments
from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import decoder_version, iterate_frames
from training.data.clips import CENTRE, CROP_POLICY, View
from training.data.failures import reason_lines, sentence
from training.data.manifest import Entry
from training.data.sources import Source
from training.stopping import Stopped


FRAME_POLICY = "every frame, upright"
# A deviation of exp(-10) = 5e-5 is below the resolution of the means in float16: such a posterior is a point.
_POINT_LOGVAR = -20.0
_SIZES = ("latents", "planner_latents")


class ClipError(ValueError):
    """A clip that cannot be read, or not any more: it is left out, while other errors end the build or the run."""


@dataclass(frozen=True)
class Moments:
    """Posteriors of some frames, normalized, `(frames, channels, height, width)`.

    Attributes:
        mean, planner_mean: at full size and at the planner's.
        logvar, planner_logvar: logarithms of their variances; `None` where the autoencoder is deterministic.
    """

    mean: torch.Tensor
    planner_mean: torch.Tensor
    logvar: torch.Tensor | None
    planner_logvar: torch.Tensor | None

    def sample(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws latents of both sizes, float32 on the CPU; nothing is drawn from the generator without a variance."""
        latents, low_latents = (
            mean.float() if logvar is None else
            mean.float() + torch.exp(0.5 * logvar.float()) * torch.randn(mean.shape, generator=generator)
            for mean, logvar in ((self.mean, self.logvar), (self.planner_mean, self.planner_logvar))
        )  # fmt: skip
        return latents, low_latents


@torch.no_grad()
def encode_frames(vae: torch.nn.Module, frames: torch.Tensor, planner_downscale: int) -> Moments:
    """Posteriors of `uint8` frames `(frames, 3, height, width)`, on the CPU."""
    video = (frames[None].to(vae.device).float() / 127.5 - 1).to(vae.dtype)  # (1, frames, 3, height, width)
    found = []
    for size in (video, downscale_video(video, planner_downscale)):
        with torch.autocast(vae.device.type, enabled=False):  # in the autoencoder's own precision, whoever asks
            mean, logvar = encode_moments(vae, size)
        found.append((mean[0].cpu(), None if logvar.max() <= _POINT_LOGVAR else logvar[0].cpu()))
    (mean, logvar), (planner_mean, planner_logvar) = found
    return Moments(mean, planner_mean, logvar, planner_logvar)


class LatentCache:
    """Moments of clips at one size, read from memory-mapped shards.

    Attributes:
        size: height and width of the frames in pixels.
        views: what of the frames it holds.
        left_out: clips that could not be encoded, with the reason.
        stopped: why the processes that made it stopped before its end; `None` if they did not.
    """

    def __init__(self, folder: Path):
        self.folder = folder
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
            self._chunks = {sha: [_Chunk(*chunk) for chunk in chunks] for sha, chunks in index["clips"].items()}
        self._files: dict[str, tuple[safe_open, frozenset[str]]] = {}

    def __contains__(self, entry: Entry) -> bool:
        return entry.sha256 in self._chunks

    def read(self, entry: Entry, indices: Iterable[int], view: View = View()) -> Moments:  # noqa: B008
        """Moments of some frames of a clip, in the stored type.

        Raises:
            ValueError: if the cache does not hold them; `ClipError` if its files were damaged since it was opened.
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
        parts = {}
        for chunk in self._chunks[entry.sha256]:
            mine = (chunk.first <= indices) & (indices < chunk.end)
            if not mine.any():
                continue
            low, high = indices[mine].min(), indices[mine].max() + 1
            for kind in ("mean", "logvar"):
                for size in _SIZES:
                    tensor = self._slice(chunk, f"{size}.{kind}{_suffix(view)}", low, high)
                    if tensor is not None:
                        parts.setdefault((size, kind), {}).update(zip(range(low, high), tensor))
        found = {}
        for size in _SIZES:
            if not parts.get((size, "mean"), {}).keys() >= set(indices.tolist()):
                raise ClipError(
                    f"the shards in '{self.folder}' lack frames of clip '{entry.key}'; delete the folder, and it is "
                    "made anew"
                )
        for (size, kind), rows in parts.items():
            # Chunks of a clip may be points while others are not.
            found[size, kind] = torch.stack(
                [rows[i] if i in rows else torch.full_like(parts[size, "mean"][i], -30.0) for i in indices.tolist()]
            )
        return Moments(*(found.get((size, kind)) for kind in ("mean", "logvar") for size in _SIZES))

    def _slice(self, chunk: "_Chunk", name: str, low: int, high: int) -> torch.Tensor | None:
        path = self.folder / chunk.shard
        try:
            if chunk.shard not in self._files:
                file = safe_open(path, framework="pt")
                self._files[chunk.shard] = file, frozenset(file.keys())
            file, names = self._files[chunk.shard]
            name = f"{chunk.number}.{name}"
            if name not in names:
                return None
            return file.get_slice(name)[low - chunk.offset : high - chunk.offset]
        except (SafetensorError, *FILE_ERRORS) as error:
            raise ClipError(f"'{path}' cannot be read ({sentence(error)}); delete it, and it is made anew") from error


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
    shard_bytes: int = 256 * 2**20,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
    stop: Callable[[], str | None] = lambda: None,
) -> LatentCache:
    """Encodes the clips that the cache does not hold yet, and opens it. Every process of a run calls this.

    Settings (autoencoder's config and weights, sizes, crop, frame and flip policy, decoder, storage type) choose a folder in
    `cache_dir`; within it clips are known by the hash of their bytes. So nothing stale is ever found, a killed build goes on
    with the clips that no whole shard holds, and clips may come and go. One run at a time builds a cache.

    Args:
        source: opens the clips.
        entries: the clips, usable ones.
        vae: an image autoencoder with `AutoencoderKL`'s interface; runs where it lies, in its own type.
        size: height and width of the frames in pixels.
        planner_downscale: how many times smaller the planner's frames are.
        views: what of the frames to store, each in space of its own: latents of mirrored frames are not mirrored latents.
            Every crop is stored mirrored, or none.
        batch_size: frames encoded at once.
        dtype: of the stored moments.
        shard_bytes: a shard is written when it is that large.
        rank, world: this process encodes the clips `rank`, `rank + world`, ...
        wait: returns when all processes have called it, such as `accelerator.wait_for_everyone`.
        stop: asked after every batch, for a reason to stop; clips that are done by then are kept for the next start.

    Raises:
        ValueError: if no clip is left, or the moments of a clip are not finite.
        Stopped: on every process, if one of them had a reason to stop.
    """
    settings = {
        "vae": fingerprint(vae),
        "size": list(size),
        "planner_downscale": planner_downscale,
        "crop": CROP_POLICY,
        "frames": FRAME_POLICY,
        "flips": any(view.flip for view in views),
        "decoder": decoder_version(),
        "dtype": str(dtype),
    }
    crops = sorted({view.crop for view in views})
    if crops != [CENTRE]:  # left out otherwise, so that caches made before there were crops are found
        settings["crops"] = crops
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir) / f"{size[0]}x{size[1]}-{digest[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    entries = list(entries)
    # By place in the list and not among what is missing, which the other processes may see at another time.
    mine = {entry.sha256: entry for entry in entries[rank::world]}
    known, _ = _scan(folder)
    missing = [entry for sha, entry in mine.items() if sha not in known]
    if world == 1 and not missing and (folder / "index.json").is_file():
        cache = LatentCache(folder)
        if not cache.left_out and all(entry in cache for entry in entries):
            return cache  # nothing is new and nothing is written, so that many processes may read
    if missing:
        print(f"encoding {len(missing)} of {len(mine)} clips of '{source.spec}' into '{folder}'")
    writer, left_out, stopped = _ShardWriter(folder, rank, shard_bytes, dtype), {}, None
    for entry in missing:
        try:
            _encode_clip(source, entry, vae, size, planner_downscale, views, batch_size, writer, stop)
        except ClipError as error:
            writer.abandon()
            left_out[entry.key] = str(error)
        except Stopped as error:
            writer.abandon()
            stopped = str(error)
            break
    writer.flush()
    _write_json(folder / f"left-out-{rank}.json", {"left_out": left_out, "stopped": stopped})
    wait()
    if rank == 0:
        _write_index(folder, settings, world)
    wait()
    cache = LatentCache(folder)
    if cache.stopped is not None:
        raise Stopped(cache.stopped)
    if not any(entry in cache for entry in entries):
        raise ValueError(
            f"none of the {len(entries)} clips of '{source.spec}' could be encoded; the first reason: "
            + next(iter(cache.left_out.values()), "there are no clips")
        )
    return cache


@dataclass(frozen=True)
class _Chunk:
    """The frames `first` to `end` of a clip, out of the tensors `number` of a shard, whose first row is frame `offset`."""

    shard: str
    number: int
    offset: int
    first: int
    end: int


def _encode_clip(
    source: Source, entry: Entry, vae: torch.nn.Module, size: tuple[int, int], planner_downscale: int,
    views: Sequence[View], batch_size: int, writer: "_ShardWriter", stop: Callable[[], str | None],
) -> None:  # fmt: skip
    """Streams a clip through the autoencoder; a clip that fails leaves nothing in the shard that is being filled."""
    done, batch = 0, []
    writer.begin(entry)

    def encode() -> None:
        nonlocal done
        tensors = {}
        for view, pictures in zip(views, zip(*batch)):
            moments, suffix = encode_frames(vae, torch.cat(pictures), planner_downscale), _suffix(view)
            tensors |= {
                f"latents.mean{suffix}": moments.mean, f"latents.logvar{suffix}": moments.logvar,
                f"planner_latents.mean{suffix}": moments.planner_mean,
                f"planner_latents.logvar{suffix}": moments.planner_logvar,
            }  # fmt: skip
        writer.add(done, {name: tensor for name, tensor in tensors.items() if tensor is not None})
        done += len(batch)
        batch.clear()
        if done < entry.num_frames and (reason := stop()):
            raise Stopped(reason)

    frames = _frames(source, entry)
    for frame in frames:
        # One by one: a batch of frames of 4K would take 1.6 GB.
        batch.append([view.of(frame[None], *size) for view in views])
        if len(batch) == batch_size:
            encode()
    if batch:
        encode()
    if done != entry.num_frames:
        raise ClipError(f"has {done} frames, the manifest says {entry.num_frames}; the file has changed")
    writer.end()
    if reason := stop():
        raise Stopped(reason)


def _suffix(view: View) -> str:
    """What the names of a view's tensors end with."""
    return ("" if view.crop == CENTRE else f".crop{view.crop}") + (".flipped" if view.flip else "")


def _frames(source: Source, entry: Entry) -> Iterable[np.ndarray]:
    try:
        if source.stamp(entry.key) != entry.stamp:
            raise ValueError("the file has changed since the manifest was made")
        for _, frame in iterate_frames(source.open(entry.key), source.fps(entry.key)):
            yield frame
    except FILE_ERRORS as error:
        raise ClipError(sentence(error)) from error


class _ShardWriter:
    """Collects chunks and writes a shard whenever there are enough of them; a shard is whole or absent."""

    def __init__(self, folder: Path, rank: int, shard_bytes: int, dtype: torch.dtype):
        self.folder, self.rank, self.shard_bytes, self.dtype = folder, rank, shard_bytes, dtype
        self._entry: Entry | None = None
        # (entry, first frame, pieces by name); the open clip's are apart until it ends or the shard is full
        self._chunks: list[tuple[Entry, int, dict[str, list[torch.Tensor]]]] = []
        self._open: tuple[Entry, int, dict[str, list[torch.Tensor]]] | None = None
        self._bytes = 0

    def begin(self, entry: Entry) -> None:
        self._entry = entry

    def add(self, first: int, tensors: dict[str, torch.Tensor]) -> None:
        if self._open is None:
            self._open = (self._entry, first, {})
        if first > self._open[1] and tensors.keys() != self._open[2].keys():  # one of the batches is a point by chance
            self._close()
            self._open = (self._entry, first, {})
        for name, tensor in tensors.items():
            stored = tensor.to(self.dtype).contiguous()
            if not torch.isfinite(stored).all():
                raise ValueError(
                    f"the latents of clip '{self._entry.key}' are not finite as {self.dtype}; run the autoencoder in float32, or "
                    "look at its scaling factor"
                )
            self._open[2].setdefault(name, []).append(stored)
            self._bytes += stored.nbytes
        if self._bytes >= self.shard_bytes:
            self._close()
            self.flush()

    def end(self) -> None:
        self._close()

    def abandon(self) -> None:
        """Forgets the open clip; parts of it that are in shards already are never complete and so never used."""
        if self._open is not None:
            self._bytes -= sum(piece.nbytes for pieces in self._open[2].values() for piece in pieces)
            self._open = None

    def _close(self) -> None:
        if self._open is not None:
            self._chunks.append(self._open)
        self._open = None

    def flush(self) -> None:
        if not self._chunks:
            return
        header = [
            [entry.sha256, first, sum(map(len, next(iter(pieces.values())))), entry.num_frames]
            for entry, first, pieces in self._chunks
        ]
        tensors = {
            f"{number}.{name}": torch.cat(parts)
            for number, (_, _, pieces) in enumerate(self._chunks)
            for name, parts in pieces.items()
        }
        taken = [int(path.stem.split("-")[2]) for path in self.folder.glob(f"shard-{self.rank}-*.safetensors")]
        path = self.folder / f"shard-{self.rank}-{max(taken, default=-1) + 1:05d}.safetensors"
        temporary = path.with_name(f".{path.name}.part")
        try:
            save_file(tensors, temporary, metadata={"chunks": json.dumps(header)})
            with open(temporary, "rb+") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._chunks, self._bytes = [], 0


def _scan(folder: Path) -> tuple[dict[str, list[_Chunk]], list[Path]]:
    """Chunks by hash of all clips that whole shards hold completely, and the shards that are damaged."""
    pieces: dict[str, list[tuple[int, int, str, int]]] = {}
    totals: dict[str, int] = {}
    damaged = []
    for path in sorted(folder.glob("shard-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:  # refuses a file of another length than its header says
                header = [
                    (sha, first, count, total) for sha, first, count, total in json.loads(file.metadata()["chunks"])
                ]
        except (SafetensorError, *FILE_ERRORS):
            damaged.append(path)
            continue
        for number, (sha, first, count, total) in enumerate(header):
            pieces.setdefault(sha, []).append((first, first + count, path.name, number))
            totals[sha] = total
    complete = {}
    for sha, total in totals.items():
        chunks, position = [], 0
        while position < total:
            # Parts of an attempt that was killed may overlap those of a later one.
            fitting = [piece for piece in pieces[sha] if piece[0] <= position < piece[1]]
            if not fitting:
                break
            first, end, shard, number = max(fitting, key=lambda piece: piece[1])
            chunks.append(_Chunk(shard, number, first, position, end))
            position = end
        if position == total:
            complete[sha] = chunks
    return complete, damaged


def _write_index(folder: Path, settings: dict, world: int) -> None:
    known, damaged = _scan(folder)
    for path in damaged:
        print(f"'{path}' is damaged and was deleted; its clips are encoded again")
        path.unlink()
    left_out, reasons = {}, []
    for rank in range(world):
        file = folder / f"left-out-{rank}.json"
        with _damage(file):
            told = json.loads(file.read_text(encoding="utf-8"))
            left_out |= told["left_out"]
            reasons += [told["stopped"]] if told["stopped"] else []
        file.unlink()
    for path in folder.glob(".shard-*.part"):  # of a build that was killed
        path.unlink()
    if left_out:
        print(f"{len(left_out)} clips could not be encoded:")
        print("\n".join(f"  {line}" for line in reason_lines(left_out)))
    clips = {sha: [list(vars(chunk).values()) for chunk in chunks] for sha, chunks in known.items()}
    index = {"settings": settings, "left_out": left_out, "clips": clips}
    _write_json(folder / "index.json", index | ({"stopped": reasons[0]} if reasons else {}))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Makes a sentence of what reading a file of the cache raises, with the file's name and what to do."""
    try:
        yield
    except FILE_ERRORS as error:
        raise ValueError(
            f"'{path}' is damaged ({sentence(error)}); delete the folder '{path.parent}', and it is made anew"
        ) from error


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 of a model's configuration and weights: who encodes, whatever the folder is called."""
    config = {key: value for key, value in dict(module.config).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
