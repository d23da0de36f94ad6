"""A rollout: a video that goes on frame by frame, for as long as somebody asks for more (ours; beyond the paper).

It keeps what the next window needs of the last frames, and nothing else: their latents, what the planner gets of them,
and their conditions. `MarDiniPipeline.rollout` makes one; `extend` in `long_video.py` is a loop over one.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..masking import leading_indices
from .conditions import Conditions, read_conditions
from .inputs import whole_number
from .one_call import in_use
from .pipeline_output import MarDiniPipelineOutput
from .sampling_options import SamplingOptions


if TYPE_CHECKING:
    from .pipeline_mardini import MarDiniPipeline


class MarDiniRollout:
    """Continue a clip on request; made by [`~MarDiniPipeline.rollout`].

    Args:
        pipe ([`MarDiniPipeline`]): Samples the frames. One rollout, or one call, is served at a time.
        window (`int`): Most frames of a window.
        overlap (`int`): Most frames that lead a window, less than `window`.
        options ([`SamplingOptions`]): How to sample each window.
        output_type (`str`): Form of the frames, as in [`~MarDiniPipeline.__call__`].
        decode_chunk_size (`int`): Most frames that the VAE encodes or decodes at once.
        height, width (`int`, *optional*): Size of the frames in pixels; by default that of the clip.
    """

    def __init__(
        self,
        pipe: "MarDiniPipeline",
        window: int,
        overlap: int,
        options: SamplingOptions,
        output_type: str,
        decode_chunk_size: int,
        height: int | None = None,
        width: int | None = None,
    ):
        self.pipe = pipe
        self.window = window
        self.overlap = overlap
        self.options = options
        self.output_type = output_type
        self.decode_chunk_size = decode_chunk_size
        self._size = (height, width)
        self._latents: torch.Tensor  # (videos, kept frames, channels, h, w)
        # Of the first of these frames, (videos, frames, channels, h_low, w_low); the others get theirs when needed.
        self._low_latents: torch.Tensor
        self._conditions: Conditions  # of these frames, without those that are absent in all of them
        self._num_generated = 0  # of these frames, the last so many are the model's own
        self._checked_scheduler: Any = None

    @property
    def num_kept_frames(self) -> int:
        """Number of frames that lead the next window: `overlap`, or fewer while the video is shorter."""
        return self._latents.shape[1]

    @property
    def most_new_frames(self) -> int:
        """Most frames that the next step can make."""
        return self.window - self.num_kept_frames

    @torch.no_grad()
    def reset(self, video: Any, conditions: Mapping[str, Any] | None = None) -> None:
        """Begin again with another clip; its last `overlap` frames are encoded. The generator goes on.

        Args:
            video: A clip, or a batch of clips, as in [`~MarDiniPipeline.__call__`].
            conditions (`dict`, *optional*): Conditions of its frames, `(len(video), channels)` each.

        Raises:
            ValueError: for every unusable argument, before any model runs.
        """
        pipe = self.pipe
        with in_use(pipe, pipe.scheduler):
            pixels = pipe._check_long_video(
                video, *self._size, self.window, self.options, self.output_type, least_frames=1
            )
            values = read_conditions(conditions, pipe.conditions, *pixels.shape[:2])
            self._checked_scheduler = pipe.scheduler
            pixels = pixels[:, -self.overlap :]
            values = {name: rows[:, -self.overlap :] for name, rows in values.items()}
            latents = pipe.encode_frames(pixels, self.decode_chunk_size)
            self.start(latents, pipe.encode_low_frames(pixels, self.decode_chunk_size), values)
            pipe.maybe_free_model_hooks()

    def start(self, latents: torch.Tensor, low_latents: torch.Tensor, conditions: Conditions) -> None:
        """Begin with frames that are encoded already.

        Args:
            latents: of the frames, `(videos, frames, channels, h, w)`.
            low_latents: of the same frames for the planner, `(videos, frames, channels, h_low, w_low)`.
            conditions: of the same frames, result of `read_conditions`.
        """
        self._keep(latents, low_latents, conditions)
        self._num_generated = 0

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next step needs, without conditions; `restore` takes it."""
        return {"latents": self._latents, "low_latents": self._low_latents}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where another rollout of the same settings was when its `state` was taken."""
        self._latents, self._low_latents, self._conditions = state["latents"], state["low_latents"], {}

    @torch.no_grad()
    def step(
        self, num_frames: int | None = None, conditions: Mapping[str, Any] | None = None
    ) -> MarDiniPipelineOutput:
        r"""
        Make the next frames.

        Args:
            num_frames (`int`, *optional*):
                How many, at most `most_new_frames`, which is the default. Fewer make a shorter window, which is
                quicker, and shorter than those that the model was trained for.
            conditions (`dict`, *optional*):
                Conditions of the new frames by name, `(num_frames, channels)` for all videos or
                `(batch, num_frames, channels)`. Later steps see them too, for as long as the frames lead a window.

        Returns:
            [`MarDiniPipelineOutput`] with the new frames alone. After an interruption by a callback they hold noise,
            and the rollout stays where it was.

        Raises:
            ValueError: for every unusable argument, before any model runs, and while the pipeline is at work; the
                rollout stays where it was.
        """
        pipe = self.pipe
        with in_use(pipe, pipe.scheduler):
            most = self.most_new_frames
            num_frames = most if num_frames is None else whole_number(num_frames, "num_frames", least=1)
            if num_frames > most:
                raise ValueError(
                    f"`num_frames` is {num_frames}, but a window of {self.window} frames led by "
                    f"{self.num_kept_frames} has place for {most}; give {most} or fewer, or make the rollout with a "
                    "larger `window` or a smaller `overlap`"
                )
            values = read_conditions(conditions, pipe.conditions, len(self._latents), num_frames)
            if pipe.scheduler is not self._checked_scheduler:
                pipe.check_inputs(self.options, len(self._latents), self.output_type)
                self._checked_scheduler = pipe.scheduler
            pipe._reset_call()
            latents = self.sample(num_frames, values)[:, -num_frames:]
            frames = latents if self.output_type == "latent" else self._decode(latents)
            pipe.maybe_free_model_hooks()
            return MarDiniPipelineOutput(frames=frames)

    def sample(self, num_frames: int, conditions: Conditions, progress_bar: Any = None) -> torch.Tensor:
        """Sample the next window, without checks, as `step` does with them.

        Args:
            num_frames: new frames.
            conditions: of the new frames, result of `read_conditions`.
            progress_bar: updated once per step of the sampler, if given.

        Returns:
            Latents of the whole window, kept frames first: `(videos, kept + num_frames, channels, h, w)`.
        """
        pipe, options, latents = self.pipe, self.options, self._latents
        num_kept = self.num_kept_frames
        given_indices, length = leading_indices(num_kept), num_kept + num_frames
        low_latents, missing = self._low_latents, num_kept - self._low_latents.shape[1]
        if missing:
            seen = pipe._low_latents_of_sampled(latents[:, -missing:], self.decode_chunk_size)
            low_latents = torch.cat([low_latents, seen], dim=1)  # (videos, kept, channels, h_low, w_low)
        conditions = self._conditions_of_window(conditions, num_frames)
        references, low_references, timestep = self._references(latents, low_latents)
        planning_signals = pipe.plan(low_references, given_indices, length, options.attention_kwargs, conditions)
        noise = pipe.prepare_latents((len(latents), length, *latents.shape[2:]), options.generator)
        sampled = pipe.denoise(
            noise, references, given_indices, planning_signals, options, progress_bar, conditions, timestep
        )  # (videos, kept + num_frames, channels, h, w)
        sampled[:, :num_kept] = latents  # without the noise that they may have got
        if not pipe.interrupt:
            self._keep(sampled, low_latents, conditions)
            self._num_generated = min(self._num_generated + num_frames, self.num_kept_frames)
        return sampled

    def _references(
        self, latents: torch.Tensor, low_latents: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the kept frames as both models are to see them, and their timesteps, `(kept frames,)` or `None`: the
        model's own get `generated_noise`."""
        level = round(self.options.generated_noise * len(self.pipe.scheduler.alphas_cumprod))
        if level == 0 or self._num_generated == 0:
            return latents, low_latents, None
        given = latents.shape[1] - self._num_generated
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

    def _keep(self, latents: torch.Tensor, low_latents: torch.Tensor, conditions: Conditions) -> None:
        """Keep the last `overlap` of some frames; `low_latents` may have only the first of them."""
        dropped = max(0, latents.shape[1] - self.overlap)
        self._latents = latents[:, dropped:].clone()  # a view would keep the whole window alive
        self._low_latents = low_latents[:, dropped:].clone()
        kept = {name: values[:, dropped:].clone() for name, values in conditions.items()}
        self._conditions = {name: values for name, values in kept.items() if not values.isnan().all()}

    def _conditions_of_window(self, new: Conditions, num_frames: int) -> Conditions:
        """Return the conditions of the kept frames and of the new ones, absent where neither has values."""
        rows = {}
        for name in sorted({*self._conditions, *new}):
            some = new[name] if name in new else self._conditions[name]
            absent = some.new_full((len(some), max(num_frames, self.overlap), some.shape[2]), torch.nan)
            kept = self._conditions.get(name, absent[:, : self.num_kept_frames])
            rows[name] = torch.cat([kept, new.get(name, absent[:, :num_frames])], dim=1)
        return rows

    def _decode(self, latents: torch.Tensor) -> Any:
        """Decode new frames once, for whoever asked and for the planner of the next step."""
        videos, num_frames = latents.shape[:2]
        frames = torch.cat(list(self.pipe._decoded_chunks(latents, self.decode_chunk_size)))
        missing = self.num_kept_frames - self._low_latents.shape[1]  # none after an interruption
        if missing:
            seen = frames.unflatten(0, (videos, num_frames))[:, -missing:].clamp(-1, 1)
            seen = self.pipe.encode_low_frames(seen, self.decode_chunk_size)
            self._low_latents = torch.cat([self._low_latents, seen], dim=1)
        return self.pipe._to_output([frames], output_type=self.output_type, num_videos=videos)
