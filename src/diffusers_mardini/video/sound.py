"""The sound of a video: its packets as they are, or stretched with its pitch kept. Knows no pictures."""

import os
from collections.abc import Iterator
from fractions import Fraction

import av

from .errors import named_file_errors
from .opening import open_film


SLOWEST = 0.5  # what one `atempo` of FFmpeg can do; more of them follow each other
# Codecs that each format takes as they are; others are encoded again.
COPIED = {
    "mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    "mov": {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s24le"},
    "matroska": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac", "vorbis", "pcm_s16le", "pcm_s24le"},
}


class SoundTrack:
    """The first sound of a file, ready to be put beside pictures.

    Use it as a context manager: the file is open meanwhile.

    Args:
        source: the file.
        start: second on the file's clock that becomes 0.
        seconds: length of the result.
        slower: how many times longer the sound becomes; its pitch stays.
    """

    def __init__(self, source: str | os.PathLike, start: float, seconds: float, slower: float = 1.0):
        self.source, self.start, self.seconds, self.slower = source, start, seconds, slower

    def __enter__(self) -> "SoundTrack":
        self._film = open_film(self.source, repeated=True)
        self._input = self._film.__enter__().container
        self._from = self._input.streams.audio[0]
        return self

    def __exit__(self, *error: object) -> None:
        self._film.__exit__(*error)

    def check(self) -> None:
        """Check, when it is open, that the sound can be decoded.

        Raises:
            ValueError: if FFmpeg has no decoder for it.
        """
        if self._from.codec_context is None:
            raise ValueError(f"'{self.source}' has sound that FFmpeg has no decoder for; `sound='drop'` leaves it out")

    def add_to(self, output: av.container.OutputContainer) -> Iterator[tuple[float, av.Packet]]:
        """Add a stream to a container; return its packets, with their times in seconds, to be muxed in order."""
        codec = self._from.codec_context.name
        if self.slower == 1 and codec in COPIED[output.format.name.split(",")[0]]:
            return self._copied(output.add_stream_from_template(self._from))
        stream = output.add_stream("aac", rate=self._from.rate)
        stream.layout = "mono" if self._from.layout.nb_channels == 1 else "stereo"
        stream.codec_context.format = "fltp"
        return self._encoded(stream)

    def _copied(self, to: av.AudioStream) -> Iterator[tuple[float, av.Packet]]:
        for packet in self._input.demux(self._from):
            if packet.dts is None or packet.pts is None:
                continue
            base = Fraction(packet.time_base)
            time = float(packet.pts * base) - self.start
            if time >= self.seconds:
                return
            if time + float((packet.duration or 0) * base) <= 0:
                continue
            shift = round(self.start / base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, to
            yield max(0.0, time), packet

    def _encoded(self, to: av.AudioStream) -> Iterator[tuple[float, av.Packet]]:
        resampler = av.AudioResampler(format="fltp", layout=to.layout, rate=to.rate)
        written = 0
        end = round(self.seconds * to.rate)
        fifo = av.AudioFifo()
        for stretched in self._stretched():
            for frame in resampler.resample(stretched):
                frame.pts = None
                fifo.write(frame)
                while fifo.samples >= 1024 and written < end:
                    yield from self._packets(to, fifo.read(1024), written)
                    written += 1024
            if written >= end:
                break
        if written < end and fifo.samples:
            yield from self._packets(to, fifo.read(min(fifo.samples, end - written)), written)
        yield from self._packets(to, None, written)

    def _packets(
        self, to: av.AudioStream, frame: av.AudioFrame | None, written: int
    ) -> Iterator[tuple[float, av.Packet]]:
        if frame is not None:
            frame.pts, frame.time_base = written, Fraction(1, to.rate)
        for packet in to.encode(frame):
            yield float((packet.pts or 0) * Fraction(packet.time_base)), packet

    def _stretched(self) -> Iterator[av.AudioFrame]:
        """Yield decoded sound from `start` on, `slower` times as long; silence where the file has none."""
        graph = av.filter.Graph()
        # Sound is resampled to begin when the pictures do; its gaps stay as long as they are.
        filters = [
            ("asetpts", f"PTS-({self.start:.9f})/TB"),
            ("atrim", "start=0"),
            ("aresample", "async=1:first_pts=0"),
            *(("atempo", f"{tempo:.9f}") for tempo in tempos(1 / self.slower)),
            ("asetpts", "N/SR/TB"),
        ]
        last = graph.add_abuffer(template=self._from)
        for name, options in filters:
            added = graph.add(name, options)
            last.link_to(added)
            last = added
        sink = graph.add("abuffersink")
        last.link_to(sink)
        graph.configure()

        def ready() -> Iterator[av.AudioFrame]:
            while True:
                try:
                    yield graph.pull()
                except (av.error.BlockingIOError, av.error.EOFError):
                    return

        for frame in self._decoded():
            time = frame.time if frame.time is not None else 0.0
            if time + frame.samples / frame.sample_rate <= self.start:
                continue
            graph.push(frame)
            yield from ready()
        graph.push(None)
        yield from ready()

    def _decoded(self) -> Iterator[av.AudioFrame]:
        """Yield the decoded sound; damaged packets are left out, as players do."""
        with named_file_errors(f"'{self.source}'", "sound, which `sound='drop'` leaves out"):
            for packet in self._input.demux(self._from):
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    continue


def tempos(tempo: float) -> list[float]:
    """Return factors that each `atempo` takes, whose product is `tempo`."""
    factors = []
    while tempo < SLOWEST:
        factors.append(SLOWEST)
        tempo /= SLOWEST
    return [*factors, tempo]
