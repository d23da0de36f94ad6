"""A rollout: a video that goes on frame by frame, for as long as somebody asks for more (ours; beyond the paper).

It keeps what the next windows need of the frames so far, and nothing else: their latents, what the planner gets of
them, and their conditions. `MarDiniPipeline.rollout` makes one; `extend` in `long_video.py` is a loop over one.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..masking import leading_indices
from .conditions import Conditions, conditions_at, read_conditions
from .inputs import whole_number
from .leading_frames import LeadingFrames
from .one_call import in_use
from .pipeline_output import MarDiniPipelineOutput
from .sampling_options import SamplingOptions
from .window_plans import Window, slow_motion_windows


if TYPE_CHECKING:
    from .pipeline_mardini import MarDiniPipeline


class MarDiniRollout:
    """Continue a clip on request; made by [`~MarDiniPipeline.rollout`].

    Args:
        pipe ([`MarDiniPipeline`]): Samples the frames. One rollout, or one call, is served at a time.
        window (`int`): Most frames of a window.
        leading ([`LeadingFrames`]): Which frames lead a window; fewer than `window`.
        options ([`SamplingOptions`]): How to sample each window.
        output_type (`str`): Form of the frames, as in [`~MarDiniPipeline.__call__`].
        decode_chunk_size (`int`): Most frames that the VAE encodes or decodes at once.
        height, width (`int`, *optional*): Size of the frames in pixels; by default that of the clip.
        keyframe_interval (`int`, defaults to `1`): If above 1, a step samples keyframes so far apart, then those between.
    """

    def __init__(
        self,
        pipe: "MarDiniPipeline",
        window: int,
        leading: LeadingFrames,
        options: SamplingOptions,
        output_type: str,
        decode_chunk_size: int,
        height: int | None = None,
        width: int | None = None,
        keyframe_interval: int = 1,
    ):
        self.pipe = pipe
        self.window = window
        self.leading = leading
        self.keyframe_interval = keyframe_interval
        self.options = options
        self.output_type = output_type
        self.decode_chunk_size = decode_chunk_size
        self._size = (height, width)
        # Of the frames that windows need, or of the keyframes among them, in the order of time.
        self._latents: torch.Tensor  # (videos, kept frames, channels, h, w)
        # Of the first of these frames, (videos, frames, channels, h_low, w_low); the others get theirs when needed.
        self._low_latents: torch.Tensor
        self._conditions: Conditions  # of these frames, without those that are absent in all of them
        self._last_conditions: Conditions = {}  # of the last frame alone, where those above are of keyframes' intervals
        self._num_generated = 0  # of these frames, the last so many are the model's own
        self._checked_scheduler: Any = None

    @property
    def num_kept_frames(self) -> int:
        """Number of frames that lead the next window: `overlap`, or fewer while the video is shorter."""
        return len(self.leading.leading(self._latents.shape[1]))

    @property
    def most_new_frames(self) -> int:
        """Most frames that the next step can make."""
        return (self.window - self.num_kept_frames) * self.keyframe_interval

    def kept_places(self, num_frames: int) -> list[int]:
        """Return the places of the frames to start with, of a clip of so many frames."""
        keyframes = range((num_frames - 1) % self.keyframe_interval, num_frames, self.keyframe_interval)
        return [keyframes[i] for i in self.leading.kept(len(keyframes))]

    def may_be_kept(self, places: list[int], num_frames: int) -> list[int]:
        """Return the indices of those of `places` that `kept_places` may have for `num_frames` or more."""
        last = num_frames - self.leading.span * self.keyframe_interval
        first = self.keyframe_interval if self.leading.anchors else 0
        return [i for i, place in enumerate(places) if place >= last or place < first]

    @torch.no_grad()
    def reset(self, video: Any, conditions: Mapping[str, Any] | None = None, num_frames: int | None = None) -> None:
        """Begin again with another clip; the frames that lead on are encoded. The generator goes on.

        Args:
            video: A clip, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            conditions (`dict`, *optional*): Conditions of its frames, `(len(video), channels)` each.
            num_frames (`int`, *optional*): Of a longer clip, if `video` has only its frames at
                `kept_places(num_frames)`; conditions are those of all its frames.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        pipe = self.pipe
        with in_use(pipe, pipe.scheduler):
            pixels = pipe._check_long_video(
                video, *self._size, self.window, self.options, self.output_type, least_frames=1
            )
            values = read_conditions(conditions, pipe.conditions, len(pixels), num_frames or pixels.shape[1])
            self._checked_scheduler = pipe.scheduler
            places = self.kept_places(num_frames or pixels.shape[1])
            pixels = pixels if num_frames else pixels[:, places]
            latents = pipe.encode_frames(pixels, self.decode_chunk_size)
            self.start(latents, pipe.encode_low_frames(pixels, self.decode_chunk_size), values, places)
            pipe.maybe_free_model_hooks()

    def conditions_of_kept(self, conditions: Conditions, places: list[int]) -> Conditions:
        """Return the conditions of the frames at `kept_places`, those of keyframes over the interval of each."""
        if self.keyframe_interval == 1:
            return {name: rows[:, places] for name, rows in conditions.items()}
        # Anchors lie far before the others, but stand beside them in the window, as neighbours do.
        known, interval = self.pipe.conditions, self.keyframe_interval
        each = [conditions_at(conditions, known, [place, place + interval]) for place in places]
        return {name: torch.cat([one[name][:, :1] for one in each], dim=1) for name in conditions}

    def start(
        self, latents: torch.Tensor, low_latents: torch.Tensor, conditions: Conditions, places: list[int]
    ) -> None:
        """Begin with frames that are encoded already.

        Args:
            latents: of the frames at `kept_places`, `(videos, frames, channels, h, w)`.
            low_latents: of the same frames for the planner, `(videos, frames, channels, h_low, w_low)`.
            conditions: of all frames of the clip.
            places: the `kept_places`.
        """
        self._keep(latents, low_latents, self.conditions_of_kept(conditions, places))
        self._last_conditions = {name: rows[:, -1:] for name, rows in conditions.items()}
        self._num_generated = 0

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next step needs, as tensors by name; `restore` takes it."""
        conditions = {f"conditions.{name}": values for name, values in self._conditions.items()}
        last = {f"last_conditions.{name}": values for name, values in self._last_conditions.items()}
        generated = torch.tensor(self._num_generated)
        tensors = {"latents": self._latents, "low_latents": self._low_latents, "generated": generated}
        return {**tensors, **conditions, **last}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on where another rollout of the same settings was when its `state` was taken."""
        device = self.pipe._execution_device
        self._latents, self._low_latents = state["latents"].to(device), state["low_latents"].to(device)
        self._num_generated = int(state["generated"])
        self._conditions, self._last_conditions = (
            {name.removeprefix(prefix): rows for name, rows in state.items() if name.startswith(prefix)}
            for prefix in ("conditions.", "last_conditions.")
        )

    @torch.no_grad()
    def step(
        self, num_frames: int | None = None, conditions: Mapping[str, Any] | None = None
    ) -> MarDiniPipelineOutput:
        r"""
        Make the next frames.

        Args:
            num_frames (`int`, *optional*):
                How many, at most `most_new_frames`, which is the default; whole intervals of keyframes. Fewer make a
                shorter window, which is quicker, and shorter than those that the model was trained for.
            conditions (`dict`, *optional*):
                Conditions of the new frames by name, `(num_frames, channels)` for all videos or
                `(batch, num_frames, channels)`. Later steps see them too, for as long as the frames lead a window.

        Returns:
            [`MarDiniPipelineOutput`] with the new frames alone. After an interruption by a callback they hold noise,
            and the rollout stays where it was.

        Raises:
            ValueError: for every unusable argument, before any model runs, and while the pipeline is at work.

        After any error the rollout stays where it was.
        """
        pipe = self.pipe
        with in_use(pipe, pipe.scheduler):
            most = self.most_new_frames
            num_frames = most if num_frames is None else whole_number(num_frames, "num_frames", least=1)
            if num_frames > most:
                raise ValueError(
                    f"`num_frames` is {num_frames}, but a window of {self.window} frames led by "
                    f"{self.num_kept_frames} has place for {most}; give {most} or fewer, or make the rollout with "
                    "a larger `window` or a smaller `overlap`"
                )
            if num_frames % self.keyframe_interval:
                raise ValueError(
                    f"`num_frames` is {num_frames}, but this rollout goes on by keyframes that lie "
                    f"{self.keyframe_interval} apart; give a multiple of {self.keyframe_interval}"
                )
            values = read_conditions(conditions, pipe.conditions, len(self._latents), num_frames)
            if pipe.scheduler is not self._checked_scheduler:
                pipe.check_inputs(self.options, len(self._latents), self.output_type)
                self._checked_scheduler = pipe.scheduler
            pipe._reset_call()
            state = self.state()
            try:
                latents = self.sample(num_frames, values)
                frames = latents if self.output_type == "latent" else self._decode(latents)
            except BaseException:
                self.restore(state)
                raise
            pipe.maybe_free_model_hooks()
            return MarDiniPipelineOutput(frames=frames)

    def sample(self, num_frames: int, conditions: Conditions, progress_bar: Any = None) -> torch.Tensor:
        """Sample the next frames, without checks, as `step` does with them.

        Args:
            num_frames: new frames.
            conditions: of the new frames, result of `read_conditions`.
            progress_bar: updated once per step of the sampler, if given.

        Returns:
            Latents of the new frames, `(videos, num_frames, channels, h, w)`.
        """
        if self.keyframe_interval == 1:
            return self._sample_window(num_frames, conditions, progress_bar)
        return self._sample_hierarchy(num_frames, conditions, progress_bar)

    def num_windows(self, num_frames: int) -> int:
        """Return how many windows `sample` takes for so many frames."""
        gaps = num_frames // self.keyframe_interval
        return 1 if gaps == num_frames else 1 + len(self._windows_between(gaps))

    def _windows_between(self, gaps: int) -> Sequence[Window]:
        """Return the windows between the last keyframe and `gaps` new ones."""
        return slow_motion_windows(gaps + 1, self.keyframe_interval, max(3, self.window))

    def _sample_window(self, num_frames: int, conditions: Conditions, progress_bar: Any) -> torch.Tensor:
        """Sample one window, and keep what later ones need of it."""
        pipe, options, latents = self.pipe, self.options, self._latents
        low_latents, missing = self._low_latents, latents.shape[1] - self._low_latents.shape[1]
        if missing:
            seen = pipe._low_latents_of_sampled(latents[:, -missing:], self.decode_chunk_size)
            low_latents = torch.cat([low_latents, seen], dim=1)  # (videos, kept, channels, h_low, w_low)
        conditions = self._with_those_of_kept(conditions, num_frames)  # of kept and new frames
        leading = self.leading.leading(latents.shape[1])
        given_indices, length = leading_indices(len(leading)), len(leading) + num_frames
        references, low_references, timestep = self._references(leading, low_latents)
        places = [*leading, *range(latents.shape[1], latents.shape[1] + num_frames)]
        told = {name: values[:, places] for name, values in conditions.items()}
        planning_signals = pipe.plan(low_references, given_indices, length, options.attention_kwargs, told)
        pipe.set_timesteps(options)  # some schedulers' first level depends on them
        noise = pipe.prepare_latents((len(latents), length, *latents.shape[2:]), options.generator)
        sampled = pipe.denoise(
            noise, references, given_indices, planning_signals, options, progress_bar, told, timestep
        )[:, -num_frames:]  # (videos, num_frames, channels, h, w)
        if not pipe.interrupt:
            first_generated = latents.shape[1] - self._num_generated
            places = self._keep(torch.cat([latents, sampled], dim=1), low_latents, conditions)
            self._num_generated = sum(place >= first_generated for place in places)
        return sampled

    def _sample_hierarchy(self, num_frames: int, conditions: Conditions, progress_bar: Any) -> torch.Tensor:
        """Sample keyframes that lie far apart, then the frames between them, which lead nothing."""
        pipe, interval, state = self.pipe, self.keyframe_interval, self.state()
        last, last_low = self._latents[:, -1:], self._low_latents[:, -1:]
        before = self._with_last(conditions, num_frames)
        keyframes = list(range(0, num_frames + 1, interval))
        of_keyframes = {
            name: values[:, 1:] for name, values in conditions_at(before, pipe.conditions, keyframes).items()
        }
        new = self._sample_window(num_frames // interval, of_keyframes, progress_bar)
        latents = new.new_zeros((len(new), num_frames + 1, *new.shape[2:]))
        latents[:, keyframes] = torch.cat([last, new], dim=1)
        if not pipe.interrupt:
            low = pipe._low_latents_of_sampled(new, self.decode_chunk_size)
            low = torch.cat([last_low, low], dim=1)  # of all keyframes
            low_latents = low.new_zeros((len(low), num_frames + 1, *low.shape[2:]))
            low_latents[:, keyframes] = low
            if missing := self._latents.shape[1] - self._low_latents.shape[1]:
                self._low_latents = torch.cat([self._low_latents, low[:, -missing:]], dim=1)
            batches = [[window] for window in self._windows_between(num_frames // interval)]
            pipe.sample_into(latents, low_latents, batches, self.options, self.decode_chunk_size, before, progress_bar)
            self._last_conditions = {name: values[:, -1:] for name, values in before.items()}
            if pipe.interrupt:
                self.restore(state)
        return latents[:, 1:]

    def _with_last(self, new: Conditions, num_frames: int) -> Conditions:
        """Return the conditions of the last frame, which the first gap begins with, and of the new ones."""
        rows = {}
        for name in sorted({*self._last_conditions, *new}):
            some = new[name] if name in new else self._last_conditions[name]
            absent = some.new_full((len(some), num_frames, some.shape[2]), torch.nan)
            last = self._last_conditions.get(name, absent[:, :1])
            rows[name] = torch.cat([last, new.get(name, absent)], dim=1)
        return rows

    def _references(
        self, leading: list[int], low_latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the leading frames as both models are to see them, and their timesteps, `(leading frames,)` or
        `None`: the model's own get `generated_noise`."""
        num_kept = self._latents.shape[1]
        latents, low_latents = self._latents[:, leading], low_latents[:, leading]
        levels = len(self.pipe.scheduler.alphas_cumprod)
        level = min(round(self.options.generated_noise * levels), levels - 1)
        if level == 0 or self._num_generated == 0:
            return latents, low_latents, None
        given = sum(place < num_kept - self._num_generated for place in leading)
        alpha = float(self.pipe.scheduler.alphas_cumprod[level]) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        noised = []
        for clean in (latents, low_latents):
            noise = randn_tensor(
                clean[:, given:].shape, generator=self.options.generator, device=clean.device, dtype=clean.dtype
            )
            noised.append(torch.cat([clean[:, :given], alpha * clean[:, given:] + sigma * noise], dim=1))
        timestep = torch.zeros(latents.shape[1], dtype=torch.long)
        timestep[given:] = level
        return *noised, timestep

    def _keep(self, latents: torch.Tensor, low_latents: torch.Tensor, conditions: Conditions) -> list[int]:
        """Keep of some frames those that windows need, and return which; `low_latents` may have only the first."""
        places = self.leading.kept(latents.shape[1])
        self._latents = latents[:, places]  # a copy: a view would keep the whole window alive
        self._low_latents = low_latents[:, [place for place in places if place < low_latents.shape[1]]]
        kept = {name: values[:, places] for name, values in conditions.items()}
        self._conditions = {name: values for name, values in kept.items() if not values.isnan().all()}
        return places

    def _with_those_of_kept(self, new: Conditions, num_frames: int) -> Conditions:
        """Return the conditions of the kept frames and of the new ones, absent where neither has values."""
        rows = {}
        for name in sorted({*self._conditions, *new}):
            some = new[name] if name in new else self._conditions[name]
            absent = some.new_full((len(some), max(num_frames, self._latents.shape[1]), some.shape[2]), torch.nan)
            kept = self._conditions.get(name, absent[:, : self._latents.shape[1]])
            rows[name] = torch.cat([kept, new.get(name, absent[:, :num_frames])], dim=1)
        return rows

    def _decode(self, latents: torch.Tensor) -> Any:
        """Decode new frames once, for whoever asked and for the planner of the next step."""
        videos, num_frames = latents.shape[:2]
        frames = torch.cat(list(self.pipe._decoded_chunks(latents, self.decode_chunk_size)))
        missing = self._latents.shape[1] - self._low_latents.shape[1]  # none after an interruption
        if missing and self.keyframe_interval == 1:
            seen = frames.unflatten(0, (videos, num_frames))[:, -missing:].clamp(-1, 1)
            seen = self.pipe.encode_low_frames(seen, self.decode_chunk_size)
            self._low_latents = torch.cat([self._low_latents, seen], dim=1)
        return self.pipe._to_output([frames], output_type=self.output_type, num_videos=videos)
