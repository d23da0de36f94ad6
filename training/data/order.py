"""Choose clips and frames by pure functions of (seed, stage, step, row), so that resuming needs no saved state.

Each clip of a bucket is drawn once before any is drawn again, whatever the number of processes. `buckets.py` decides
which clips a bucket holds; `windows.py` reads the frames.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from training.data.entries import Entry
from training.randomness import step_generator


SAME_RATE = 1.002  # 29.97 frames per second count as 30: NTSC's rates are a thousandth slower than their names
# Frames are rounded slightly below one half: rounding errors then cannot decide exact halves such as 12.5, which round
# down.
_HALF, _BELOW = 0.5, 1e-6


@dataclass(frozen=True)
class Rate:
    """Distance between the frames of a window: `stride` frames of the clip or `1 / fps` seconds; one of the two."""

    stride: int | None = None
    fps: float | None = None

    def __post_init__(self):
        if (self.stride is None) == (self.fps is None):
            raise ValueError(f"give a stride or frames per second, got stride={self.stride} and fps={self.fps}")
        if (self.stride if self.fps is None else self.fps) <= 0:
            raise ValueError(f"a stride or a number of frames per second must be positive, got {self}")

    def __str__(self) -> str:
        return f"stride {self.stride}" if self.fps is None else f"{self.fps:g} frames per second"


@dataclass(frozen=True)
class StepRows:
    """The rows of one step's batch that this process reads.

    Attributes:
        seed: of the run.
        step: batches drawn before this one in the stage.
        batch_size: rows of the batch over all processes and accumulated parts.
        rows: this process's rows, out of `range(batch_size)`.
        attempt: each number has its own order of the clips.
    """

    seed: int
    step: int
    batch_size: int
    rows: tuple[int, ...]
    attempt: int = 0

    def __post_init__(self):
        if any(not 0 <= row < self.batch_size for row in self.rows):
            raise ValueError(f"rows must lie in 0 to {self.batch_size - 1}, got {self.rows}")


def permuted(index: int, size: int, *keys: str | int) -> int:
    """Return the place of `index` in the permutation of `range(size)` that `keys` choose, without computing the
    others.

    Uses a Feistel network of four rounds over the next even number of bits; results beyond `size` pass it again.
    """
    if not 0 <= index < size:
        raise ValueError(f"index {index} lies outside of 0 to {size - 1}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = hashlib.sha256(repr(keys).encode()).digest()
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            digest = hashlib.blake2b(b"%d %d" % (turn, right), key=key, digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        index = left << half | right
        if index < size:
            return index


def clip_at(position: int, num_clips: int, *keys: str | int, shards: "Shards | None" = None) -> int:
    """Return the clip at a position of the endless order, in which each epoch is another permutation.

    Args:
        position: in that order.
        num_clips: of an epoch.
        keys: choose the order.
        shards: mix the clips of a few shards at a time; `None`: all clips.
    """
    epoch, place = divmod(position, num_clips)
    return permuted(place, num_clips, *keys, epoch) if shards is None else shards.clip_at(place, *keys, epoch)


class Shards:
    """An order for clips that lie in large files far away: the shards are permuted, then the clips of a few at a time.

    So a shard is read in one go, and not again before the next epoch, except where two buffers share a batch.

    Args:
        sizes: number of clips of each shard, `(shards,)`; a shard's clips are consecutive.
        at_once: shards whose clips are mixed.
    """

    def __init__(self, sizes: np.ndarray, at_once: int):
        self.sizes, self.at_once = np.asarray(sizes, np.int64), at_once
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._epoch = lru_cache(maxsize=2)(self._order)

    def clip_at(self, place: int, *keys: str | int) -> int:
        """Return the clip at a place of the permutation that `keys` choose."""
        order, ends = self._epoch(*keys)
        last_of_buffer = ends[self.at_once - 1 :: self.at_once]
        buffer = int(np.searchsorted(last_of_buffer, place, side="right"))
        first = buffer * self.at_once
        begin = int(ends[first - 1]) if first else 0
        mine = ends[first : first + self.at_once]
        inside = begin + permuted(place - begin, int(mine[-1]) - begin, *keys, buffer)
        shard = first + int(np.searchsorted(mine, inside, side="right"))
        return int(self._starts[order[shard]]) + inside - (int(ends[shard - 1]) if shard else 0)

    def _order(self, *keys: str | int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of an epoch in their order, and where the clips of each end."""
        order = torch.randperm(len(self.sizes), generator=step_generator(*keys, "shards")).numpy()
        return order, np.cumsum(self.sizes[order])


def bucket_at(seed: int, stage: str, step: int, batches: tuple[int, ...]) -> tuple[int, int]:
    """Return the bucket of a step and the number of earlier batches from it in this stage.

    Args:
        seed: of the run.
        stage: its name.
        step: batches drawn before this one in the stage.
        batches: batches per epoch of each bucket; each epoch has that many of each, in random order.
    """
    if len(batches) == 1:
        return 0, step
    epoch, place = divmod(step, sum(batches))
    buckets, earlier = _bucket_sequence(seed, stage, epoch, batches)
    bucket = int(buckets[place])
    return bucket, epoch * batches[bucket] + int(earlier[place])


@lru_cache(maxsize=4)
def _bucket_sequence(seed: int, stage: str, epoch: int, batches: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    buckets = np.repeat(np.arange(len(batches)), batches)
    generator = step_generator(seed, "buckets", stage, epoch)
    buckets = buckets[torch.randperm(len(buckets), generator=generator).numpy()]
    earlier = np.zeros_like(buckets)
    for bucket, count in enumerate(batches):
        earlier[buckets == bucket] = np.arange(count)
    return buckets, earlier


def num_starts(entry: Entry, num_frames: int, rate: Rate) -> int:
    """Return how many windows of `num_frames` at a rate a clip has."""
    if rate.fps is not None and entry.variable_rate:
        return len(_varying_starts(entry, num_frames, rate.fps))
    return int(even_starts(np.int64(entry.num_frames), np.float64(entry.fps), num_frames, rate))


def even_starts(clip_frames: np.ndarray, clip_fps: np.ndarray, num_frames: int, rate: Rate) -> np.ndarray:
    """Return how many windows of `num_frames` at a rate clips have whose own rate does not vary.

    Args:
        clip_frames, clip_fps: frames and frames per second of each clip, of any shape.
        num_frames, rate: of the windows.
    """
    if rate.fps is None:
        return np.maximum(0, clip_frames - (num_frames - 1) * rate.stride)
    last = np.floor((num_frames - 1) * (clip_fps / rate.fps) + _HALF - _BELOW)  # as `frames_at_stride` rounds
    repeats = (rate.fps > clip_fps * SAME_RATE) & (num_frames > 1)
    return np.where(repeats, 0, np.maximum(0, clip_frames - last.astype(np.int64)))


def frames_at_stride(first: int, num_frames: int, stride: float) -> tuple[int, ...]:
    """Return the clip frames of a window that begins at frame `first` and takes every `stride`-th.

    A stride need not be whole: the nearest frame is taken, the earlier one of two that are equally near.
    """
    return tuple(first + math.floor(index * stride + _HALF - _BELOW) for index in range(num_frames))


def frame_indices(entry: Entry, place: float, num_frames: int, rate: Rate) -> tuple[int, ...]:
    """Return the frames of a window: those nearest to `t0 + i / fps`, or every `stride`-th.

    Args:
        entry: the clip.
        place: position in the clip, in [0, 1): 0 is its first window, just below 1 its last.
        num_frames: of the window.
        rate: distance between its frames.

    Raises:
        ValueError: if the clip has no such window; `why_not` says why.
    """
    starts = num_starts(entry, num_frames, rate)
    if starts == 0:
        raise ValueError(f"clip '{entry.key}': {why_not(entry, num_frames, rate)}")
    start = min(int(place * starts), starts - 1)
    if rate.fps is None:
        return frames_at_stride(start, num_frames, rate.stride)
    if entry.variable_rate:
        start = int(_varying_starts(entry, num_frames, rate.fps)[start])
        times = np.array(entry.timestamps)
        return tuple(_nearest(_middles(times), times[start], num_frames, rate.fps).tolist())
    return frames_at_stride(start, num_frames, entry.fps / rate.fps)


def why_not(entry: Entry, num_frames: int, rate: Rate) -> str:
    """Return why a clip has no window of `num_frames` at a rate."""
    if rate.fps is None:
        span = (num_frames - 1) * rate.stride + 1
        return f"has {entry.num_frames} frames; {num_frames} at {rate} span {span}"
    if rate.fps > entry.fps * SAME_RATE:
        return f"has {entry.fps:.4g} frames per second; at {rate} frames would be repeated"
    if entry.duration * rate.fps < num_frames - 1:
        return f"lasts {entry.duration:.2f} s; {num_frames} frames at {rate} take {(num_frames - 1) / rate.fps:.2f} s"
    return f"has no {num_frames} different frames at {rate}; its rate varies or it ends just before"


@lru_cache(maxsize=4096)
def _varying_starts(entry: Entry, num_frames: int, fps: float) -> np.ndarray:
    """Return the first frames of windows that fit, repeat no frame, and have each within half a step of its time."""
    times, starts = np.array(entry.timestamps), []
    middles = _middles(times)
    for start in range(len(times)):
        if times[start] + (num_frames - 1) / fps > times[-1] + 1e-6:
            break
        frames = _nearest(middles, times[start], num_frames, fps)
        errors = np.abs(times[frames] - times[start] - np.arange(num_frames) / fps)
        if (np.diff(frames) > 0).all() and errors.max() <= 0.5 / fps + 1e-6:
            starts.append(start)
    return np.array(starts, dtype=int)


def _middles(times: np.ndarray) -> np.ndarray:
    return (times[1:] + times[:-1]) / 2


def _nearest(middles: np.ndarray, time: float, num_frames: int, fps: float) -> np.ndarray:
    """Return the frames nearest to `time + i / fps`; the exact middle between two frames belongs to the first."""
    return np.searchsorted(middles, time + np.arange(num_frames) / fps - 1e-9)
