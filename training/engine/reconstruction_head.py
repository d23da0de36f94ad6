"""The head `f` of the planner's reconstruction loss (Sec. 2.4.1); the loss itself is in `losses.py`."""

import torch
from torch import nn


class PlannerReconstructionHead(nn.Module):
    """Project planning signals back onto patches of low-resolution latents; thrown away after training."""

    def __init__(self, planning_dim: int, in_channels: int, patch_size: int):
        super().__init__()
        self.proj = nn.Linear(planning_dim, in_channels * patch_size**2)

    def forward(self, planning_signals: torch.Tensor) -> torch.Tensor:
        """Map `(batch, frames, rows, columns, planning_dim)` to `(..., channels * patch**2)`."""
        return self.proj(planning_signals)
