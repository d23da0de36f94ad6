"""A small image autoencoder for tiny models: a linear basis of patches, plus convolutions that are zero at the start.

It has the interface of `AutoencoderKL`, and the pipeline takes either. The paper uses a large pretrained 16-channel
VAE (Sec. 2.2); this one trains from scratch on a CPU in minutes, see `training/train_autoencoder.py`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from .loading import WholeModelMixin


# Logarithm of the posterior's variance: its standard deviation is 3e-7, so that a sample is the mode.
_LOGVAR = -30.0


class PatchResidualBlock(nn.Module):
    """Two 3x3 convolutions on the latent grid, added to their input; the second starts at zero.

    No normalization: its statistics would make a pixel depend on the whole picture, and a tile differ from the whole.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the block: `(batch, channels, h, w)`."""
        return hidden_states + self.conv2(F.silu(self.conv1(F.silu(hidden_states))))


class PatchResidual(nn.Module):
    """Convolutions added to the linear basis, zero at first.

    The side of the patches (192 values) has a 1x1 convolution, the side of the latents a 3x3: neighbours are read
    where channels are few, which saves weights.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, num_blocks: int):
        super().__init__()
        kernel_in, kernel_out = (1, 3) if in_channels > out_channels else (3, 1)
        self.conv_in = nn.Conv2d(in_channels, channels, kernel_in, padding=kernel_in // 2)
        self.blocks = nn.ModuleList([PatchResidualBlock(channels) for _ in range(num_blocks)])
        self.conv_out = nn.Conv2d(channels, out_channels, kernel_out, padding=kernel_out // 2)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    @property
    def reach(self) -> int:
        """Distance, in latents, at which an input can still change an output."""
        return 1 + 2 * len(self.blocks)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute the correction: `(batch, in_channels, h, w)` to `(batch, out_channels, h, w)`."""
        hidden_states = self.conv_in(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(F.silu(hidden_states))


class AutoencoderPatchBasis(WholeModelMixin, AutoencoderMixin, ConfigMixin):
    """Autoencoder whose latents are the coefficients of 8x8 patches in a linear basis, corrected by convolutions.

    Encoding projects each patch onto the basis and adds a convolutional residual of the neighbouring patches; decoding
    maps 3x3 neighbouring latents linearly to a patch and adds a residual. All layers work on the latent grid, which
    makes them fast. `fit_basis` sets the linear part from pictures; both residuals start at zero.

    The posterior is deterministic: `latent_dist.sample()` equals `latent_dist.mode()` up to 3e-7.

    Args:
        in_channels: channels of a picture.
        out_channels: channels of a decoded picture; equal to `in_channels`.
        latent_channels: size of the basis.
        block_out_channels: as in `AutoencoderKL`, one entry for each halving of the resolution and one more, so that
            the spatial compression is `2 ** (len(block_out_channels) - 1)`. All entries are equal: the width of the
            residuals.
        encoder_blocks: residual blocks of the encoder.
        decoder_blocks: residual blocks of the decoder.
        scaling_factor: multiplied with latents, after the shift, for a standard deviation of 1.
        shift_factor: mean of all latents.
        sample_size: side of the pictures it was trained on, or height and width; informative.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["PatchResidualBlock"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (96, 96, 96, 96),
        encoder_blocks: int = 1,
        decoder_blocks: int = 3,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        sample_size: int | tuple[int, int] = 64,
    ):
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f"out_channels must equal in_channels, got {out_channels} and {in_channels}")
        if len(set(block_out_channels)) != 1:
            raise ValueError(
                f"entries of block_out_channels must be equal (the residuals have one width), got {block_out_channels}"
            )
        self.spatial_compression_ratio = 2 ** (len(block_out_channels) - 1)
        patch_channels = in_channels * self.spatial_compression_ratio**2
        if latent_channels > patch_channels:
            raise ValueError(
                f"latent_channels ({latent_channels}) must not exceed the {patch_channels} values of one patch; "
                "lower it or lengthen block_out_channels"
            )
        width = block_out_channels[-1]
        self.to_latents = nn.Conv2d(patch_channels, latent_channels, 1)
        self.from_latents = nn.Conv2d(latent_channels, patch_channels, 3, padding=1)
        self.encoder_residual = PatchResidual(patch_channels, width, latent_channels, encoder_blocks)
        self.decoder_residual = PatchResidual(latent_channels, width, patch_channels, decoder_blocks)

        self.use_slicing = False
        self.use_tiling = False
        self.tile_latent_size = 64  # side of a tile without its margin

    @apply_forward_hook
    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode pictures `(batch, channels, height, width)` in [-1, 1].

        Returns:
            `.latent_dist` over `(batch, latent_channels, height / 8, width / 8)`, neither shifted nor scaled.

        Raises:
            ValueError: if a side is not divisible by the compression.
        """
        ratio = self.spatial_compression_ratio
        if x.ndim != 4 or x.shape[-2] % ratio or x.shape[-1] % ratio:
            raise ValueError(
                f"pictures must be shaped (batch, channels, height, width) with sides divisible by {ratio}, "
                f"got {tuple(x.shape)}"
            )
        mean = self._sliced_and_tiled(self._encode, F.pixel_unshuffle(x, ratio), self.encoder_residual.reach)
        posterior = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, _LOGVAR)], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode latents `(batch, latent_channels, h, w)` to pictures `(batch, channels, 8 h, 8 w)`, not clamped.

        `generator` is not used; `AutoencoderKL` has the argument.
        """
        patches = self._sliced_and_tiled(self._decode, z, self.decoder_residual.reach)
        sample = F.pixel_shuffle(patches, self.spatial_compression_ratio)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode pictures `(batch, channels, height, width)`."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)

    def _encode(self, patches: torch.Tensor) -> torch.Tensor:
        return self.to_latents(patches) + self.encoder_residual(patches)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.from_latents(latents) + self.decoder_residual(latents)

    def _sliced_and_tiled(
        self, function: Callable[[torch.Tensor], torch.Tensor], grid: torch.Tensor, margin: int
    ) -> torch.Tensor:
        """Apply `function` to `(batch, channels, h, w)`, picture by picture with slicing, tile by tile with tiling.

        A tile includes `margin` more latents on each side, as far as the convolutions reach, so that the result is
        that of the whole picture without blending.
        """
        if self.use_slicing and grid.shape[0] > 1:
            return torch.cat([self._sliced_and_tiled(function, one, margin) for one in grid.split(1)])
        height, width = grid.shape[-2:]
        size = self.tile_latent_size
        if not self.use_tiling or max(height, width) <= size:
            return function(grid)
        rows = []
        for top in range(0, height, size):
            row = []
            for left in range(0, width, size):
                first_row, first_column = max(top - margin, 0), max(left - margin, 0)
                tile = function(
                    grid[..., first_row : top + size + margin, first_column : left + size + margin].contiguous()
                )
                y, x = top - first_row, left - first_column
                row.append(tile[..., y : y + min(size, height - top), x : x + min(size, width - left)])
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)

    @torch.no_grad()
    def fit_basis(self, frames: torch.Tensor) -> None:
        """Set the linear part from pictures: principal components of their patches, and their least-squares inverse.

        Each coefficient is divided by the square root of its standard deviation. Dividing by the standard deviation
        (whitening) would give components of 4/255 as much weight in training as large ones; without division they
        would be ignored. Both residuals stay as they are.

        Args:
            frames: pictures in [-1, 1], `(batch, channels, height, width)`; a few thousand are enough.
        """
        weight, bias = self.to_latents.weight, self.to_latents.bias
        exact = exact_device(frames.device)
        patches = F.pixel_unshuffle(frames.float(), self.spatial_compression_ratio).to(exact)  # (batch, values, h, w)
        values = patches.shape[1]
        flat = patches.transpose(0, 1).reshape(values, -1).double()  # (values, patches)
        mean = flat.mean(dim=1)
        variances, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1] - torch.outer(mean, mean))
        keep = torch.arange(values - 1, values - 1 - self.config.latent_channels, -1)
        spread = variances[keep].clamp(min=1e-12).sqrt()
        basis = (vectors[:, keep] / spread.sqrt()).T  # (latents, values)
        weight.copy_(basis[:, :, None, None].to(weight.dtype))
        bias.copy_(-(basis @ mean).to(bias.dtype))

        # Least squares from 3x3 neighbouring latents, edges padded with zero as the convolution does.
        latents = self.to_latents(patches.to(weight)).to(exact).double()
        gram, cross = 0.0, 0.0
        for latent, patch in zip(latents.split(256), patches.split(256)):
            neighbours = F.unfold(latent, 3, padding=1).transpose(0, 1).flatten(1)  # (latents * 9, patches)
            neighbours = torch.cat([neighbours, torch.ones_like(neighbours[:1])])
            gram = gram + neighbours @ neighbours.T
            cross = cross + neighbours @ patch.double().flatten(2).transpose(0, 1).flatten(1).T
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
        solution = torch.linalg.solve(gram + ridge, cross).T  # (values, latents * 9 + 1)
        weight, bias = self.from_latents.weight, self.from_latents.bias
        weight.copy_(solution[:, :-1].unflatten(1, (-1, 3, 3)).to(weight.dtype))
        bias.copy_(solution[:, -1].to(bias.dtype))


def exact_device(device: torch.device) -> torch.device:
    """Return where float64 is computed for tensors of a device: on the CPU for MPS, which has none."""
    return torch.device("cpu") if device.type == "mps" else device
