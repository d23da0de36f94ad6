"""The diffusion process of MarDini: velocity-prediction DDIM, zero terminal SNR, trailing spacing (Sec. 2.4.1, 3).

A step has one noise level for all frames: per-frame timesteps (0 at reference frames) belong to the transformer, and
the pipeline steps the masked frames only. Configuration keys are those of `DDIMScheduler`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar, rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor


# The keys that define timesteps and predictions of the trained model.
PROCESS_KEYS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "set_alpha_to_one",
        "clip_sample",
    }
)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


@dataclass
class MarDiniSchedulerOutput(BaseOutput):
    """Output of `MarDiniScheduler.step`.

    Args:
        prev_sample: the sample at the next, lower noise level, shaped like the input sample.
        pred_original_sample: the predicted clean sample, shaped like the input sample.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class MarDiniScheduler(SchedulerMixin, ConfigMixin):
    """DDIM for velocity prediction; its steps equal those of `DDIMScheduler` with the same configuration.

    It differs in its defaults and custom timesteps; `add_noise` and `get_velocity` accept one timestep per frame; and
    it does not wait for the GPU after `set_begin_index`. As in `DDIMScheduler`, a step goes down by
    `num_train_timesteps // num_inference_steps`, which reaches the next listed timestep exactly if the second divides
    the first.

    Args:
        num_train_timesteps: number of noise levels the model was trained with.
        beta_start: first beta of the linear schedules.
        beta_end: last beta of the linear schedules.
        beta_schedule: `"squaredcos_cap_v2"`, `"linear"` or `"scaled_linear"`.
        trained_betas: betas given one by one; replaces the three arguments above.
        clip_sample: clamps the predicted clean sample to `clip_sample_range`; wrong for latents, therefore off.
        set_alpha_to_one: the last step ends at a clean sample rather than at noise level 0.
        steps_offset: added to the timesteps of `"leading"` spacing.
        prediction_type: only `"v_prediction"` (Eq. of Sec. 2.4.1: `v = alpha * noise - sigma * sample`).
        thresholding: dynamic thresholding of the predicted clean sample, for pixel-space models.
        dynamic_thresholding_ratio: quantile used by `thresholding`.
        clip_sample_range: bound used by `clip_sample`.
        sample_max_value: largest bound used by `thresholding`.
        timestep_spacing: `"trailing"`, `"leading"` or `"linspace"`. With zero terminal SNR only `"trailing"` and
            `"linspace"` begin at the level of pure noise.
        rescale_betas_zero_snr: the last noise level holds no signal at all (arXiv 2305.08891).
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "squaredcos_cap_v2",
        trained_betas: np.ndarray | list[float] | None = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "v_prediction",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "trailing",
        rescale_betas_zero_snr: bool = True,
    ) -> None:
        if prediction_type != "v_prediction":
            raise ValueError(
                f"`prediction_type` is {prediction_type!r}, but MarDini predicts velocities: only 'v_prediction' is "
                "accepted. Pass `prediction_type='v_prediction'`, or use `DDIMScheduler` for another kind of model."
            )
        if timestep_spacing not in TIMESTEP_SPACINGS:
            raise ValueError(
                f"`timestep_spacing` is {timestep_spacing!r}; choose one of {', '.join(TIMESTEP_SPACINGS)}."
            )

        with torch.device("cpu"):  # for good, whatever the default device is
            betas = _make_betas(num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas)
            self.betas = rescale_zero_terminal_snr(betas) if rescale_betas_zero_snr else betas
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)  # (num_train_timesteps,)
            self.final_alpha_cumprod = (
                torch.tensor(1.0, dtype=torch.float32) if set_alpha_to_one else self.alphas_cumprod[0]
            )
        self.init_noise_sigma = 1.0

        self.num_inference_steps = None
        self._steps = list(range(num_train_timesteps - 1, -1, -1))
        self.timesteps = torch.tensor(self._steps, device="cpu")
        self._has_custom_timesteps = False
        self._step_index = None
        self._begin_index = None
        self._device_tables = {}

        # `from_config` of another class drops every key listed here, and would then take a velocity for noise.
        defaults = self.config.get("_use_default_values")
        if defaults is not None:
            defaults[:] = [key for key in defaults if key not in PROCESS_KEYS]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a scheduler of a configuration, see [`~ConfigMixin.from_config`]; keeps another class's defaults.

        Raises:
            ValueError: for a configuration that predicts anything but velocities.
        """
        if isinstance(config, dict):
            config = {key: value for key, value in config.items() if key != "_use_default_values"}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def step_index(self) -> int | None:
        """Place in `timesteps` of the next step; `None` before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Place in `timesteps` of the first step, where `set_begin_index` gave one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Let `step` count from `begin_index` and ignore its `timestep`, so that it never waits for a GPU."""
        self._begin_index = begin_index
        self._step_index = None

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample` as it is; other schedulers scale here."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        """Set the noise levels of the following steps.

        Args:
            num_inference_steps: number of steps, spaced as `timestep_spacing` says.
            device: of `self.timesteps`.
            timesteps: the levels themselves, strictly falling; instead of `num_inference_steps`.

        Raises:
            ValueError: if both or neither are given, or if the levels are empty, not falling or out of range.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError(
                f"got num_inference_steps={num_inference_steps} and timesteps={timesteps}; give exactly one of them"
            )
        if timesteps is None:
            self._steps = self._spaced_timesteps(num_inference_steps)
        else:
            self._steps = self._checked_timesteps(timesteps)
        self.num_inference_steps = len(self._steps)
        self.timesteps = torch.tensor(self._steps, dtype=torch.int64, device=device)
        self._has_custom_timesteps = timesteps is not None
        self._step_index = None
        self._begin_index = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> MarDiniSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Take one step towards the clean sample (DDIM, arXiv 2010.02502, Eq. 12 and 16).

        Args:
            model_output: predicted velocity, shaped like `sample`; any number of axes.
            timestep: the noise level of `sample`, one for all of it.
            sample: the noisy sample.
            eta: 0 for deterministic DDIM, 1 for as much fresh noise as DDPM adds.
            generator: source of the fresh noise where `eta > 0`.
            variance_noise: the fresh noise itself; instead of `generator`.
            return_dict: whether to return a `MarDiniSchedulerOutput` or the tuple of its fields.

        Raises:
            ValueError: before `set_timesteps`, for a timestep per sample or frame, after the last step, or if both
                `generator` and `variance_noise` are given.
        """
        if self.num_inference_steps is None:
            raise ValueError("`step` needs noise levels; call `set_timesteps` first")
        if generator is not None and variance_noise is not None:
            raise ValueError("got both `generator` and `variance_noise`; give at most one of them")

        timestep = self._enter_step(timestep)
        alpha_prod = self.alphas_cumprod[timestep]
        alpha_prod_prev = self._alpha_prod_after(timestep)

        # Both hold at alpha_prod == 0, where the noise-prediction form divides by zero.
        original = alpha_prod**0.5 * sample - (1 - alpha_prod) ** 0.5 * model_output
        noise = alpha_prod**0.5 * model_output + (1 - alpha_prod) ** 0.5 * sample
        if self.config.thresholding:
            original = self._threshold(original)
        elif self.config.clip_sample:
            original = original.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

        variance = (1 - alpha_prod_prev) / (1 - alpha_prod) * (1 - alpha_prod / alpha_prod_prev)
        sigma = eta * variance**0.5
        # With eta=1 this is 0 at the first step, and by rounding below it for a third of all step counts.
        direction = (1 - alpha_prod_prev - sigma**2).clamp(min=0) ** 0.5
        previous = alpha_prod_prev**0.5 * original + direction * noise
        if eta > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
                )
            previous = previous + sigma * variance_noise

        if self._step_index is not None:
            self._step_index += 1
        if not return_dict:
            return (previous, original)
        return MarDiniSchedulerOutput(prev_sample=previous, pred_original_sample=original)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.IntTensor
    ) -> torch.Tensor:
        """Mix noise into clean samples: `alpha_t * original_samples + sigma_t * noise`.

        Args:
            original_samples: shaped `(batch, ...)`, or `(batch, frames, ...)` where each frame has its own level.
            noise: shaped like `original_samples`.
            timesteps: noise levels, shaped `(batch,)` or `(batch, frames)`; sizes of 1 are broadcast.
        """
        alpha, sigma = self._alpha_and_sigma(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.IntTensor) -> torch.Tensor:
        """Return the training target `alpha_t * noise - sigma_t * sample` (Sec. 2.4.1); arguments as in
        `add_noise`."""
        alpha, sigma = self._alpha_and_sigma(timesteps, sample)
        return alpha * noise - sigma * sample

    def _alpha_and_sigma(self, timesteps: torch.IntTensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return signal and noise amplitudes at `timesteps`, with axes to be multiplied with `sample`."""
        leading_sizes = sample.shape[: timesteps.ndim]
        if timesteps.is_floating_point() or timesteps.ndim > sample.ndim:
            raise ValueError(
                f"`timesteps` must be integers shaped (batch,) or (batch, frames); got {timesteps.dtype} shaped "
                f"{tuple(timesteps.shape)} for samples shaped {tuple(sample.shape)}"
            )
        if any(given not in (1, size) for given, size in zip(timesteps.shape, leading_sizes)):
            raise ValueError(
                f"`timesteps` shaped {tuple(timesteps.shape)} do not fit samples shaped {tuple(sample.shape)}; give "
                "one per sample (batch,) or one per frame (batch, frames)"
            )
        if sample.device not in self._device_tables:
            self._device_tables[sample.device] = self.alphas_cumprod.to(sample.device)
        alpha_prod = self._device_tables[sample.device][timesteps.to(sample.device)]
        alpha_prod = alpha_prod.reshape(timesteps.shape + (1,) * (sample.ndim - timesteps.ndim))
        # Roots in float32: in bfloat16, 1 - alpha_prod would be 0 at the lowest noise levels.
        return (alpha_prod**0.5).to(sample.dtype), ((1 - alpha_prod) ** 0.5).to(sample.dtype)

    def _enter_step(self, timestep: int | torch.Tensor) -> int:
        """Return the noise level of this step as a Python number; set the place of the step in `timesteps`."""
        if self._begin_index is not None:
            if self._step_index is None:
                self._step_index = self._begin_index
            if self._step_index >= len(self._steps):
                raise ValueError(
                    f"all {len(self._steps)} steps were taken; call `set_timesteps` before denoising another sample"
                )
            return self._steps[self._step_index]
        if isinstance(timestep, torch.Tensor) and timestep.numel() != 1:
            raise ValueError(
                f"`step` takes one timestep for the whole sample, got {timestep.numel()}; step the masked "
                "frames only, and pass timesteps per frame to the transformer"
            )
        timestep = int(timestep)
        self._step_index = self._steps.index(timestep) if timestep in self._steps else None
        return timestep

    def _alpha_prod_after(self, timestep: int) -> torch.Tensor:
        """Return the cumulative alpha after a step from `timestep`."""
        if not self._has_custom_timesteps:
            next_timestep = timestep - self.config.num_train_timesteps // self.num_inference_steps
        elif self._step_index is None:
            raise ValueError(f"timestep {timestep} is not one of the custom timesteps {self._steps}")
        else:
            next_timestep = self._steps[self._step_index + 1] if self._step_index + 1 < len(self._steps) else -1
        return self.alphas_cumprod[next_timestep] if next_timestep >= 0 else self.final_alpha_cumprod

    def _spaced_timesteps(self, count: int) -> list[int]:
        total = self.config.num_train_timesteps
        if not 1 <= count <= total:
            raise ValueError(f"num_inference_steps is {count}; it must be from 1 to the {total} levels of training")
        if self.config.timestep_spacing == "linspace":
            levels = np.linspace(0, total - 1, count).round()[::-1]
        elif self.config.timestep_spacing == "leading":
            levels = np.arange(count)[::-1] * (total // count) + self.config.steps_offset
        else:
            # Cut to `count`: for 61, 103, 121, ... of 1000, rounding makes arange add a level of -1.
            levels = np.round(np.arange(total, 0, -total / count))[:count] - 1
        return levels.astype(np.int64).tolist()

    def _checked_timesteps(self, timesteps: Sequence[int] | torch.Tensor) -> list[int]:
        given = timesteps.tolist() if isinstance(timesteps, (torch.Tensor, np.ndarray)) else list(timesteps)
        total = self.config.num_train_timesteps
        if not given:
            raise ValueError("`timesteps` is empty; give at least one noise level")
        if not all(math.isfinite(level) and level == int(level) for level in map(float, given)):
            raise ValueError(f"`timesteps` must be whole numbers, got {given}")
        if any(after >= before for before, after in itertools.pairwise(given)):
            raise ValueError(f"`timesteps` must fall strictly from noisy to clean, got {given}")
        if given[0] >= total or given[-1] < 0:
            raise ValueError(f"`timesteps` must lie from 0 to {total - 1}, got {given[0]} to {given[-1]}")
        return [int(level) for level in given]

    def _threshold(self, sample: torch.Tensor) -> torch.Tensor:
        """Apply dynamic thresholding (arXiv 2205.11487, Sec. 2.3): clamp to a quantile per sample, scale to [-1,
        1]."""
        magnitudes = sample.flatten(1).abs().float()  # (batch, values)
        bound = torch.quantile(magnitudes, self.config.dynamic_thresholding_ratio, dim=1)
        bound = bound.clamp(min=1, max=self.config.sample_max_value).to(sample.dtype)
        bound = bound.reshape(-1, *[1] * (sample.ndim - 1))  # (batch, 1, ...)
        return torch.clamp(sample, -bound, bound) / bound


def _make_betas(
    count: int, start: float, end: float, schedule: str, trained: np.ndarray | list[float] | None
) -> torch.Tensor:
    """Return betas shaped `(count,)`, before any rescaling."""
    if trained is not None:
        return torch.tensor(trained, dtype=torch.float32)
    if schedule == "linear":
        return torch.linspace(start, end, count, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    if schedule == "squaredcos_cap_v2":  # cosine of arXiv 2102.09672
        return betas_for_alpha_bar(count)
    raise ValueError(f"`beta_schedule` is {schedule!r}; choose one of {', '.join(BETA_SCHEDULES)}.")
