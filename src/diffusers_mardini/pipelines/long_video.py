"""Videos longer than a window, out of many windows: slow motion (Fig. 11) and extension.

Both keep latents, not pixels, from window to window: a given frame is encoded once and never again, so that it does
not drift. Windows that do not wait for each other may run as rows of one batch. One window is sampled by `pipeline_mardini.py`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

import torch
from diffusers.utils.torch_utils import get_module_execution_device

from ..latents import decode_latents
from ..masking import interpolation_indices, leading_indices
from .conditions import Conditions, conditions_at, read_conditions
from .inputs import output_size, split_videos, to_pixels, whole_number
from .one_call import one_call_at_a_time
from .pipeline_output import MarDiniPipelineOutput
from .sampling_options import SamplingOptions


DECODE_CHUNK_SIZE = 16  # frames that the VAE takes at once where the caller does not say


@dataclass(frozen=True)
class Window:
    """One window of a long video.

    Args:
        places: where its frames stand in the video; rising.
        known: which of its frames (counted within the window) are given or were made by an earlier window.
    """

    places: list[int]
    known: list[int]

    @property
    def new_places(self) -> list[int]:
        """Where in the video the frames stand that this window makes."""
        return [place for i, place in enumerate(self.places) if i not in set(self.known)]


class Windows(Sequence):
    """Windows, or batches of them, that are made anew whenever they are walked through, so that a slip of the finger
    that asks for a billion frames costs no memory.

    Args:
        make: begins a walk.
        count: tells how many there are; otherwise they are counted by walking through them.
    """

    def __init__(self, make: Callable[[], Iterator], count: Callable[[], int] | None = None):
        self._make = make
        self._count = count

    def __iter__(self) -> Iterator:
        return self._make()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        try:
            return next(islice(self, index if index >= 0 else len(self) + index, None))
        except (StopIteration, ValueError) as error:
            raise IndexError(index) from error

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    @cached_property
    def _length(self) -> int:
        return sum(1 for _ in self) if self._count is None else self._count()


class LongVideoMixin:
    """`slow_motion` and `extend` of `MarDiniPipeline`."""

    @torch.no_grad()
    @one_call_at_a_time
    def slow_motion(
        self,
        video: Any,
        factor: int,
        window: int = 9,
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
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Puts `factor - 1` frames between every two neighbours, by interpolating again and again (Fig. 11).

        From `n` frames it makes `(n - 1) * factor + 1`, and frame `i` of the input stands at `i * factor`. A window
        spans two or more known frames and fills in what lies between; where `factor` is more than a window holds, the
        first windows place frames far apart, evenly wherever the factor has a divisor that fits, and the next ones go
        between those (`slow_motion_windows`).

        Args:
            video: A clip of at least 2 frames, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            factor (`int`): How many times slower; at least 2.
            window (`int`, defaults to `9`): Most frames of a window, at least 3: as many as the model was trained for.
            window_batch_size (`int`, defaults to `1`):
                Most windows that run at once, as rows of one batch: more use an accelerator better and take more memory.
                The first noise of a window does not depend on it; that of later steps (`eta` above 0) does.
            conditions (`dict`, *optional*):
                What the frames of the result are told, `((n - 1) * factor + 1, channels)`. Where a window skips
                frames, it is told the mean over the interval, or the sum for conditions whose configuration says so; a
                sum may be beyond the range that the checkpoint learned.
            The other arguments are those of [`~MarDiniPipeline.__call__`]; `generator` is drawn from window by window,
            and the callback is called in every batch of windows, whose rows follow each other. After an interruption, frames of the window it fell in
            hold noise, and those of later ones the autoencoder's picture of latents of zero.

        Returns:
            [`MarDiniPipelineOutput`] with `frames`, or a tuple with the same. Given frames are as the VAE decodes
            them.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        factor = whole_number(factor, "factor", least=2, reason="how many times slower")
        window = whole_number(window, "window", least=3, reason="two known frames and one between")
        window_batch_size = whole_number(window_batch_size, "window_batch_size", least=1)
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state,
        )  # fmt: skip
        pixels = self._check_long_video(video, height, width, options, output_type, least_frames=2)
        num_given = pixels.shape[1]
        num_frames = (num_given - 1) * factor + 1
        batches = batch_windows(slow_motion_windows(num_given, factor, window), window_batch_size)
        places = list(range(0, num_frames, factor))
        conditions = read_conditions(conditions, self.conditions, len(pixels), num_frames)
        latents = self._run_windows(pixels, places, num_frames, batches, options, decode_chunk_size, conditions)
        frames = self.decode(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return MarDiniPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    @one_call_at_a_time
    def extend(
        self,
        video: Any,
        num_new_frames: int,
        window: int = 9,
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
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Continues a clip window by window, each led by the last frames of the one before.

        Args:
            video: A clip of at least 1 frame, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            num_new_frames (`int`): How many frames to add. All windows are whole; the last one's surplus is dropped.
            window (`int`, defaults to `9`): Frames of a window: as many as the model was trained for.
            overlap (`int`, defaults to half of `window`):
                How many known frames lead each window, less than `window`. More keep the motion steadier and take
                longer. A shorter `video` leads the first window with the frames it has.
            conditions (`dict`, *optional*):
                What the frames are told, `(len(video) + num_new_frames, channels)`, or `(num_new_frames, channels)` to
                leave the given ones untold. Surplus frames are told the same as the last one.
            The other arguments are those of [`~MarDiniPipeline.__call__`]; `generator` is drawn from window by window,
            and the callback is called in every window. After an interruption, frames of the window it fell in hold noise, and those of later
            ones the autoencoder's picture of latents of zero.

        Returns:
            [`MarDiniPipelineOutput`] with `len(video) + num_new_frames` frames, or a tuple with the same. Given frames
            are as the VAE decodes them.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        num_new_frames = whole_number(num_new_frames, "num_new_frames", least=1)
        window = whole_number(window, "window", least=2, reason="one known frame and one new")
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        overlap = window // 2 if overlap is None else whole_number(overlap, "overlap", least=1)
        if overlap >= window:
            raise ValueError(
                f"`overlap` is {overlap} and `window` {window}, so that a window adds no frame; lower `overlap` below "
                "`window`"
            )
        options = SamplingOptions(
            num_inference_steps, timesteps, guidance_scale, eta, generator, attention_kwargs, callback_on_step_end,
            callback_on_step_end_tensor_inputs, use_window_state,
        )  # fmt: skip
        pixels = self._check_long_video(video, height, width, options, output_type, least_frames=1)
        num_given = pixels.shape[1]
        windows = extension_windows(num_given, num_new_frames, window, overlap)
        # All windows are whole, so that the last may make more than was asked for.
        first, later = _windows_to_extend(num_given, num_new_frames, window, overlap)
        num_frames = num_given + first + later * (window - overlap)
        batches = batch_windows(windows, 1)  # each waits for the one before
        conditions = read_conditions(conditions, self.conditions, len(pixels), num_given + num_new_frames, num_given)
        latents = self._run_windows(
            pixels, list(range(num_given)), num_frames, batches, options, decode_chunk_size, conditions
        )
        frames = self.decode(latents[:, : num_given + num_new_frames], output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return MarDiniPipelineOutput(frames=frames) if return_dict else (frames,)

    def _check_long_video(
        self,
        video: Any,
        height: int | None,
        width: int | None,
        options: SamplingOptions,
        output_type: str,
        least_frames: int,
    ) -> torch.Tensor:
        """Checks what both methods share and returns pixels `(batch, frames, 3, height, width)` in [-1, 1]."""
        if video is None:
            raise ValueError(f"`video` is missing; give a clip of at least {least_frames} frames")
        videos = split_videos(video)
        if len(videos[0]) < least_frames:
            raise ValueError(
                f"`video` has {len(videos[0])} frame; slow motion goes between frames, give at least {least_frames}"
            )
        height, width = output_size(videos, height, width, self.size_multiple)
        self.check_inputs(options, len(videos), output_type)
        self._set_timesteps(options)
        self._reset_call()
        return to_pixels(videos, height, width, self.video_processor)

    def _run_windows(
        self,
        pixels: torch.Tensor,
        given_places: list[int],
        num_frames: int,
        batches: Sequence[list[Window]],
        options: SamplingOptions,
        decode_chunk_size: int,
        conditions: Conditions,
    ) -> torch.Tensor:
        """Fills a video window by window.

        Args:
            pixels: of the given frames, `(batch, given frames, 3, height, width)` in [-1, 1].
            given_places: where they stand in the video.
            num_frames: of the video.
            batches: the windows in the order they run; those of a batch run at once and have the same known frames.
            options: how each is sampled.
            decode_chunk_size: most frames that the VAE takes at once.
            conditions: of the video, what `read_conditions` returned.

        Returns:
            Latents of the video, `(batch, num_frames, channels, h, w)`.
        """
        videos, _, _, height, width = pixels.shape
        shape, factor = self._latents_shape(videos, num_frames, height, width), self.config.planner_downscale
        latents = _empty_video(shape, self._execution_device)  # (videos, num_frames, channels, h, w)
        low_latents = _empty_video((*shape[:3], shape[3] // factor, shape[4] // factor), self._execution_device)
        given = self.encode_frames(pixels, decode_chunk_size)
        low_given = self.encode_low_frames(pixels, decode_chunk_size)
        latents[:, given_places], low_latents[:, given_places] = given, low_given
        last_use = {
            window.places[i]: number
            for number, windows in enumerate(batches)
            for window in windows
            for i in window.known
        }

        with self.progress_bar(total=len(batches) * self._set_timesteps(options)) as progress_bar:
            for number, windows in enumerate(batches):
                if self.interrupt:
                    break
                known, length = windows[0].known, len(windows[0].places)
                known_places = [[window.places[i] for i in known] for window in windows]
                # Rows of one window after those of another: (windows * videos, ...).
                parts = [conditions_at(conditions, self.conditions, window.places) for window in windows]
                window_conditions = {name: torch.cat([part[name] for part in parts]) for name in conditions}
                planning_signals = self.plan(
                    torch.cat([low_latents[:, places] for places in known_places]), known, length,
                    options.attention_kwargs, window_conditions,
                )  # fmt: skip
                shape = (videos, length, *latents.shape[2:])
                noise = torch.cat([self.prepare_latents(shape, options.generator) for _ in windows])
                references = torch.cat([latents[:, places] for places in known_places])
                batch_options = options
                if isinstance(options.generator, list):
                    batch_options = replace(options, generator=options.generator * len(windows))
                made = self.denoise(
                    noise, references, known, planning_signals, batch_options, progress_bar, window_conditions
                )
                for window, rows in zip(windows, made.split(videos)):
                    latents[:, window.places] = rows
                # The planner sees generated frames as it sees given ones: made smaller as pictures, then encoded.
                new_places = {place for window in windows for place in window.new_places}
                leading_on = sorted(place for place in new_places if last_use.get(place, -1) > number)
                for start in range(0, len(leading_on), decode_chunk_size):
                    places = leading_on[start : start + decode_chunk_size]
                    chunk = latents[:, places].to(get_module_execution_device(self.vae), self.vae.dtype)
                    frames = decode_latents(self.vae, chunk, decode_chunk_size)
                    low_latents[:, places] = self.encode_low_frames(frames.clamp(-1, 1), decode_chunk_size)
        return latents


def slow_motion_windows(num_given: int, factor: int, window: int) -> Windows:
    """The windows that take `num_given` frames to `(num_given - 1) * factor + 1`, coarse ones first.

    A window holds as many neighbouring gaps of one length as fit into `window` frames, because the models know windows
    of that length, and see more of the motion.
    """

    def make() -> Iterator[Window]:
        level = 0
        while next(_gaps(num_given, factor, window, level), None) is not None:
            yield from _windows_of_level(_gaps(num_given, factor, window, level), window)
            level += 1

    return Windows(make)


def batch_windows(windows: Sequence[Window], most: int) -> Windows:
    """Puts up to `most` windows that follow each other into one batch: of the same length, with the same known frames, and
    none that waits for another one of the batch."""

    def make() -> Iterator[list[Window]]:
        batch: list[Window] = []
        made: set[int] = set()  # by the batch
        for window in windows:
            fits = batch and (len(window.places), window.known) == (len(batch[0].places), batch[0].known)
            if fits and len(batch) < most and made.isdisjoint(window.places[i] for i in window.known):
                batch.append(window)
            else:
                if batch:
                    yield batch
                batch, made = [window], set()
            made.update(window.new_places)
        if batch:
            yield batch

    return Windows(make, windows.__len__ if most == 1 else None)


def extension_windows(num_given: int, num_new_frames: int, window: int, overlap: int) -> Windows:
    """The windows that continue a clip of `num_given` frames, each led by up to `overlap` known ones."""
    _, later = _windows_to_extend(num_given, num_new_frames, window, overlap)

    def make() -> Iterator[Window]:
        num_known = num_given
        for _ in range(1 + later):
            num_leading = min(overlap, num_known)
            start = num_known - num_leading
            yield Window(list(range(start, start + window)), known=leading_indices(num_leading))
            num_known = start + window

    return Windows(make, lambda: 1 + later)


def _windows_to_extend(num_given: int, num_new_frames: int, window: int, overlap: int) -> tuple[int, int]:
    """Frames that the first window of an extension makes, and the number of windows after it, which know `overlap`
    frames each."""
    first = window - min(overlap, num_given)
    return first, max(0, -(-(num_new_frames - first) // (window - overlap)))


def _windows_of_level(gaps: Iterator[tuple[int, int]], window: int) -> Iterator[Window]:
    """Fills gaps that follow each other, as many of one length in a window as fit."""
    made: Window | None = None
    last_gap = None
    for start, stop in gaps:
        cuts = _cut(start, stop, window - 1)
        is_next = last_gap is not None and last_gap == (2 * start - stop, start)
        if is_next and len(made.places) + len(cuts) - 1 <= window:
            places = made.places + cuts[1:]
            made = Window(places, known=[*made.known, len(places) - 1])
        else:
            if made is not None:
                yield made
            made = Window(cuts, known=interpolation_indices(len(cuts)))
        last_gap = (start, stop)
    if made is not None:
        yield made


def _gaps(num_given: int, factor: int, window: int, level: int) -> Iterator[tuple[int, int]]:
    """Neighbouring frames, both known before a level of windows, with others between them that are not; rising."""
    if level == 0:
        for i in range(num_given - 1):
            yield i * factor, (i + 1) * factor
        return
    for start, stop in _gaps(num_given, factor, window, level - 1):
        cuts = _cut(start, stop, window - 1)
        yield from ((before, after) for before, after in pairwise(cuts) if after - before > 1)


def _empty_video(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Zeros for the latents of a whole video, `(videos, frames, channels, h, w)`.

    Raises:
        ValueError: where they do not fit into memory.
    """
    try:
        return torch.zeros(shape, dtype=torch.float32, device=device)
    except (RuntimeError, MemoryError, TypeError, OverflowError) as error:  # the last two of more than 64 bits count
        raise ValueError(
            f"the latents of the {shape[1]} frames asked for take {4 * math.prod(shape) / 2**30:.3g} GiB, which is "
            "more than there is; ask for fewer frames"
        ) from error


def _cut(start: int, stop: int, most_parts: int) -> list[int]:
    """Cuts `start..stop` into single steps if they fit, else into equal parts, as many as fit, else nearly equal."""
    length = stop - start
    parts = length
    if length > most_parts:
        parts = max((d for d in range(2, most_parts + 1) if length % d == 0), default=most_parts)
    return [start + (i * length + parts // 2) // parts for i in range(parts + 1)]
