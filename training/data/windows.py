"""Windows of clips as latents for both models, read from the latent cache or encoded from pixels.

`buckets.py` decides which clips a stage uses and `order.py` their order; `training/curriculum.py` draws masks and
noise.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from diffusers_mardini.trained_window import TrainedWindow
from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import read_frames
from training.data.buckets import Absent, Bucket, Census, WindowRequest, assign, clips_by_size, window_counts
from training.data.clips import CENTRE, OFF_CENTRE, View
from training.data.conditions import ClipConditions
from training.data.entries import Entries, Entry
from training.data.failures import sentence, shown
from training.data.latents import LatentCache, build_latent_cache, frames_at_once
from training.data.manifest import open_unchanged
from training.data.moments import ClipError, Moments, encode_frames
from training.data.order import Rate, Shards, StepRows, bucket_at, clip_at, frame_indices, num_starts
from training.data.resident import ResidentLatents, put_on_device, size_on_device
from training.data.sources import Source


@dataclass(frozen=True)
class WindowDraw:
    """A window that was drawn and not read yet.

    Attributes:
        clip: key of the clip.
        number: place of the clip in the manifest.
        frames: indices of its frames.
        view: the part of them that is visible.
        bucket: shape of the batch.
        rate: distance between frames as drawn; a clip that is too short for it uses the next smaller one of the stage.
        place: position in the clip, in [0, 1).
        order: key of the order of clips that it belongs to.
        position: its position in that order.
    """

    clip: str
    number: int
    frames: tuple[int, ...]
    view: View
    bucket: Bucket
    rate: Rate
    place: float
    order: tuple[str | int, ...]
    position: int

    def __str__(self) -> str:
        return f"{self.clip} from frame {self.frames[0]} to {self.frames[-1]}{self.view}"


@dataclass(frozen=True)
class _Order:
    clips: Entries
    rates: tuple[Rate, ...]  # the longest windows last
    shuffled: bool
    shards: Shards | None = None


class ClipWindows:
    """Base class of `LatentWindows` and `PixelWindows`: everything except reading.

    Attributes:
        failures: reasons by key, for clips that could not be read since the start.
        sizes: available heights and widths.
        on_failure: called once for each of these clips, with its key and the reason.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        sizes: Iterable[tuple[int, int]],
        clip_conditions: ClipConditions | None = None,
    ):
        self.clip_conditions = clip_conditions
        self.entries = Entries.of(entries)
        self.sizes = tuple(sizes)
        self.failures: dict[str, str] = {}
        self.on_failure: Callable[[str, str], None] = self._print_failure
        self._censuses: dict[tuple, Census] = {}  # stages that ask for the same windows share one
        self._orders: dict[tuple, _Order] = {}
        self._shards: dict[tuple[WindowRequest, Bucket], Shards] = {}
        self._entry = lru_cache(maxsize=1024)(self.entries.whole.__getitem__)  # by its number

    def census(self, request: WindowRequest) -> Census:
        """Return the clips of each bucket of a stage; printed, the census names every clip left out.

        Raises:
            ValueError: if a bucket's size is not among `sizes`, or no clip is left.
        """
        asked = (request.buckets, request.rates)
        if asked not in self._censuses:
            missing = [bucket for bucket in request.buckets if bucket.size not in self.sizes]
            if missing:
                raise ValueError(f"bucket {missing[0]} of stage '{request.stage}' is none of the sizes {self.sizes}")
            census = assign(self.entries, request, self._absent(), self._why_absent)
            if not any(census.clips):
                raise ValueError(f"stage '{request.stage}' has no clips:\n{census}")
            self._censuses[asked] = census
        return self._censuses[asked]

    def draw(
        self, request: WindowRequest, rows: StepRows, sample_generators: Sequence[torch.Generator]
    ) -> list[WindowDraw]:
        """Draw the windows of a step, all of one bucket; every clip of it comes once before any comes again.

        Args:
            request: the windows that the stage asks for.
            rows: the step, and the rows of its batch.
            sample_generators: one per row, from which place, view and stride are drawn.
        """
        census = self.census(request)
        filled = [index for index, clips in enumerate(census.clips) if clips]
        batches = tuple(math.ceil(len(census.clips[index]) / rows.batch_size) for index in filled)
        turn, earlier = bucket_at(rows.seed, request.stage, rows.step, batches)
        bucket = census.buckets[filled[turn]]
        order = (rows.seed, rows.attempt, request.stage, *bucket.size, bucket.frames)
        clips = census.clips[filled[turn]]
        self._orders[order] = _Order(clips, request.rates, True, self._shards_of(request, bucket, clips))
        draws = []
        for row, generator in zip(rows.rows, sample_generators, strict=True):
            place, flip, share = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            rate = _weighted(request, share)
            view = View(_crop(request, generator), flip < request.flip)
            position = earlier * rows.batch_size + row
            draws.append(self._window(order, position, bucket, rate, place, view))
        return draws

    def heldout(self, request: WindowRequest, num_windows: int) -> list[WindowDraw]:
        """Return fixed windows, evenly spaced over all windows of the clips; all of them if there are fewer.

        Args:
            request: of one bucket and one rate.
            num_windows: at most so many.

        Raises:
            ValueError: if no clip has such a window.
        """
        (bucket,), (rate,) = request.buckets, request.rates
        (clips,) = self.census(request).clips
        counts = window_counts(clips, bucket.frames, rate)
        order = ("heldout", *bucket.size, bucket.frames, str(rate))
        self._orders[order] = _Order(clips, (rate,), shuffled=False)
        ends = counts.cumsum()
        total, draws = int(ends[-1]), []
        # In float32 the last of more than 2**24 windows may be rounded up beyond the end.
        for window in torch.linspace(0, total - 1, min(num_windows, total)).long().clamp(max=total - 1).tolist():
            position = int(np.searchsorted(ends, window, side="right"))
            place = (window - (ends[position] - counts[position]) + 0.5) / counts[position]
            draws.append(self._window(order, position, bucket, rate, float(place), View()))
        return draws

    def fps(self, draw: WindowDraw) -> float:
        """Return the frames per second of a window."""
        return draw.rate.fps or self._entry(draw.number).fps / (draw.frames[1] - draw.frames[0])

    def make_ready(self, draws: Callable[[], Iterable[WindowDraw]]) -> None:
        """Encode what all steps to come will read, where that is kept alone; every process must call it.

        Args:
            draws: returns the windows of these steps, of all processes.
        """

    def prefetch(self, draws: Sequence[WindowDraw]) -> None:
        """Start to read the windows of a later `batch`, if reading takes time."""

    def batch(
        self, draws: list[WindowDraw], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read windows and sample their latents.

        A clip that cannot be read any more is reported once to `on_failure` and recorded in `failures`; its window is
        replaced, also in `draws`, by one of the next clip of the same order.

        Args:
            draws: of one bucket.
            generators: one per window, from which latents are sampled if the autoencoder has a variance.

        Returns:
            Latents `(batch, frames, channels, height, width)` and the planner's `(batch, frames, channels, h, w)`,
            float32.

        Raises:
            ValueError: if no clip of the bucket can be read.
        """
        self.prefetch(draws)
        samples = []
        with torch.autocast("cpu", enabled=False):  # latents must not depend on the caller's autocast
            for index, generator in enumerate(generators):
                draws[index], moments = self._read_or_replace(draws[index])
                samples.append(moments.sample(generator))
        latents, planner_latents = zip(*samples, strict=True)
        return torch.stack(latents), torch.stack(planner_latents)

    @property
    def condition_drops(self) -> dict[str, float]:
        """Return the share of rows from which training drops each condition, by name."""
        conditions = {} if self.clip_conditions is None else self.clip_conditions.conditions
        return {name: condition.drop for name, condition in conditions.items()}

    def conditions(self, draws: Sequence[WindowDraw], latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the conditions of windows that `batch` has read, `(batch, frames, channels)` by name; empty if there
        are none.

        Args:
            draws: as `batch` left them.
            latents: the full-size latents that it returned.
        """
        if self.clip_conditions is None:
            return {}
        if self.clip_conditions.read_latents:
            latents = latents.cpu()  # means round otherwise on a GPU
        rows = [
            self.clip_conditions.of(self._entry(draw.number), draw.frames, window)
            for draw, window in zip(draws, latents)
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _shards_of(self, request: WindowRequest, bucket: Bucket, clips: Entries) -> Shards | None:
        if request.shards_at_once is None:
            return None
        if (request, bucket) not in self._shards:
            self._shards[request, bucket] = Shards(clips.shard_sizes(), request.shards_at_once)
        return self._shards[request, bucket]

    def _window(self, order: tuple, position: int, bucket: Bucket, rate: Rate, place: float, view: View) -> WindowDraw:
        clips, rates, shuffled, shards = vars(self._orders[order]).values()
        number = clip_at(position, len(clips), *order, shards=shards) if shuffled else position % len(clips)
        number = clips.place(number)
        entry = self._entry(number)
        # The drawn rate or, in a mixture, the nearest one of shorter windows for which the clip is long enough; else,
        # for a clip with fewer frames per second than all these, one of longer windows.
        drawn = rates.index(rate)
        for fitting in (*reversed(rates[: drawn + 1]), *rates[drawn + 1 :]):
            if num_starts(entry, bucket.frames, fitting):
                break
        frames = frame_indices(entry, place, bucket.frames, fitting)
        return WindowDraw(entry.key, number, frames, view, bucket, rate, place, order, position)

    def _read_or_replace(self, draw: WindowDraw) -> tuple[WindowDraw, Moments]:
        for candidate in self.candidates(draw):
            try:
                return candidate, self._read(self._entry(candidate.number), candidate)
            except ClipError as error:
                self.failures[candidate.clip] = str(error)
                self.on_failure(candidate.clip, str(error))
        raise AssertionError("candidates end with an error")

    def candidates(self, draw: WindowDraw) -> Iterator[WindowDraw]:
        """Yield a window and those that take its place, of clips that have not failed so far.

        Raises:
            ValueError: after the rest of this epoch and all of the next: every clip at least once.
        """
        clips = self._orders[draw.order].clips
        first = draw.position
        for position in range(first + 1, first + 2 * len(clips) + 1):
            if draw.clip not in self.failures:
                yield draw
            draw = self._window(draw.order, position, draw.bucket, draw.rate, draw.place, draw.view)
        raise ValueError(
            f"none of the {len(clips)} clips of bucket {draw.bucket} can be read; the first reason: "
            f"{self.failures[clips[0].key]}"
        )

    def _print_failure(self, clip: str, reason: str) -> None:
        print(
            f"clip '{shown(clip)}' can't be read and is left out from here on ({len(self.failures)} of "
            f"{len(self.entries)} clips so far): {reason}"
        )

    def _absent(self) -> Absent | None:
        """Return what tells which clips cannot be used in a bucket; `None` if all can."""
        conditions = self.clip_conditions
        if conditions is None or not conditions.has_tables:
            return None
        return lambda bucket, places, hashes: np.array(
            [conditions.why_absent(self.entries[place]) is not None for place in places.tolist()], bool
        )

    def _why_absent(self, entry: Entry, bucket: Bucket) -> str | None:
        return None if self.clip_conditions is None else self.clip_conditions.why_absent(entry)

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        raise NotImplementedError


class LatentWindows(ClipWindows):
    """Windows from latent caches, one cache for each size that has clips."""

    def __init__(
        self,
        entries: Iterable[Entry],
        caches: Mapping[tuple[int, int], LatentCache],
        sizes: Iterable[tuple[int, int]] | None = None,
        clip_conditions: ClipConditions | None = None,
    ):
        super().__init__(entries, caches if sizes is None else sizes, clip_conditions)
        self.caches = dict(caches)
        self._resident: dict[tuple[int, int], ResidentLatents] = {}

    @classmethod
    def build(
        cls,
        source: Source,
        entries: Iterable[Entry],
        requests: Iterable[WindowRequest],
        vae: torch.nn.Module,
        planner_downscale: int,
        cache_dir: str | Path,
        rank: int = 0,
        world: int = 1,
        wait: Callable[[], None] = lambda: None,
        clip_conditions: ClipConditions | None = None,
        stop: Callable[[], str | None] = lambda: None,
    ) -> "LatentWindows":
        """Encode at each size the clips that the stages need, and no others; see `build_latent_cache`."""
        entries, requests = Entries.of(entries), tuple(requests)
        needed = clips_by_size(assign(entries, request) for request in requests)
        views = tuple(dict.fromkeys(view for request in requests for view in request.views))
        caches = {
            size: build_latent_cache(
                source,
                clips,
                vae,
                size,
                planner_downscale,
                cache_dir,
                views,
                batch_size=frames_at_once(size),
                rank=rank,
                world=world,
                wait=wait,
                stop=stop,
            )
            for size, clips in sorted(needed.items())
            if len(clips)
        }
        return cls(entries, caches, sorted(needed), clip_conditions)

    def _absent(self) -> Absent:
        others = super()._absent()

        def absent(bucket: Bucket, places: np.ndarray, hashes: np.ndarray) -> np.ndarray:
            missing = ~self.caches[bucket.size].holds(hashes)
            if others is not None:
                missing[~missing] = others(bucket, places[~missing], hashes[~missing])
            return missing

        return absent

    def keep_on_device(self, device: torch.device, most_bytes: float) -> int:
        """Let `batch` gather windows on a device from here on, if the latents of all clips need at most so many bytes
        of it.

        Returns:
            The bytes that they need.
        """
        clips = {
            size: self.entries.select(np.concatenate([cache.holds(part) for part in self.entries.hashes()]))
            for size, cache in self.caches.items()
        }
        needed = sum(size_on_device(cache, clips[size]) for size, cache in self.caches.items())
        if needed <= most_bytes:
            for size, cache in self.caches.items():
                if resident := put_on_device(cache, clips[size], device):
                    self._resident[size] = resident
        return needed

    def batch(
        self, draws: list[WindowDraw], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read windows as the base class does, or gather the same on the device; see `keep_on_device`."""
        resident = self._resident.get(draws[0].bucket.size) if draws else None
        windows = [(self._entry(draw.number), draw.frames, draw.view) for draw in draws]
        if resident is None or not all((entry.sha256, view) in resident.begins for entry, _, view in windows):
            return super().batch(draws, generators)
        return resident.batch(windows, generators)

    def _why_absent(self, entry: Entry, bucket: Bucket) -> str | None:
        cache = self.caches[bucket.size]
        if entry not in cache:
            return cache.left_out.get(entry.key, "the latent cache does not hold it")
        return super()._why_absent(entry, bucket)

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        return self.caches[draw.bucket.size].read(entry, draw.frames, draw.view)


class PixelWindows(ClipWindows):
    """Windows decoded and encoded when they are read: no cache, any size, more time.

    Threads decode, ahead of time after `prefetch` (PyAV and PIL release Python's lock); the calling thread encodes.
    Without an autoencoder (`vae` None) only `pixels` reads.
    """

    def __init__(
        self,
        source: Source,
        entries: Iterable[Entry],
        sizes: Iterable[tuple[int, int]],
        vae: torch.nn.Module | None,
        planner_downscale: int,
        workers: int = 2,
        clip_conditions: ClipConditions | None = None,
    ):
        super().__init__(entries, sizes, clip_conditions)
        self.source, self.vae, self.planner_downscale = source, vae, planner_downscale
        self._pool = ThreadPoolExecutor(max(1, workers))
        self._opening = threading.Lock()  # streams are read in order, by one thread at a time
        self._pending: dict[WindowDraw, Future] = {}

    def prefetch(self, draws: Sequence[WindowDraw]) -> None:
        """Start to decode windows of a later `batch`."""
        for draw in draws:
            if draw not in self._pending and draw.clip not in self.failures:
                self._pending[draw] = self._pool.submit(self._decode, self._entry(draw.number), draw)

    def batch(
        self, draws: list[WindowDraw], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read windows as the base class does; drop decoded windows that were replaced."""
        asked = list(draws)
        try:
            return super().batch(draws, generators)
        finally:
            for draw in asked:  # windows of a clip that failed may be decoded but never read
                self._pending.pop(draw, None)

    def pixels(self, draw: WindowDraw) -> torch.Tensor:
        """Return the frames of a window, `uint8` `(frames, 3, height, width)`.

        Raises:
            ClipError: if its clip cannot be read any more.
        """
        pending = self._pending.pop(draw, None)
        return self._decode(self._entry(draw.number), draw) if pending is None else pending.result()

    def _decode(self, entry: Entry, draw: WindowDraw) -> torch.Tensor:
        try:
            with self._opening:
                opened, fps = open_unchanged(self.source, entry), self.source.fps(entry.key)
            frames = read_frames(opened, entry.times(draw.frames), fps)
        except FILE_ERRORS as error:
            raise ClipError(sentence(error)) from error
        return draw.view.of(frames, *draw.bucket.size)

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        assert self.vae is not None, "windows without an autoencoder have no latents"
        moments = encode_frames(self.vae, self.pixels(draw), self.planner_downscale)
        if not all(torch.isfinite(tensor).all() for tensor in vars(moments).values() if tensor is not None):
            raise ClipError("its latents are not finite; run the autoencoder in float32")
        return moments


def usual_window(entries: Iterable[Entry], request: WindowRequest) -> TrainedWindow:
    """Return the window of a stage's first bucket, at the rate that its clips most often give.

    Args:
        entries: the clips; without any, a rate given as a stride is unknown.
        request: of one rate, see `heldout_window_request`.
    """
    bucket, (rate,) = request.buckets[0], request.rates
    fps = rate.fps
    if fps is None:
        clips = Entries.of(entries).ok.counts("fps")
        fps = round(clips.most_common(1)[0][0][0] / rate.stride, 3) if clips else None
    return TrainedWindow(*bucket.size, bucket.frames, fps)


def _crop(request: WindowRequest, generator: torch.Generator) -> float:
    """Draw the place of a crop; draw nothing if all crops are centred."""
    if not request.off_centre:
        return CENTRE
    share, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return OFF_CENTRE[int(place * len(OFF_CENTRE))] if share < request.off_centre else CENTRE


def _weighted(request: WindowRequest, share: float) -> Rate:
    """Return the rate at a share, in [0, 1), of the mixture."""
    weights = [weight for _, weight in request.mixture]
    ends = np.cumsum(weights) / sum(weights)
    return request.rates[min(int(np.searchsorted(ends, share, side="right")), len(weights) - 1)]
