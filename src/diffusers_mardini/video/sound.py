"""The sound of a video: its packets as they are, or encoded as AAC, or stretched with its pitch kept. Knows no
pictures."""

import io
import os
from collections.abc import Iterator
from fractions import Fraction

import av
from diffusers.utils import logging

from .errors import named_file_errors
from .opening import open_film


logger = logging.get_logger(__name__)

# What one `atempo` of FFmpeg does, and does well: faster, it would skip samples. More of them follow each other.
SLOWEST, FASTEST = 0.5, 2.0
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)  # per second
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

    def check(self, container: str) -> str:
        """Check, when it is open, that the sound can be put into a container.

        Args:
            container: FFmpeg's name of its format: `"mp4"`, `"mov"` or `"matroska"`.

        Returns:
            What becomes of it: "copied", "encoded" or "stretched".

        Raises:
            ValueError: if FFmpeg has no decoder for it, or cannot encode what comes out.
        """
        if self._from.codec_context is None:
            raise ValueError(f"'{self.source}' has sound that FFmpeg has no decoder for; `sound='drop'` leaves it out")
        if self._is_copied(container):
            return "copied"
        try:
            self._graph()
            layout = self._layout()
        except (av.error.FFmpegError, OverflowError, ValueError) as error:
            raise ValueError(
                f"the sound of '{self.source}' cannot be encoded as AAC ({error}); `sound='drop'` leaves it out"
            ) from error
        if layout.nb_channels != self._from.layout.nb_channels:
            logger.warning(
                f"'{self.source}' has sound in {self._from.layout.name}, which AAC lacks; it is mixed to {layout.name}"
            )
        return "encoded" if self.slower == 1 else "stretched"

    def add_to(self, output: av.container.OutputContainer) -> Iterator[tuple[float, av.Packet]]:
        """Add a stream to a container; return its packets, with their times in seconds, to be muxed in order."""
        if self._is_copied(output.format.name.split(",")[0]):
            return self._copied(output.add_stream_from_template(self._from))
        stream = output.add_stream("aac")
        self._set(stream.codec_context, self._layout())
        return self._encoded(stream)

    def _is_copied(self, container: str) -> bool:
        # The decoder of a codec may have another name than it: `mp3float`.
        if self.slower != 1 or self._from.codec_context.codec.canonical_name not in COPIED[container]:
            return False
        try:  # some rates of a codec are not for each format, such as mp3 below 16 kHz in mp4
            with av.open(io.BytesIO(), mode="w", format=container) as trial:
                trial.add_stream_from_template(self._from)
                trial.start_encoding()
        except (av.error.FFmpegError, ValueError):
            return False
        return True

    def _layout(self) -> av.AudioLayout:
        """Return the channels of the encoded sound: those of the source, or stereo where AAC lacks them."""
        name = self._from.layout.name
        if name.endswith("channels"):  # a file that counts them alone has the usual ones
            name = f"{self._from.layout.nb_channels}c"
        try:
            encoder = av.CodecContext.create("aac", "w")
            self._set(encoder, av.AudioLayout(name))
            encoder.open()
        except (av.error.FFmpegError, ValueError):
            return av.AudioLayout("stereo")
        return av.AudioLayout(name)

    def _set(self, encoder: av.AudioCodecContext, layout: av.AudioLayout) -> None:
        """Set the form of the encoded sound, at the nearest rate that AAC has."""
        rate = min(AAC_RATES, key=lambda each: abs(each - self._from.rate))
        encoder.sample_rate, encoder.time_base = rate, Fraction(1, rate)
        encoder.layout, encoder.format = layout, "fltp"

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
        graph = self._graph()

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

    def _graph(self) -> av.filter.Graph:
        """Return FFmpeg's filters that cut, pad and stretch decoded sound."""
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
        return graph

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
    while tempo > FASTEST:
        factors.append(FASTEST)
        tempo /= FASTEST
    return [*factors, tempo]
