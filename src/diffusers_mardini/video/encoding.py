"""Encode frames one at a time. Knows no final names: `writing.py` and `joining.py` put finished files there."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import VideoReformatter


BT709 = 1  # FFmpeg's number for the matrix, the primaries and the transfer alike
LIMITED = 1  # FFmpeg's number for the range
FASTSTART = {"movflags": "+faststart"}
QUICKTIME = ("mp4", "mov")  # containers with its clocks


class ClipEncoder:
    """Write H.264 or VP9 (yuv420p, tagged BT.709), or FFV1, which loses nothing, for as long as the `with` block lasts.

    Args:
        path: the file; its name tells nothing.
        width, height: of the frames in pixels. Except for FFV1, an odd side gets its last row or column repeated.
        fps: frames per second.
        crf: quality, see `write_video`; `None` for FFV1.
        container: FFmpeg's name of the format.
        options: of the container; by default those that let an mp4 or mov begin to play while it is loaded.
        encoder: FFmpeg's name, `libx264` or `libvpx-vp9`; not for FFV1.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: float,
        crf: float | None,
        container: str = "mp4",
        options: Mapping[str, str] | None = None,
        encoder: str = "libx264",
    ):
        self.num_frames = 0
        rate = rate_of(fps)
        options = dict((FASTSTART if container in QUICKTIME else {}) if options is None else options)
        if container in QUICKTIME:
            # The container's default clocks have too few bits for slow frames, and round the length of fast ones to 0.
            if rate < Fraction(1, 1000):
                options["video_track_timescale"] = str(rate.numerator)
            if rate > 1000:
                options["movie_timescale"] = str(rate.numerator)
        # `file:` keeps FFmpeg from reading a colon in the path as a protocol; the format does not depend on the name.
        self._container = av.open(f"file:{path.absolute()}", mode="w", format=container, options=options)
        self._lossless = crf is None
        self._stream = self._container.add_stream("ffv1" if self._lossless else encoder, rate=rate)
        if self._lossless:
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "bgr0"
            self._odd = (0, 0), (0, 0), (0, 0)
        else:
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            # With its tree of macroblocks x264 gave other bytes for the same frames in one of 400 runs. VP9 takes the
            # quality alone only if no rate of bits is asked for.
            own = {"preset": "medium", "mbtree": "0"} if encoder == "libx264" else {"b": "0"}
            self._stream.options = {"crf": str(crf), **own}
            self._odd = (0, height % 2), (0, width % 2), (0, 0)
        self._reformatter = VideoReformatter()  # one for all frames: a new one starts a thread for each core
        context = self._stream.codec_context
        # One thread, so that the result does not depend on the number of cores.
        context.thread_count = 1
        if not self._lossless:
            # Without tags, players guess the matrix by the size, each in its own way.
            context.colorspace, context.color_primaries, context.color_trc = BT709, BT709, BT709
            context.color_range = LIMITED

    def add(self, frame: np.ndarray) -> None:
        """Encode the next frame, `uint8` `(height, width, 3)`."""
        picture = av.VideoFrame.from_ndarray(np.pad(frame, self._odd, mode="edge"), format="rgb24")
        if not self._lossless:
            picture = self._reformatter.reformat(
                picture, format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED
            )
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def close(self) -> None:
        """Write what the encoder holds back, and the end of the file."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def abandon(self) -> None:
        """Close the file, which stays incomplete."""
        self._container.close()

    def __enter__(self) -> "ClipEncoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()


def rate_of(fps: float) -> Fraction:
    """Return the rate as a fraction of moderate numbers; below 1 the seconds per frame are rounded instead."""
    if fps >= 1:
        return Fraction(fps).limit_denominator(1001)
    return 1 / (1 / Fraction(fps)).limit_denominator(1001)
