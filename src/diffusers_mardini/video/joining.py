"""Join encoded parts of one video, and its sound, in one file; nothing is encoded again."""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av

from .encoding import FASTSTART, rate_of
from .errors import UnreadableFileError, named_file_errors
from .sound import SoundTrack


REORDERED = 2  # frames that x264 decodes before they are shown, at most, with the settings of `ClipEncoder`


def join(parts: Sequence[Path], path: Path, fps: float, container: str, sound: SoundTrack | None) -> int:
    """Write the pictures of some files, one after the other, to a new one.

    Args:
        parts: written by `ClipEncoder` with the same settings.
        path: the new file.
        fps: frames per second of the parts.
        container: FFmpeg's name of its format: `"mp4"`, `"mov"` or `"matroska"`.
        sound: put beside the pictures.

    Returns:
        The number of frames.
    """
    options = {} if container == "matroska" else FASTSTART
    with ExitStack() as stack:
        output = stack.enter_context(av.open(f"file:{path.absolute()}", mode="w", format=container, options=options))
        with av.open(f"file:{parts[0].absolute()}") as first:
            pictures = output.add_stream_from_template(first.streams.video[0])
        streams = [_pictures(parts, pictures, rate_of(fps))]
        if sound is not None:
            streams.append(stack.enter_context(sound).add_to(output))
        count = 0
        for _, packet in heapq.merge(*streams, key=lambda item: item[0]):
            count += packet.stream is pictures
            output.mux(packet)
    return count


def _pictures(parts: Sequence[Path], to: av.VideoStream, rate: Fraction) -> Iterator[tuple[float, av.Packet]]:
    """Yield the packets of all parts, each part after the one before, with their times in seconds."""
    before = 0
    for part in parts:
        count = 0
        with named_file_errors(f"'{part}'", "a part of the video"), av.open(f"file:{part.absolute()}") as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.dts is None or packet.pts is None:
                    continue
                tick = 1 / rate / Fraction(packet.time_base)  # from one frame to the next
                if tick.denominator != 1:
                    raise UnreadableFileError(f"'{part}' has another clock than the video; remove the parts")
                # Short parts are decoded with less delay than long ones: theirs would overtake each other.
                packet.dts = (before + count - REORDERED) * int(tick)
                packet.pts, packet.stream = packet.pts + before * int(tick), to
                count += 1
                yield float(packet.dts * packet.time_base), packet
        before += count
