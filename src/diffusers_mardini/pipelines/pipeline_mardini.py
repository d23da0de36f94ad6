"""Sampling with MarDini (Sec. 2.1, Sec. 3): plan once at low resolution, denoise many times at high resolution.

A window is any number of frames of which some are given. `long_video.py` builds longer videos from windows,
`inputs.py` checks what users pass, `velocities.py` calls the transformer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import get_module_execution_device, randn_tensor
from diffusers.video_processor import VideoProcessor

from ..latents import decode_latents, downscale_video, encode_video
from ..loaders import MarDiniLoraLoaderMixin
from ..measured_sampling import MeasuredSampling
from ..models.autoencoder_patch_basis import AutoencoderPatchBasis
from ..models.conditions import Condition
from ..models.transformer_mardini import MarDiniTransformer3DModel
from ..models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from ..models.window import WindowLayout
from ..schedulers.compatibility import accepted, check_sampling, check_scheduler, set_timesteps
from ..trained_window import TrainedWindow
from .conditions import Conditions, conditions_for, known_conditions, read_conditions
from .inputs import check_noise, read_given_frames, read_window, to_pixels, whole_number
from .keyframes import KeyframesMixin
from .long_video import DECODE_CHUNK_SIZE, LongVideoMixin
from .one_call import one_call_at_a_time
from .pasting import OwnPixels, check_pasting
from .pipeline_output import MarDiniPipelineOutput
from .sampling_options import SamplingOptions, check_options, tensors_of_callback
from .saving import SavingMixin
from .velocities import WindowVelocities


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from diffusers.utils import load_image
        >>> from diffusers_mardini import MarDiniPipeline
        >>> from diffusers_mardini.video_io import write_video

        >>> pipe = MarDiniPipeline.from_pretrained("checkpoints/mardini-tiny-carracing")
        >>> first, last = load_image("first.png"), load_image("last.png")
        >>> frames = pipe(image=first, last_image=last).frames[0]
        >>> write_video("between.mp4", frames, fps=12)
        ```
"""
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class MarDiniPipeline(SavingMixin, DiffusionPipeline, LongVideoMixin, KeyframesMixin, MarDiniLoraLoaderMixin):
    r"""
    Image-to-video, interpolation, video expansion and any other filling in of frames (Sec. 2.1).

    Also: [`~MarDiniPipeline.slow_motion`], [`~MarDiniPipeline.extend`], [`~MarDiniPipeline.rollout`],
    [`~MarDiniPipeline.fill`], [`~MarDiniPipeline.loop`] and [`~MarDiniPipeline.views`] for videos longer than a
    window; [`~MarDiniPipeline.load_lora_weights`] and the other methods of `loaders/lora.py`.

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderPatchBasis`]): Image autoencoder, applied to each frame.
        planner ([`MarDiniPlannerTransformer3DModel`]): Computes the planning signals, once per window.
        transformer ([`MarDiniTransformer3DModel`]): Predicts the velocity, at every step.
        scheduler ([`MarDiniScheduler`]):
            The noise schedule. A scheduler of diffusers also works if it has the same betas and predicts velocities,
            as most do when made with `from_config(pipe.scheduler.config)`; `schedulers/compatibility.py` tries it
            before each call.
        planner_downscale (`int`, defaults to `4`):
            How many times smaller than the output the planner's frames are. It belongs to the pipeline's
            configuration, not to a component: `from_pipe` keeps it, `MarDiniPipeline(**pipe.components)` does not.
        height, width, num_frames, fps (`int`, or `float` for `fps`, *optional*):
            The window that the models were trained on, `fps` from one of its frames to the next: the defaults of
            every call. The trainer writes them; they belong to the configuration too.
        num_inference_steps (`int`, *optional*), solver (`str`, *optional*):
            Steps, and a scheduler of diffusers, that were measured to be as good as 25 steps of the scheduler: the
            defaults of `mardini`, not of calls.
        anchors (`int`, *optional*):
            Frames far back that lead each window of `extend`, if they were measured to help against drift: the default
            of `mardini extend`, not of calls.
    """

    model_cpu_offload_seq = "planner->transformer->vae"
    _callback_tensor_inputs = ["latents", "planning_signals"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderPatchBasis,
        planner: MarDiniPlannerTransformer3DModel,
        transformer: MarDiniTransformer3DModel,
        scheduler: SchedulerMixin,
        planner_downscale: int = 4,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        anchors: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, planner=planner, transformer=transformer, scheduler=scheduler)
        self.register_to_config(
            planner_downscale=whole_number(planner_downscale, "planner_downscale", least=1),
            **read_window(height, width, num_frames, fps).config,
            **MeasuredSampling(num_inference_steps, solver, anchors).config,
        )
        vae_config = getattr(self.vae, "config", None)
        self.vae_scale_factor = 2 ** (len(vae_config.block_out_channels) - 1) if vae_config is not None else 8
        # Don't pass `vae_latent_channels`: with a 3-channel VAE, RGB would be taken for latents.
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)
        # Noise levels by timestep; a scheduler that is put in later must have the same.
        self._noise_levels: torch.Tensor | None = getattr(self.scheduler, "alphas_cumprod", None)
        self._reset_call()

    @property
    def size_multiple(self) -> int:
        """Divisor of valid heights and widths in pixels: both models cut their latents into whole patches."""
        return self.vae_scale_factor * math.lcm(
            self.transformer.config.patch_size, self.planner.config.patch_size * self.config.planner_downscale
        )

    @property
    def trained_window(self) -> TrainedWindow:
        """The window that the models were trained on, as far as the configuration says."""
        return TrainedWindow.from_config(self.config)

    @property
    def conditions(self) -> dict[str, Condition]:
        """The conditions of planner and transformer, by name: valid keys of the argument `conditions`."""
        return known_conditions(self.transformer, self.planner)

    @property
    def guidance_scale(self) -> float | None:
        """Weight of classifier-free guidance. A callback may change `_guidance_scale` between steps: 1.0 switches
        guidance off, as 0.0 does in pipelines of diffusers whose test is `> 1`; here 0.0 ignores what is given."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Tell whether `guidance_scale` needs the unconditional velocity; `False` before the first call."""
        return self._guidance_scale is not None and self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Number of evaluations of the window, and of calls of the callback: about `steps * scheduler.order`. Under
        guidance each evaluation is two calls of the transformer."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """Timestep of the present evaluation; `None` between calls."""
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """The argument of the same name of the present or last call."""
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Tell whether the remaining steps are skipped; set `_interrupt` from a callback or another thread."""
        return self._interrupt

    @torch.no_grad()
    @one_call_at_a_time
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        frame_indices: Sequence[int] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        timesteps: list[int] | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        decode_chunk_size: int = DECODE_CHUNK_SIZE,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        use_window_state: bool = True,
        conditions: Mapping[str, Any] | None = None,
        paste_given: bool = False,
        blend: int = 0,
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Sample the frames of one window that are not given.

        The given frames decide the task (Sec. 2.1): `image` alone is image-to-video, `image` and `last_image`
        interpolation, `video` expansion (its frames lead) or, with `frame_indices`, anything else. Pictures are PIL
        images, numpy arrays `(height, width, channels)` or torch tensors `(channels, height, width)`. Grey ones need
        no axis of channels; transparent ones are put on white. Arrays hold uint8 or floats in [0, 1]; if any float of
        the call is -0.1 or less, all are taken as [-1, 1], with a warning. The output holds all frames, the given ones
        as the VAE decodes them, so that they look like their neighbours, or as they were given (`paste_given`).

        Args:
            image: First frame, or a list or a 4-dimensional array of them for a batch.
            last_image: Last frame, in the same form.
            video: A list or a 4-dimensional array of frames; a list of these or a 5-dimensional array for a batch.
            frame_indices: The place of each frame of `video` in the window, the same for the whole batch.
            num_frames (`int`, *optional*): Number of frames of the window, the given ones included; by default that of
                the training (`self.trained_window`), 9 if the pipeline does not know it.
            height, width (`int`, *optional*): Size of the output in pixels, to which the given frames are resized. By
                default that of `video`, and for `image` that of the training, if the pipeline knows it, else that of
                `image`. Must be divisible by `self.size_multiple`.
            num_inference_steps (`int`, defaults to `25`): Number of denoising steps (Fig. 6a: 25 are enough). DDIM
                ends exactly at zero noise only if this divides the 1000 levels of training (10, 20, 25, 40, 50, 100),
                and close to it with other small numbers; above 100 use a divisor, or `timesteps`.
            timesteps: Noise levels to visit, falling; overrides `num_inference_steps`.
            guidance_scale (`float`, *optional*):
                Weight of classifier-free guidance on planning signals and conditions together. By default 2.5 if only
                leading frames are given, otherwise 1.0 (none, and half the work; Sec. 3). 0.0 ignores the planner and
                the conditions.
            eta (`float`, defaults to `0.0`): Fresh noise per step, for schedulers that accept it; 0 is deterministic.
            num_videos_per_prompt (`int`, defaults to `1`): Videos for each row of the batch, from the same planning
                signals.
            generator: Source of the noise; a list has one per video.
            latents (`torch.Tensor`, *optional*):
                The noise itself, shaped `(videos, num_frames, channels, h, w)` with unit variance; values at given
                frames are not used.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            decode_chunk_size (`int`, defaults to `16`): Most frames that the VAE encodes or decodes at once, which
                bounds the memory.
            return_dict (`bool`, defaults to `True`): Whether to return a [`MarDiniPipelineOutput`] or a tuple.
            attention_kwargs (`dict`, *optional*):
                `{"scale": s}` scales LoRA layers of both models; there is no other key.
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after every step. Tensors in the
                dictionary it returns replace the pipeline's; `None` changes nothing. `latents` returned after the last
                step are the result.
            callback_on_step_end_tensor_inputs: Names of the tensors it gets: `"latents"`, shaped like the argument,
                with the latents of the given frames at theirs, and `"planning_signals"`, which it may also write to. A
                callback that changes weights or adapters must call `pipe.reset_window_states()`.
            use_window_state (`bool`, defaults to `True`):
                Computes once per window what no step changes: the states of the given frames, and the keys and values
                of the planning signals (`models/window.py`). `False` runs the whole window through the transformer at
                every step, which is slower and gives the same up to rounding.
            conditions (`dict`, *optional*):
                Conditions of the frames by name, such as `{"action": array}`: values `(num_frames, channels)` for all
                videos or `(batch, num_frames, channels)`, given frames included. The values of a frame belong to the
                interval that leads to it. NaN in all channels stands for a frame without values. `pipe.conditions`
                lists the conditions of this checkpoint.
            paste_given (`bool`, defaults to `False`): Whether given frames come out with their own pixels, resized,
                and not as the VAE decodes them.
            blend (`int`, defaults to `0`): With `paste_given`, the number of sampled frames on each side of a given
                one to which the difference between its own and its decoded pixels is added, fading with the distance.
                Hides the seam where the picture stands still or colours shift; moving details would leave a shadow.

        Examples:

        Returns:
            [`MarDiniPipelineOutput`] with `frames`, or a tuple with the same.

        Raises:
            ValueError: for every unusable argument, before any model runs; and if the models compute values that are
                not finite.
        """
        # 1. Check
        given = read_given_frames(
            image, last_image, video, frame_indices, num_frames, height, width, self.size_multiple, self.trained_window
        )
        options = SamplingOptions(
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generator,
            attention_kwargs=attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            use_window_state=use_window_state,
        )
        decode_chunk_size = whole_number(decode_chunk_size, "decode_chunk_size", least=1)
        num_videos_per_prompt = whole_number(num_videos_per_prompt, "num_videos_per_prompt", least=1)
        num_videos = given.batch_size * num_videos_per_prompt
        latents_shape = self.latents_shape(num_videos, given.num_frames, given.height, given.width)
        self.check_inputs(options, num_videos, output_type, latents, latents_shape, given.given_indices)
        blend = check_pasting(paste_given, blend, output_type)
        conditions = read_conditions(conditions, self.conditions, given.batch_size, given.num_frames)
        num_steps = self.set_timesteps(options)
        self._reset_call()

        # 2. Encode
        pixels = to_pixels(given.videos, given.height, given.width, self.video_processor)
        references = self.encode_frames(pixels, decode_chunk_size)
        low_references = self.encode_low_frames(pixels, decode_chunk_size)

        # 3. Plan
        planning_signals = self.plan(
            low_references, given.given_indices, given.num_frames, attention_kwargs, conditions
        )

        # 4. Prepare
        references = references.repeat_interleave(num_videos_per_prompt, dim=0)
        planning_signals = planning_signals.repeat_interleave(num_videos_per_prompt, dim=0)
        conditions = {
            name: values.repeat_interleave(num_videos_per_prompt, dim=0) for name, values in conditions.items()
        }
        noise = self.prepare_latents(latents_shape, options.generator, latents)

        # 5. Denoise
        with self.progress_bar(total=num_steps) as progress_bar:
            latents = self.denoise(
                noise, references, given.given_indices, planning_signals, options, progress_bar, conditions
            )

        # 6. Decode
        pixels = pixels.repeat_interleave(num_videos_per_prompt, dim=0)
        own = OwnPixels(pixels, given.given_indices, blend) if paste_given else None
        frames = self.decode(latents, output_type, decode_chunk_size, own)
        self.maybe_free_model_hooks()
        return MarDiniPipelineOutput(frames=frames) if return_dict else (frames,)

    def check_inputs(
        self,
        options: SamplingOptions,
        num_videos: int,
        output_type: str,
        latents: torch.Tensor | None = None,
        latents_shape: tuple[int, ...] | None = None,
        given_indices: Sequence[int] = (),
    ) -> None:
        """Raise `ValueError` for sampling arguments that cannot be used; the given frames are checked before."""
        check_scheduler(self.scheduler, self._noise_levels)
        check_options(options, num_videos, self._callback_tensor_inputs, len(self.scheduler.alphas_cumprod))
        check_sampling(self.scheduler, options.num_inference_steps, options.timesteps, options.eta)
        if latents is not None:
            check_noise(latents, latents_shape, given_indices)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")

    def encode_frames(self, pixels: torch.Tensor, chunk_size: int = DECODE_CHUNK_SIZE) -> torch.Tensor:
        """Encode frames for the transformer.

        Args:
            pixels: `(batch, frames, 3, height, width)` in [-1, 1], on any device.
            chunk_size: most frames on the autoencoder's device at once.

        Returns:
            Latents `(batch, frames, channels, h, w)` in float32.
        """
        device = get_module_execution_device(self.vae)
        chunks = [
            encode_video(self.vae, chunk[None].to(device, self.vae.dtype))[0].float()
            for chunk in pixels.flatten(0, 1).split(chunk_size)
        ]
        return torch.cat(chunks).to(self._execution_device).unflatten(0, pixels.shape[:2])

    def encode_low_frames(self, pixels: torch.Tensor, chunk_size: int = DECODE_CHUNK_SIZE) -> torch.Tensor:
        """Make frames `planner_downscale` times smaller and encode them for the planner (Sec. 2.2), see
        `encode_frames`."""
        device, factor = get_module_execution_device(self.vae), self.config.planner_downscale
        chunks = [
            # Resized in float32: bfloat16 has fewer steps than pictures of 8 bits.
            downscale_video(chunk[None].to(device, torch.float32), factor)[0]
            for chunk in pixels.flatten(0, 1).split(chunk_size)
        ]
        return self.encode_frames(torch.cat(chunks).unflatten(0, pixels.shape[:2]), chunk_size)

    def plan(
        self,
        low_references: torch.Tensor,
        given_indices: Sequence[int],
        num_frames: int,
        attention_kwargs: dict[str, Any] | None = None,
        conditions: Conditions | None = None,
        positions: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Run the planner on one window (Sec. 2.2).

        Args:
            low_references: the given frames' low-resolution latents, `(batch, given frames, channels, h_low, w_low)`.
            given_indices: their places.
            num_frames: frames of the window.
            attention_kwargs: given to the planner.
            conditions: result of `read_conditions` for the window.
            positions: places of the frames on the models' axis of frames; by default 0, 1, 2, ...

        Returns:
            Planning signals `(batch, num_frames, rows, columns, planning_dim)`.
        """
        batch, device = len(low_references), low_references.device
        window = low_references.new_zeros(batch, num_frames, *low_references.shape[2:])
        window[:, list(given_indices)] = low_references  # (batch, num_frames, channels, h_low, w_low)
        # Model offload moves out the part before a part in its order, and none is before the planner: the autoencoder,
        # and the transformer after the last window of a long video, would stay on the device.
        for hook in getattr(self, "_all_hooks", []):
            if hook.model is not self.planner:
                hook.offload()
        conditions = conditions_for(conditions, self.planner, device)
        layout = WindowLayout.from_given_indices(given_indices, num_frames, batch, device)
        return self.planner(
            window.to(self.planner.dtype),
            layout.reference_mask,
            num_masked_frames=layout.num_masked_frames,
            attention_kwargs=attention_kwargs,
            return_dict=False,
            **({"conditions": conditions} if conditions else {}),
            **({"frame_positions": torch.tensor(positions, device=device)} if positions else {}),
        )[0]

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Return noise at the scheduler's first level in float32: fresh noise of `shape`, or `latents` if given.

        `device` saves looking through all modules for it, once for each window of a batch.
        """
        device = device or self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def denoise(
        self,
        noise: torch.Tensor,
        references: torch.Tensor,
        given_indices: Sequence[int],
        planning_signals: torch.Tensor | None,
        options: SamplingOptions,
        progress_bar: Any,
        conditions: Conditions | None = None,
        reference_timestep: torch.Tensor | None = None,
        positions: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Sample one window (Sec. 3). Only masked frames are noised and stepped.

        Args:
            noise: shaped `(videos, num_frames, channels, h, w)`.
            references: clean latents of the given frames, `(videos, given frames, channels, h, w)`.
            given_indices: their places.
            planning_signals: result of `plan`, one row per video; `None` for the learned unconditional signal.
            options: how to sample.
            progress_bar: updated once per step; `None` for none.
            conditions: result of `read_conditions` for the window, one row per video.
            reference_timestep: timesteps of the given frames, `(given frames,)`, if not all of `references` are clean.
            positions: those that the planning signals were made for, see `plan`.

        Returns:
            Clean latents of all frames, `(videos, num_frames, channels, h, w)`, in float32.
        """
        device = noise.device
        layout = WindowLayout.from_given_indices(given_indices, noise.shape[1], len(noise), device)
        clean = torch.zeros_like(noise)
        clean[:, list(given_indices)] = references.to(device, noise.dtype)  # (videos, frames, channels, h, w)
        if reference_timestep is not None:
            of_all = torch.zeros(noise.shape[1], dtype=torch.long)
            of_all[list(given_indices)] = reference_timestep.cpu()
            reference_timestep = of_all.to(device).expand(noise.shape[:2])  # (videos, frames)
        num_steps = self.set_timesteps(options)
        step_kwargs = accepted(self.scheduler.step, generator=options.generator, eta=options.eta)
        timesteps = self.scheduler.timesteps
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        velocities = self._velocities = WindowVelocities(
            self.transformer, clean, layout, planning_signals, options.attention_kwargs, options.use_window_state,
            conditions_for(conditions, self.transformer, device), reference_timestep, positions,
        )  # fmt: skip
        self._num_timesteps = len(timesteps)
        self._attention_kwargs = options.attention_kwargs
        self._guidance_scale = options.guidance_for(given_indices)

        latents = layout.replace_masked_frames(clean, layout.masked_frames(noise))
        try:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                noisy = layout.masked_frames(latents)  # (videos, masked frames, channels, h, w)
                velocity, unconditional = velocities(
                    self.scheduler.scale_model_input(noisy, t), t, self.do_classifier_free_guidance, i, len(timesteps)
                )
                if unconditional is not None:
                    velocity = unconditional + self.guidance_scale * (velocity - unconditional)

                noisy = self.scheduler.step(velocity, t, noisy, return_dict=False, **step_kwargs)[0]
                latents = layout.replace_masked_frames(clean, noisy)

                if options.callback_on_step_end is not None:
                    names = options.callback_tensor_inputs
                    tensors = {"latents": latents, "planning_signals": velocities.planning_signals}
                    returned = options.callback_on_step_end(self, i, t, {name: tensors[name] for name in names})
                    tensors = tensors_of_callback(returned, tensors)
                    latents = tensors["latents"]
                    velocities.update_planning_signals(tensors["planning_signals"], "planning_signals" in names)

                # An order-2 scheduler lists most of its steps twice.
                num_warmup_steps = len(timesteps) - num_steps * self.scheduler.order
                ends_step = i + 1 > num_warmup_steps and (i + 1) % self.scheduler.order == 0
                if progress_bar is not None and (ends_step or i == len(timesteps) - 1):
                    progress_bar.update()
        finally:  # also after an exception of a callback: the states of a window are large
            self._current_timestep = self._velocities = None
        _check_finite(latents, "latents", self.transformer)  # once per window, because it waits for the GPU
        return latents

    def reset_window_states(self) -> None:
        """Compute again, at the next step, what is computed once per window; does nothing between windows.

        For callbacks that change weights, adapters or their scales between steps.
        """
        if self._velocities is not None:
            self._velocities.reset()

    def set_timesteps(self, options: SamplingOptions) -> int:
        """Set the scheduler's noise levels; return the number of steps."""
        return set_timesteps(self.scheduler, options.num_inference_steps, options.timesteps, self._execution_device)

    def latents_shape(self, num_videos: int, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of latents of videos of `height` x `width` pixels: `(videos, frames, channels, h, w)`."""
        channels = self.transformer.config.in_channels
        return (num_videos, num_frames, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)

    def decode(
        self,
        latents: torch.Tensor,
        output_type: str,
        chunk_size: int = DECODE_CHUNK_SIZE,
        own: OwnPixels | None = None,
    ) -> Any:
        """Decode latents `(videos, frames, channels, h, w)`, `chunk_size` frames at once, to the form of
        `output_type`, see `MarDiniPipelineOutput`; `own` pixels take the place of decoded ones."""
        if output_type == "latent":
            return latents
        chunks = self._decoded_chunks(latents, chunk_size)
        if own is not None:
            decoded = None
            if own.blend:
                given = torch.cat(list(self._decoded_chunks(latents[:, list(own.places)], chunk_size)))
                decoded = given.unflatten(0, own.pixels.shape[:2])  # (videos, given frames, 3, height, width)
            chunks = own.pasted(chunks, latents.shape[1], decoded)
        return self._to_output(chunks, output_type, len(latents))

    def _decoded_chunks(self, latents: torch.Tensor, chunk_size: int) -> Iterator[torch.Tensor]:
        """Decode latents `(videos, frames, channels, h, w)`, `chunk_size` frames at once; yield `(frames, 3, height,
        width)`."""
        for chunk in latents.flatten(0, 1).split(chunk_size):
            chunk = chunk.to(get_module_execution_device(self.vae), self.vae.dtype)
            frames = decode_latents(self.vae, chunk[None])[0].float()  # (frames of the chunk, 3, height, width)
            _check_finite(frames, "pictures", self.vae)
            yield frames

    def _to_output(self, chunks: Iterable[torch.Tensor], output_type: str, num_videos: int) -> Any:
        """Bring decoded chunks to the form of `output_type`.

        Each chunk gets its final form before the next one is decoded: for pictures, only one chunk is in floats at a
        time.
        """
        finished: list[Any] = [self.video_processor.postprocess(frames, output_type) for frames in chunks]
        if output_type == "pil":
            pictures = [picture for chunk in finished for picture in chunk]
            num_frames = len(pictures) // num_videos
            return [pictures[i * num_frames : (i + 1) * num_frames] for i in range(num_videos)]
        if output_type == "np":
            return np.concatenate(finished).reshape(num_videos, -1, *finished[0].shape[1:])
        return torch.cat(finished).unflatten(0, (num_videos, -1))

    def _go_on_with(self, call: object) -> None:
        """Go on with a stream; if the pipeline was called meanwhile, an interruption of that call is not the stream's."""
        if self._call is not call:
            self._interrupt, self._call = False, call

    def _reset_call(self) -> None:
        self._call = object()  # which call the state below belongs to
        self._guidance_scale = None
        self._attention_kwargs = None
        self._current_timestep = None
        self._num_timesteps = 0
        self._interrupt = False
        self._velocities: WindowVelocities | None = None


def _check_finite(values: torch.Tensor, name: str, model: torch.nn.Module) -> None:
    """Raise `ValueError` if a model computed nan or inf, which would become black pictures."""
    if not values.isfinite().all():
        raise ValueError(
            f"the {name} that {type(model).__name__} computed in {model.dtype} hold values that are not finite (nan "
            "or inf): weights or an adapter are damaged, an adapter's scale is too large, or float16 has too small a "
            "range; load the pipeline with `dtype=torch.bfloat16` or float32, or from another checkpoint"
        )
