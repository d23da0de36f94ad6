"""The tasks from file to file: `retime_file`, `slow_motion_file`, `extend_file`."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from ..pipelines.conditions import read_conditions, read_rows
from ..pipelines.inputs import whole_number
from ..pipelines.pasting import check_pasting
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..pipelines.stream_inputs import positive
from ..video.opening import forget_warnings
from ..video.sound import SoundTrack
from .cuts import read_cuts
from .extension import Extension
from .parts import PartFolder
from .retiming import Retiming
from .running import CONTAINERS, FileProgress, FileResult, Task, can_have_sound, check_rate, run
from .settings import TaskSettings, read_settings
from .source import FrameReader, SourceVideo, look_through


Progress = Callable[[FileProgress], object]


def retime_file(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    fps: float,
    *,
    source_fps: float | None = None,
    cuts: str | Iterable[int | float | str] = "keep",
    sound: str = "keep",
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    crf: float = 18,
    progress: Progress | None = None,
    conditions: Mapping[str, Any] | None = None,
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
        source: A video file or a folder of pictures; for `extend_file`, also one picture.
        output: `.mp4`, `.m4v`, `.mov` or `.mkv` (H.264, tagged BT.709); or another form of `write_video`, which has no
            sound; `.gif`, `.webp` and `.apng` need all frames in memory in the end. It appears complete or not at all.
        fps (`float`): Frames per second of the result.
        source_fps (`float`, *optional*): Rate of a folder of pictures, which states none; by default 8.
        cuts: `"keep"` finds cuts (PySceneDetect) and samples nothing across them, `"ignore"` samples across; else the
            numbers of the frames of `source` that begin a scene, or their times from its first frame, such as
            `"12.48s"` and `"00:00:12.48"`.
        sound: `"keep"` copies it, or encodes it as AAC where the format does not take it; `"drop"` leaves it out.
        seed (`int`): Of the noise; each part has its own, so that a resumed run gives the same file.
        height, width (`int`, *optional*): Size of the result in pixels, to whose aspect frames are cropped around the
            centre. By default that of the training, else that of `source`.
        resume (`bool`): Whether to go on with the parts of an earlier run of the same settings, if there are any.
        overwrite (`bool`): Whether to replace an existing `output`; without `resume` also the parts of an earlier run.
        crf (`float`): Quality of H.264, 0 (best) to 51.
        progress: Called with a [`FileProgress`] after each frame.
        conditions (`dict`, *optional*): Conditions of the frames of the result, see [`~MarDiniPipeline.retime`].
        sampling: Further arguments of [`~MarDiniPipeline.retime`], such as `num_inference_steps` and `paste_given`.

    Returns:
        [`FileResult`].

    Raises:
        ValueError: for unusable arguments and files, and parts of an earlier run that are in the way.
        KeyboardInterrupt: if it is interrupted before a window is finished.
    """
    fps = positive(fps, "fps")
    _check_sound(sound, "keep", "a new rate leaves the length as it is")
    told = read_rows(conditions, pipe.conditions)
    settings = read_settings(pipe, source, output, fps, seed, height, width, resume, overwrite, sampling, told)
    return _retime(pipe, settings, source, None, fps, source_fps, cuts, sound, crf, progress)


def slow_motion_file(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    factor: int,
    *,
    fps: float | None = None,
    source_fps: float | None = None,
    cuts: str | Iterable[int | float | str] = "keep",
    sound: str = "stretch",
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    crf: float = 18,
    progress: Progress | None = None,
    conditions: Mapping[str, Any] | None = None,
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
    told = read_rows(conditions, pipe.conditions)
    settings = read_settings(pipe, source, output, fps, seed, height, width, resume, overwrite, sampling, told)
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
    conditions: Mapping[str, Any] | None = None,
    paste_given: bool = False,
    **sampling: Any,
) -> FileResult:
    r"""
    Continue a video, window by window; see [`~MarDiniPipeline.rollout`] and `retime_file`.

    Args:
        num_new_frames (`int`): How many frames to add; `None` goes on until Ctrl-C.
        fps (`float`, *optional*): Frames per second of the result, by default those of `source`; others play it, and
            its sound, faster or slower.
        sound: `"keep"` copies it; new frames are silent.
        conditions (`dict`, *optional*): Conditions of the frames of the result, or of the new ones alone, see
            [`~MarDiniPipeline.extend`].
        paste_given (`bool`): Whether the frames of `source` come out with their own pixels, resized, and not as the VAE
            decodes them.
        sampling: Further arguments of [`~MarDiniPipeline.rollout`], such as `window` and `overlap`.
        The other arguments, results and errors are those of `retime_file`.
    """
    if num_new_frames is not None:
        num_new_frames = whole_number(num_new_frames, "num_new_frames", least=1)
    check_pasting(paste_given, 0, "pil")
    fps = None if fps is None else positive(fps, "fps")
    _check_sound(sound, "keep", "an extension leaves its tempo as it is")
    told = read_rows(conditions, pipe.conditions)
    if told and num_new_frames is None:
        raise ValueError("`conditions` have a row for each new frame; give `num_new_frames`, the number of them")
    settings = read_settings(
        pipe, source, output, fps or source_fps, seed, height, width, resume, overwrite, sampling, told
    )
    pipe.rollout([Image.new("RGB", settings.size)], **sampling)  # refuses wrong arguments before a part is made
    parts = settings.open(
        pipe, source, task="extend", num_new_frames=num_new_frames, fps=fps, source_fps=source_fps, crf=crf,
        paste_given=paste_given,
    )  # fmt: skip
    try:
        video, _ = look_through(source, source_fps, "ignore", is_even=True)
        if told and num_new_frames is not None:
            count = len(video.kept)
            told = read_conditions(conditions, pipe.conditions, 1, count + num_new_frames, count)
            settings = replace(settings, conditions=told)
        task = Extension(pipe, settings, FrameReader(video, settings.size), num_new_frames, paste_given)
        result_fps = fps or video.fps
        check_rate(settings.output, result_fps)
        return _run(pipe, task, parts, video, result_fps, crf, sound, video.fps / result_fps, progress)
    finally:
        parts.close()
        forget_warnings()


def _retime(
    pipe: MarDiniPipeline,
    settings: TaskSettings,
    source: str | os.PathLike,
    factor: int | None,
    fps: float | None,
    source_fps: float | None,
    cuts: str | Iterable[int | float | str],
    sound: str,
    crf: float,
    progress: Progress | None,
) -> FileResult:
    """Run `retime_file`, or `slow_motion_file` with a factor."""
    cuts = read_cuts(cuts)
    parts = settings.open(
        pipe, source, task="retime", factor=factor, fps=fps, source_fps=source_fps, cuts=cuts, crf=crf
    )
    try:
        video, facts = look_through(source, source_fps, cuts, parts.facts())
        parts.keep_facts(facts)
        if len(video.kept) < 2:
            differing = " that differs from the one before" if video.num_frames > 1 else ""
            raise ValueError(f"'{source}' has one frame{differing}; give at least 2")
        result_fps = video.fps if fps is None else fps
        rate = result_fps if factor is None else video.fps * factor
        task = Retiming(pipe, settings, FrameReader(video, settings.size), rate)
        check_rate(settings.output, result_fps)
        _check_rows(settings, task.frames_total)
        return _run(pipe, task, parts, video, result_fps, crf, sound, rate / result_fps, progress)
    finally:
        parts.close()
        forget_warnings()


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
    said = "dropped" if video.has_sound else "none"

    def track(seconds: float) -> SoundTrack | None:
        return SoundTrack(video.path, video.start, seconds, slower) if has_sound else None

    if (found := track(0.0)) is not None:
        with found:
            said = found.check(CONTAINERS[parts.output.suffix.lower()])  # before anything is sampled

    num_frames, resumed, is_whole = run(pipe, task, parts, fps, crf, track, progress)
    return FileResult(parts.output, num_frames, fps, resumed, is_whole, said, video.num_cuts)


def _check_rows(settings: TaskSettings, frames_total: int) -> None:
    """Refuse conditions that end before the result does."""
    rows = min((values.shape[1] for values in settings.conditions.values()), default=frames_total)
    if rows < frames_total:
        raise ValueError(
            f"`conditions` has {rows} rows, but the result has {frames_total} frames; give a row for each of them"
        )


def _check_sound(sound: str, makes: str, why: str) -> None:
    if sound not in (makes, "drop"):
        raise ValueError(f"`sound` is {sound!r}; give '{makes}' ({why}) or 'drop'")
