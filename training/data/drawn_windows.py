"""Windows whose latents are those of the frames alone that a run's steps draw; when that form is worth it.

Which window a row has is a pure function of seed, stage, step and row, so that the frames of all steps to come are known
before the first. They are encoded then (`drawn_latents.py`); `windows.py` has the other forms.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training.config.schema import RunConfig
from training.data.buckets import Census, clips_by_size, window_request
from training.data.census import StageCensus
from training.data.clips import View
from training.data.conditions import ClipConditions
from training.data.drawn_latents import FRAME_POLICY, DrawnLatents, Wanted, encode_drawn
from training.data.entries import Entry
from training.data.latents import cache_folder, cache_settings, has_cache
from training.data.moments import ClipError, Moments
from training.data.sources import Source
from training.data.windows import ClipWindows, WindowDraw
from training.stopping import Stopped


Form = Literal["all", "drawn"]
# Pixels of frames whose latents are not worth leaving out: about 1 GB of 16 channels with variances, 8 times smaller.
FEW_PIXELS = 1e9


@dataclass(frozen=True)
class LatentForms:
    """Frames that are encoded for a run's training clips, by size.

    Attributes:
        all: every frame of the clips that some stage uses, in each view.
        drawn: at most that many are drawn by the steps of all stages, in one view each.
    """

    all: dict[tuple[int, int], int]
    drawn: dict[tuple[int, int], int]

    @classmethod
    def of(cls, config: RunConfig, censuses: Sequence[Census]) -> "LatentForms":
        """Count the frames of a run with `steps`, given the census of each stage."""
        views = len({view for stage in config.stages for view in window_request(config, stage).views})
        whole = {size: views * int(clips.total("num_frames")) for size, clips in clips_by_size(censuses).items()}
        drawn = dict.fromkeys(whole, 0.0)
        for stage, census in zip(config.stages, censuses, strict=True):
            for bucket in StageCensus.of(census, stage.windows_per_step).buckets:
                windows = bucket.share * stage.steps * stage.windows_per_step
                drawn[bucket.height, bucket.width] += windows * bucket.frames
        return cls(whole, {size: min(whole[size], round(count)) for size, count in drawn.items()})

    def chosen(self, config: RunConfig, cache: Path, vae: torch.nn.Module | None) -> Form:
        """Return the form that `data.latents` asks for; `auto`: the drawn frames where they are at most half of many.

        Args:
            config: the run.
            cache: folder of the latents of its clips; those of every frame are used if they are there.
            vae: the autoencoder, on which latents depend; `None`: there is none yet, and so no cache of its latents.
        """
        if config.data.latents != "auto":
            return config.data.latents
        if config.hours is not None or config.data.device_gb:
            return "all"
        downscale = config.data.planner_downscale
        views = tuple({view for stage in config.stages for view in window_request(config, stage).views})
        if vae is not None and all(has_cache(cache, vae, size, downscale, views) for size in self.all):
            return "all"
        whole, drawn = (sum(count * h * w for (h, w), count in each.items()) for each in (self.all, self.drawn))
        return "drawn" if drawn <= whole / 2 and whole - drawn >= FEW_PIXELS else "all"


class DrawnWindows(ClipWindows):
    """Windows from latents that `make_ready` encodes: those of the frames that steps to come draw, and no others.

    A clip that cannot be read then has failed: its windows are replaced, as those of `PixelWindows` are.

    Args:
        source, entries, sizes, clip_conditions: see `PixelWindows`.
        vae: the autoencoder; on the accelerator's device while it encodes.
        planner_downscale: how many times smaller the planner's frames are.
        cache: folder of the latents.
        accelerator: the processes, which share the clips.
        turn: makes a context in which no other run writes the cache.
        stop: returns a reason to stop, or `None`.
    """

    def __init__(
        self,
        source: Source,
        entries: Iterable[Entry],
        sizes: Iterable[tuple[int, int]],
        vae: torch.nn.Module,
        planner_downscale: int,
        cache: Path,
        accelerator: Accelerator,
        turn: Callable[[], AbstractContextManager],
        stop: Callable[[], str | None] = lambda: None,
        clip_conditions: ClipConditions | None = None,
    ):
        super().__init__(entries, sizes, clip_conditions)
        self.source, self.vae, self.planner_downscale = source, vae, planner_downscale
        self.accelerator, self._turn, self._stop = accelerator, turn, stop
        self.folders = {
            size: cache_folder(cache, cache_settings(vae, size, planner_downscale, (View(),), frames=FRAME_POLICY))
            for size in self.sizes
        }
        self.caches: dict[tuple[int, int], DrawnLatents] = {}

    def make_ready(self, draws: Callable[[], Iterable[WindowDraw]]) -> None:
        """Encode the frames that these windows lack; see `ClipWindows`.

        Raises:
            ValueError: if no clip of a bucket can be read, the moments of a clip are not finite, or the disk is full.
            Stopped: on every process, if one had a reason to stop; what is encoded is kept.
        """
        with self._turn():
            while failed := self._encode_missing(draws):
                for clip, reason in failed.items():  # other windows take the place of theirs, of which frames may lack
                    self.failures[clip] = reason
                    if self.accelerator.is_main_process:
                        self.on_failure(clip, reason)

    def _encode_missing(self, draws: Callable[[], Iterable[WindowDraw]]) -> dict[str, str]:
        """Encode this process's part of the missing frames; return the clips that failed on any process."""
        main, rank, ranks = (
            self.accelerator.is_main_process, self.accelerator.process_index, self.accelerator.num_processes
        )  # fmt: skip
        caches = {size: DrawnLatents(folder) for size, folder in self.folders.items()}
        missing = self._missing(draws(), caches)
        self.accelerator.wait_for_everyone()  # all have seen the same shards, before any writes one
        failed: dict[str, str] = {}
        stopped = None
        if missing:
            if main:
                for path in (path for cache in caches.values() for path in cache.damaged):
                    path.unlink(missing_ok=True)
                frames = sum(len(f) for wanted in missing.values() for each in wanted for f in each.frames.values())
                print(f"encoding {frames:,} frames that the run draws of '{self.source.spec}'", flush=True)
            self.vae.to(self.accelerator.device)
            try:
                for size, wanted in missing.items():
                    failed |= encode_drawn(
                        self.source, wanted[rank::ranks], self.vae, self.planner_downscale, size, self.folders[size],
                        rank, self._stop,
                    )  # fmt: skip
            except Stopped as error:
                stopped = str(error)
            finally:
                self.vae.to("cpu")  # free the device for the models that are trained
        told: list[tuple[dict[str, str], str | None]] = gather_object([(failed, stopped)])
        if reasons := [reason for _, reason in told if reason is not None]:
            raise Stopped(reasons[0])
        self.caches = {size: DrawnLatents(folder) for size, folder in self.folders.items()} if missing else caches
        return {clip: reason for each, _ in told for clip, reason in each.items()}

    def _missing(
        self, draws: Iterable[WindowDraw], caches: dict[tuple[int, int], DrawnLatents]
    ) -> dict[tuple[int, int], list[Wanted]]:
        """Return what is to be encoded at each size, clip by clip in their order."""
        drawn: dict[tuple[tuple[int, int], View], list[np.ndarray]] = {}
        for draw in draws:
            draw = next(self.candidates(draw))
            frames = np.array(draw.frames, np.int64) | draw.number << 32
            drawn.setdefault((draw.bucket.size, draw.view), []).append(frames)
        found: dict[tuple[int, int], dict[int, Wanted]] = {}
        for (size, view), parts in drawn.items():
            codes = np.unique(np.concatenate(parts))
            numbers, begins = np.unique(codes >> 32, return_index=True)
            for number, frames in zip(numbers.tolist(), np.split(codes & 0xFFFFFFFF, begins[1:])):
                entry = self._entry(number)
                if len(lacking := caches[size].missing(entry, view, frames)):
                    wanted = found.setdefault(size, {}).setdefault(number, Wanted(entry, {}))
                    wanted.frames[view] = lacking
        return {size: [clips[number] for number in sorted(clips)] for size, clips in sorted(found.items())}

    def _read(self, entry: Entry, draw: WindowDraw) -> Moments:
        try:
            return self.caches[draw.bucket.size].read(entry, draw.frames, draw.view)
        except ClipError as error:  # the windows that could take its place have no latents either
            raise ValueError(
                f"the latents of {draw} are gone ({error}); type the same command again, and they are encoded anew"
            ) from error
