"""Run a task part by part: encode, count, go on after a kill, end in order after Ctrl-C, and join the parts."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

import numpy as np

from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..video.encoding import ClipEncoder
from ..video.joining import join
from ..video.places import publish, real_place, unfinished
from ..video.reading import iterate_frames
from ..video.sound import SoundTrack
from ..video.writing import FILE_SUFFIXES, FORMS, check_writable, write_frames
from .parts import PartFolder, wrote


CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # whose parts are joined as they are
OTHERS = {*FORMS} - {*CONTAINERS}  # written from parts without loss; moving pictures with all frames in memory


@dataclass(frozen=True)
class FileProgress:
    """How far a file is.

    Attributes:
        frames_done: frames of the result that are finished, those of an earlier run included.
        frames_total: of the whole result; `None` if it has no end.
        seconds_left: estimated from the frames of this run; `None` while there is none.
    """

    frames_done: int
    frames_total: int | None
    seconds_left: float | None


@dataclass(frozen=True)
class FileResult:
    """What became of a file.

    Attributes:
        path: the result.
        num_frames: of it.
        fps: of it.
        frames_resumed: of these, from parts of an earlier run.
        is_whole: whether the task came to its end; if not, its parts are kept, and `resume=True` goes on.
        sound: "copied", "encoded" (as AAC, because the format does not take it as it is), "stretched", "dropped" or
            "none" (the source has none).
        num_cuts: cuts that nothing was sampled across.
    """

    path: Path
    num_frames: int
    fps: float
    frames_resumed: int
    is_whole: bool
    sound: str
    num_cuts: int = 0


class Task(Protocol):
    """What `run` needs of a task."""

    @property
    def frames_total(self) -> int | None:
        """Frames of the result; `None` for no end."""
        ...

    def has_part(self, number: int, frames_done: int) -> bool:
        """Tell whether there is a part of this number, if those before it have so many frames."""
        ...

    def frames(self, number: int, parts: PartFolder, is_stopped: Callable[[], bool]) -> Iterator[Any]:
        """Yield the frames of a part; the parts before it are finished. No window begins once it is stopped."""
        ...


class Stop:
    """Turn the first Ctrl-C into a request to end in order; the second one ends at once.

    Outside the main thread, where Python allows no handlers, only `request` does so.

    Args:
        pipe: whose window at work is left.
    """

    def __init__(self, pipe: MarDiniPipeline):
        self.requested = False
        self._pipe = pipe
        self._before: list[Any] = []

    def request(self, *_: int | FrameType | None) -> None:
        """End after the last whole window."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = self._pipe._interrupt = True

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.signal(signal.SIGINT, self.request)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler in self._before:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)  # none: it was not Python's


def can_have_sound(output: Path) -> bool:
    """Return whether a result of this name is joined from its parts as they are, with sound."""
    return output.suffix.lower() in CONTAINERS


def check_output(output: Path, fps: float, overwrite: bool, resume: bool) -> None:
    """Refuse an output before anything is read.

    Args:
        output: the result.
        fps: its frames per second, or a usual number.
        overwrite: whether anything may be replaced.
        resume: whether what an interrupted run left there may be.

    Raises:
        ValueError: for a suffix that is not written, a place where nothing can be written, or an existing file that
            may not be replaced.
    """
    suffix = output.suffix.lower()
    if suffix not in CONTAINERS and suffix not in OTHERS:
        raise ValueError(
            f"cannot write '{output}': the suffix '{output.suffix}' is unknown; use "
            f"{', '.join(sorted({*CONTAINERS, *FILE_SUFFIXES}))} or no suffix (a folder of PNG)"
        )
    check_rate(output, fps)
    real_place(output, is_folder=not suffix)
    if output.exists() and not overwrite and not (resume and wrote(output)):
        raise ValueError(f"the output '{output}' exists; give another name, or `overwrite=True` to replace it")


def check_rate(output: Path, fps: float) -> None:
    """Refuse an output that cannot be written, or not with so many frames per second; see `check_writable`."""
    check_writable(output.with_suffix(".mp4") if output.suffix.lower() in CONTAINERS else output, fps)


def run(
    pipe: MarDiniPipeline,
    task: Task,
    parts: PartFolder,
    fps: float,
    crf: float,
    sound: Callable[[float], SoundTrack | None],
    progress: Callable[[FileProgress], object] | None,
) -> tuple[int, int, bool]:
    """Make the parts that are missing, and the result.

    Args:
        pipe: samples.
        task: makes the frames.
        parts: where finished parts lie.
        fps: of the result.
        crf: quality of H.264.
        sound: returns the sound for a result of so many seconds.
        progress: called after each frame.

    Returns:
        The number of frames, of those of an earlier run, and whether the task came to its end.
    """
    parts.begin()
    is_lossless = not can_have_sound(parts.output)
    counter = _Counter(task.frames_total, parts.num_frames, progress)
    tail = 0  # frames of a part that was left
    with Stop(pipe) as stop:
        try:
            number = len(parts.records)
            while task.has_part(number, parts.num_frames) and not stop.requested:
                frames = task.frames(number, parts, lambda: stop.requested)
                count = _encode(frames, parts.unfinished(number), fps, None if is_lossless else crf, counter)
                if stop.requested:
                    tail = count
                    break
                parts.finish(number, {"frames": count})
                number += 1
        except KeyboardInterrupt:  # from the callback, or a second Ctrl-C: the unfinished part is left out
            stop.requested = True
    files = [parts.path(number) for number, record in enumerate(parts.records) if record["frames"]]
    num_frames = parts.num_frames + tail
    if tail:
        files.append(parts.unfinished(len(parts.records)))
    if not files:
        parts.close()
        raise KeyboardInterrupt("stopped before a window was finished; no file was written")
    try:
        if is_lossless:
            if parts.output.exists() and not parts.replaces:
                raise FileExistsError(parts.output)
            frames = (frame for file in files for _, frame in iterate_frames(file))
            write_frames(parts.output, frames, fps, crf, parts.replaces)
        else:
            place = real_place(parts.output, is_folder=False)
            # Beside the target of a link: what lies on another file system can't be renamed.
            with unfinished(place.parent) as room:
                join(files, room / "whole", fps, CONTAINERS[parts.output.suffix.lower()], sound(num_frames / fps))
                publish(room / "whole", place, parts.replaces)
    except FileExistsError as error:
        parts.close()
        raise ValueError(
            f"'{parts.output}' appeared meanwhile and was left alone; the parts of the result are kept in "
            f"'{parts.folder}': move that file away, and resume (`resume=True`, --resume)"
        ) from error
    is_whole = not stop.requested
    if is_whole:
        parts.remove()
    else:
        parts.keep_written()
        parts.close()
    return num_frames, counter.resumed, is_whole


class _Counter:
    """Count frames and estimate the time left."""

    def __init__(self, total: int | None, resumed: int, callback: Callable[[FileProgress], object] | None):
        self.resumed, self._done, self._total, self._callback = resumed, resumed, total, callback
        self._start = time.monotonic()

    def add(self) -> None:
        self._done += 1
        if self._callback is not None:
            left = None
            if self._total is not None:
                spent = (time.monotonic() - self._start) / (self._done - self.resumed)
                left = spent * (self._total - self._done)
            self._callback(FileProgress(self._done, self._total, left))


def _encode(frames: Iterator[Any], path: Path, fps: float, crf: float | None, counter: _Counter) -> int:
    """Write frames to a file, if there are any; return their number."""
    encoder: ClipEncoder | None = None
    try:
        for frame in frames:
            array = np.asarray(frame)
            if encoder is None:
                container, options = ("matroska", {}) if crf is None else ("mp4", {})
                encoder = ClipEncoder(path, array.shape[1], array.shape[0], fps, crf, container, options)
            encoder.add(array)
            counter.add()
    except BaseException:
        if encoder is not None:
            encoder.abandon()
        raise
    if encoder is None:
        return 0
    encoder.close()
    return encoder.num_frames
