"""Videos with given frames at places of the caller's choice: `fill`, `loop` and `views`.

`fill_windows` plans the windows; `long_video.py` samples them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from .conditions import read_conditions
from .inputs import output_size, split_images, split_videos, to_pixels, warn_if_far, warn_if_stretched, whole_number
from .one_call import one_call_at_a_time
from .pasting import OwnPixels, check_pasting
from .pipeline_output import MarDiniPipelineOutput
from .sampling_options import SamplingOptions
from .stream_methods import DECODE_CHUNK_SIZE
from .window_plans import LazySequence, Window, batch_windows, cut_evenly, placed


class KeyframesMixin:
    """`fill`, `loop` and `views` of `MarDiniPipeline`."""

    @torch.no_grad()
    @one_call_at_a_time
    def fill(
        self,
        frames: Mapping[int, Any],
        num_frames: int | None = None,
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
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Sample a video of any length around pictures at any places, such as `{0: a, 5: b, 16: c}`.

        What fits into one window is sampled at once, the last frame or a middle one alone included. In a longer video
        gaps between given frames are filled as `slow_motion` does, far apart first; frames before the first and after
        the last given one follow window by window, as in `extend` (`fill_windows`).

        Args:
            frames (`dict`): A picture for each place, or a list of pictures for a batch, as `image` in
                [`~MarDiniPipeline.__call__`].
            num_frames (`int`, *optional*): Length of the video; by default the last given frame ends it.
            window (`int`, *optional*): Most frames of a window, at least 3; by default as many as the model was trained
                for, 9 if the pipeline does not know.
            window_batch_size (`int`, defaults to `1`): Most windows that run at once, see
                [`~MarDiniPipeline.slow_motion`].
            height, width (`int`, *optional*): Size of the output; by default that of the training, if the pipeline
                knows it, else that of the pictures.
            conditions (`dict`, *optional*): Conditions of the frames of the result, `(num_frames, channels)` each.
            paste_given, blend: As in [`~MarDiniPipeline.__call__`].
            The other arguments are those of [`~MarDiniPipeline.__call__`]. `generator` and the callback are used
            window by window.

        Returns:
            [`MarDiniPipelineOutput`] with `num_frames` frames, or a tuple with the same.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        places, videos = _read_keyframes(frames)
        num_frames = places[-1] + 1 if num_frames is None else num_frames
        num_frames = whole_number(num_frames, "num_frames", least=2, reason="one to keep and one to generate")
        if places[-1] >= num_frames:
            raise ValueError(
                f"`frames` reaches place {places[-1]}, but a video of `num_frames={num_frames}` ends at "
                f"{num_frames - 1}; lower the place or raise `num_frames`"
            )
        if len(places) == num_frames:
            raise ValueError(
                f"all {num_frames} frames are given, so that nothing is left to generate; raise `num_frames`, or "
                "give fewer"
            )
        window = _read_window_length(window, self.trained_window.frames)
        window_batch_size = whole_number(window_batch_size, "window_batch_size", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        blend = check_pasting(paste_given, blend, output_type)
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state,
        )  # fmt: skip
        if height is None and width is None:
            height, width = self.trained_window.height, self.trained_window.width
            warn_if_stretched(videos[0][0], height, width)
        height, width = output_size(videos, height, width, self.size_multiple)
        warn_if_far(self.trained_window, height, width, min(window, num_frames))
        self.check_inputs(options, len(videos), output_type)
        values = read_conditions(conditions, self.conditions, len(videos), num_frames)
        self.set_timesteps(options)
        self._reset_call()
        pixels = to_pixels(videos, height, width, self.video_processor)
        batches = batch_windows(fill_windows(places, num_frames, window), window_batch_size)
        latents = self._run_windows(pixels, places, num_frames, batches, options, decode_chunk_size, values)
        own = OwnPixels(pixels, places, blend) if paste_given else None
        made = self.decode(latents, output_type, decode_chunk_size, own)
        self.maybe_free_model_hooks()
        return MarDiniPipelineOutput(frames=made) if return_dict else (made,)

    @torch.no_grad()
    @one_call_at_a_time
    def loop(
        self,
        video: Any,
        num_new_frames: int | None = None,
        window: int | None = None,
        overlap: int | None = None,
        new_frames_only: bool = False,
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
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Close a clip to a loop: sample frames that lead from its last frame to its first, without a double.

        The given frames are the last `overlap` frames of the clip, at the start, and the first ones, at the end; those
        between are new. Played again and again, the result goes on from its last frame to its first as from any frame
        to the next.

        Args:
            video: A clip of at least 1 frame, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            num_new_frames (`int`, *optional*): How many frames to add; by default as many as one window leaves.
            window (`int`, *optional*): Most frames of a window, at least 3; by default as many as the model was trained
                for. More frames than fit into one are filled far apart first, as `fill` does.
            overlap (`int`, defaults to a quarter of `window`): How many frames of each end of the clip are given. A
                shorter clip gives all it has.
            new_frames_only (`bool`, defaults to `False`): Whether to return the new frames without the clip.
            conditions (`dict`, *optional*): Conditions of the frames of the clip and the new ones,
                `(len(video) + num_new_frames, channels)` each, or `(num_new_frames, channels)` for a clip without
                values.
            paste_given, blend: As in [`~MarDiniPipeline.__call__`]; the given frames are all of the clip.
            The other arguments are those of [`~MarDiniPipeline.slow_motion`].

        Returns:
            [`MarDiniPipelineOutput`] with `len(video) + num_new_frames` frames, or only the new ones, or a tuple with
            the same.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        window = _read_window_length(window, self.trained_window.frames)
        overlap = max(1, window // 4) if overlap is None else whole_number(overlap, "overlap", least=1)
        if num_new_frames is not None:
            num_new_frames = whole_number(num_new_frames, "num_new_frames", least=1)
        window_batch_size = whole_number(window_batch_size, "window_batch_size", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        blend = check_pasting(paste_given, blend, output_type)
        if paste_given and new_frames_only:
            raise ValueError(
                "`paste_given` puts pixels into the given frames, and `new_frames_only` leaves these out; leave one of "
                "them out"
            )
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state,
        )  # fmt: skip
        pixels = self._check_long_video(video, height, width, window, options, output_type, least_frames=1)
        num_given = pixels.shape[1]
        overlap = min(overlap, num_given)
        num_new_frames = max(1, window - 2 * overlap) if num_new_frames is None else num_new_frames
        values = read_conditions(conditions, self.conditions, len(pixels), num_given + num_new_frames, num_given)
        ends = [*range(num_given - overlap, num_given), *range(overlap)]  # places in the clip
        places = [*range(overlap), *range(overlap + num_new_frames, 2 * overlap + num_new_frames)]
        num_frames = 2 * overlap + num_new_frames
        batches = batch_windows(fill_windows(places, num_frames, window), window_batch_size)
        sampled = self._run_windows(
            pixels[:, ends], places, num_frames, batches, options, decode_chunk_size,
            {name: torch.cat([rows[:, num_given - overlap :], rows[:, :overlap]], dim=1) for name, rows in values.items()},
        )  # fmt: skip
        latents = sampled[:, overlap : overlap + num_new_frames]
        own = None
        if not new_frames_only:
            latents = torch.cat([self.encode_frames(pixels, decode_chunk_size), latents], dim=1)
            period = num_given + num_new_frames
            own = OwnPixels(pixels, range(num_given), blend, period) if paste_given else None
        made = self.decode(latents, output_type, decode_chunk_size, own)
        self.maybe_free_model_hooks()
        return MarDiniPipelineOutput(frames=made) if return_dict else (made,)

    def views(
        self, image: Any, last_image: Any, num_frames: int | None = None, **kwargs: Any
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Sample the views on the path between two pictures of one thing (Sec. 3.4, novel view synthesis).

        It is an interpolation: the model knows no cameras, and the two pictures take the place of the first and the
        last frame of a movement around the thing. The path is the shortest that the training data suggest.

        Args:
            image: The first view, or a list of them for a batch.
            last_image: The last view, in the same form.
            num_frames (`int`, *optional*): Number of views, the two given ones included, at least 3; by default as many
                as the model was trained for. More than a window are filled far apart first.
            The other arguments are those of [`~MarDiniPipeline.fill`].

        Returns:
            [`MarDiniPipelineOutput`] with `num_frames` frames, or a tuple with the same.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        num_frames = max(3, self.trained_window.frames) if num_frames is None else num_frames
        num_frames = whole_number(num_frames, "num_frames", least=3, reason="two given views and one between")
        for name, value in (("image", image), ("last_image", last_image)):
            if value is None:
                raise ValueError(f"`{name}` is missing; give two pictures of one thing")
        return self.fill({0: image, num_frames - 1: last_image}, num_frames, **kwargs)


def fill_windows(given_places: Sequence[int], num_frames: int, window: int) -> LazySequence:
    """Return the windows that sample a video of `num_frames` frames of which those at `given_places` are given.

    One window if it holds the video. Otherwise first the gaps between given frames, level by level: a gap that is too
    long for a window gets frames far apart, and later windows fill what is left; neighbouring gaps share a window.
    Then the frames after the last given one and before the first, next to them first; half of each window is known.

    Args:
        given_places: rising, at least one.
        num_frames: of the video.
        window: most frames of a window, at least 3.
    """

    def make() -> Iterator[Window]:
        if num_frames <= window:
            yield Window(list(range(num_frames)), list(given_places))
            return
        known = set(given_places)
        yield from _windows_between(known, window)
        first, last = given_places[0], given_places[-1]
        while last < num_frames - 1:
            lead = min(window // 2, last - first + 1)
            stop = min(num_frames - 1, last + window - lead)
            start = max(first, stop - window + 1)
            yield Window(list(range(start, stop + 1)), list(range(last - start + 1)))
            last = stop
        while first > 0:
            trail = min(window // 2, last - first + 1)
            start = max(0, first - window + trail)
            stop = min(last, start + window - 1)
            yield Window(list(range(start, stop + 1)), list(range(first - start, stop - start + 1)))
            first = start

    return LazySequence(make)


def _windows_between(known: set[int], window: int) -> Iterator[Window]:
    """Yield the windows that fill all gaps between `known` places, and add what they sample to these."""
    while gaps := [(start, stop) for start, stop in pairwise(sorted(known)) if stop - start > 1]:
        level = set()
        while gaps:
            start, stop = gaps.pop(0)
            if stop - start >= window:
                places = cut_evenly(start, stop, window - 1)
            else:
                while gaps and gaps[0][1] - start < window:  # what lies between two gaps is known
                    stop = gaps.pop(0)[1]
                # The models were trained on whole windows: known neighbours fill them up.
                while stop - start < window - 1 and (start - 1 in known or stop + 1 in known):
                    start, stop = start - (start - 1 in known), stop + (stop + 1 in known)
                stop = min(stop, start + window - 1)
                places = list(range(start, stop + 1))
            made = placed(Window(places, [i for i, place in enumerate(places) if place in known]), float)
            level.update(made.new_places)
            yield made
        known |= level


def _read_keyframes(frames: Any) -> tuple[list[int], list[list[Any]]]:
    """Return the places, rising, and the pictures of each video of the batch in that order."""
    if not isinstance(frames, Mapping) or not frames:
        raise ValueError(
            "`frames` must map places to pictures, such as {0: first, 16: last}, at least one; got "
            f"{'nothing' if isinstance(frames, Mapping) else type(frames).__name__}"
        )
    given = {
        whole_number(place, "frames", least=0, reason="a place in the video"): split_images(picture, "frames")
        for place, picture in frames.items()
    }
    places = sorted(given)
    counts = sorted({len(pictures) for pictures in given.values()})
    if len(counts) > 1:
        raise ValueError(
            f"the places of `frames` have {counts} pictures; give each the same number, one for each video"
        )
    return places, split_videos([[given[place][row] for place in places] for row in range(counts[0])])


def _read_window_length(window: int | None, trained: int) -> int:
    window = max(3, trained) if window is None else window
    return whole_number(window, "window", least=3, reason="two given frames and one between")
