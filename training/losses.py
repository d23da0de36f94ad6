"""The losses (Sec. 2.4.1): masked reconstruction of the planner, masked velocity prediction of the diffusion model.

`MarDiniTrainingModel` joins the models that a stage trains, so that data parallelism can wrap them as one module.
Batches are drawn in `curriculum.py`; gradients and optimizer steps are in `engine/gradient_steps.py`.
"""

import torch
from torch import nn

from diffusers_mardini.models.compiling import CompiledOverShapes
from diffusers_mardini.models.embeddings import patchify
from training.data.batches import Batch


class MarDiniTrainingModel(CompiledOverShapes):
    """Compute a stage's loss with those of planner, transformer and reconstruction head that it trains.

    Args:
        planner, head: the planner and `f`; both or neither.
        transformer: the diffusion model, or `None`.
        scheduler: gives `add_noise` and `get_velocity`.
        planner_loss_weight: weight of the reconstruction where both models are trained.
    """

    def __init__(self, planner, head, transformer, scheduler, planner_loss_weight: float = 0.0):
        super().__init__()
        self.planner = planner
        self.head = head
        self.transformer = transformer
        self.scheduler = scheduler
        self.planner_loss_weight = planner_loss_weight

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return `loss` and its parts, scalars: `planner_loss` (reconstruction) and `diffusion_loss` (velocity)."""
        losses, planning_signals = {}, None
        if self.planner is not None:
            planning_signals = make_planning_signals(self.planner, batch, self.scheduler)
            if self.head is not None:
                losses["planner_loss"] = reconstruction_loss(self.planner, self.head, batch, planning_signals)
        if self.transformer is not None:
            losses["diffusion_loss"] = diffusion_loss(self.transformer, self.scheduler, batch, planning_signals)

        planner_weight = 1.0 if self.transformer is None else self.planner_loss_weight
        loss = losses.get("diffusion_loss", 0.0)
        if "planner_loss" in losses:
            loss = loss + planner_weight * losses["planner_loss"]
        return {"loss": loss, **losses}


def make_planning_signals(planner: nn.Module, batch: Batch, scheduler) -> torch.Tensor:
    """Return the planning signals of a batch, `(batch, frames, rows, columns, planning_dim)`."""
    return planner(
        _given(batch.planner_latents, batch.planner_noise, batch, scheduler),
        batch.reference_mask,
        num_masked_frames=batch.num_masked_frames,
        conditions=batch.conditions or None,
    ).planning_signals


def reconstruction_loss(
    planner: nn.Module, head: nn.Module, batch: Batch, planning_signals: torch.Tensor
) -> torch.Tensor:
    """Return `|| M z_low - M f(P(masked z_low)) ||^2`, the mean over masked frames."""
    target = patchify(batch.planner_latents, planner.config.patch_size)
    return masked_mse(head(planning_signals), target, ~batch.reference_mask)


def diffusion_loss(
    transformer: nn.Module, scheduler, batch: Batch, planning_signals: torch.Tensor | None
) -> torch.Tensor:
    """Return `|| M v_t - M G(z_t, z_cond, t) ||^2`, the mean over masked frames; `z_uncond` without signals."""
    masked = ~batch.reference_mask
    timesteps = batch.timesteps
    noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
    noisy = torch.where(masked[:, :, None, None, None], noisy, _given(batch.latents, batch.noise, batch, scheduler))
    references = {} if batch.reference_timesteps is None else {"reference_timestep": batch.reference_timesteps}
    velocity = transformer(
        noisy,
        timesteps,
        planning_signals,
        batch.reference_mask,
        num_masked_frames=batch.num_masked_frames,
        planning_signals_mask=None if planning_signals is None else batch.planning_signals_mask,
        conditions=batch.conditions or None,
        **references,
    ).sample
    target = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
    return masked_mse(velocity, target, masked)


def _given(latents: torch.Tensor, noise: torch.Tensor | None, batch: Batch, scheduler) -> torch.Tensor:
    """Return latents as reference frames show them: noised in the rows whose `reference_timesteps` are not 0."""
    if batch.reference_timesteps is None:
        return latents
    noisy = scheduler.add_noise(latents, noise, batch.reference_timesteps)
    return torch.where(batch.reference_timesteps[:, None, None, None, None] > 0, noisy, latents)


def masked_mse(prediction: torch.Tensor, target: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error over masked frames, in float32.

    Args:
        prediction, target: `(batch, frames, ...)`.
        masked: `(batch, frames)` bool.
    """
    error = (prediction.float() - target.float()).square().flatten(2).mean(dim=2)  # (batch, frames)
    return torch.where(masked, error, 0).sum() / masked.sum()
