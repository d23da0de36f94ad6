"""Videos longer than a window, made of many windows: slow motion (Fig. 11) and extension.

Both keep latents, not pixels, from window to window: frames are encoded only once, and do not drift. Windows that do
not depend on each other may run as rows of one batch. `window_sampling.py` samples the windows of a whole video;
`rollout.py` keeps what an extension needs of its last frames.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from .conditions import read_conditions
from .inputs import output_size, split_videos, to_pixels, warn_if_far, whole_number
from .leading_frames import read_leading_frames
from .one_call import in_use
from .pasting import OwnPixels, check_pasting
from .pipeline_output import MarDiniPipelineOutput
from .rollout import MarDiniRollout
from .sampling_options import SamplingOptions
from .stream_inputs import checked_cuts
from .stream_methods import DECODE_CHUNK_SIZE, StreamMixin
from .streams import conditions_of
from .window_plans import batch_windows, slow_motion_windows, windows_to_extend
from .window_sampling import WindowSamplingMixin, empty_video


class LongVideoMixin(StreamMixin, WindowSamplingMixin):
    """`slow_motion`, `extend`, `retime` and `rollout` of `MarDiniPipeline`."""

    @torch.no_grad()
    def slow_motion(
        self,
        video: Any,
        factor: int,
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
        conditions: Mapping[str, Any] | None = None,
        paste_given: bool = False,
        blend: int = 0,
        stream: bool = False,
        cuts: Iterable[int] = (),
    ) -> Any:  # MarDiniPipelineOutput, a tuple, or an iterator
        r"""
        Put `factor - 1` frames between every two neighbours, by repeated interpolation (Fig. 11).

        `n` frames become `(n - 1) * factor + 1`; frame `i` of the input is at place `i * factor`. A window spans two
        or more given frames and samples those between. If `factor` is too large for one window, the first windows
        place frames far apart, evenly if the factor has a suitable divisor, and later windows fill the gaps
        (`slow_motion_windows`).

        Args:
            video: A clip of at least 2 frames, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            factor (`int`): How many times slower; at least 2.
            window (`int`, *optional*): Most frames of a window, at least 3; by default as many as the model was trained
                for, 9 if the pipeline does not know.
            window_batch_size (`int`, defaults to `1`):
                Most windows that run at once, as rows of one batch: more use an accelerator better and take more
                memory. The initial noise of a window does not depend on it; the noise of later steps (`eta` above 0)
                does.
            conditions (`dict`, *optional*):
                Conditions of the frames of the result, `((n - 1) * factor + 1, channels)` each. A window that skips
                frames gets the mean over each interval, or the sum if the condition's configuration says so; a sum may
                exceed the range that the checkpoint learned. A stream that outgrows its rows ends with an error.
            stream (`bool`, defaults to `False`):
                Whether to return an iterator of frames, in the form that `output_type` gives them, instead of all of
                them. `video` is then one clip, and may be an iterator, too: it is read, and frames are made, as they
                are asked for, and memory does not grow. The frames are the same for the same generator if a window
                has place for `factor + 1` frames. Otherwise fine windows follow their coarse ones at once and not
                after the last coarse one, so that they get other noise; the result still depends on the seed alone,
                not on how the frames arrive. Given frames are read, and frames of the result decoded,
                `decode_chunk_size` at a time. After an interruption the iterator ends with the frames that were
                finished before that window. Between two frames the pipeline is free for other calls.
            cuts (iterable of `int`, *optional*):
                For a stream: numbers of the frames of `video` that begin a scene. Between them and the frames before
                nothing is sampled: the nearer of both is held.
            The other arguments are those of [`~MarDiniPipeline.__call__`]. `generator` is used window by window; the
            callback is called in every batch of windows, whose rows follow each other. After an interruption, frames
            of that window hold noise, and frames of later ones are decoded from latents of zero.

        Returns:
            [`MarDiniPipelineOutput`] with `frames`, or a tuple with the same; with `stream`, an iterator of frames.
            Given frames are as the VAE decodes them, unless `paste_given`.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        factor = whole_number(factor, "factor", least=2, reason="how many times slower")
        window = max(3, self.trained_window.frames) if window is None else window
        window = whole_number(window, "window", least=3, reason="two given frames and one between")
        window_batch_size = whole_number(window_batch_size, "window_batch_size", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        blend = check_pasting(paste_given, blend, output_type)
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state,
        )  # fmt: skip
        if stream:
            _refuse_blending(blend)
            return self._stream_slow_motion(
                video,
                factor,
                cuts,
                height,
                width,
                window,
                options,
                output_type,
                decode_chunk_size,
                window_batch_size,
                conditions,
                paste_given,
            )
        if checked_cuts(cuts):
            raise ValueError("`cuts` needs `stream=True`; use `retime`, or cut the clip before")
        with in_use(self, self.scheduler):
            pixels = self._check_long_video(video, height, width, window, options, output_type, least_frames=2)
            num_given = pixels.shape[1]
            num_frames = (num_given - 1) * factor + 1
            batches = batch_windows(slow_motion_windows(num_given, factor, window), window_batch_size)
            places = list(range(0, num_frames, factor))
            conditions = read_conditions(conditions, self.conditions, len(pixels), num_frames)
            latents = self._run_windows(pixels, places, num_frames, batches, options, decode_chunk_size, conditions)
            own = OwnPixels(pixels, places, blend) if paste_given else None
            frames = self.decode(latents, output_type, decode_chunk_size, own)
            self.maybe_free_model_hooks()
            return MarDiniPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def extend(
        self,
        video: Any,
        num_new_frames: int | None = None,
        window: int | None = None,
        overlap: int | None = None,
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
        conditions: Mapping[str, Any] | None = None,
        generated_noise: float = 0.0,
        anchors: int = 0,
        keyframe_interval: int = 1,
        paste_given: bool = False,
        blend: int = 0,
        stream: bool = False,
    ) -> Any:  # MarDiniPipelineOutput, a tuple, or an iterator
        r"""
        Continue a clip window by window, each led by the last frames of the one before.

        Args:
            video: A clip of at least 1 frame, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            num_new_frames (`int`): How many frames to add. All windows are whole; surplus frames of the last are
                dropped. A stream goes on without end if it is left out.
            window (`int`, *optional*): Frames of a window; by default as many as the model was trained for, 9 if the
                pipeline does not know.
            overlap (`int`, defaults to half of `window`):
                How many given frames lead each window, less than `window`. More keep the motion steadier and take
                longer. A shorter `video` leads the first window with all its frames.
            conditions (`dict`, *optional*):
                Conditions of the frames, `(len(video) + num_new_frames, channels)` each, or
                `(num_new_frames, channels)` for given frames without values, as a stream needs them. Surplus frames
                have the values of the last one.
            generated_noise (`float`, defaults to `0.0`):
                Against drift, for checkpoints trained with `reference_noise`: frames that the model made itself get
                noise when they lead a window, at this share of the noise levels, and the transformer is told so.
                Training noises all given frames of a window or none: windows that also have given frames of the clip,
                as with `anchors`, are none that it has seen.
            anchors (`int`, defaults to `0`):
                Against drift: how many of the `overlap` frames lie far back. The first frame of the clip leads every
                window, then come frames that lie ever further apart, then the last ones (`LeadingFrames`).
            keyframe_interval (`int`, defaults to `1`):
                Against drift: above 1, keyframes so far apart are sampled first, led by frames as far apart, and then
                those between (hierarchical extension): an error passes through fewer windows. The model must know
                windows of such frames.
            stream (`bool`, defaults to `False`):
                Whether to return an iterator of frames, the given ones first, instead of all of them, see
                [`~MarDiniPipeline.slow_motion`]. The frames are the same for the same generator.
                [`~MarDiniPipeline.rollout`] gives single steps instead, each with conditions of its own.
            The other arguments are those of [`~MarDiniPipeline.__call__`]. `generator` is used window by window; the
            callback is called in every window. After an interruption, frames of that window hold noise, and frames of
            later ones are decoded from latents of zero.

        Returns:
            [`MarDiniPipelineOutput`] with `len(video) + num_new_frames` frames, or a tuple with the same; with
            `stream`, an iterator of frames. Given frames are as the VAE decodes them, unless `paste_given`.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        if num_new_frames is not None or not stream:
            num_new_frames = whole_number(num_new_frames, "num_new_frames", least=1)
        window = self.trained_window.frames if window is None else window
        window = whole_number(window, "window", least=2, reason="one given frame and one new")
        leading = read_leading_frames(window, overlap, anchors)
        keyframe_interval = whole_number(keyframe_interval, "keyframe_interval", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        blend = check_pasting(paste_given, blend, output_type)
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state, generated_noise,
        )  # fmt: skip
        rollout = MarDiniRollout(
            self, window, leading, options, output_type, decode_chunk_size, keyframe_interval=keyframe_interval
        )
        if stream:
            _refuse_blending(blend)
            if conditions is not None and num_new_frames is None:
                raise ValueError(
                    "`conditions` have a row for each new frame, but the stream has no end; give `num_new_frames`, or "
                    "use `rollout`, whose steps take their own"
                )
            values = read_conditions(conditions, self.conditions, 1, num_new_frames or 1)
            return self._stream_extension(video, num_new_frames, height, width, rollout, values, paste_given)
        assert num_new_frames is not None, "only a stream may leave it out"
        with in_use(self, self.scheduler):
            pixels = self._check_long_video(video, height, width, window, options, output_type, least_frames=1)
            videos, num_given, _, height, width = pixels.shape
            values = read_conditions(conditions, self.conditions, videos, num_given + num_new_frames, num_given)
            # All windows are whole: the last may sample more frames than asked for.
            places = rollout.kept_places(num_given)
            num_keyframes = -(-num_given // keyframe_interval)
            first, later = windows_to_extend(
                num_keyframes, -(-num_new_frames // keyframe_interval), window, leading.overlap
            )
            steps = [count * keyframe_interval for count in (first, window - leading.overlap)]
            num_frames = num_given + steps[0] + later * steps[1]
            latents = empty_video(self.latents_shape(videos, num_frames, height, width), self._execution_device)
            latents[:, :num_given] = self.encode_frames(pixels, decode_chunk_size)
            rollout.start(
                latents[:, places],
                self.encode_low_frames(pixels, decode_chunk_size)[:, places],
                conditions_of(values, range(num_given)),
                places,
            )
            num_windows = rollout.num_windows(steps[0]) + later * rollout.num_windows(steps[1])
            with self.progress_bar(total=num_windows * self.set_timesteps(options)) as progress_bar:
                made = num_given
                while made < num_frames and not self.interrupt:
                    stop = made + rollout.most_new_frames
                    new_values = conditions_of(values, range(made, stop))
                    latents[:, made:stop] = rollout.sample(stop - made, new_values, progress_bar)
                    made = stop
            own = OwnPixels(pixels, range(num_given), blend) if paste_given else None
            frames = self.decode(latents[:, : num_given + num_new_frames], output_type, decode_chunk_size, own)
            self.maybe_free_model_hooks()
            return MarDiniPipelineOutput(frames=frames) if return_dict else (frames,)

    def rollout(
        self,
        video: Any,
        window: int | None = None,
        overlap: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        timesteps: list[int] | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        decode_chunk_size: int = DECODE_CHUNK_SIZE,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        use_window_state: bool = True,
        conditions: Mapping[str, Any] | None = None,
        generated_noise: float = 0.0,
        anchors: int = 0,
        keyframe_interval: int = 1,
    ) -> MarDiniRollout:
        r"""
        Continue a clip on request, a few frames at a time: `rollout.step(num_frames=4)` makes the next ones.

        It keeps the latents and planning inputs of the last `overlap` frames: nothing is encoded again, and memory
        does not grow.

        Args:
            video: A clip of at least 1 frame, or a batch of clips, as in [`~MarDiniPipeline.__call__`]. Its last
                `overlap` frames lead the first window.
            window (`int`, *optional*): Most frames of a window; by default as many as the model was trained for.
            overlap (`int`, defaults to half of `window`): How many given frames lead each window, less than `window`.
            conditions (`dict`, *optional*): Conditions of the frames of `video`, `(len(video), channels)` each; those
                of new frames are given to each step.
            generated_noise, anchors, keyframe_interval: See [`~MarDiniPipeline.extend`].
            The other arguments are those of [`~MarDiniPipeline.__call__`]. `generator` is used step by step; the
            callback is called in every step. There is no progress bar.

        Returns:
            [`MarDiniRollout`], whose `step` returns the new frames.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        window = self.trained_window.frames if window is None else window
        window = whole_number(window, "window", least=2, reason="one given frame and one new")
        leading = read_leading_frames(window, overlap, anchors)
        keyframe_interval = whole_number(keyframe_interval, "keyframe_interval", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state, generated_noise,
        )  # fmt: skip
        rollout = MarDiniRollout(
            self, window, leading, options, output_type, decode_chunk_size, height, width, keyframe_interval
        )
        rollout.reset(video, conditions)
        return rollout

    def _check_long_video(
        self,
        video: Any,
        height: int | None,
        width: int | None,
        window: int,
        options: SamplingOptions,
        output_type: str,
        least_frames: int,
    ) -> torch.Tensor:
        """Check the arguments that both methods share; return pixels `(batch, frames, 3, height, width)` in [-1,
        1]."""
        if video is None:
            raise ValueError(f"`video` is missing; give a clip of at least {least_frames} frames")
        videos = split_videos(video)
        if len(videos[0]) < least_frames:
            raise ValueError(
                f"`video` has {len(videos[0])} frame; slow motion goes between frames, give at least {least_frames}"
            )
        height, width = output_size(videos, height, width, self.size_multiple)
        warn_if_far(self.trained_window, height, width, window)
        self.check_inputs(options, len(videos), output_type)
        self.set_timesteps(options)
        self._reset_call()
        return to_pixels(videos, height, width, self.video_processor)


def _refuse_blending(blend: int) -> None:
    if blend:
        raise ValueError(
            "`blend` needs the given frames that are still to come, and `stream` gives frames away before; leave one of "
            "the two out"
        )
