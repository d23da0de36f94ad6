"""Clips out of files: every frame, those at some times, or only what there is to know of them."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from diffusers.utils import logging
from PIL import Image

from .picture_files import PICTURE_SUFFIXES, picture_files, read_picture
from .times import even_rate, mean_rate, spread
from .upright import upright, upright_size


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class VideoFacts:
    """What decoding every frame of a video tells; containers' headers guess.

    Attributes:
        num_frames: frames that decode.
        fps: frames per second; the mean where the rate varies.
        height, width: of an upright frame.
        start: time of the first frame on the file's own clock, in seconds.
        duration: seconds from the first frame to the end of the last.
        codec: name of the decoder, `png` and the like for a folder of pictures.
        timestamps: seconds of all frames on the file's own clock where the rate varies; `None` where frame `i` lies within
            a quarter of a frame of `start + i / fps`.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    start: float
    duration: float
    codec: str
    timestamps: np.ndarray | None


def decoder_version() -> str:
    """Name and version of what decodes, for fingerprints: another decoder may give other pixels, or other frames."""
    return f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"


def read_video(
    path: str | os.PathLike, prepare: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, float]:
    """Decodes every frame of a video, upright, with square pixels and evenly spaced.

    Where the frames' times are uneven (screen recordings, phones, gifs that hold a frame) each is shown, as a player does, until the
    next one's time: the clip gets the rate of most of its frames, and held frames are repeated. A warning says so.

    Args:
        path: a video file (anything FFmpeg decodes, gif included).
        prepare: what is kept of a frame, `uint8` shaped `(height, width, 3)`, such as a smaller one of the same form. A long video of large
            frames then never lies in memory whole.

    Returns:
        The frames, `uint8` shaped `(frames, height, width, 3)`, and their number per second.

    Raises:
        ValueError: if the file is missing, is not a video, is damaged, or holds no frame.
    """
    frames, times, end = [], [], 0.0
    with _open_video(Path(path)) as (container, stream, label):
        for frame in container.decode(stream):
            shown = upright(frame, stream)
            frames.append(shown if prepare is None else prepare(shown))
            times.append(frame.time)
            end = float((frame.time or 0) + (frame.duration or 0) * (frame.time_base or 0))
        fps = _stated_rate(stream)
    if not frames:
        raise ValueError(f"{label} holds no frame; it is damaged or empty")
    if None not in times and all(first < second for first, second in zip(times, times[1:])):
        even = even_rate(np.array(times, dtype=float), fps)
        if even is None:
            shown, fps = spread(np.array(times, dtype=float), end)
            logger.warning(
                f"{label} has frames at uneven times: {len(frames)} became {len(shown)}, at {fps:.4g} per second"
            )
            frames = [frames[index] for index in shown]
        else:
            fps = even
    if fps <= 0:
        raise ValueError(f"{label} does not say how many frames it has per second; encode it again as .mp4")
    return np.stack(frames), fps


def probe_video(source: str | os.PathLike | bytes, fps: float | None = None) -> VideoFacts:
    """Decodes every frame and keeps none: exact numbers in bounded memory, however long the video is.

    Args:
        source: a video file, its bytes, or a folder of pictures.
        fps: frames per second of a folder of pictures, which does not say it itself.

    Raises:
        ValueError: as `read_video` does, and if the frames change their size, have no increasing time stamps, or end well
            before the length that the file states (a truncated file).
    """
    if _is_folder(source):
        return _probe_pictures(Path(source), fps)
    times, size = [], None
    with _open_video(source) as (container, stream, label):
        for frame in container.decode(stream):
            shown = upright_size(frame, stream)
            if size not in (None, shown):
                raise ValueError(f"{label} changes its size from {size} to {shown} at frame {len(times)}")
            if frame.time is None or (times and frame.time <= times[-1]):
                raise ValueError(
                    f"{label} has no increasing time stamps (frame {len(times)}); encode it again as .mp4"
                )
            size = shown
            times.append(float(frame.time))
        rate = _stated_rate(stream)
        stated, codec = _stated_end(container, stream), stream.codec_context.name
    if not times:
        raise ValueError(f"{label} holds no frame; it is damaged or empty")
    timestamps = np.array(times)
    if len(times) == 1 and rate <= 0:
        raise ValueError(f"{label} does not say how many frames it has per second; encode it again as .mp4")
    gap = float(np.diff(timestamps).max()) if len(times) > 1 else 1 / rate
    if stated - (times[-1] + gap) > 2.5 * gap:
        raise ValueError(
            f"{label} is truncated: it states {stated:.2f} seconds, but its {len(times)} frames end at {times[-1] + gap:.2f}"
        )
    even = even_rate(timestamps, rate)
    if even is not None:
        return VideoFacts(len(times), even, *size, times[0], len(times) / even, codec, None)
    mean = mean_rate(timestamps)
    return VideoFacts(len(times), mean, *size, times[0], times[-1] - times[0] + 1 / mean, codec, timestamps)


def iterate_frames(source: str | os.PathLike | bytes, fps: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yields `(time on the file's own clock, upright uint8 (height, width, 3))`, one frame in memory at a time.

    Arguments and errors are those of `probe_video`, whose checks of the whole are not repeated.
    """
    if _is_folder(source):
        for index, file in enumerate(picture_files(Path(source))):
            yield index / _positive(fps, source), np.asarray(read_picture(file))
        return
    with _open_video(source) as (container, stream, _):
        for frame in container.decode(stream):
            yield float(frame.time), upright(frame, stream)


def read_frames(
    source: str | os.PathLike | bytes, timestamps: Sequence[float], fps: float | None = None
) -> np.ndarray:
    """Reads the frames nearest to some times. Decoding starts at the key frame before the first of them.

    Args:
        source, fps: see `probe_video`.
        timestamps: seconds on the file's own clock, not decreasing; exact ones come from `probe_video`.

    Returns:
        `uint8` shaped `(len(timestamps), height, width, 3)`.

    Raises:
        ValueError: as `read_video` does, or if the video ends before the last time by more than a frame.
    """
    wanted = list(timestamps)
    if not wanted or any(second < first for first, second in zip(wanted, wanted[1:])):
        raise ValueError(f"timestamps must be at least one and must not decrease, got {wanted}")
    if _is_folder(source):
        files = picture_files(Path(source))
        indices = [round(time * _positive(fps, source)) for time in wanted]
        if not 0 <= indices[0] <= indices[-1] < len(files):
            raise ValueError(f"folder '{source}' has {len(files)} pictures, picture {indices[-1]} was asked for")
        return np.stack([np.asarray(read_picture(files[index])) for index in indices])
    # Key frames are found by decoding time, which may lie before the time of presentation: then seek further back.
    for head_start in (0.0, 2.0, None):
        with _open_video(source) as (container, stream, label):
            if head_start is not None:
                try:
                    container.seek(max(0, int((wanted[0] - head_start) / stream.time_base)), stream=stream)
                except av.error.FFmpegError:  # a format that cannot seek is decoded from its beginning
                    continue
            frames = _nearest(container.decode(stream), stream, wanted, at_start=head_start is None)
        if frames is not None:
            return np.stack(frames)
    raise ValueError(f"{label} ends before {wanted[-1]:.3f} seconds; it is damaged, or another file than it was")


def read_images(
    path: str | os.PathLike, prepare: Callable[[Image.Image], Image.Image] | None = None
) -> tuple[list[Image.Image], float | None]:
    """Reads a picture, a folder of pictures (in natural order: 2 before 10) or a video as PIL images.

    Args:
        path: of what to read.
        prepare: what is kept of an image; see `read_video`.

    Returns:
        RGB images, and the frames per second where the source says so (a video), else `None`.

    Raises:
        ValueError: if nothing readable is there.
    """
    path = Path(path)
    prepare = prepare or (lambda image: image)
    if path.is_dir():
        return [prepare(read_picture(file)) for file in picture_files(path)], None
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return [prepare(read_picture(path))], None
    frames, fps = read_video(path, lambda frame: np.asarray(prepare(Image.fromarray(frame))))
    return [Image.fromarray(frame) for frame in frames], fps


@contextmanager
def _open_video(source: str | os.PathLike | bytes) -> Iterator[tuple]:
    """The container, its first video stream, and how to call them in messages; FFmpeg's errors become `ValueError`."""
    if isinstance(source, bytes):
        label, opened = f"the video of {len(source)} bytes", io.BytesIO(source)
    else:
        label, opened = f"'{source}'", str(source)
        if not Path(source).is_file():
            raise ValueError(f"no video file at {label}" + ("; it is a folder" if Path(source).is_dir() else ""))
    try:
        with av.open(opened) as container:
            # A sound file may carry a cover picture as a video stream.
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise ValueError(f"{label} has no video stream; give a video file such as .mp4 or .gif")
            if container.format.name.endswith("_pipe") or container.format.name == "image2":
                raise ValueError(f"{label} is one picture, not a video; give a video or a folder of pictures")
            yield container, streams[0], label
    except av.error.FFmpegError as error:
        raise ValueError(f"{label} cannot be decoded as a video ({error}); it is damaged or no video") from error


def _stated_rate(stream: av.VideoStream) -> float:
    """Frames per second that the container states or FFmpeg guesses; 0 where neither does."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def _nearest(
    decoded: Iterator[av.VideoFrame], stream: av.VideoStream, wanted: list[float], at_start: bool
) -> list[np.ndarray] | None:
    """The frame nearest to each time, or `None` where the frames begin too late or end too early."""
    found, before = [], None
    for frame in decoded:
        if frame.time is None:  # a bare stream, or a container that broke since it was probed
            raise ValueError("the video has frames without time stamps; encode it again as .mp4")
        time = float(frame.time)
        if before is None and time > wanted[0] + 1e-6 and not at_start:
            return None
        # All times up to the middle between two frames belong to the first of them.
        while before is not None and wanted[len(found)] <= (before.time + time) / 2:
            found.append(upright(before, stream))
            if len(found) == len(wanted):
                return found
        gap = time - before.time if before is not None else 0.0
        before = frame
    while before is not None and len(found) < len(wanted) and wanted[len(found)] <= before.time + max(gap, 1e-6):
        found.append(upright(before, stream))
    return found if len(found) == len(wanted) else None


def _stated_end(container, stream) -> float:
    """Where the file says that the video ends, in seconds on its own clock; 0 where it does not."""
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    stated = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # as Matroska has it
    if stated:
        hours, minutes, seconds = map(float, stated.groups())
        return 3600 * hours + 60 * minutes + seconds
    return 0.0


def _is_folder(source: str | os.PathLike | bytes) -> bool:
    return not isinstance(source, bytes) and Path(source).is_dir()


def _positive(fps: float | None, folder: str | os.PathLike) -> float:
    if fps is None or not fps > 0:
        raise ValueError(f"folder '{folder}' of pictures needs a positive number of frames per second, got fps={fps}")
    return fps


def _probe_pictures(folder: Path, fps: float | None) -> VideoFacts:
    files, size = picture_files(folder), None
    fps = _positive(fps, folder)
    for file in files:
        width, height = read_picture(file).size
        if size not in (None, (height, width)):
            raise ValueError(f"folder '{folder}' has pictures of {size} and, '{file.name}', of {(height, width)}")
        size = height, width
    return VideoFacts(len(files), fps, *size, 0.0, len(files) / fps, files[0].suffix.lower().lstrip("."), None)


def has_sound(path: str | os.PathLike) -> bool:
    """Return whether a file has sound; `False` where it is no video or sound file."""
    if Path(path).is_dir():
        return False
    try:
        with av.open(f"file:{Path(path).absolute()}", metadata_errors="replace") as container:
            return bool(container.streams.audio)
    except (av.error.FFmpegError, OSError):
        return False
