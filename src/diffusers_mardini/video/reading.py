"""Read clips: every frame, the frames at some times, or only the facts about them."""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from diffusers.utils import logging
from PIL import Image

from .errors import UnreadableFileError
from .opening import FileSection, Film, OnePictureError, open_film
from .picture_files import PICTURE_SUFFIXES, PictureSeries, read_picture
from .times import PICTURE_FPS, even_rate, mean_rate, spread, usual_gap


logger = logging.get_logger(__name__)

Source = str | os.PathLike | bytes | FileSection | PictureSeries
READING = 3  # increment when some files are read with other pixels or times than before
# A last frame that is shown for less is not repeated, because encoders write an arbitrary length there. Gifs are
# exact.
HELD_FROM = 0.1  # seconds


@dataclass(frozen=True)
class VideoFacts:
    """The facts about a video that decoding every frame gives; headers of containers only guess.

    Attributes:
        num_frames: the number of frames that can be decoded.
        fps: frames per second; the mean if the rate varies.
        height, width: size of an upright frame.
        start: time of the first frame on the file's own clock, in seconds.
        duration: seconds from the first frame to the end of the last.
        codec: name of the decoder; for a folder of pictures their suffix, such as `png`.
        timestamps: seconds of all frames on the file's own clock if the rate varies; `None` if frame `i` lies
            within a quarter of a frame of `start + i / fps`.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    start: float
    duration: float
    codec: str
    timestamps: np.ndarray | None


@dataclass
class _Decoded:
    """The facts about the decoded frames of a film.

    Attributes:
        times: seconds of each frame on the file's own clock, `None` for one without a time.
        damaged: indices of the frames that the decoder could not restore.
        final: the last frame.
    """

    times: list[float | None] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    final: av.VideoFrame | None = None

    def add(self, frame: av.VideoFrame) -> None:
        """Take the facts of the next frame."""
        if frame.is_corrupt:
            self.damaged.append(len(self.times))
        self.times.append(frame.time)
        self.final = frame

    def first_unordered(self) -> int | None:
        """Return the index of the first frame whose time is not after that of the one before, or `None`."""
        for index, (before, time) in enumerate(zip([float("-inf"), *self.times], self.times)):
            if before is None or time is None or time <= before:
                return index
        return None


def decoder_version() -> str:
    """Return name and version of the decoder for fingerprints: another may give other pixels, or other frames."""
    return (
        f"reading {READING}, PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
    )


def read_video(
    path: str | os.PathLike, prepare: Callable[[np.ndarray], np.ndarray] | None = None
) -> tuple[np.ndarray, float]:
    """Return every frame of a video as a player shows it, evenly spaced in time.

    Frames are upright, with square pixels, cropped as the container asks, in sRGB (HDR is tone-mapped), on white
    if they are transparent, and deinterlaced.

    If their times are uneven (screen recordings, phones, gifs that hold a frame), each frame is shown until the next
    one's time: the clip gets the rate of most of its frames, or up to four times that if many are shown for less, and
    held frames are repeated. A pause is filled for 10 seconds at most, and all pauses with at most four times as many
    frames as the file has, or 300. Warnings report this, and how many frames a cut-off file lacks.

    Args:
        path: a video file (anything FFmpeg decodes, gif included).
        prepare: a function of a frame, `uint8` shaped `(height, width, 3)`, that returns what to keep of it, such as
            a smaller frame. A long video of large frames then fits in memory.

    Returns:
        The frames, `uint8` shaped `(frames, height, width, 3)`, and their number per second: 8 for a gif of one
        frame, which has no rate.

    Raises:
        ValueError: if the file is missing, is not a video, cannot be decoded, changes its size, or holds no frame.
    """
    frames, fps = _read(path, prepare or (lambda frame: frame))
    return np.stack(frames), fps or PICTURE_FPS


def probe_video(
    source: Source,
    fps: float | None = None,
    each: Callable[[], object] = lambda: None,
) -> VideoFacts:
    """Return exact facts about a video: decode every frame and keep none, so that memory is bounded.

    Args:
        source: a video file, its bytes or their place in a file, or a folder or another series of pictures.
        fps: frames per second of pictures, which have no rate of their own.
        each: called after every frame; what it raises ends the decoding.

    Raises:
        ValueError: as `read_video` does, and if time stamps do not increase, or frames end well before the
            length that the file states (a truncated file).
    """
    if (pictures := _pictures(source)) is not None:
        return _probe_pictures(pictures, fps, each)
    decoded, size = _Decoded(), (0, 0)
    with open_film(source) as film:
        for frame in film.frames():
            size = film.size(frame)
            decoded.add(frame)
            each()
        if not decoded.times:
            raise film.error("holds no frame; it is damaged or empty")
        if (index := decoded.first_unordered()) is not None:
            raise film.error(f"has no increasing time stamps (frame {index}); encode it again as .mp4")
        timestamps, codec = np.array(decoded.times), film.stream.codec_context.name
        rate = _stated_rate(film, len(timestamps))
        if missing := _what_is_missing(film, timestamps, rate):
            raise film.error(missing)
        _warn_of_damage(film, decoded)
        last = _last_length(film, timestamps, decoded)
    even = even_rate(timestamps, rate or (PICTURE_FPS if len(timestamps) == 1 else 0.0))
    mean = even or mean_rate(timestamps)
    span = float(timestamps[-1] - timestamps[0])
    duration = span + last if last else len(timestamps) / even if even else span + 1 / mean
    return VideoFacts(
        len(timestamps), mean, *size, float(timestamps[0]), duration, codec, timestamps if even is None else None
    )


def iterate_frames(
    source: Source, fps: float | None = None, timestamps: Sequence[float] | None = None, warns: bool = False
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield `(time on the file's own clock, upright uint8 (height, width, 3))`, one frame in memory at a time.

    Frames and errors are those of `probe_video`, but its checks of the whole file are not repeated.

    Args:
        source, fps: see `probe_video`.
        timestamps: see `read_frames`; by default all frames are read.
        warns: whether to warn of what is damaged or missing, as `read_video` does, after the last frame.
    """
    if timestamps is not None:
        yield from zip(timestamps, _frames_at(source, list(timestamps), fps))
        return
    if (pictures := _pictures(source)) is not None:
        for index in range(len(pictures)):
            yield index / _positive(fps, pictures), np.asarray(pictures.read(index))
        return
    decoded = _Decoded()
    with open_film(source, repeated=True) as film:
        for frame in film.frames():
            if warns:
                decoded.add(frame)
            yield _time(film, frame), film.show(frame)
        if warns and decoded.times:
            _warn_of_loss(film, decoded, _stated_rate(film, len(decoded.times)))


def read_frames(source: Source, timestamps: Sequence[float], fps: float | None = None) -> np.ndarray:
    """Return the frames nearest to some times; decoding starts at the key frame before the first of them.

    Args:
        source, fps: see `probe_video`.
        timestamps: seconds on the file's own clock, not decreasing; `probe_video` gives exact ones.

    Returns:
        `uint8` shaped `(len(timestamps), height, width, 3)`.

    Raises:
        ValueError: as `read_video` does, or if the video ends before the last time by more than a frame.
    """
    return np.stack(list(_frames_at(source, list(timestamps), fps)))


def _frames_at(source: Source, wanted: list[float], fps: float | None) -> Iterator[np.ndarray]:
    """Yield the frame nearest to each time; see `read_frames`."""
    if not wanted or any(second < first for first, second in itertools.pairwise(wanted)):
        raise ValueError(f"timestamps must be at least one and must not decrease, got {wanted}")
    if (pictures := _pictures(source)) is not None:
        indices = [round(time * _positive(fps, pictures)) for time in wanted]
        if not 0 <= indices[0] <= indices[-1] < len(pictures):
            raise ValueError(f"{pictures.label} has {len(pictures)} pictures, picture {indices[-1]} was asked for")
        yield from (np.asarray(pictures.read(index)) for index in indices)
        return
    done = 0
    # Key frames are found by decoding time, which may be before the time of presentation: then seek further back.
    for head_start in (0.0, 2.0, None):
        with open_film(source, repeated=True) as film:
            if head_start is not None:
                try:
                    ticks = max(0, int((wanted[done] - head_start) / _time_base(film)))
                    film.container.seek(ticks, stream=film.stream)
                except av.error.FFmpegError:  # a format that cannot seek is decoded from its beginning
                    continue
            for frame in _nearest(film.frames(), film, wanted[done:], at_start=head_start is None):
                yield frame
                done += 1
        if done == len(wanted):
            return
    raise film.error(f"ends before {wanted[-1]:.3f} seconds; it is damaged, or another file than it was")


def pictures_of(path: str | os.PathLike) -> PictureSeries | None:
    """Return the pictures of a folder, or a picture as a series of one; `None` for a video."""
    path = Path(path)
    if path.is_dir():
        return PictureSeries.of_folder(path)
    try:
        with open_film(path, repeated=True):
            return None
    except OnePictureError:
        return PictureSeries(f"'{path}'", [path.name], lambda _: path)


def frames_of_numbers(source: str | os.PathLike, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames of a video, a folder of pictures or a picture by their numbers, counted from 0 and rising.

    Frames before the first are decoded, but not converted.
    """
    if (pictures := pictures_of(source)) is not None:
        yield from (np.asarray(pictures.read(number)) for number in numbers)
    elif numbers:
        with open_film(source, repeated=True) as film:
            decoded, number = film.frames(), -1
            for wanted in numbers:
                while number < wanted:
                    frame, number = next(decoded, None), number + 1
                if frame is None:
                    raise film.error(f"ends before frame {wanted}; it has changed since it was opened")
                yield film.show(frame)


@dataclass(frozen=True)
class StatedFacts:
    """Hold what the header of a video states; of pictures, all is 0.

    Attributes:
        fps: frames per second; 0 if it states none.
        tick: seconds of one tick of its clock, to which times are rounded.
        sounds, subtitles: numbers of tracks.
    """

    fps: float = 0.0
    tick: float = 0.0
    sounds: int = 0
    subtitles: int = 0


def stated_facts(source: str | os.PathLike) -> StatedFacts:
    """Return what the header of a video states, or nothing of a picture or a folder of them."""
    if pictures_of(source) is not None:
        return StatedFacts()
    with open_film(source, repeated=True) as film:
        streams = film.container.streams
        return StatedFacts(_stated_rate(film, 0), float(_time_base(film)), len(streams.audio), len(streams.subtitles))


def read_images(
    path: str | os.PathLike, prepare: Callable[[Image.Image], Image.Image] | None = None
) -> tuple[list[Image.Image], float | None]:
    """Return a picture, a folder of pictures (in natural order: 2 before 10) or a video as PIL images.

    A file without the suffix of a picture is recognised by its content.

    Args:
        path: the file or folder.
        prepare: a function of an image that returns what to keep of it; see `read_video`.

    Returns:
        RGB images (the same object for each repetition of a held frame), and the frames per second of a video, else
        `None`.

    Raises:
        ValueError: if there is nothing readable.
    """
    path = Path(path)
    prepare = prepare or (lambda image: image)
    if path.is_dir():
        pictures = PictureSeries.of_folder(path)
        return [prepare(pictures.read(index)) for index in range(len(pictures))], None
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        try:
            return _read(path, lambda frame: prepare(Image.fromarray(frame)))
        except OnePictureError:
            pass
    return [prepare(read_picture(path))], None


def has_sound(path: str | os.PathLike) -> bool:
    """Return whether a video file has sound; `False` for pictures, folders, and files that cannot be read."""
    try:
        with open_film(path) as film:
            return len(film.container.streams.audio) > 0
    except UnreadableFileError:
        return False


def _read(path: str | os.PathLike, prepare: Callable[[np.ndarray], object]) -> tuple[list, float | None]:
    """Return prepared frames at even times, and their rate, if any; a held frame is the same object each time."""
    frames, decoded = [], _Decoded()
    with open_film(path) as film:
        for frame in film.frames():
            frames.append(prepare(film.show(frame)))
            decoded.add(frame)
        if not frames:
            raise film.error("holds no frame; it is damaged or empty")
        fps = _stated_rate(film, len(frames))
        if (index := decoded.first_unordered()) is None and len(frames) > 1:
            return _spread(film, frames, decoded, fps)
    _warn_of_damage(film, decoded)
    if index is not None and decoded.times[index] is not None:
        film.warn(
            f"has time stamps that do not increase (frame {index}); its frames are taken as {fps:.4g} per second"
        )
    if fps <= 0 and len(frames) > 1:
        raise film.error("does not say how many frames it has per second; encode it again as .mp4")
    return frames, fps or None


def _spread(film: Film, frames: list, decoded: _Decoded, fps: float) -> tuple[list, float]:
    """Return the frames at even times, and their rate; warn if frames were repeated or left out."""
    times = np.array(decoded.times)
    _warn_of_loss(film, decoded, fps)
    even, last, exact = even_rate(times, fps), _last_length(film, times, decoded), _is_gif(film)
    if even and exact:
        # A gif's times are rounded to hundredths. If its last frame is shown for less than the others, these are
        # repeated.
        off = np.abs(times - times[0] - np.arange(len(times)) / even).max()
        even = even if off <= 0.0101 and last >= 0.75 / even else None
    if even and last < 1.5 / even:
        return frames, even
    showing = spread(times, last, even, exact)
    if np.array_equal(showing.order, np.arange(len(frames))):
        return frames, showing.fps
    text = f"has frames at uneven times: {len(frames)} became {len(showing.order)}, at {showing.fps:.4g} per second"
    if showing.left_out:
        listed = ", ".join(map(str, showing.left_out[:10])) + (", ..." if len(showing.left_out) > 10 else "")
        text += f"; {len(showing.left_out)} that are shown too briefly were left out: {listed}, counted from 0"
    if showing.cut > 0:
        text += f"; pauses of up to {showing.longest:.1f} seconds were shortened, by {showing.cut:.1f} seconds in all"
    film.warn(text)
    return [frames[index] for index in showing.order], showing.fps


def _warn_of_loss(film: Film, decoded: _Decoded, fps: float) -> None:
    """Warn of frames that the file states and does not have, or else of damaged ones."""
    if decoded.first_unordered() is None and (missing := _what_is_missing(film, np.array(decoded.times), fps)):
        film.warn(missing)
    else:
        _warn_of_damage(film, decoded)


def _what_is_missing(film: Film, times: np.ndarray, rate: float) -> str | None:
    """Return a sentence, without its subject, if the file states an end well after its last frame; else `None`."""
    count, stated = len(times), _stated_end(film)
    if _has_all(film, count):
        return None
    gap = float(np.diff(times).max()) if count > 1 else 1 / (rate or PICTURE_FPS)
    end = float(times[-1]) + gap
    if stated - end <= 2.5 * gap:
        return None
    usual = float(np.median(np.diff(times))) if count > 1 else gap
    expected = film.stream.frames or round((stated - times[0]) / usual)
    return (
        f"is truncated: it states {stated:.2f} seconds, but its {count} frames end at {end:.2f}; "
        f"{count} of {expected} frames can be read"
    )


def _last_length(film: Film, times: np.ndarray, decoded: _Decoded) -> float:
    """Return the seconds for which the last frame is shown; 0 if they are those of the others, or unknown."""
    if _is_gif(film):
        # Other formats may store frames in another order; the length found here is then another frame's.
        assert decoded.final is not None, "called after a frame was decoded"
        return float((decoded.final.duration or 0) * (decoded.final.time_base or 0))
    last = _stated_end(film) - float(times[-1]) if len(times) > 1 and _has_all(film, len(times)) else 0.0
    return last if last >= HELD_FROM and last >= 1.5 * usual_gap(np.diff(times)) else 0.0


def _has_all(film: Film, count: int) -> bool:
    """Return whether surely nothing is missing, if `count` frames were decoded."""
    return bool(film.is_whole or (film.stream.frames and count >= film.stream.frames))


def _is_gif(film: Film) -> bool:
    return film.container.format.name == "gif"


def _warn_of_damage(film: Film, decoded: _Decoded) -> None:
    if decoded.damaged:
        count, first = len(decoded.damaged), decoded.damaged[0]
        film.warn(f"is damaged in {count} of {len(decoded.times)} frames, first in frame {first}, counted from 0")
    if film.is_whole is False:
        film.warn("ends in the midst of its data, as a broken download does; how much is missing is unknown")


def _stated_rate(film: Film, count: int) -> float:
    """Return the rate that the container states or FFmpeg guesses; 0 if there is none, as for a single picture."""
    if film.is_picture or (count == 1 and _is_gif(film)):
        return 0.0
    return float(film.stream.average_rate or film.stream.guessed_rate or 0)


def _time_base(film: Film) -> Fraction:
    if film.stream.time_base is None:
        raise film.error("has no clock; encode it again as .mp4")
    return film.stream.time_base


def _time(film: Film, frame: av.VideoFrame) -> float:
    if frame.time is None:  # a bare stream, or a container that was damaged since it was probed
        raise film.error("has frames without time stamps; encode it again as .mp4")
    return float(frame.time)


def _nearest(
    decoded: Iterator[av.VideoFrame], film: Film, wanted: list[float], at_start: bool
) -> Iterator[np.ndarray]:
    """Yield the frame nearest to each time; none if the frames begin too late, some if they end too early."""
    found, before, gap, first = 0, None, 0.0, True
    for frame in decoded:
        time = _time(film, frame)
        if before is None and time > wanted[0] + 1e-6 and not at_start:
            return
        # Times up to the middle between two frames belong to the first of them.
        while before is not None and wanted[found] <= (before.time + time) / 2:
            if first and film.is_interlaced and not at_start:
                return  # it was deinterlaced without the frame before it, so it differs from a full decoding
            yield film.show(before)
            found += 1
            if found == len(wanted):
                return
        gap = time - before.time if before is not None else 0.0
        before, first = frame, before is None
    while before is not None and found < len(wanted) and wanted[found] <= before.time + max(gap, 1e-6):
        yield film.show(before)
        found += 1


def _stated_end(film: Film) -> float:
    """Return the end of the video as the file states it, in seconds on its own clock; 0 if it states none."""
    stream = film.stream
    if stream.duration:
        return float(((stream.start_time or 0) + stream.duration) * _time_base(film))
    stated = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska's form
    if stated:
        hours, minutes, seconds = map(float, stated.groups())
        return 3600 * hours + 60 * minutes + seconds
    if film.container.format.name == "flv" and len(film.container.streams) == 1 and film.container.duration:
        return film.container.duration / av.time_base
    return 0.0


def _pictures(source: Source) -> PictureSeries | None:
    """Return the pictures of a folder or series; `None` for a video."""
    if isinstance(source, (PictureSeries, FileSection, bytes)):
        return source if isinstance(source, PictureSeries) else None
    return PictureSeries.of_folder(Path(source)) if Path(source).is_dir() else None


def _positive(fps: float | None, pictures: PictureSeries) -> float:
    if fps is None or not fps > 0:
        raise ValueError(f"{pictures.label} of pictures needs a positive number of frames per second, got fps={fps}")
    return fps


def _probe_pictures(pictures: PictureSeries, fps: float | None, each: Callable[[], object]) -> VideoFacts:
    size, fps = None, _positive(fps, pictures)
    for index, name in enumerate(pictures.names):
        width, height = pictures.read(index).size
        if size not in (None, (height, width)):
            raise ValueError(f"{pictures.label} has pictures of {size} and, '{name}', of {(height, width)}")
        size = height, width
        each()
    suffix = Path(pictures.names[0]).suffix.lower().lstrip(".")
    return VideoFacts(len(pictures), fps, *size, 0.0, len(pictures) / fps, suffix, None)
