"""Open a video: choose its stream and decoder, and decode frames, deinterlaced.

Tags and metadata of a container, a stream or a frame are read here, in `upright.py` and in `colour.py`, and nowhere
else.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from diffusers.utils import logging

from .container_facts import NO_CROP, Crop, ends_whole, video_crops
from .errors import READERS_ERRORS, UnreadableFileError, named_file_errors
from .upright import Screen


logger = logging.get_logger(__name__)

# FFmpeg's own decoders of these codecs drop the transparency.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# Streams that are no videos: covers of sound files, and previews.
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
STILL_BRANDS = ("avif", "heic", "heix", "mif1", "mif2")  # brands of HEIF, which FFmpeg reads as a video of one frame

_decoding = partial(named_file_errors, wanted="a video", verb="decoded")


class OnePictureError(UnreadableFileError):
    """A picture was given in place of a video."""


class _Warnings:
    """Says each sentence about a file once."""

    def __init__(self, label: str, say: Callable[[str], None]):
        self._label, self._say, self._said = label, say, set()

    def warn(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(f"{self._label} {sentence}")


class Film:
    """The stream of an open video that a player would show.

    Attributes:
        container: the container that PyAV opened.
        stream: the stream.
        label: the file's name in messages.
        is_whole: whether the file ends where a complete one does; `None` if the format does not show it.
        is_picture: whether it is a still picture that FFmpeg reads as a video.
        is_interlaced: whether a frame so far was made of two fields.
        warn: warns once of something that is lost or ignored; its sentence lacks the subject, the file.
    """

    def __init__(self, container, label: str, crops: list[Crop], is_whole: bool | None, say: Callable[[str], None]):
        self.container, self.label, self.is_whole = container, label, is_whole
        self.is_picture = container.metadata.get("major_brand", "").strip() in STILL_BRANDS
        self.is_interlaced = False
        # Not a method of the film, which the screen would keep alive, and with it the decoder's threads.
        self.warn = _Warnings(label, say).warn
        self._size = None
        self.stream = self._choose()
        tracks = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        crop = crops[tracks.index(self.stream)] if len(crops) == len(tracks) else NO_CROP
        self._screen = Screen(self.stream, crop, self.warn)

    def _choose(self) -> av.VideoStream:
        """Choose the stream by FFmpeg's rule: the one marked as default, then the largest, then the first."""
        name = self.container.format.name
        streams = [stream for stream in self.container.streams.video if not stream.disposition & NO_FILM]
        if not streams:
            raise self.error("has no video stream; give a video file such as .mp4 or .gif")
        films = [stream for stream in streams if stream.codec_context is not None]
        if not films:
            raise self.error("is coded in a way that this PyAV cannot decode; encode it again as .mp4")
        if name.endswith("_pipe") or name == "image2":
            raise OnePictureError(f"{self.label} is one picture, not a video; give a video or a folder of pictures")
        if self.is_picture and films[0].disposition & Disposition.dependent:
            raise OnePictureError(f"{self.label} is one picture, made of {len(films)} tiles; save it as JPEG or PNG")
        return max(films, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))

    def error(self, sentence: str) -> UnreadableFileError:
        """Return an error about this file; `sentence` lacks its subject."""
        return UnreadableFileError(f"{self.label} {sentence}")

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decode from the container's current position; interlaced fields become whole frames."""
        weaver = None
        for frame in self._decoded():
            if weaver is None and frame.interlaced_frame:
                self.is_interlaced = True
                self.warn("is interlaced; its frames are made whole by interpolating lines")
                weaver = Weaver()
            if weaver is None:
                yield frame
                continue
            with _decoding(self.label):
                whole = weaver.push(frame)
            yield from whole
        if weaver is not None:
            with _decoding(self.label):
                whole = weaver.finish()
            yield from whole

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return height and width of a frame as `show` returns it.

        Raises:
            UnreadableFileError: if the frames before it had another size.
        """
        return self._same(self._screen.size(frame), frame)

    def show(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame upright, with square pixels, as `uint8` `(height, width, 3)`; check as `size` does."""
        try:
            shown = self._screen.show(frame)
        except READERS_ERRORS:
            with _decoding(self.label):
                raise
        self._same(shown.shape[:2], frame)
        return shown

    def _same(self, size: tuple[int, int], frame: av.VideoFrame) -> tuple[int, int]:
        if self._size not in (None, size):
            raise self.error(
                f"changes its size from {self._size} to {size} at {frame.time or 0:.2f} seconds; cut it there"
            )
        self._size = size
        return size

    def _decoded(self) -> Iterator[av.VideoFrame]:
        decode = self._alpha_decoder() or self.stream.codec_context
        with _decoding(self.label):  # errors of the code that uses the frames are not raised in here
            for packet in self.container.demux(self.stream):
                yield from decode.decode(packet)

    def _alpha_decoder(self) -> av.VideoCodecContext | None:
        """Return a decoder that keeps the transparency, if the file has any and the stream's own decoder drops it."""
        name = ALPHA_DECODERS.get(self.stream.codec_context.name)
        stated = {key.lower(): value for key, value in self.stream.metadata.items()}
        if name is None or stated.get("alpha_mode") != "1":
            return None
        try:
            decoder = av.CodecContext.create(name, "r")
        except ValueError:
            self.warn(f"is transparent, which only the decoder {name} knows; this PyAV has none, so it lies on black")
            return None
        assert isinstance(decoder, av.VideoCodecContext), f"{name} decodes videos"
        decoder.extradata = self.stream.codec_context.extradata
        return decoder


class Weaver:
    """Deinterlace: return a whole frame for each frame of two fields; other frames pass through."""

    def __init__(self):
        self._graph, self._kind = None, None

    def push(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Take a frame and return those that are finished."""
        kind, whole = (frame.width, frame.height, frame.format.name), []
        if self._graph is None or kind != self._kind:
            whole, self._kind, self._graph = self.finish(), kind, av.filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            weave = self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
            self._graph.link_nodes(source, weave, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        return whole + self._ready()

    def finish(self) -> list[av.VideoFrame]:
        """Return the last frames, which were waiting for the ones after them."""
        if self._graph is None:
            return []
        self._graph.push(None)
        return self._ready()

    def _ready(self) -> list[av.VideoFrame]:
        assert self._graph is not None, "called after a frame was pushed"
        frames = []
        while True:
            try:
                frames.append(self._graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return frames


@dataclass(frozen=True)
class FileSection:
    """A video that lies within another file, such as an archive, from `offset` on for `length` bytes.

    A subclass may read what is no local file; its `path` is then any name.
    """

    path: Path | str
    offset: int
    length: int

    def open(self) -> io.BufferedReader:
        """Open it for reading; close it in the end."""
        return io.BufferedReader(_Section(self))

    def read(self) -> bytes:
        """Return all of its bytes."""
        with self.open() as file:
            return file.read()


class PartReader(io.RawIOBase):
    """Some bytes of a larger file as a file of their own; `readinto` reads them from `_place` on.

    Args:
        length: in bytes.
    """

    def __init__(self, length: int):
        self._length, self._place = length, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte that is read."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, and return it; raise `ValueError` for one before the first byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise ValueError(f"a file has no place {start + offset}")
        self._place = start + offset
        return self._place


class _Section(PartReader):
    """Reads a section of a file on this machine."""

    def __init__(self, section: FileSection):
        super().__init__(section.length)
        self._section = section
        self._file = io.FileIO(section.path)

    def readinto(self, buffer) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._place)]
        self._file.seek(self._section.offset + self._place)
        count = self._file.readinto(view) or 0
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def open_film(source: str | os.PathLike | bytes | FileSection, repeated: bool = False) -> Iterator[Film]:
    """Open a video file or its bytes.

    Args:
        source: a path, which may look like a pattern or an address of FFmpeg's, or the bytes or place of a file.
        repeated: whether the same file is opened again and again; each warning is then given once in a process.

    Raises:
        UnreadableFileError: if there is no file, or it is not a video.
    """
    inside = isinstance(source, (bytes, FileSection))
    length = source.length if isinstance(source, FileSection) else len(source) if isinstance(source, bytes) else 0
    label = f"the video of {length} bytes" if inside else f"'{source}'"
    if not inside and not Path(source).is_file():
        raise UnreadableFileError(f"no video file at {label}" + ("; it is a folder" if Path(source).is_dir() else ""))
    with _decoding(label):
        if isinstance(source, FileSection):
            file = source.open()
        else:
            file = io.BytesIO(source) if isinstance(source, bytes) else io.FileIO(source)
    with file:
        with _decoding(label):
            if not inside:
                # FFmpeg would take names such as "take:1.mp4" or "a%d.gif" for addresses and patterns.
                file.name = f"video{Path(source).suffix}"
            crops, is_whole = video_crops(file), ends_whole(file)
            file.seek(0)
            # Titles may be in any encoding. A list of other files (.m3u8, concat) is refused: it could name any file.
            options = {"protocol_whitelist": "none"}
            container = av.open(file, metadata_errors="ignore", container_options=options)
        with container:
            yield Film(container, label, crops, is_whole, _warn_once if repeated else logger.warning)


@lru_cache(maxsize=4096)
def _warn_once(text: str) -> None:
    logger.warning(text)


def forget_warnings() -> None:
    """Let warnings of files that are opened again and again be given anew, at the end of what opened them."""
    _warn_once.cache_clear()
