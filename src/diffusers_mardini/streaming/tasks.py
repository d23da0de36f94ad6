"""The tasks from file to file: `retime_file`, `slow_motion_file`, `extend_file`."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ..pipelines.inputs import output_size, whole_number
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.rollout import MarDiniRollout
from ..pipelines.stream_inputs import checked_cuts, positive
from ..pipelines.stream_plans import TOLERANCE
from ..pipelines.streams import reconstruct
from ..video.reading import frames_of_numbers
from ..video.sound import SoundTrack
from ..video.times import PICTURE_FPS
from .parts import PartFolder, folder_of
from .running import FileProgress, FileResult, Task, can_have_sound, check_output, run
from .source import FrameReader, SourceVideo, look_through


PART_GAPS = 64  # source frames from the first frame of a part to the first of the next one
PART_WINDOWS = 8  # windows of a part of an extension
Progress = Callable[[FileProgress], object]


@dataclass(frozen=True)
class _Settings:
    """What the tasks share.

    Attributes:
        output: the result.
        seed: of the noise.
        size: width and height of the frames.
        resume: whether to go on with the parts of an earlier run.
        sampling: further arguments of the pipeline's method.
    """

    output: Path
    seed: int
    size: tuple[int, int]
    resume: bool
    sampling: dict[str, Any]

    def generator(self, part: int) -> torch.Generator:
        """Return the source of noise of a part, which does not depend on the parts before."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + part) % 2**63)

    def open(self, pipe: MarDiniPipeline, source: str | os.PathLike, **key: Any) -> PartFolder:
        """Open the folder of parts."""
        sampling = {name: repr(value) for name, value in sorted(self.sampling.items())}
        key |= {"seed": self.seed, "size": list(self.size), "model": model_digest(pipe), "sampling": sampling}
        key |= {"source": _file_key(Path(source)), "scheduler": _scheduler_key(pipe)}
        return PartFolder(self.output, key, self.resume, ".mp4" if can_have_sound(self.output) else ".mkv")


@dataclass(frozen=True)
class _Retiming:
    """Parts of a new rate: windows do not cross their borders, so that each can be made without the others."""

    pipe: MarDiniPipeline
    settings: _Settings
    reader: FrameReader
    fps: float

    @property
    def video(self) -> SourceVideo:
        return self.reader.video

    @property
    def frames_total(self) -> int:
        return self._count_until(self.video.kept[-1].time)

    def has_part(self, number: int, frames_done: int) -> bool:
        return number * PART_GAPS < len(self.video.kept) - 1

    def frames(self, number: int, parts: PartFolder) -> Iterator[Any]:
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
            first_frame=self._count_until(kept[0].time) if number else 0,
            **self.settings.sampling,
        )
        assert isinstance(frames, Iterator), "it was asked for a stream"
        return frames

    def _count_until(self, time: float) -> int:
        """Return the number of frames of the result up to a time, as `RetimePlan` counts them."""
        number = max(0, int(time * self.fps) - 1)
        limit = time + min(TOLERANCE, 0.25 / self.fps)
        while number / self.fps < limit:
            number += 1
        return number


@dataclass
class _Extension:
    """Parts of an extension: those of the given frames, then those of new ones, each with the state it ends in."""

    pipe: MarDiniPipeline
    settings: _Settings
    reader: FrameReader
    num_new_frames: int | None
    _rollout: MarDiniRollout | None = None

    @property
    def video(self) -> SourceVideo:
        return self.reader.video

    @property
    def frames_total(self) -> int | None:
        return None if self.num_new_frames is None else len(self.video.kept) + self.num_new_frames

    @property
    def num_given_parts(self) -> int:
        return -(-len(self.video.kept) // PART_GAPS)

    def has_part(self, number: int, frames_done: int) -> bool:
        return self.frames_total is None or frames_done < self.frames_total

    def frames(self, number: int, parts: PartFolder) -> Iterator[Any]:
        """Yield the frames of a part."""
        if number < self.num_given_parts:
            first = number * PART_GAPS
            yield from reconstruct(self.pipe, self.reader.read(first, min(first + PART_GAPS, len(self.video.kept))))
            return
        rollout = self._rollout = self._rollout or self._start(number, parts)
        rollout.options = replace(rollout.options, generator=self.settings.generator(number))
        left = None if self.frames_total is None else self.frames_total - parts.num_frames
        for _ in range(PART_WINDOWS):
            frames = rollout.step().frames[0]
            if self.pipe.interrupt:
                return
            yield from frames[:left]
            left = None if left is None else left - len(frames)
            if left is not None and left <= 0:
                break
        save_file({name: value.contiguous() for name, value in rollout.state().items()}, parts.state(number))

    def _start(self, number: int, parts: PartFolder) -> MarDiniRollout:
        """Return the rollout as it is before a part."""
        window = self.settings.sampling.get("window") or self.pipe.trained_window.frames
        count = len(self.video.kept)
        last = list(FrameReader(self.video, self.reader.size).read(max(0, count - window), count))
        rollout = self.pipe.rollout(last, **self.settings.sampling)
        if number > self.num_given_parts:
            rollout.restore(load_file(parts.state(number - 1)))
        return rollout


def retime_file(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    fps: float,
    *,
    source_fps: float | None = None,
    cuts: str | Iterable[int] = "keep",
    sound: str = "keep",
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    crf: float = 18,
    progress: Progress | None = None,
    **sampling: Any,
) -> FileResult:
    r"""
    Give a video another rate, by time; see [`~MarDiniPipeline.retime`].

    Frames stream from the decoder through the pipeline to the encoder: memory does not grow with the video. It is
    looked through once before. While it is made, finished parts lie in a folder beside `output`, named `output.parts`;
    each begins at a given frame, and windows do not cross its border. Ctrl-C ends after the last whole window and
    writes what is there.

    Args:
        pipe: Samples the frames.
        source: A video file or a folder of pictures.
        output: `.mp4`, `.m4v`, `.mov` or `.mkv` (H.264, tagged BT.709); or another form of `write_video`, which has no
            sound and needs all frames in memory in the end. It appears complete or not at all.
        fps (`float`): Frames per second of the result.
        source_fps (`float`, *optional*): Rate of a folder of pictures, by default 8.
        cuts: `"keep"` finds cuts (PySceneDetect) and samples nothing across them, `"ignore"` samples across; else the
            numbers of the frames of `source` that begin a scene.
        sound: `"keep"` copies it, `"drop"` leaves it out.
        seed (`int`): Of the noise; each part has its own, so that a resumed run gives the same file.
        height, width (`int`, *optional*): Size of the result in pixels, to whose aspect frames are cropped around the
            centre. By default that of the training, else that of `source`.
        resume (`bool`): Whether to go on with the parts of an earlier run of the same settings, if there are any.
        overwrite (`bool`): Whether to replace an existing `output`.
        crf (`float`): Quality of H.264, 0 (best) to 51.
        progress: Called with a [`FileProgress`] after each frame.
        sampling: Further arguments of [`~MarDiniPipeline.retime`], such as `num_inference_steps`.

    Returns:
        [`FileResult`].

    Raises:
        ValueError: for unusable arguments and files, and parts of an earlier run that are in the way.
        KeyboardInterrupt: if it is interrupted before a window is finished.
    """
    fps = positive(fps, "fps")
    _check_sound(sound, "keep", "a new rate leaves the length as it is")
    settings = _settings(pipe, source, output, fps, seed, height, width, resume, overwrite, sampling)
    return _retime(pipe, settings, source, None, fps, source_fps, cuts, sound, crf, progress)


def slow_motion_file(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    factor: int,
    *,
    fps: float | None = None,
    source_fps: float | None = None,
    cuts: str | Iterable[int] = "keep",
    sound: str = "stretch",
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    crf: float = 18,
    progress: Progress | None = None,
    **sampling: Any,
) -> FileResult:
    r"""
    Make a video `factor` times slower, by sampling frames between its own; see `retime_file`, which samples them.

    Args:
        factor (`int`): How many times slower; at least 2.
        fps (`float`, *optional*): Frames per second of the result; by default those of `source`. More make it less
            slow.
        sound: `"stretch"` makes it as long as the pictures, with its pitch (FFmpeg's `atempo`); `"drop"` leaves it out.
        The other arguments, results and errors are those of `retime_file`.
    """
    factor = whole_number(factor, "factor", least=2, reason="how many times slower")
    fps = None if fps is None else positive(fps, "fps")
    _check_sound(sound, "stretch", "slow motion makes it longer")
    settings = _settings(pipe, source, output, fps, seed, height, width, resume, overwrite, sampling)
    return _retime(pipe, settings, source, factor, fps, source_fps, cuts, sound, crf, progress)


def extend_file(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    num_new_frames: int | None,
    *,
    fps: float | None = None,
    source_fps: float | None = None,
    sound: str = "keep",
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    crf: float = 18,
    progress: Progress | None = None,
    **sampling: Any,
) -> FileResult:
    r"""
    Continue a video, window by window; see [`~MarDiniPipeline.rollout`] and `retime_file`.

    Args:
        num_new_frames (`int`): How many frames to add; `None` goes on until Ctrl-C.
        fps (`float`, *optional*): Frames per second of the result, by default those of `source`; others play it, and
            its sound, faster or slower.
        sound: `"keep"` copies it; new frames are silent.
        sampling: Further arguments of [`~MarDiniPipeline.rollout`], such as `window` and `overlap`.
        The other arguments, results and errors are those of `retime_file`.
    """
    if num_new_frames is not None:
        num_new_frames = whole_number(num_new_frames, "num_new_frames", least=1)
    fps = None if fps is None else positive(fps, "fps")
    _check_sound(sound, "keep", "an extension leaves its tempo as it is")
    settings = _settings(pipe, source, output, fps or source_fps, seed, height, width, resume, overwrite, sampling)
    pipe.rollout([Image.new("RGB", settings.size)], **sampling)  # refuses wrong arguments before a part is made
    parts = settings.open(pipe, source, task="extend", num_new_frames=num_new_frames, fps=fps, source_fps=source_fps)
    try:
        video, _ = look_through(source, source_fps, "ignore", all_frames=True)
        task = _Extension(pipe, settings, FrameReader(video, settings.size), num_new_frames)
        result_fps = fps or video.fps
        return _run(pipe, task, parts, video, result_fps, crf, sound, video.fps / result_fps, progress)
    finally:
        parts.close()


def _retime(
    pipe: MarDiniPipeline,
    settings: _Settings,
    source: str | os.PathLike,
    factor: int | None,
    fps: float | None,
    source_fps: float | None,
    cuts: str | Iterable[int],
    sound: str,
    crf: float,
    progress: Progress | None,
) -> FileResult:
    """Run `retime_file`, or `slow_motion_file` with a factor."""
    cuts = cuts if isinstance(cuts, str) else sorted(checked_cuts(cuts))
    parts = settings.open(pipe, source, task="retime", factor=factor, fps=fps, source_fps=source_fps, cuts=cuts)
    try:
        video, facts = look_through(source, source_fps, cuts, parts.facts())
        parts.keep_facts(facts)
        if len(video.kept) < 2:
            raise ValueError(
                f"'{source}' has {len(video.kept)} frame that differs from the one before; give at least 2"
            )
        result_fps = video.fps if fps is None else fps
        rate = result_fps if factor is None else video.fps * factor
        task = _Retiming(pipe, settings, FrameReader(video, settings.size), rate)
        return _run(pipe, task, parts, video, result_fps, crf, sound, rate / result_fps, progress)
    finally:
        parts.close()


def _run(
    pipe: MarDiniPipeline,
    task: Task,
    parts: PartFolder,
    video: SourceVideo,
    fps: float,
    crf: float,
    sound: str,
    slower: float,
    progress: Progress | None,
) -> FileResult:
    has_sound = video.has_sound and sound != "drop" and can_have_sound(parts.output)

    def track(seconds: float) -> SoundTrack | None:
        return SoundTrack(video.path, video.start, seconds, slower) if has_sound else None

    num_frames, resumed, is_whole = run(pipe, task, parts, fps, crf, track, progress)
    said = ("stretched" if slower != 1 else "copied") if has_sound else "dropped" if video.has_sound else "none"
    return FileResult(parts.output, num_frames, fps, resumed, is_whole, said, video.num_cuts)


def _settings(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    fps: float | None,
    seed: int,
    height: int | None,
    width: int | None,
    resume: bool,
    overwrite: bool,
    sampling: dict[str, Any],
) -> _Settings:
    """Check what the tasks share, before anything is read."""
    output = Path(output)
    check_output(output, fps or PICTURE_FPS, overwrite, resume and folder_of(output).exists())
    seed = whole_number(seed, "seed", least=0)
    trained = pipe.trained_window
    if height is None and width is None and trained.height is not None:
        height, width = trained.height, trained.width
    first = next(iter(frames_of_numbers(source, [0])))
    height, width = output_size([[first]], height, width, pipe.size_multiple)
    return _Settings(output, seed, (width, height), resume, sampling)


def _check_sound(sound: str, makes: str, why: str) -> None:
    if sound not in (makes, "drop"):
        raise ValueError(f"`sound` is {sound!r}; give '{makes}' ({why}) or 'drop'")


def model_digest(pipe: MarDiniPipeline) -> str:
    """Return a digest of the models: names, shapes and dtypes of all parameters, some values of each, and the strength
    of LoRA weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("vae", "planner", "transformer"):
        for key, value in getattr(pipe, name).state_dict().items():
            flat = value.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy()
            digest.update(f"{name}.{key} {tuple(value.shape)} {value.dtype}".encode() + some.tobytes())
        scales = [getattr(module, "scaling", None) for module in getattr(pipe, name).modules()]
        digest.update(repr([scale for scale in scales if isinstance(scale, dict)]).encode())
    return digest.hexdigest()


def _scheduler_key(pipe: MarDiniPipeline) -> list[str]:
    """Return what tells whether the scheduler samples otherwise; its private values are in another order each time."""
    public = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return [type(pipe.scheduler).__name__, *(f"{name} {value!r}" for name, value in sorted(public.items()))]


def _file_key(source: Path) -> list[Any]:
    """Return what tells whether a file or a folder was changed."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
