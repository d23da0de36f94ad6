"""Buckets: the shapes of batches, and which clip goes to which bucket (the paper's dynamic-resolution finish).

A clip goes to the bucket of the nearest aspect ratio that it is long enough for, and stays there for the stage.
`order.py` decides the order of buckets and clips.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from training.config.schema import RunConfig, StageConfig
from training.data.clips import CENTRE, OFF_CENTRE, View
from training.data.manifest import Entry
from training.data.order import Rate, num_starts, why_not


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
    """

    stage: str
    buckets: tuple[Bucket, ...]
    strides: tuple[tuple[int, float], ...] = ()
    fps: tuple[tuple[float, float], ...] = ()
    flip: float = 0.0
    off_centre: float = 0.0

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
    """

    buckets: tuple[Bucket, ...]
    clips: tuple[tuple[Entry, ...], ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        lines = []
        for bucket, clips in zip(self.buckets, self.clips):
            enlarged = sum(min(e.height / bucket.height, e.width / bucket.width) < 1 for e in clips)
            lines.append(f"  {bucket}: {len(clips)} clips" + (f", {enlarged} of them enlarged" if enlarged else ""))
        if self.left_out:
            lines.append(f"  left out: {len(self.left_out)}")
            lines += [f"    {key}: {reason}" for key, reason in self.left_out.items()]
        return "\n".join(lines)


def size_multiple(compression: int, patch_size: int, planner_patch_size: int, planner_downscale: int) -> int:
    """Return the number by which both sides of a bucket must be divisible.

    Args:
        compression: pixels per latent of the autoencoder, usually 8.
        patch_size: of the transformer, in latents.
        planner_patch_size: of the planner, in latents of frames that are `planner_downscale` times smaller.
    """
    return math.lcm(compression * patch_size, compression * planner_patch_size * planner_downscale)


def assign(entries: Iterable[Entry], request: WindowRequest) -> Census:
    """Assign every usable clip to a bucket.

    The nearest aspect ratio wins, then the most frames, then the largest size that does not enlarge the clip. A clip
    must be long enough for one of the rates; when its windows are drawn, larger strides fall back to one that fits.
    """
    clips: dict[Bucket, list[Entry]] = {bucket: [] for bucket in request.buckets}
    left_out = {}
    for entry in entries:
        if entry.status != "ok":
            left_out[entry.key] = entry.reason
            continue
        rates = request.rates if request.fps else request.rates[:1]  # a clip may be too slow for the first `fps`
        fitting = [
            bucket for bucket in request.buckets if any(num_starts(entry, bucket.frames, rate) for rate in rates)
        ]
        if not fitting:
            shortest = min(bucket.frames for bucket in request.buckets)
            left_out[entry.key] = why_not(entry, shortest, rates[-1])
            continue
        clips[min(fitting, key=lambda bucket: _preference(entry, bucket))].append(entry)
    return Census(request.buckets, tuple(map(tuple, clips.values())), left_out)


def _preference(entry: Entry, bucket: Bucket) -> tuple:
    """Return a sorting key; the smallest is the best bucket."""
    distance = abs(math.log(entry.width / entry.height) - math.log(bucket.width / bucket.height))
    enlarges = bucket.height > entry.height or bucket.width > entry.width
    area = bucket.height * bucket.width
    return round(distance, 6), -bucket.frames, enlarges, area if enlarges else -area
