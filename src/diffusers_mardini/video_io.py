"""Clips in and out of files: mp4, gif, or a folder of pictures. The only module that names PyAV.

Frames are numpy `uint8` arrays shaped `(frames, height, width, 3)` or PIL images; tensors in [-1, 1] are made by the
pipeline's video processor, and crops by `training/data/clips.py`.
"""

import io
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from diffusers.utils import logging
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from .pictures import to_rgb


logger = logging.get_logger(__name__)

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
WRITABLE = "`.mp4`, `.gif` or no suffix (a folder of PNG)"
MAX_GIF_FPS = 50  # viewers show frames of less than two hundredths of a second for longer
WRITER = "diffusers_mardini"  # in the metadata of the PNG that `write_video` writes, by which it knows them again


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
            upright = _upright(frame, stream)
            frames.append(upright if prepare is None else prepare(upright))
            times.append(frame.time)
            end = float((frame.time or 0) + (frame.duration or 0) * (frame.time_base or 0))
        fps = _stated_rate(stream)
    if not frames:
        raise ValueError(f"{label} holds no frame; it is damaged or empty")
    if None not in times and all(first < second for first, second in zip(times, times[1:])):
        even = _even_rate(np.array(times, dtype=float), fps)
        if even is None:
            shown, fps = _spread(np.array(times, dtype=float), end)
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
            upright = _upright_size(frame, stream)
            if size not in (None, upright):
                raise ValueError(f"{label} changes its size from {size} to {upright} at frame {len(times)}")
            if frame.time is None or (times and frame.time <= times[-1]):
                raise ValueError(
                    f"{label} has no increasing time stamps (frame {len(times)}); encode it again as .mp4"
                )
            size = upright
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
    even = _even_rate(timestamps, rate)
    if even is not None:
        return VideoFacts(len(times), even, *size, times[0], len(times) / even, codec, None)
    mean = _mean_rate(timestamps)
    return VideoFacts(len(times), mean, *size, times[0], times[-1] - times[0] + 1 / mean, codec, timestamps)


def iterate_frames(source: str | os.PathLike | bytes, fps: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yields `(time on the file's own clock, upright uint8 (height, width, 3))`, one frame in memory at a time.

    Arguments and errors are those of `probe_video`, whose checks of the whole are not repeated.
    """
    if _is_folder(source):
        for index, file in enumerate(_picture_files(Path(source))):
            yield index / _positive(fps, source), np.asarray(_read_picture(file))
        return
    with _open_video(source) as (container, stream, _):
        for frame in container.decode(stream):
            yield float(frame.time), _upright(frame, stream)


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
        files = _picture_files(Path(source))
        indices = [round(time * _positive(fps, source)) for time in wanted]
        if not 0 <= indices[0] <= indices[-1] < len(files):
            raise ValueError(f"folder '{source}' has {len(files)} pictures, picture {indices[-1]} was asked for")
        return np.stack([np.asarray(_read_picture(files[index])) for index in indices])
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
        return [prepare(_read_picture(file)) for file in _picture_files(path)], None
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return [prepare(_read_picture(path))], None
    frames, fps = read_video(path, lambda frame: np.asarray(prepare(Image.fromarray(frame))))
    return [Image.fromarray(frame) for frame in frames], fps


def write_video(
    path: str | os.PathLike,
    frames: Sequence[Image.Image] | np.ndarray,
    fps: float,
    crf: int = 18,
) -> Path:
    """Writes frames as `.mp4` (H.264, yuv420p), as `.gif`, or, where `path` has no suffix, as a folder of PNG.

    The result appears whole or not at all: it is written under a temporary name beside `path` and then renamed.

    Args:
        path: where to; an existing file is replaced, an existing folder only where it holds nothing but pictures
            that this function wrote, as their metadata say.
        frames: PIL images, or `uint8` shaped `(frames, height, width, 3)` (array or tensor). For mp4 an odd side gets
            its last row or column repeated, since yuv420p needs even sides.
        fps: frames per second; a folder of PNG does not record it. The times of a gif's frames are rounded to hundredths of a second, and
            equal neighbours become one frame that is held.
        crf: quality of the mp4, 0 (best, large) to 51; 18 looks lossless, 10 very nearly is.

    Raises:
        ValueError: on an unknown suffix, no frames, frames of different sizes, a rate that is not positive, or where something
            else stands (`check_writable`).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_writable(path, fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be between 0 and 51, got {crf}")
    array = _as_array(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{suffix}")
    try:
        if suffix == ".mp4":
            _write_mp4(temporary, array, fps, crf)
        elif suffix == ".gif":
            first, *rest = [Image.fromarray(frame) for frame in array]
            # Ends in hundredths of a second, so that roundings do not add up.
            ends = [round(100 * (index + 1) / fps) for index in range(len(array))]
            durations = [10 * (end - start) for start, end in zip([0, *ends], ends)]
            first.save(temporary, save_all=True, append_images=rest, duration=durations, loop=0)
        else:
            temporary.mkdir()
            written = PngInfo()
            written.add_text("Software", WRITER)
            for index, frame in enumerate(array):
                Image.fromarray(frame).save(temporary / f"frame_{index:05d}.png", pnginfo=written)
            check_writable(path, fps)  # it may have been filled meanwhile
            if path.is_dir():
                shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return path


def check_writable(path: str | os.PathLike, fps: float) -> None:
    """Whether `write_video` can write there, and will lose nothing but what it wrote itself; for asking before frames are made.

    Raises:
        ValueError: on an unknown suffix, a rate that is not positive or too high for a gif, a place where nothing can be written, a folder in the
            way of a file, or, in the way of a folder of PNG, a link, a file or a folder that holds anything else.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in ("", ".mp4", ".gif"):
        raise ValueError(f"cannot write '{path}': the suffix '{suffix}' is unknown; use {WRITABLE}")
    if not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps must be positive, got {fps}")
    if suffix == ".gif" and fps > MAX_GIF_FPS:
        raise ValueError(f"a gif shows at most {MAX_GIF_FPS} frames per second, got {fps:g}; write .mp4, or fewer")
    there = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ValueError(f"cannot write '{path}': '{there}' is {'write-protected' if there.is_dir() else 'a file'}")
    if suffix and path.is_dir():
        raise ValueError(f"'{path}' is a folder; give the name of a file")
    if not suffix and path.exists():
        if path.is_symlink():
            raise ValueError(f"'{path}' is a link to '{path.resolve()}'; give that itself")
        if not path.is_dir() or not all(map(_is_ours, path.iterdir())):
            raise ValueError(f"'{path}' exists and holds other files; give another output or empty it first")


def natural_key(path: str | os.PathLike) -> list[tuple[int, int, str]]:
    """Sorting key for file names in which numbers count as numbers: `a2` before `a10`."""
    parts = re.split(r"(\d+)", Path(path).name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts if part]


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


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a stored frame becomes upright: swap its axes, then flip it top to bottom, then left to right.

    FFmpeg's display matrix maps x to `a x + c y` and y to `b x + d y`; phones write turns by 90 degrees and mirrors.
    """
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5]
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)


def _square_pixels(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Height and width at which a stored frame has square pixels: DVD, DV and HDV store theirs narrower than they are shown."""
    return frame.height, round(frame.width * float(stream.sample_aspect_ratio or 1))


def _upright_size(frame: av.VideoFrame, stream: av.VideoStream) -> tuple[int, int]:
    """Height and width of what `_upright` returns."""
    size = _square_pixels(frame, stream)
    return size[::-1] if _orientation(frame)[0] else size


def _upright(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    height, width = _square_pixels(frame, stream)
    array = frame.to_ndarray(format="rgb24")
    if width != frame.width:
        array = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC))
    swap, flip_rows, flip_columns = _orientation(frame)
    array = array.swapaxes(0, 1) if swap else array
    array = array[::-1] if flip_rows else array
    return np.ascontiguousarray(array[:, ::-1] if flip_columns else array)


def _stated_rate(stream: av.VideoStream) -> float:
    """Frames per second that the container states or FFmpeg guesses; 0 where neither does."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def _mean_rate(timestamps: np.ndarray) -> float:
    return float((len(timestamps) - 1) / (timestamps[-1] - timestamps[0]))


def _even_rate(timestamps: np.ndarray, stated: float) -> float | None:
    """Frames per second at which each frame lies within a quarter of a frame of its place, or `None`.

    Args:
        timestamps: seconds, increasing.
        stated: what the header says; it comes first, being a clean number such as 25.
    """
    for rate in (stated, _mean_rate(timestamps) if len(timestamps) > 1 else 0.0):
        if rate > 0 and np.abs(timestamps - timestamps[0] - np.arange(len(timestamps)) / rate).max() < 0.25 / rate:
            return rate
    return None


def _spread(timestamps: np.ndarray, end: float) -> tuple[np.ndarray, float]:
    """Indices of the frames that are shown at even times, at the rate of most frames, and that rate.

    Args:
        timestamps: seconds of at least two frames, increasing.
        end: when the last one ends, where that is known.
    """
    gap = float(np.median(np.diff(timestamps)))
    length = max(end, timestamps[-1] + gap) - timestamps[0]
    times = timestamps[0] + np.arange(max(1, round(length / gap))) * gap
    return np.searchsorted(timestamps, times + gap / 2, side="right") - 1, 1 / gap


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
            found.append(_upright(before, stream))
            if len(found) == len(wanted):
                return found
        gap = time - before.time if before is not None else 0.0
        before = frame
    while before is not None and len(found) < len(wanted) and wanted[len(found)] <= before.time + max(gap, 1e-6):
        found.append(_upright(before, stream))
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


def _picture_files(folder: Path) -> list[Path]:
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES), key=natural_key)
    if not files:
        raise ValueError(f"folder '{folder}' holds no pictures; accepted are {', '.join(PICTURE_SUFFIXES)}")
    return files


def _probe_pictures(folder: Path, fps: float | None) -> VideoFacts:
    files, size = _picture_files(folder), None
    fps = _positive(fps, folder)
    for file in files:
        width, height = _read_picture(file).size
        if size not in (None, (height, width)):
            raise ValueError(f"folder '{folder}' has pictures of {size} and, '{file.name}', of {(height, width)}")
        size = height, width
    return VideoFacts(len(files), fps, *size, 0.0, len(files) / fps, files[0].suffix.lower().lstrip("."), None)


def _read_picture(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"no picture at '{path}'")
    try:
        with Image.open(path) as image:
            # A telephone's JPEG may hold a preview or a map of depths beside the picture.
            if image.format != "MPO" and (count := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"it holds {count} pictures; give it as .gif, .mp4 or a folder of pictures")
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as a picture ({error})") from error


def _is_ours(file: Path) -> bool:
    """Whether `write_video` wrote this picture of a folder."""
    if not re.fullmatch(r"frame_\d{5}\.png", file.name):
        return False
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == WRITER
    except (UnidentifiedImageError, OSError):
        return False


def _as_array(frames: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
    if len(frames) == 0:
        raise ValueError("there are no frames to write")
    if isinstance(frames[0], Image.Image):
        sizes = {frame.size for frame in frames}
        if len(sizes) > 1:
            raise ValueError(f"all frames of a video must have the same size, got (width, height) {sorted(sizes)}")
        return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(
            f"frames must be PIL images or uint8 shaped (frames, height, width, 3), got {array.dtype} shaped "
            f"{tuple(array.shape)}"
        )
    return array


def _write_mp4(path: Path, array: np.ndarray, fps: float, crf: int) -> None:
    _, height, width, _ = array.shape
    array = np.pad(array, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), mode="w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = array.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium"}
        # One thread: the picture then does not depend on how many cores the machine has.
        stream.codec_context.thread_count = 1
        for frame in array:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
