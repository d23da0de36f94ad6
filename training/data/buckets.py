"""Buckets: the shapes of batches, and which clip goes to which bucket (the paper's dynamic-resolution finish).

A clip goes to the bucket of the nearest aspect ratio that it is long enough for, and stays there for the stage.
`order.py` decides the order of buckets and clips.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow as pa

from training.config.schema import RunConfig, StageConfig
from training.data.clips import CENTRE, OFF_CENTRE, View
from training.data.entries import Entries, Entry, hashes_of, numbers
from training.data.order import Rate, even_starts, num_starts, why_not


# Returns which of some clips cannot be used in a bucket, given their places among all clips and their hashes.
Absent = Callable[["Bucket", np.ndarray, np.ndarray], np.ndarray]


_FACTS = ("usable", "num_frames", "fps", "width", "height", "timestamps")  # columns that assign a clip to a bucket


@dataclass(frozen=True, order=True)
class Bucket:
    """Shape of a batch: height and width in pixels, frames of a window."""

    height: int
    width: int
    frames: int

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.frames} frames"


@dataclass(frozen=True)
class WindowRequest:
    """The windows that a stage asks for.

    Attributes:
        stage: its name, on which the order depends.
        buckets: shapes of batches.
        strides: pairs of a distance between frames and its weight; empty if `fps` is given.
        fps: pairs of frames per second and their weight; empty if `strides` are given.
        flip: share of windows that are mirrored left to right.
        off_centre: share of windows that are cropped at one of `OFF_CENTRE`.
        shards_at_once: see `order.Shards`; `None`: all clips are mixed.
    """

    stage: str
    buckets: tuple[Bucket, ...]
    strides: tuple[tuple[int, float], ...] = ()
    fps: tuple[tuple[float, float], ...] = ()
    flip: float = 0.0
    off_centre: float = 0.0
    shards_at_once: int | None = None

    def __post_init__(self):
        if not self.buckets or len(set(self.buckets)) != len(self.buckets):
            raise ValueError(f"stage '{self.stage}' needs buckets, each given once; got {self.buckets}")
        if bool(self.strides) == bool(self.fps):
            raise ValueError(
                f"stage '{self.stage}' needs strides or fps, got strides={self.strides} and fps={self.fps}"
            )
        for name, share in (("flip", self.flip), ("off_centre", self.off_centre)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} of stage '{self.stage}' must lie in 0 to 1, got {share}")

    @property
    def views(self) -> tuple[View, ...]:
        """Return all views that windows may have."""
        crops = (CENTRE, *OFF_CENTRE) if self.off_centre else (CENTRE,)
        return tuple(View(crop, flip) for flip in ((False, True) if self.flip else (False,)) for crop in crops)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Return all rates of positive weight, the longest windows last."""
        return tuple(rate for rate, _ in self.mixture)

    @property
    def mixture(self) -> tuple[tuple[Rate, float], ...]:
        """Return the `rates` with their weights."""
        by_stride = [(Rate(stride=stride), weight) for stride, weight in sorted(self.strides) if weight > 0]
        by_time = [(Rate(fps=fps), weight) for fps, weight in sorted(self.fps, reverse=True) if weight > 0]
        return tuple(by_stride or by_time)


def window_request(config: RunConfig, stage: StageConfig) -> WindowRequest:
    """Return the windows that a stage trains on."""
    shapes = config.by_bucket(stage)
    return WindowRequest(
        stage.name,
        tuple(Bucket(*config.size_of(shape), shape.num_frames) for shape in shapes),
        tuple(sorted((stage.strides or {}).items())),
        tuple(sorted(stage.rates.items())),
        config.data.flip,
        stage.off_centre,
        config.data.shards_at_once,
    )


def heldout_window_request(config: RunConfig, stage: StageConfig) -> WindowRequest:
    """Return the windows of a stage's held-out losses: first bucket, commonest rate, centred, not mirrored."""
    drawn = window_request(config, stage)
    strides = ((max(stage.strides, key=stage.strides.get), 1.0),) if stage.strides else ()
    fps = ((max(stage.rates, key=stage.rates.get), 1.0),) if stage.rates else ()
    return WindowRequest(f"{stage.name}, held out", drawn.buckets[:1], strides, fps)


@dataclass(frozen=True)
class Census:
    """The clips of each bucket, and the reasons for those left out.

    Attributes:
        buckets: those of the stage.
        clips: the clips of each bucket.
        left_out: reasons by key.
        enlarged: how many clips of each bucket are smaller than it.
        windows: number of different windows by the distance between frames ("stride 2", "8 frames per second").
    """

    buckets: tuple[Bucket, ...]
    clips: tuple[Entries, ...]
    left_out: "LeftOut"
    enlarged: tuple[int, ...]
    windows: dict[str, int]

    def __str__(self) -> str:
        lines = []
        for bucket, clips, enlarged in zip(self.buckets, self.clips, self.enlarged):
            lines.append(f"  {bucket}: {len(clips)} clips" + (f", {enlarged} of them enlarged" if enlarged else ""))
        if self.left_out:
            lines.append(f"  left out: {len(self.left_out)}")
            lines += [f"    {key}: {reason}" for key, reason in self.left_out.first(1000).items()]
            if (more := len(self.left_out) - 1000) > 0:
                lines.append(f"    and {more:,} more")
        return "\n".join(lines)


class LeftOut(Mapping[str, str]):
    """The reasons for clips that a stage does not use, by key; found when they are asked for."""

    def __init__(self, entries: Entries, reason: Callable[[Entry], str]):
        self._entries, self._reason = entries, reason

    def first(self, count: int) -> dict[str, str]:
        """Return the reasons for the first clips alone."""
        return {entry.key: self._reason(entry) for entry in islice(self._entries, count)}

    @cached_property
    def _all(self) -> dict[str, str]:
        return self.first(len(self))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __getitem__(self, key: str) -> str:
        return self._all[key]


def clips_by_size(censuses: Iterable[Census]) -> dict[tuple[int, int], Entries]:
    """Return the clips of one source that some stage uses at each height and width."""
    masks: dict[tuple[int, int], np.ndarray] = {}
    clips_of = {}
    for census in censuses:
        for bucket, clips in zip(census.buckets, census.clips):
            clips_of[bucket.size] = clips
            mask = clips.mask()
            masks[bucket.size] = masks[bucket.size] | mask if bucket.size in masks else mask
    return {size: clips_of[size].within(mask) for size, mask in masks.items()}


def size_multiple(compression: int, patch_size: int, planner_patch_size: int, planner_downscale: int) -> int:
    """Return the number by which both sides of a bucket must be divisible.

    Args:
        compression: pixels per latent of the autoencoder, usually 8.
        patch_size: of the transformer, in latents.
        planner_patch_size: of the planner, in latents of frames that are `planner_downscale` times smaller.
    """
    return math.lcm(compression * patch_size, compression * planner_patch_size * planner_downscale)


def assign(
    entries: Iterable[Entry],
    request: WindowRequest,
    absent: Absent | None = None,
    why_absent: Callable[[Entry, Bucket], str | None] = lambda entry, bucket: None,
) -> Census:
    """Assign every usable clip to a bucket, reading columns alone; a clip takes one byte.

    The nearest aspect ratio wins, then the most frames, then the largest size that does not enlarge the clip. A clip
    must be long enough for one of the rates; when its windows are drawn, larger strides fall back to one that fits.

    Args:
        entries: the clips.
        request: the windows that the stage asks for.
        absent: see `Absent`; these clips are left out.
        why_absent: the reason for one of them.
    """
    entries, count = Entries.of(entries), len(request.buckets)
    codes = np.empty(len(entries), np.min_scalar_type(count + 2))
    enlarged, windows, done = np.zeros(count, np.int64), np.zeros(len(request.rates), np.int64), 0
    for part in entries.columns(*_FACTS, *(["sha256"] if absent else [])):
        clips = _Part(part, entries, done)
        bucket_of, starts = clips.assigned(request)
        if absent is not None:
            hashes = hashes_of(part)
            for number, bucket in enumerate(request.buckets):
                if len(places := np.flatnonzero(bucket_of == number)):
                    bucket_of[places[absent(bucket, done + places, hashes[places])]] = count
        for number, bucket in enumerate(request.buckets):
            mine = bucket_of == number
            enlarged[number] += ((clips.heights < bucket.height) | (clips.widths < bucket.width))[mine].sum()
            windows += [each[mine].sum() for each in starts[bucket.frames]]
        codes[done : done + len(part)] = bucket_of
        done += len(part)

    def reason(entry: Entry) -> str:
        if entry.status != "ok":
            return entry.reason
        fitting = _fitting(entry, request)
        if fitting:
            bucket = min(fitting, key=lambda bucket: _preference(entry.width, entry.height, bucket))
            return why_absent(entry, bucket) or "it cannot be read"
        return why_not(entry, min(bucket.frames for bucket in request.buckets), _deciding(request)[-1])

    return Census(
        request.buckets,
        tuple(entries.select(codes, number) for number in range(count)),
        LeftOut(entries.select(codes, count), reason),
        tuple(enlarged.tolist()),
        {str(rate): int(number) for rate, number in zip(request.rates, windows)},
    )


def window_counts(entries: Entries, num_frames: int, rate: Rate) -> np.ndarray:
    """Return the number of windows of `num_frames` at a rate that each clip has."""
    found, done = [np.zeros(0, np.int64)], 0
    for part in entries.columns(*_FACTS):
        found.append(_Part(part, entries, done).starts(num_frames, rate))
        done += len(part)
    return np.concatenate(found)


class _Part:
    """Some clips as columns.

    Args:
        part: the columns.
        entries: all clips, of which those of a varying rate are read one by one.
        first: place of the first clip among them.
    """

    def __init__(self, part: pa.Table, entries: Entries, first: int):
        self.usable = numbers(part.column("usable"))
        self.frames, self.rates, self.widths, self.heights = (
            numbers(part.column(name)) for name in ("num_frames", "fps", "width", "height")
        )
        varying = np.flatnonzero(numbers(part.column("timestamps").is_valid()))
        self._varying = [(place, entries[first + place]) for place in varying.tolist()]

    def starts(self, num_frames: int, rate: Rate) -> np.ndarray:
        """Return the number of windows of each clip."""
        found = np.asarray(even_starts(self.frames, self.rates, num_frames, rate))
        for place, entry in self._varying:
            found[place] = num_starts(entry, num_frames, rate)
        return found

    def assigned(self, request: WindowRequest) -> tuple[np.ndarray, dict[int, list[np.ndarray]]]:
        """Return the number of each clip's bucket, beyond the last one for none, and `starts` by frames for all rates."""
        starts = {
            frames: [self.starts(frames, rate) for rate in request.rates]
            for frames in {bucket.frames for bucket in request.buckets}
        }
        deciding = slice(len(_deciding(request)))
        fits = {frames: np.any(found[deciding], axis=0) & self.usable for frames, found in starts.items()}
        shapes, shape_of = np.unique(
            np.stack([self.widths, self.heights]).astype(np.int64).T @ [1 << 31, 1], return_inverse=True
        )
        ranks = np.empty((len(shapes), len(request.buckets)), np.int16)
        for row, shape in zip(ranks, shapes.tolist()):
            width, height = divmod(shape, 1 << 31)
            if width and height:  # a clip that is left out has none
                row[:] = _ranks(width, height, request.buckets)
        best = np.full(len(shape_of), len(request.buckets), np.int16)
        bucket_of = np.full(len(shape_of), len(request.buckets))
        for number, bucket in enumerate(request.buckets):
            rank = ranks[shape_of, number]
            better = fits[bucket.frames] & (rank < best)
            best[better], bucket_of[better] = rank[better], number
        return bucket_of, starts


def _deciding(request: WindowRequest) -> tuple[Rate, ...]:
    """Return the rates of which a clip must have one."""
    return request.rates if request.fps else request.rates[:1]  # a clip may be too slow for the first `fps`


def _fitting(entry: Entry, request: WindowRequest) -> list[Bucket]:
    rates = _deciding(request)
    return [bucket for bucket in request.buckets if any(num_starts(entry, bucket.frames, rate) for rate in rates)]


def _ranks(width: int, height: int, buckets: tuple[Bucket, ...]) -> np.ndarray:
    """Return the place of each bucket in the order of preference of clips of a size."""
    order = sorted(range(len(buckets)), key=lambda number: _preference(width, height, buckets[number]))
    return np.argsort(order)


def _preference(width: int, height: int, bucket: Bucket) -> tuple:
    """Return a sorting key for clips of a size; the smallest is the best bucket."""
    distance = abs(math.log(width / height) - math.log(bucket.width / bucket.height))
    enlarges = bucket.height > height or bucket.width > width
    area = bucket.height * bucket.width
    return round(distance, 6), -bucket.frames, enlarges, area if enlarges else -area
