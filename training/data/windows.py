"""Windows of clips as both models see them, from the latent cache or straight from pixels.

Which clips a stage uses is decided in `buckets.py`, in which order they come in `order.py`; masks and noise are drawn in
`training/curriculum.py`.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import read_frames
from training.data.buckets import Bucket, Census, WindowRequest, assign
from training.data.clips import CENTRE, OFF_CENTRE, View
from training.data.conditions import ClipConditions
from training.data.failures import sentence, shown
from training.data.latents import ClipError, LatentCache, Moments, build_latent_cache, encode_frames
from training.data.manifest import Entry
from training.data.order import Rate, StepRows, bucket_at, clip_at, frame_indices, num_starts
from training.data.sources import Source


@dataclass(frozen=True)
class WindowDraw:
    """A window before it is read; what an error report needs to find it again.

    Attributes:
        clip: key of the clip.
        frames: indices of its frames.
        view: what of them is shown.
        bucket: shape of the batch.
        rate: distance of the frames that was drawn; a clip that is too short for it has the next smaller one of the stage.
        place: where in the clip, in [0, 1).
        order: which order of clips this is one of, and
        position: where in it.
    """

    clip: str
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
    clips: tuple[Entry, ...]
    rates: tuple[Rate, ...]  # the widest windows last
    shuffled: bool


class ClipWindows:
    """What `LatentWindows` and `PixelWindows` have in common: everything but reading.

    Attributes:
        failures: reasons by key of the clips that could not be read since the start.
        sizes: heights and widths that there are.
        on_failure: called once with the key and the reason of each of these clips.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        sizes: Iterable[tuple[int, int]],
        clip_conditions: ClipConditions | None = None,
    ):
        self.clip_conditions = clip_conditions
        self.entries = tuple(entries)
        self.sizes = tuple(sizes)
        self.failures: dict[str, str] = {}
        self.on_failure: Callable[[str, str], None] = self._print_failure
        self._censuses: dict[WindowRequest, Census] = {}
        self._orders: dict[tuple, _Order] = {}
        self._by_key = {entry.key: entry for entry in self.entries}

    def census(self, request: WindowRequest) -> Census:
        """Where all clips go in a stage; printed, it names every clip left out.

        Raises:
            ValueError: if a bucket's size is not among `sizes`, or no clip is left.
        """
        if request not in self._censuses:
            missing = [bucket for bucket in request.buckets if bucket.size not in self.sizes]
            if missing:
                raise ValueError(f"bucket {missing[0]} of stage '{request.stage}' is none of the sizes {self.sizes}")
            census = assign(self.entries, request)
            left_out, clips = dict(census.left_out), []
            for bucket, assigned in zip(census.buckets, census.clips):
                reasons = {entry.key: self._why_absent(entry, bucket) for entry in assigned}
                left_out |= {key: reason for key, reason in reasons.items() if reason}
                clips.append(tuple(entry for entry in assigned if not reasons[entry.key]))
            census = Census(census.buckets, tuple(clips), left_out)
            if not any(census.clips):
                raise ValueError(f"stage '{request.stage}' has no clips:\n{census}")
            self._censuses[request] = census
        return self._censuses[request]

    def draw(
        self, request: WindowRequest, rows: StepRows, sample_generators: Sequence[torch.Generator]
    ) -> list[WindowDraw]:
        """The windows of a step: one bucket for all processes; within it every clip comes once before any comes again.

        Args:
            request: what the stage asks for.
            rows: which step, and which rows of its batch.
            sample_generators: one for each of the rows; place, view and stride are drawn from it.
        """
        census = self.census(request)
        filled = [index for index, clips in enumerate(census.clips) if clips]
        batches = tuple(math.ceil(len(census.clips[index]) / rows.batch_size) for index in filled)
        turn, earlier = bucket_at(rows.seed, request.stage, rows.step, batches)
        bucket = census.buckets[filled[turn]]
        order = (rows.seed, rows.attempt, request.stage, *bucket.size, bucket.frames)
        self._orders[order] = _Order(census.clips[filled[turn]], request.rates, shuffled=True)
        draws = []
        for row, generator in zip(rows.rows, sample_generators, strict=True):
            place, flip, share = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            rate = _weighted(request, share)
            view = View(_crop(request, generator), flip < request.flip)
            position = earlier * rows.batch_size + row
            draws.append(self._window(order, position, bucket, rate, place, view))
        return draws

    def heldout(self, request: WindowRequest, num_windows: int) -> list[WindowDraw]:
        """Fixed windows, evenly spaced over all that the clips have; all of them where there are fewer.

        Args:
            request: of one bucket and one rate.

        Raises:
            ValueError: if no clip has such a window.
        """
        (bucket,), (rate,) = request.buckets, request.rates
        (clips,) = self.census(request).clips
        counts = np.array([num_starts(entry, bucket.frames, rate) for entry in clips])
        order = ("heldout", *bucket.size, bucket.frames, str(rate))
        self._orders[order] = _Order(clips, (rate,), shuffled=False)
        ends = counts.cumsum()
        total, draws = int(ends[-1]), []
        # In float32 the last of more than 2**24 windows may be rounded up to one that there is not.
        for window in torch.linspace(0, total - 1, min(num_windows, total)).long().clamp(max=total - 1).tolist():
            position = int(np.searchsorted(ends, window, side="right"))
            place = (window - (ends[position] - counts[position]) + 0.5) / counts[position]
            draws.append(self._window(order, position, bucket, rate, float(place), View()))
        return draws

    def fps(self, draw: WindowDraw) -> float:
        """Frames per second of a window."""
        return draw.rate.fps or self._by_key[draw.clip].fps / (draw.frames[1] - draw.frames[0])

    def prefetch(self, draws: Sequence[WindowDraw]) -> None:
        """Starts to read windows that a later `batch` will ask for, where reading takes time."""

    def batch(
        self, draws: list[WindowDraw], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads windows and samples their latents.

        A clip that can't be read any more is told once to `on_failure`, counted in `failures`, and its window is replaced, in
        `draws` too, by one of the next clip of the same order.

        Args:
            draws: of one bucket.
            generators: one for each; latents are sampled from it where the autoencoder has a variance.

        Returns:
            Latents `(batch, frames, channels, height, width)` and the planner's, `(batch, frames, channels, h, w)`, float32.

        Raises:
            ValueError: if no clip of the bucket can be read.
        """
        self.prefetch(draws)
        samples = []
        with torch.autocast("cpu", enabled=False):  # an evaluation that runs under it reads what training reads
            for index, generator in enumerate(generators):
                draws[index], moments = self._read_or_replace(draws[index])
                samples.append(moments.sample(generator))
        latents, planner_latents = zip(*samples, strict=True)
        return torch.stack(latents), torch.stack(planner_latents)

    @property
    def condition_drops(self) -> dict[str, float]:
        """Share of the rows that training tells nothing of a condition, by name."""
        told = {} if self.clip_conditions is None else self.clip_conditions.conditions
        return {name: condition.drop for name, condition in told.items()}

    def conditions(self, draws: Sequence[WindowDraw], latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what windows that `batch` returned are told, `(batch, frames, channels)` by name; empty where nothing is.

        Args:
            draws: as `batch` left them.
            latents: the first of what it returned.
        """
        if self.clip_conditions is None:
            return {}
        rows = [
            self.clip_conditions.of(self._by_key[draw.clip], draw.frames, window)
            for draw, window in zip(draws, latents)
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _window(self, order: tuple, position: int, bucket: Bucket, rate: Rate, place: float, view: View) -> WindowDraw:
        clips, rates, shuffled = vars(self._orders[order]).values()
        number = clip_at(position, len(clips), *order) if shuffled else position % len(clips)
        entry = clips[number]
        # The rate that was drawn or, in a mixture of strides, the widest below it for which the clip is long enough.
        for fitting in reversed(rates[: rates.index(rate) + 1]):
            if num_starts(entry, bucket.frames, fitting):
                break
        frames = frame_indices(entry, place, bucket.frames, fitting)
        return WindowDraw(entry.key, frames, view, bucket, rate, place, order, position)

    def _read_or_replace(self, draw: WindowDraw) -> tuple[WindowDraw, Moments]:
        clips = self._orders[draw.order].clips
        first = draw.position
        # What is left of this epoch and all of the next: every clip at least once.
        for position in range(first + 1, first + 2 * len(clips) + 1):
            if draw.clip not in self.failures:
                try:
                    return draw, self._read(self._by_key[draw.clip], draw)
                except ClipError as error:
                    self.failures[draw.clip] = str(error)
                    self.on_failure(draw.clip, str(error))
            draw = self._window(draw.order, position, draw.bucket, draw.rate, draw.place, draw.view)
        raise ValueError(
            f"none of the {len(clips)} clips of bucket {draw.bucket} can be read; the first reason: "
            f"{self.failures[clips[0].key]}"
        )

    def _print_failure(self, clip: str, reason: str) -> None:
        print(
            f"clip '{shown(clip)}' can't be read and is left out from here on ({len(self.failures)} of {len(self.entries)} clips so "
            f"far): {reason}"
        )

    def _why_absent(self, entry: Entry, bucket: Bucket) -> str | None:
        return None if self.clip_conditions is None else self.clip_conditions.why_absent(entry)

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        raise NotImplementedError


class LatentWindows(ClipWindows):
    """Windows from latent caches, one for each size that has clips."""

    def __init__(
        self,
        entries: Iterable[Entry],
        caches: Mapping[tuple[int, int], LatentCache],
        sizes: Iterable[tuple[int, int]] | None = None,
        clip_conditions: ClipConditions | None = None,
    ):
        super().__init__(entries, caches if sizes is None else sizes, clip_conditions)
        self.caches = dict(caches)

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
        """Encodes what the stages need of each size, and only that; see `build_latent_cache`."""
        entries, requests = tuple(entries), tuple(requests)
        needed: dict[tuple[int, int], dict[str, Entry]] = {}
        for request in requests:
            census = assign(entries, request)
            for bucket, clips in zip(census.buckets, census.clips):
                needed.setdefault(bucket.size, {}).update({entry.key: entry for entry in clips})
        views = tuple(dict.fromkeys(view for request in requests for view in request.views))
        caches = {
            size: build_latent_cache(
                source,
                clips.values(),
                vae,
                size,
                planner_downscale,
                cache_dir,
                views,
                batch_size=max(1, min(64, 64 * 256**2 // (size[0] * size[1]))),  # memory as of 64 frames of 256x256
                rank=rank,
                world=world,
                wait=wait,
                stop=stop,
            )
            for size, clips in sorted(needed.items())
            if clips
        }
        return cls(entries, caches, sorted(needed), clip_conditions)

    def _why_absent(self, entry: Entry, bucket: Bucket) -> str | None:
        cache = self.caches[bucket.size]
        if entry not in cache:
            return cache.left_out.get(entry.key, "the latent cache does not hold it")
        return super()._why_absent(entry, bucket)

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        return self.caches[draw.bucket.size].read(entry, draw.frames, draw.view)


class PixelWindows(ClipWindows):
    """Windows decoded and encoded when they are asked for: no cache, any size, more time.

    Threads decode (PyAV and PIL work outside of Python's lock), in advance after `prefetch`; this process encodes.
    """

    def __init__(
        self,
        source: Source,
        entries: Iterable[Entry],
        sizes: Iterable[tuple[int, int]],
        vae: torch.nn.Module,
        planner_downscale: int,
        workers: int = 2,
        clip_conditions: ClipConditions | None = None,
    ):
        super().__init__(entries, sizes, clip_conditions)
        self.source, self.vae, self.planner_downscale = source, vae, planner_downscale
        self._pool = ThreadPoolExecutor(max(1, workers))
        self._opening = threading.Lock()  # streams are read in order, by one at a time
        self._pending: dict[WindowDraw, Future] = {}

    def prefetch(self, draws: Sequence[WindowDraw]) -> None:
        for draw in draws:
            if draw not in self._pending and draw.clip not in self.failures:
                self._pending[draw] = self._pool.submit(self._decode, self._by_key[draw.clip], draw)

    def batch(
        self, draws: list[WindowDraw], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        asked = list(draws)
        try:
            return super().batch(draws, generators)
        finally:
            for draw in asked:  # the windows of a clip that broke are decoded, and not read
                self._pending.pop(draw, None)

    def _decode(self, entry: Entry, draw: WindowDraw) -> torch.Tensor:
        try:
            with self._opening:
                if self.source.stamp(entry.key) != entry.stamp:
                    raise ValueError("the file has changed or gone since the manifest was made")
                opened, fps = self.source.open(entry.key), self.source.fps(entry.key)
            frames = read_frames(opened, entry.times(draw.frames), fps)
        except FILE_ERRORS as error:
            raise ClipError(sentence(error)) from error
        return draw.view.of(frames, *draw.bucket.size)

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        pending = self._pending.pop(draw, None)
        frames = self._decode(entry, draw) if pending is None else pending.result()
        moments = encode_frames(self.vae, frames, self.planner_downscale)
        if not all(torch.isfinite(tensor).all() for tensor in vars(moments).values() if tensor is not None):
            raise ClipError("its latents are not finite; run the autoencoder in float32")
        return moments


def _crop(request: WindowRequest, generator: torch.Generator) -> float:
    """Where a window is cropped; nothing is drawn where all are in the middle."""
    if not request.off_centre:
        return CENTRE
    share, place = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return OFF_CENTRE[int(place * len(OFF_CENTRE))] if share < request.off_centre else CENTRE


def _weighted(request: WindowRequest, share: float) -> Rate:
    """The rate at a share, in [0, 1), of the mixture."""
    if request.fps is not None:
        return Rate(fps=request.fps)
    weights = [weight for _, weight in sorted(request.strides) if weight > 0]
    ends = np.cumsum(weights) / sum(weights)
    return request.rates[min(int(np.searchsorted(ends, share, side="right")), len(weights) - 1)]
