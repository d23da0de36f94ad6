"""The losses (Sec. 2.4.1): what is trained together, as one module that data parallelism can wrap."""

import torch
from torch import nn

from diffusers_mardini.models.embeddings import patchify
from training.curriculum import Batch


class PlannerReconstructionHead(nn.Module):
    """`f` of Sec. 2.4.1: projects planning signals back onto patches of low-resolution latents; thrown away after training."""

    def __init__(self, planning_dim: int, in_channels: int, patch_size: int):
        super().__init__()
        self.proj = nn.Linear(planning_dim, in_channels * patch_size**2)

    def forward(self, planning_signals: torch.Tensor) -> torch.Tensor:
        """`(batch, frames, rows, columns, planning_dim)` to patches `(batch, frames, rows, columns, channels * patch**2)`."""
        return self.proj(planning_signals)


class MarDiniTrainingModel(nn.Module):
    """Planner, transformer and reconstruction head, of which a stage has one, two or all three.

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
        """Returns `loss` and its parts, scalars: `planner_loss` (reconstruction) and `diffusion_loss` (velocity)."""
        losses, planning_signals = {}, None
        if self.planner is not None:
            planning_signals = plan(self.planner, batch)
            if self.head is not None:
                losses["planner_loss"] = reconstruction_loss(self.planner, self.head, batch, planning_signals)
        if self.transformer is not None:
            losses["diffusion_loss"] = diffusion_loss(self.transformer, self.scheduler, batch, planning_signals)

        planner_weight = 1.0 if self.transformer is None else self.planner_loss_weight
        loss = losses.get("diffusion_loss", 0.0)
        if "planner_loss" in losses:
            loss = loss + planner_weight * losses["planner_loss"]
        return {"loss": loss, **losses}


def plan(planner: nn.Module, batch: Batch) -> torch.Tensor:
    """The planning signals of a batch, `(batch, frames, rows, columns, planning_dim)`."""
    return planner(
        batch.planner_latents,
        batch.reference_mask,
        num_masked_frames=batch.num_masked_frames,
        conditions=batch.conditions or None,
    ).planning_signals


def reconstruction_loss(
    planner: nn.Module, head: nn.Module, batch: Batch, planning_signals: torch.Tensor
) -> torch.Tensor:
    """`|| M z_low - M f(P(masked z_low)) ||^2`, the mean over masked frames."""
    target = patchify(batch.planner_latents, planner.config.patch_size)
    return masked_mse(head(planning_signals), target, ~batch.reference_mask)


def diffusion_loss(
    transformer: nn.Module, scheduler, batch: Batch, planning_signals: torch.Tensor | None
) -> torch.Tensor:
    """`|| M v_t - M G(z_t, z_cond, t) ||^2`, the mean over masked frames; `z_uncond` without planning signals."""
    masked = ~batch.reference_mask
    timesteps = batch.timesteps
    noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
    noisy = torch.where(masked[:, :, None, None, None], noisy, batch.latents)
    velocity = transformer(
        noisy,
        timesteps,
        planning_signals,
        batch.reference_mask,
        num_masked_frames=batch.num_masked_frames,
        planning_signals_mask=None if planning_signals is None else batch.planning_signals_mask,
        conditions=batch.conditions or None,
    ).sample
    target = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
    return masked_mse(velocity, target, masked)


def masked_mse(prediction: torch.Tensor, target: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Mean squared error over masked frames, in float32; `masked` is `(batch, frames)`, the others start with these axes."""
    error = (prediction.float() - target.float()).square().flatten(2).mean(dim=2)  # (batch, frames)
    return torch.where(masked, error, 0).sum() / masked.sum()
