"""The parts of a video that gets another rate, or becomes slower."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.stream_plans import TOLERANCE
from .parts import PartFolder
from .settings import TaskSettings
from .source import FrameReader, SourceVideo


PART_GAPS = 64  # source frames from the first frame of a part to the first of the next one


@dataclass(frozen=True)
class Retiming:
    """Parts of a new rate: windows do not cross their borders, so that each can be made without the others."""

    pipe: MarDiniPipeline
    settings: TaskSettings
    reader: FrameReader
    fps: float

    @property
    def video(self) -> SourceVideo:
        """The given video."""
        return self.reader.video

    @property
    def frames_total(self) -> int:
        """Frames of the result."""
        return self._count_until(self.video.kept[-1].time)

    def has_part(self, number: int, frames_done: int) -> bool:
        """Tell whether there is a part of this number."""
        return number * PART_GAPS < len(self.video.kept) - 1

    def frames(self, number: int, parts: PartFolder, is_stopped: Callable[[], bool]) -> Iterator[Any]:
        """Yield the frames of a part, from the first given frame of it (alone in the first part) to its last."""
        first = number * PART_GAPS
        kept = self.video.kept[first : first + PART_GAPS + 1]
        frames = self.pipe.retime(
            self.reader.read(first, first + len(kept)),
            self.fps,
            times=[one.time for one in kept],
            cuts=[i for i, one in enumerate(kept) if one.is_cut],
            generator=self.settings.generator(number),
            stream=True,
            origin=0.0,
            conditions=self.settings.conditions or None,
            first_frame=self._count_until(kept[0].time) if number else 0,
            **self.settings.sampling,
        )
        assert isinstance(frames, Iterator), "it was asked for a stream"
        if is_stopped():  # while the first frames were read, which the call has forgotten
            self.pipe._interrupt = True
        return frames

    def _count_until(self, time: float) -> int:
        """Return the number of frames of the result up to a time, as `RetimePlan` counts them."""
        number = max(0, int(time * self.fps) - 1)
        limit = time + min(TOLERANCE, 0.25 / self.fps)
        while number / self.fps < limit:
            number += 1
        return number
