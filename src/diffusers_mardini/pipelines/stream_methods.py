"""`retime` of `MarDiniPipeline`, and what its methods with `stream=True` have in common: check, then make the iterator.

`streams.py` samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .conditions import Conditions, read_conditions, read_rows
from .inputs import warn_if_far, whole_number
from .one_call import in_use
from .pasting import check_pasting
from .pipeline_output import MarDiniPipelineOutput
from .rollout import MarDiniRollout
from .sampling_options import SamplingOptions
from .stream_inputs import PictureStream, checked_cuts, frame_times, kept_frames, positive, timed, with_equality
from .stream_plans import Arrival, RetimePlan, SlowMotionPlan
from .streams import stream_extension, stream_windows


DECODE_CHUNK_SIZE = 16  # default number of frames that the VAE encodes or decodes at once


class StreamMixin:
    """`retime` of `MarDiniPipeline`, and the streams of its other methods."""

    def retime(
        self,
        video: Any,
        fps: float,
        source_fps: float | None = None,
        times: Iterable[float] | None = None,
        cuts: Iterable[int] = (),
        window: int | None = None,
        window_batch_size: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        timesteps: list[int] | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        decode_chunk_size: int = DECODE_CHUNK_SIZE,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        use_window_state: bool = True,
        stream: bool = False,
        origin: float | None = None,
        first_frame: int = 0,
        conditions: Mapping[str, Any] | None = None,
        paste_given: bool = False,
    ) -> Any:  # MarDiniPipelineOutput, a tuple, or an iterator
        r"""
        Give a clip another rate, by time: frame `k` of the result shows the moment `k / fps`.

        Frames that exist at that moment, within half a millisecond, are taken; the others are sampled at their exact
        place between their neighbours. The result ends with the last frame of `video`. A window holds given frames and
        those in demand, and its frames lie on the models' axis of frames as they do in time, also between its whole
        numbers: docs/results/long_video.md measures that against finer grids.

        Frames that are not later than the one before are left out. So are frames that equal the one before in every
        pixel, for up to a quarter of a second: the motion goes on through their time. A longer pause stays one.

        Args:
            video: A clip of at least 2 frames: a list, an array, an iterator or a reader.
            fps (`float`): Frames per second of the result.
            source_fps (`float`, *optional*): Frames per second of `video`.
            times (iterable of `float`, *optional*): In place of `source_fps`: the seconds of each frame.
            cuts (iterable of `int`, *optional*): Numbers of the frames of `video` that begin a scene. Between them and
                the frames before nothing is sampled: the nearer of both is held.
            window (`int`, *optional*): Most frames of a window, at least 3; by default as many as the model was
                trained for.
            window_batch_size (`int`, defaults to `1`): Most windows that run at once, see
                [`~MarDiniPipeline.slow_motion`]. Only windows whose frames lie alike in time can.
            stream (`bool`, defaults to `False`):
                Whether to return an iterator of frames instead of all of them, see [`~MarDiniPipeline.slow_motion`].
            origin (`float`, *optional*): The moment of frame 0 of the result; by default that of the first frame.
            first_frame (`int`, defaults to `0`): Number of the first frame of the result that is made. With `origin`,
                and the frames of `video` from the last one before it, a part of a longer result.
            conditions (`dict`, *optional*): Conditions of the frames of the result, `(frames, channels)` each, counted
                from `origin`. A window's frame gets the mean over the time since the one before (or the sum), as in
                [`~MarDiniPipeline.slow_motion`]. Rows after the last frame are not used.
            paste_given (`bool`, defaults to `False`): Whether frames that exist come out with their own pixels,
                resized, and not as the VAE decodes them.
            The other arguments are those of [`~MarDiniPipeline.__call__`]. `generator` is used window by window, in
            the order of time; the result does not depend on how the frames arrive, nor on `stream`.

        Returns:
            [`MarDiniPipelineOutput`] with one video, or a tuple with the same; with `stream`, an iterator of frames.

        Raises:
            ValueError: for every unusable argument, before any model runs; for unusable frames, when they arrive.
        """
        fps, first_frame = positive(fps, "fps"), whole_number(first_frame, "first_frame", least=0)
        all_times = frame_times(video, source_fps, times)
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state,
        )  # fmt: skip
        window, pictures = self._open_stream(video, 2, height, width, window, options, output_type)
        cuts = checked_cuts(cuts, video)
        window_batch_size = whole_number(window_batch_size, "window_batch_size", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        check_pasting(paste_given, 0, output_type)
        values = read_rows(conditions, self.conditions)
        plan = RetimePlan(fps, window, origin, first_frame)

        def arrivals() -> Iterator[tuple[Any, Arrival]]:
            arriving = enumerate(with_equality(timed(pictures, all_times)))
            known = ((time, frame, equal, number in cuts) for number, (time, frame, equal) in arriving)
            for time, frame, is_still, is_cut in kept_frames(known):
                yield frame, plan.push(time, is_cut, is_still)

        frames = stream_windows(
            self, pictures, arrivals(), plan, options, output_type, decode_chunk_size, window_batch_size, values,
            paste_given,
        )  # fmt: skip
        return frames if stream else _collected(frames, output_type, return_dict)

    def _stream_slow_motion(
        self,
        video: Any,
        factor: int,
        cuts: Iterable[int],
        height: int | None,
        width: int | None,
        window: int,
        options: SamplingOptions,
        output_type: str,
        decode_chunk_size: int,
        window_batch_size: int,
        conditions: Mapping[str, Any] | None,
        paste_given: bool,
    ) -> Iterator[Any]:
        """Check the arguments of `slow_motion` with `stream=True`, and return its iterator."""
        if hasattr(video, "__len__"):
            values = read_conditions(conditions, self.conditions, 1, max(1, (len(video) - 1) * factor + 1))
        else:
            values = read_rows(conditions, self.conditions)
        window, pictures = self._open_stream(video, 2, height, width, window, options, output_type)
        cuts = checked_cuts(cuts, video)
        plan = SlowMotionPlan(factor, window)
        arrivals = ((frame, plan.push(number in cuts)) for number, frame in enumerate(pictures))
        return stream_windows(
            self, pictures, arrivals, plan, options, output_type, decode_chunk_size, window_batch_size, values,
            paste_given,
        )  # fmt: skip

    def _stream_extension(
        self,
        video: Any,
        num_new_frames: int | None,
        height: int | None,
        width: int | None,
        rollout: MarDiniRollout,
        conditions: Conditions,
        paste_given: bool,
    ) -> Iterator[Any]:
        """Check the arguments of `extend` with `stream=True`, and return its iterator."""
        _, pictures = self._open_stream(video, 1, height, width, rollout.window, rollout.options, rollout.output_type)
        return stream_extension(
            self, pictures, rollout, num_new_frames, conditions, rollout.output_type, rollout.decode_chunk_size,
            paste_given,
        )  # fmt: skip

    def _open_stream(
        self,
        video: Any,
        least: int,
        height: int | None,
        width: int | None,
        window: int | None,
        options: SamplingOptions,
        output_type: str,
    ) -> tuple[int, PictureStream]:
        """Check what all streams share; return the frames of a window, and the given frames, the first ones read."""
        window = max(3, self.trained_window.frames) if window is None else window
        window = whole_number(window, "window", least=least + 1, reason=f"{least} given and one new")
        pictures = PictureStream(video, least, height, width, self.size_multiple, self.video_processor)
        warn_if_far(self.trained_window, pictures.height, pictures.width, window)
        with in_use(self, self.scheduler):
            self.check_inputs(options, 1, output_type)
            self.set_timesteps(options)
            self._reset_call()
        pictures.call = self._call
        return window, pictures


def _collected(frames: Iterator[Any], output_type: str, return_dict: bool) -> MarDiniPipelineOutput | tuple:
    """Return the frames of a stream in the form of the other methods, a batch of one video.

    Raises:
        ValueError: if there are none.
    """
    video: Any = list(frames)
    if not video:
        raise ValueError(
            "no frame was made: `first_frame` lies at or beyond the end of the clip, or the call was interrupted before "
            "its first frame"
        )
    if output_type == "np":
        video = np.stack(video)[None]
    elif output_type in ("pt", "latent"):
        video = torch.stack(video)[None]
    else:
        video = [video]
    return MarDiniPipelineOutput(frames=video) if return_dict else (video,)
