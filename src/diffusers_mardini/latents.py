"""From frames to the latents of both models, and back (Sec. 2.2: a pretrained VAE, frame by frame).

The pipeline and the trainer share these functions, so that a model gets the same numbers in both. Masks are in
`masking.py`, noise in `pipelines/pipeline_mardini.py`.
"""

import math

import torch
import torch.nn.functional as F


def downscale_video(video: torch.Tensor, factor: int) -> torch.Tensor:
    """Make the low-resolution video for the planner (Sec. 2.2).

    Args:
        video: frames shaped `(batch, frames, channels, height, width)`.
        factor: how many times smaller each side becomes; `height` and `width` must be divisible by it.

    Returns:
        Frames shaped `(batch, frames, channels, height // factor, width // factor)`.
    """
    if factor == 1:
        return video
    batch, _, _, height, width = video.shape
    if height % factor or width % factor:
        raise ValueError(
            f"frames of {height}x{width} (height x width) cannot be made {factor} times smaller; "
            f"both sides must be divisible by {factor}"
        )
    frames = video.flatten(0, 1)
    if video.device.type == "mps":  # older torch has no antialiasing there
        frames = frames.cpu()
    frames = F.interpolate(frames, size=(height // factor, width // factor), mode="bilinear", antialias=True)
    return frames.to(video.device).unflatten(0, (batch, -1))


def encode_video(
    vae: torch.nn.Module,
    video: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Encode each frame separately and normalize the latents with the VAE's shift and scale.

    Args:
        vae: an image autoencoder with `AutoencoderKL`'s interface.
        video: frames in [-1, 1], shaped `(batch, frames, 3, height, width)`.
        generator: samples latents from the posterior; without one, they are its mode.

    Returns:
        Latents shaped `(batch, frames, latent_channels, height / 8, width / 8)` for an 8x VAE.
    """
    posterior = vae.encode(video.flatten(0, 1)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    latents = (latents - _shift_factor(vae)) * vae.config.scaling_factor
    return latents.unflatten(0, video.shape[:2])


def encode_moments(vae: torch.nn.Module, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and logarithm of the variance of the posterior that `encode_video` samples from, normalized.

    Args:
        vae, video: see `encode_video`.

    Returns:
        Two tensors shaped `(batch, frames, latent_channels, height / 8, width / 8)` for an 8x VAE; the mean is the
        mode.
    """
    posterior = vae.encode(video.flatten(0, 1)).latent_dist
    mean = (posterior.mean - _shift_factor(vae)) * vae.config.scaling_factor
    logvar = posterior.logvar + 2 * math.log(vae.config.scaling_factor)
    return mean.unflatten(0, video.shape[:2]), logvar.unflatten(0, video.shape[:2])


def decode_latents(vae: torch.nn.Module, latents: torch.Tensor, chunk_size: int | None = None) -> torch.Tensor:
    """Invert `encode_video`.

    Args:
        vae: see `encode_video`.
        latents: `(batch, frames, channels, h, w)`.
        chunk_size: most frames to decode at once, which bounds the memory; all by default.

    Returns:
        Frames `(batch, frames, 3, height, width)`, about in [-1, 1] and not clamped.
    """
    frames = latents.flatten(0, 1) / vae.config.scaling_factor + _shift_factor(vae)
    chunks = [vae.decode(chunk, return_dict=False)[0] for chunk in frames.split(chunk_size or len(frames))]
    return torch.cat(chunks).unflatten(0, latents.shape[:2])


def _shift_factor(vae: torch.nn.Module) -> float:
    # Older AutoencoderKL configs carry no shift at all, newer ones may carry None.
    return getattr(vae.config, "shift_factor", None) or 0.0
