"""Convolutions at the resolution of the latents, before and after the trunk (ours, not in the paper).

Fine latents give sharp pictures, but many tokens. With a stem, the trunk keeps its large patches, and 3x3 convolutions
compute the details within them. They see one frame at a time, so that reference frames stay independent of the noise.
"""

import torch
from torch import nn


class LatentResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input, modulated by the timestep like the trunk's blocks (AdaLN-Zero,
    DiT)."""

    def __init__(self, channels: int, dim: int, eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(_num_groups(channels), channels, eps, affine=False)
        self.modulation = nn.Linear(dim, 3 * channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Apply the block to single frames, `(frames, channels, height, width)` and `(frames, dim)`."""
        shift, scale, gate = self.modulation(temb)[:, :, None, None].chunk(3, dim=1)  # (frames, channels, 1, 1)
        modulated = torch.addcmul(shift, self.norm(hidden_states), 1 + scale)
        update = self.conv2(nn.functional.silu(self.conv1(modulated)))
        return torch.addcmul(hidden_states, gate, update)  # (frames, channels, height, width)


class LatentStem(nn.Module):
    """Layers before the trunk: latents to features of the same height and width.

    Args:
        in_channels: channels of the latents.
        channels: channels of the features.
        num_blocks: number of residual blocks.
        dim: channels of the timestep's embedding.
        eps: added to variances in the norms.
    """

    def __init__(self, in_channels: int, channels: int, num_blocks: int, dim: int, eps: float):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(LatentResidualBlock(channels, dim, eps) for _ in range(num_blocks))

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Compute the features of latents.

        Args:
            hidden_states: latents, `(batch, frames, in_channels, height, width)`.
            temb: embedded timesteps, `(batch, frames or 1, 1, dim)`.

        Returns:
            Features `(batch, frames, channels, height, width)`.
        """
        flat, temb = _by_frame(hidden_states, temb)
        flat = self.conv_in(flat)
        for block in self.blocks:
            flat = block(flat, temb)
        return flat.unflatten(0, hidden_states.shape[:2])


class LatentHead(nn.Module):
    """Layers after the trunk: its features plus those of the stem (a long skip) to velocities. Zero at the start.

    Arguments are those of `LatentStem`; `out_channels` are the channels of the latents.
    """

    def __init__(self, channels: int, out_channels: int, num_blocks: int, dim: int, eps: float):
        super().__init__()
        self.blocks = nn.ModuleList(LatentResidualBlock(channels, dim, eps) for _ in range(num_blocks))
        self.norm_out = nn.GroupNorm(_num_groups(channels), channels, eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, skip: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Compute velocities `(batch, frames, out_channels, height, width)`.

        Args:
            hidden_states: features of the trunk, `(batch, frames, channels, height, width)`.
            skip: features of the stem, in the same shape.
            temb: embedded timesteps, `(batch, frames or 1, 1, dim)`.
        """
        flat, temb = _by_frame(hidden_states + skip, temb)
        for block in self.blocks:
            flat = block(flat, temb)
        return self.conv_out(nn.functional.silu(self.norm_out(flat))).unflatten(0, hidden_states.shape[:2])


def _by_frame(hidden_states: torch.Tensor, temb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flatten batch and frames: `(batch * frames, channels, height, width)` and `(batch * frames, dim)`."""
    batch, frames = hidden_states.shape[:2]
    return hidden_states.flatten(0, 1), temb.expand(batch, frames, 1, -1).flatten(0, 2)


def _num_groups(channels: int) -> int:
    """Return 8, or the next smaller number that divides the channels."""
    return next(groups for groups in range(8, 0, -1) if channels % groups == 0)
