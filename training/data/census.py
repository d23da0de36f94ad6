"""Count the clips that a stage uses, with reasons for the others: printed by `plan.py`, saved as `census.json`.

`buckets.py` assigns clips to buckets; `manifest.py` has the facts found by decoding them.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from training.config.schema import RunConfig
from training.data.buckets import Census
from training.data.manifest import read_manifest_of
from training.data.manifest_files import Manifest
from training.data.sources import Source, open_source


MOST_NAMED = 100_000  # reasons that `census.json` holds for a stage


@dataclass(frozen=True)
class BucketCensus:
    """One bucket: its shape, its number of clips and of clips it enlarges, and its share of the stage's batches."""

    height: int
    width: int
    frames: int
    clips: int
    enlarged: int
    share: float


@dataclass(frozen=True)
class StageCensus:
    """The clips and windows that a stage finds in a source.

    Attributes:
        buckets: those of the stage, also empty ones.
        windows: number of different windows by the distance between frames ("stride 2", "8 frames per second").
        left_out: reasons by clip, of the first `MOST_NAMED`.
        unnamed: number of the others that are left out.
    """

    buckets: tuple[BucketCensus, ...]
    windows: dict[str, int]
    left_out: dict[str, str]
    unnamed: int = 0

    @classmethod
    def of(cls, census: Census, batch: int) -> "StageCensus":
        """Count clips and windows; `batch` is the number of windows of a step over all processes."""
        batches = [math.ceil(len(clips) / batch) for clips in census.clips]
        buckets = tuple(
            BucketCensus(
                *bucket.size,
                bucket.frames,
                len(clips),
                enlarged,
                number / max(1, sum(batches)),
            )
            for bucket, clips, enlarged, number in zip(census.buckets, census.clips, census.enlarged, batches)
        )
        named = census.left_out.first(MOST_NAMED)
        return cls(buckets, census.windows, named, len(census.left_out) - len(named))

    def as_json(self) -> dict[str, Any]:
        """Return everything as values of JSON."""
        values = asdict(self)
        return values if self.unnamed else {name: value for name, value in values.items() if name != "unnamed"}

    @property
    def clips(self) -> int:
        """Return the number of clips in all buckets."""
        return sum(bucket.clips for bucket in self.buckets)

    def lines(self, seen: int | None = None, most_reasons: int | None = None) -> list[str]:
        """Describe the census in lines of text.

        Args:
            seen: windows that the stage draws; shown as passes over the available windows.
            most_reasons: how many of the clips left out are named; all unless given.
        """
        windows = ", ".join(f"{count:,} windows at {rate}" for rate, count in self.windows.items())
        most = max(self.windows.values())
        passes = f", each seen {seen / most:.3g} times" if seen and most else ""
        lines = [f"{self.clips:,} clips, {windows}{passes}; left out: {len(self.left_out) + self.unnamed:,}"]
        for bucket in self.buckets:
            enlarged = f", {bucket.enlarged:,} of them enlarged" if bucket.enlarged else ""
            lines.append(
                f"  {bucket.height}x{bucket.width}, {bucket.frames} frames: {bucket.clips:,} clips{enlarged}, "
                f"{bucket.share:.0%} of the batches"
            )
        reasons = list(self.left_out.items())
        lines += [f"  {clip}: {reason}" for clip, reason in reasons[:most_reasons]]
        named = len(reasons) if most_reasons is None else min(most_reasons, len(reasons))
        if (more := len(reasons) + self.unnamed - named) > 0:
            lines.append(f"  and {more:,} more")
        return lines


def open_clips(config: RunConfig, spec: str) -> Source:
    """Open a source of the run, `data.train` or `data.validation`; raise `ValueError` if there is none."""
    return open_source(spec, config.data.picture_fps, config.data.manifests)


def read_clips(config: RunConfig, source: Source, stop: Callable[[], str | None] = lambda: None) -> Manifest:
    """Return the manifest of a source of the run; see `read_manifest_of`."""
    return read_manifest_of(source, config.data.manifests, stop)
