"""The parts of a video that is continued."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.rollout import MarDiniRollout
from ..pipelines.streams import conditions_of, reconstruct
from .parts import PartFolder
from .settings import TaskSettings
from .source import FrameReader, SourceVideo


PART_FRAMES = 64  # of the given ones
PART_WINDOWS = 8  # of the new ones


@dataclass
class Extension:
    """Parts of an extension: those of the given frames, then those of new ones, each with the state it ends in."""

    pipe: MarDiniPipeline
    settings: TaskSettings
    reader: FrameReader
    num_new_frames: int | None
    paste_given: bool = False
    _rollout: MarDiniRollout | None = None

    @property
    def video(self) -> SourceVideo:
        """The given video."""
        return self.reader.video

    @property
    def frames_total(self) -> int | None:
        """Frames of the result; `None` for no end."""
        return None if self.num_new_frames is None else len(self.video.kept) + self.num_new_frames

    @property
    def num_given_parts(self) -> int:
        """Number of the parts of given frames."""
        return -(-len(self.video.kept) // PART_FRAMES)

    def has_part(self, number: int, frames_done: int) -> bool:
        """Tell whether there is a part of this number."""
        return self.frames_total is None or frames_done < self.frames_total

    def frames(self, number: int, parts: PartFolder, is_stopped: Callable[[], bool]) -> Iterator[Any]:
        """Yield the frames of a part."""
        if number < self.num_given_parts:
            first = number * PART_FRAMES
            given = self.reader.read(first, min(first + PART_FRAMES, len(self.video.kept)))
            yield from reconstruct(self.pipe, given, paste_given=self.paste_given)
            return
        rollout = self._rollout = self._rollout or self._start(number, parts)
        rollout.options = replace(rollout.options, generator=self.settings.generator(number))
        left = None if self.frames_total is None else self.frames_total - parts.num_frames
        made = parts.num_frames
        for _ in range(PART_WINDOWS):
            if is_stopped():  # `step` would begin anew
                return
            told = conditions_of(self.settings.conditions, range(made, made + rollout.most_new_frames))
            frames = rollout.step(conditions=told).frames[0]
            made += len(frames)
            if self.pipe.interrupt:
                return
            yield from frames[:left]
            left = None if left is None else left - len(frames)
            if left is not None and left <= 0:
                break
        save_file({name: value.contiguous() for name, value in rollout.state().items()}, parts.state(number))

    def _start(self, number: int, parts: PartFolder) -> MarDiniRollout:
        """Return the rollout as it is before a part."""
        count = len(self.video.kept)
        rollout = self.pipe.rollout([Image.new("RGB", self.settings.size)], **self.settings.sampling)
        told = conditions_of(self.settings.conditions, range(count))
        rollout.reset(list(self.reader.at(rollout.kept_places(count))), told, num_frames=count)
        if number > self.num_given_parts:
            rollout.restore(load_file(parts.state(number - 1)))
        return rollout
