"""What a stage of the curriculum draws (Sec. 2.4, Fig. 4): masks, timesteps, dropped signals, learning rate.

Pure functions of a stage and a generator; the models meet the result in `step.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusers_mardini.masking import (
    interpolation_indices,
    leading_indices,
    num_reference_frames_range,
    random_reference_mask,
    reference_mask_from_indices,
)

from .config import StageConfig


@dataclass(frozen=True)
class Batch:
    """One step's input, for one process.

    Args:
        latents: `(batch, frames, channels, height, width)`, clean.
        planner_latents: `(batch, frames, channels, low height, low width)`, clean.
        reference_mask: `(batch, frames)` bool.
        num_masked_frames: masked frames of every row.
        noise: like `latents`.
        timesteps: `(batch,)` integers.
        planning_signals_mask: `(batch,)` bool, False where the planning signal is dropped.
    """

    latents: torch.Tensor
    planner_latents: torch.Tensor
    reference_mask: torch.Tensor
    num_masked_frames: int
    noise: torch.Tensor
    timesteps: torch.Tensor
    planning_signals_mask: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in vars(self).items()})


def draw_reference_mask(stage: StageConfig, generator: torch.Generator) -> torch.Tensor:
    """`(batch, frames)`: one task and one number of kept frames per batch, random positions per row."""
    weights = torch.tensor([stage.tasks.random, stage.tasks.interpolation, stage.tasks.leading])
    task = ("random", "interpolation", "leading")[_choice(weights, generator)]
    if task == "interpolation":
        return reference_mask_from_indices(interpolation_indices(stage.num_frames), stage.num_frames, stage.batch_size)
    if task == "leading":
        kept = _uniform_integer(*stage.leading_frames, generator)
        return reference_mask_from_indices(leading_indices(kept), stage.num_frames, stage.batch_size)
    kept = _uniform_integer(*num_reference_frames_range(stage.num_frames, stage.reference_ratio), generator)
    return random_reference_mask(stage.batch_size, stage.num_frames, kept, generator)


def draw_timesteps(
    batch_size: int, num_train_timesteps: int, shift: float, generator: torch.Generator
) -> torch.Tensor:
    """`(batch,)` integer timesteps, stratified: one from each of `batch_size` equal parts of [0, 1), which steadies the loss."""
    u = (torch.randperm(batch_size, generator=generator) + torch.rand(batch_size, generator=generator)) / batch_size
    u = shift * u / (1 + (shift - 1) * u)
    return (u * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def draw_batch(
    stage: StageConfig,
    data,
    num_train_timesteps: int,
    generator: torch.Generator,
) -> Batch:
    """Everything random of a step: windows of `data` (a `LatentClips`), masks, noise, timesteps, dropped signals."""
    strides = sorted(stage.strides)
    weights = torch.tensor([stage.strides[stride] for stride in strides])
    stride = strides[_choice(weights, generator)]
    starts = data.windows(stage.num_frames, stride)
    starts = starts[torch.randint(len(starts), (stage.batch_size,), generator=generator)]
    latents, planner_latents = data.gather(starts, stage.num_frames, stride)
    reference_mask = draw_reference_mask(stage, generator)
    return Batch(
        latents=latents,
        planner_latents=planner_latents,
        reference_mask=reference_mask,
        num_masked_frames=int((~reference_mask[0]).sum()),
        noise=torch.randn(latents.shape, generator=generator),
        timesteps=draw_timesteps(stage.batch_size, num_train_timesteps, stage.timestep_shift, generator),
        planning_signals_mask=torch.rand(stage.batch_size, generator=generator) >= stage.planning_dropout,
    )


def learning_rate_factor(stage: StageConfig) -> Callable[[int], float]:
    """Linear warm-up, then a cosine to the end of the stage (Appendix B), as a factor of the peak."""
    final = stage.final_learning_rate / stage.learning_rate

    def factor(step: int) -> float:
        if step < stage.warmup_steps:
            return (step + 1) / stage.warmup_steps
        progress = min(1.0, (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _choice(weights: torch.Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights.float(), 1, generator=generator))


def _uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
