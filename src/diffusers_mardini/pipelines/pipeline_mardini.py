"""The sampling of MarDini (Sec. 2.1, Sec. 3): plan once at low resolution, denoise many times at high resolution.

A window is any number of frames of which some are given. Longer videos are built from windows in `long_video.py`, what
users hand in is checked in `inputs.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from ..masking import reference_mask_from_indices
from ..models.autoencoder_patch_basis import AutoencoderPatchBasis
from ..models.conditions import Condition
from ..models.transformer_mardini import MarDiniTransformer3DModel
from ..models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from ..schedulers.compatibility import accepted, check_sampling, check_scheduler, set_timesteps
from .conditions import Conditions, conditions_for, known_conditions, read_conditions
from .inputs import read_given_frames, to_pixels, whole_number
from .long_video import DECODE_CHUNK_SIZE, LongVideoMixin
from .one_call import one_call_at_a_time
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
        >>> frames = pipe(image=first, last_image=last, num_frames=9, height=64, width=64).frames[0]
        >>> write_video("between.mp4", frames, fps=12)
        ```
"""
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class MarDiniPipeline(SavingMixin, DiffusionPipeline, LongVideoMixin, MarDiniLoraLoaderMixin):
    r"""
    Image-to-video, interpolation, video expansion and any other filling in of frames (Sec. 2.1).

    Also: [`~MarDiniPipeline.slow_motion`] and [`~MarDiniPipeline.extend`] for videos longer than a window;
    [`~MarDiniPipeline.load_lora_weights`] and what belongs to it (`loaders/lora.py`).

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderPatchBasis`]): Image autoencoder, applied to each frame.
        planner ([`MarDiniPlannerTransformer3DModel`]): Makes the planning signals, once per window.
        transformer ([`MarDiniTransformer3DModel`]): Predicts the velocity, at every step.
        scheduler ([`MarDiniScheduler`]):
            The noise schedule. Another one of diffusers will do if it has the same betas and predicts velocities, as
            `from_config(pipe.scheduler.config)` makes most of them; `schedulers/compatibility.py` tries it before each
            call.
        planner_downscale (`int`, defaults to `4`):
            How many times smaller than the output the frames are that the planner sees. It is part of the pipeline's configuration and of
            no component: `from_pipe` takes it over, `MarDiniPipeline(**pipe.components)` does not.
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
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, planner=planner, transformer=transformer, scheduler=scheduler)
        self.register_to_config(planner_downscale=whole_number(planner_downscale, "planner_downscale", least=1))
        vae_config = getattr(self.vae, "config", None)
        self.vae_scale_factor = 2 ** (len(vae_config.block_out_channels) - 1) if vae_config is not None else 8
        # Of the VAE's channels it is told nothing: what has as many it would take for latents, and pictures have three.
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)
        # What the models mean by a timestep; a scheduler that is put in later has to mean the same.
        self._noise_levels: torch.Tensor | None = getattr(self.scheduler, "alphas_cumprod", None)
        self._reset_call()

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be divisible by: both models' patches, at their resolutions."""
        return self.vae_scale_factor * math.lcm(
            self.transformer.config.patch_size, self.planner.config.patch_size * self.config.planner_downscale
        )

    @property
    def conditions(self) -> dict[str, Condition]:
        """What the argument `conditions` may hold: the conditions of planner and transformer, by name."""
        return known_conditions(self.transformer, self.planner)

    @property
    def guidance_scale(self) -> float | None:
        """How far the velocity is moved away from the unconditional one; 1 is not at all. A callback may change
        `_guidance_scale` between steps."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether `guidance_scale` asks for the unconditional velocity, too; `False` before the first call."""
        return self._guidance_scale is not None and self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """How often the window is evaluated and the callback called: the length of the scheduler's list of timesteps,
        in which a scheduler of order 2 has most steps twice. Under guidance each evaluation is two calls of the
        transformer."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        return self._current_timestep

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` (from a callback or another thread) to skip the remaining steps."""
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
        num_frames: int = 9,
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
    ) -> MarDiniPipelineOutput | tuple:
        r"""
        Fills in the frames of one window that are not given.

        The given frames decide the task (Sec. 2.1): `image` alone is image-to-video, `image` and `last_image`
        interpolation, `video` expansion (its frames lead) or, with `frame_indices`, anything else. Pictures are PIL
        images, numpy arrays `(height, width, channels)` or torch tensors `(channels, height, width)`; grey ones may do
        without the axis of channels, and what is transparent lies on white. Arrays hold uint8 or floats in [0, 1];
        where floats fall below 0, all of the call are taken as [-1, 1]. The output holds all frames, the given ones as
        the VAE decodes them, so that they look like their neighbours.

        Args:
            image: First frame, or a list or a 4-dimensional array of them for a batch.
            last_image: Last frame, in the same form.
            video: A list or a 4-dimensional array of frames; a list of these or a 5-dimensional array for a batch.
            frame_indices: The place of each frame of `video` in the window, the same for a whole batch.
            num_frames (`int`, defaults to `9`): Number of frames of the window, the given ones included.
            height, width (`int`, *optional*): Size of the output in pixels, by default that of the given frames, which
                are resized where it differs. Must be divisible by `self.size_multiple`.
            num_inference_steps (`int`, defaults to `25`): Number of denoising steps (Fig. 6a: 25 are plenty). DDIM ends without noise where the
                number divides the 1000 levels of training (10, 20, 25, 40, 50, 100), and nearly so with other small ones; above
                100 give one that does, or `timesteps`.
            timesteps: Noise levels to visit, falling, instead of `num_inference_steps`.
            guidance_scale (`float`, *optional*):
                Weight of classifier-free guidance on plan and conditions together. By default 2.5 where only leading
                frames are given and 1.0 (none, and half the work) where later ones are given too (Sec. 3). 0.0 ignores
                the planner and the conditions.
            eta (`float`, defaults to `0.0`): Fresh noise per step, for schedulers that take it; 0 is deterministic.
            num_videos_per_prompt (`int`, defaults to `1`): Videos for each row of the batch, from one plan.
            generator: Source of the noise; a list has one per generated video.
            latents (`torch.Tensor`, *optional*):
                The noise itself, shaped `(videos, num_frames, channels, h, w)` with unit variance; what it holds at
                given frames is not used.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            decode_chunk_size (`int`, defaults to `16`): Most frames that the VAE encodes or decodes at once, to bound the memory.
            return_dict (`bool`, defaults to `True`): Whether to return a [`MarDiniPipelineOutput`] or a tuple.
            attention_kwargs (`dict`, *optional*):
                `{"scale": s}` scales LoRA layers of both models; there is no other key.
            callback_on_step_end: Called as `callback(pipe, step, timestep, tensors)` after every step; the dictionary
                of tensors it returns replaces ours, and `None` changes nothing. What it returns as `latents` after the
                last step is the result.
            callback_on_step_end_tensor_inputs: Which tensors it gets: `"latents"`, shaped like the argument, with the
                clean latents at the given frames, and `"planning_signals"`, which it may also write to. A callback that changes
                weights or adapters calls `pipe.reset_window_states()`.
            use_window_state (`bool`, defaults to `True`):
                Computes once per window what no step changes: all states of the given frames and the keys and values of the plan
                (`models/window_state.py`). `False` runs the whole window through the transformer at every step; the same
                but for rounding, and slower.
            conditions (`dict`, *optional*):
                What the frames are told, by name, such as `{"action": array}`: values `(num_frames, channels)` for all
                videos or `(batch, num_frames, channels)`, given frames included. The values of a frame belong to the
                interval that leads to it. NaN in all channels leaves a frame untold. `pipe.conditions` lists what this
                checkpoint takes.

        Examples:

        Returns:
            [`MarDiniPipelineOutput`] with `frames`, or a tuple with the same.

        Raises:
            ValueError: for every unusable argument, before any model runs; and if the models make values that are not
                finite.
        """
        # 1. Check
        given = read_given_frames(
            image, last_image, video, frame_indices, num_frames, height, width, self.size_multiple
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
        latents_shape = self._latents_shape(num_videos, given.num_frames, given.height, given.width)
        self.check_inputs(options, num_videos, output_type, latents, latents_shape, given.frame_indices)
        conditions = read_conditions(conditions, self.conditions, given.batch_size, given.num_frames)
        num_steps = self._set_timesteps(options)
        self._reset_call()

        # 2. Encode
        pixels = to_pixels(given.videos, given.height, given.width, self.video_processor)
        references = self.encode_frames(pixels, decode_chunk_size)
        low_references = self.encode_low_frames(pixels, decode_chunk_size)

        # 3. Plan
        planning_signals = self.plan(
            low_references, given.frame_indices, given.num_frames, attention_kwargs, conditions
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
                noise, references, given.frame_indices, planning_signals, options, progress_bar, conditions
            )

        # 6. Decode
        frames = self.decode(latents, output_type, decode_chunk_size)
        self.maybe_free_model_hooks()
        return MarDiniPipelineOutput(frames=frames) if return_dict else (frames,)

    def check_inputs(
        self,
        options: SamplingOptions,
        num_videos: int,
        output_type: str,
        latents: torch.Tensor | None = None,
        latents_shape: tuple[int, ...] | None = None,
        frame_indices: Sequence[int] = (),
    ) -> None:
        """Raises `ValueError` for sampling arguments that cannot be used; what frames are given is checked before."""
        check_scheduler(self.scheduler, self._noise_levels)
        check_options(options, num_videos, self._callback_tensor_inputs, len(self.scheduler.alphas_cumprod))
        check_sampling(self.scheduler, options.num_inference_steps, options.timesteps, options.eta)
        if latents is not None:
            _check_latents(latents, latents_shape, frame_indices)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")

    def encode_frames(self, pixels: torch.Tensor, chunk_size: int = DECODE_CHUNK_SIZE) -> torch.Tensor:
        """Encodes frames for the transformer: `(batch, frames, 3, height, width)` in [-1, 1], on any device, to latents
        `(batch, frames, channels, h, w)` in float32. No more than `chunk_size` frames are on the autoencoder's device at once."""
        device = get_module_execution_device(self.vae)
        chunks = [
            encode_video(self.vae, chunk[None].to(device, self.vae.dtype))[0].float()
            for chunk in pixels.flatten(0, 1).split(chunk_size)
        ]
        return torch.cat(chunks).to(self._execution_device).unflatten(0, pixels.shape[:2])

    def encode_low_frames(self, pixels: torch.Tensor, chunk_size: int = DECODE_CHUNK_SIZE) -> torch.Tensor:
        """`encode_frames` for the planner: of frames made `planner_downscale` times smaller (Sec. 2.2)."""
        device, factor = get_module_execution_device(self.vae), self.config.planner_downscale
        chunks = [
            # Made smaller in float32: bfloat16 would blur what 8 bits tell apart.
            downscale_video(chunk[None].to(device, torch.float32), factor)[0]
            for chunk in pixels.flatten(0, 1).split(chunk_size)
        ]
        return self.encode_frames(torch.cat(chunks).unflatten(0, pixels.shape[:2]), chunk_size)

    def plan(
        self,
        low_references: torch.Tensor,
        frame_indices: Sequence[int],
        num_frames: int,
        attention_kwargs: dict[str, Any] | None = None,
        conditions: Conditions | None = None,
    ) -> torch.Tensor:
        """Runs the planner on one window (Sec. 2.2).

        Args:
            low_references: the given frames' low-resolution latents, `(batch, given frames, channels, h_low, w_low)`.
            frame_indices: their places.
            num_frames: frames of the window.
            attention_kwargs: given to the planner.
            conditions: what `read_conditions` returned for the window.

        Returns:
            Planning signals `(batch, num_frames, rows, columns, planning_dim)`.
        """
        batch, num_given = low_references.shape[:2]
        device = low_references.device
        window = low_references.new_zeros(batch, num_frames, *low_references.shape[2:])
        window[:, list(frame_indices)] = low_references  # (batch, num_frames, channels, h_low, w_low)
        # Model offload moves out what comes before a part in its order, and nothing comes before the planner: the autoencoder
        # that encoded, and the transformer of a long video's window before, would stay.
        for hook in getattr(self, "_all_hooks", []):
            if hook.model is not self.planner:
                hook.offload()
        conditions = conditions_for(conditions, self.planner, device)
        return self.planner(
            window.to(self.planner.dtype),
            reference_mask_from_indices(frame_indices, num_frames, batch, device),
            num_masked_frames=num_frames - num_given,
            attention_kwargs=attention_kwargs,
            return_dict=False,
            **({"conditions": conditions} if conditions else {}),
        )[0]

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise shaped `shape`, float32, at the scheduler's first level; `latents` is the noise where given."""
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def denoise(
        self,
        noise: torch.Tensor,
        references: torch.Tensor,
        frame_indices: Sequence[int],
        planning_signals: torch.Tensor,
        options: SamplingOptions,
        progress_bar: Any,
        conditions: Conditions | None = None,
    ) -> torch.Tensor:
        """Samples one window (Sec. 3). Only masked frames are noised and stepped.

        Args:
            noise: shaped `(videos, num_frames, channels, h, w)`.
            references: clean latents of the given frames, `(videos, given frames, channels, h, w)`.
            frame_indices: their places.
            planning_signals: what `plan` made of them, one row per video.
            options: how to sample.
            progress_bar: is moved on by one for every step.
            conditions: what `read_conditions` returned for the window, one row per video.

        Returns:
            Clean latents of all frames, `(videos, num_frames, channels, h, w)`, in float32.
        """
        device = noise.device
        clean = torch.zeros_like(noise)
        clean[:, list(frame_indices)] = references.to(device, noise.dtype)  # (videos, frames, channels, h, w)
        num_steps = self._set_timesteps(options)
        step_kwargs = accepted(self.scheduler.step, generator=options.generator, eta=options.eta)
        timesteps = self.scheduler.timesteps
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        velocities = self._velocities = WindowVelocities(
            self.transformer, clean, list(frame_indices), options.attention_kwargs, options.use_window_state,
            conditions_for(conditions, self.transformer, device),
        )  # fmt: skip
        masked = velocities.masked
        self._num_timesteps = len(timesteps)
        self._attention_kwargs = options.attention_kwargs
        self._guidance_scale = options.guidance_for(frame_indices)

        latents = clean.index_copy(1, masked, noise.index_select(1, masked))
        try:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = t
                noisy = latents.index_select(1, masked)  # (videos, masked frames, channels, h, w)
                velocity, unconditional = velocities(
                    self.scheduler.scale_model_input(noisy, t), t, planning_signals, self.do_classifier_free_guidance, i,
                    len(timesteps),
                )  # fmt: skip
                if unconditional is not None:
                    velocity = unconditional + self.guidance_scale * (velocity - unconditional)

                noisy = self.scheduler.step(velocity, t, noisy, return_dict=False, **step_kwargs)[0]
                latents = clean.index_copy(1, masked, noisy)

                if options.callback_on_step_end is not None:
                    tensors = {"latents": latents, "planning_signals": planning_signals}
                    callback_kwargs = {name: tensors[name] for name in options.callback_tensor_inputs}
                    before, version = planning_signals, _writes_to(planning_signals)
                    returned = tensors_of_callback(options.callback_on_step_end(self, i, t, callback_kwargs), tensors)
                    latents, planning_signals = returned["latents"], returned["planning_signals"]
                    # States, and what caches keep with them, stay where it only looked.
                    written = "planning_signals" in options.callback_tensor_inputs and (
                        version is None or _writes_to(before) != version
                    )
                    if written or planning_signals is not before:
                        velocities.forget()

                # An order-2 scheduler lists most of its steps twice.
                num_warmup_steps = len(timesteps) - num_steps * self.scheduler.order
                ends_step = i + 1 > num_warmup_steps and (i + 1) % self.scheduler.order == 0
                if ends_step or i == len(timesteps) - 1:
                    progress_bar.update()
        finally:  # also where a callback raised: a window's states are large
            self._current_timestep = self._velocities = None
        _check_finite(latents, "latents", self.transformer)  # once for a window: each time, a GPU is waited for
        return latents

    def reset_window_states(self) -> None:
        """For a callback that changes weights, adapters or their scales between steps: what was computed once for the window is
        computed anew with the next step. Without a window at work nothing happens."""
        if self._velocities is not None:
            self._velocities.forget()

    def decode(self, latents: torch.Tensor, output_type: str, chunk_size: int = DECODE_CHUNK_SIZE) -> Any:
        """Decodes `(videos, frames, channels, h, w)` to what `output_type` asks for, `chunk_size` frames at once; see
        `MarDiniPipelineOutput`."""
        if output_type == "latent":
            return latents
        videos, num_frames = latents.shape[:2]
        finished = []
        # Each chunk is brought into its last form before the next one, so that no more than a chunk is in floats for pictures.
        for chunk in latents.flatten(0, 1).split(chunk_size):
            chunk = chunk.to(get_module_execution_device(self.vae), self.vae.dtype)
            frames = decode_latents(self.vae, chunk[None])[0].float()  # (frames of the chunk, 3, height, width)
            _check_finite(frames, "pictures", self.vae)
            finished.append(self.video_processor.postprocess(frames, output_type))
        if output_type == "pil":
            pictures = [picture for chunk in finished for picture in chunk]
            return [pictures[i * num_frames : (i + 1) * num_frames] for i in range(videos)]
        if output_type == "np":
            return np.concatenate(finished).reshape(videos, num_frames, *finished[0].shape[1:])
        return torch.cat(finished).unflatten(0, (videos, num_frames))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves all parts, see [`~DiffusionPipeline.save_pretrained`]; refuses while LoRA adapters are loaded, and to
        write pickles."""
        self._refuse_loaded_adapters()
        if not kwargs.get("safe_serialization", True):
            raise ValueError(
                "`safe_serialization` is False, but weights are written as safetensors alone; leave it out"
            )
        super().save_pretrained(save_directory, **kwargs)

    def _reset_call(self) -> None:
        self._guidance_scale = None
        self._attention_kwargs = None
        self._current_timestep = None
        self._num_timesteps = 0
        self._interrupt = False
        self._velocities: WindowVelocities | None = None

    def _latents_shape(self, num_videos: int, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        channels = self.transformer.config.in_channels
        return (num_videos, num_frames, channels, height // self.vae_scale_factor, width // self.vae_scale_factor)

    def _set_timesteps(self, options: SamplingOptions) -> int:
        """Sets the scheduler's noise levels and returns the number of steps."""
        return set_timesteps(self.scheduler, options.num_inference_steps, options.timesteps, self._execution_device)


def _check_latents(latents: Any, shape: tuple[int, ...] | None, frame_indices: Sequence[int]) -> None:
    """Raises `ValueError` for noise that cannot be used; at the given frames anything may stand."""
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"`latents` is {got}; give a tensor shaped {shape} (videos, frames, channels, height, width)")
    if not latents.is_floating_point():
        raise ValueError(f"`latents` holds {latents.dtype}; give noise of unit variance as floats")
    masked = [i for i in range(shape[1]) if i not in set(frame_indices)]
    if not latents[:, masked].isfinite().all():
        raise ValueError("`latents` holds values that are not finite (nan or inf); give noise of unit variance")


def _check_finite(values: torch.Tensor, name: str, model: torch.nn.Module) -> None:
    """Raises `ValueError` where a model made nan or inf, which would become black pictures."""
    if not values.isfinite().all():
        raise ValueError(
            f"the {name} that {type(model).__name__} made in {model.dtype} hold values that are not finite (nan or "
            "inf): weights are damaged, an adapter or its scale is, or float16 is too narrow for them; load the "
            "pipeline with `dtype=torch.bfloat16` or float32, or from another checkpoint"
        )


def _writes_to(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; `None` under `torch.inference_mode`, which does not count."""
    return None if tensor.is_inference() else tensor._version
