"""Moments of frames: the posteriors that an autoencoder gives, their names in a shard, and latents sampled from them.

`latent_shards.py` has the files, `latents.py` and `drawn_latents.py` the caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusers_mardini.latents import downscale_video, encode_moments
from training.data.clips import CENTRE, View


# A standard deviation of exp(-10) = 5e-5 is below the float16 resolution of the means: such a posterior is a point.
_POINT_LOGVAR = -20.0
POINT = -30.0  # logarithm of the variance where other frames of a clip have one
SIZES = ("latents", "planner_latents")
# Rows of tensors by size and kind, and by frame.
Rows = dict[tuple[str, str], dict[int, torch.Tensor]]


class ClipError(ValueError):
    """A clip cannot be read (any more) and is left out; other errors end the build or the run."""


@dataclass(frozen=True)
class Moments:
    """Normalized posteriors of some frames, `(frames, channels, height, width)`.

    Attributes:
        mean, planner_mean: means at full size and at the planner's size.
        logvar, planner_logvar: logarithms of their variances; `None` if the autoencoder is deterministic.
    """

    mean: torch.Tensor
    planner_mean: torch.Tensor
    logvar: torch.Tensor | None
    planner_logvar: torch.Tensor | None

    def sample(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample latents of both sizes, float32 on the CPU; without a variance the generator is not used."""
        latents, low_latents = (
            mean.float() if logvar is None else
            mean.float() + torch.exp(0.5 * logvar.float()) * torch.randn(mean.shape, generator=generator)
            for mean, logvar in ((self.mean, self.logvar), (self.planner_mean, self.planner_logvar))
        )  # fmt: skip
        return latents, low_latents


@torch.no_grad()
def encode_frames(vae: torch.nn.Module, frames: torch.Tensor, planner_downscale: int) -> Moments:
    """Return the posteriors of `uint8` frames `(frames, 3, height, width)`, on the CPU."""
    video = (frames[None].to(vae.device).float() / 127.5 - 1).to(vae.dtype)  # (1, frames, 3, height, width)
    found = []
    for size in (video, downscale_video(video, planner_downscale)):
        with torch.autocast(
            vae.device.type, enabled=False
        ):  # in the autoencoder's own precision, whatever the caller's
            mean, logvar = encode_moments(vae, size)
        found.append((mean[0].cpu(), None if logvar.max() <= _POINT_LOGVAR else logvar[0].cpu()))
    (mean, logvar), (planner_mean, planner_logvar) = found
    return Moments(mean, planner_mean, logvar, planner_logvar)


def tensor_names(view: View) -> list[tuple[tuple[str, str], str]]:
    """Return the names of a view's tensors in a chunk, by size and kind."""
    return [((size, kind), f"{size}.{kind}{suffix(view)}") for kind in ("mean", "logvar") for size in SIZES]


def moments_of(parts: Rows, frames: Sequence[int]) -> Moments:
    """Return the moments of some frames in their order; frames without a variance are points if others have one."""
    found = {
        (size, kind): torch.stack(
            [rows[i] if i in rows else torch.full_like(parts[size, "mean"][i], POINT) for i in frames]
        )
        for (size, kind), rows in parts.items()
    }
    return Moments(*(found.get((size, kind)) for kind in ("mean", "logvar") for size in SIZES))


def tensors_of(moments: Moments, view: View) -> dict[str, torch.Tensor]:
    """Return the tensors of a chunk by name."""
    values = (moments.mean, moments.planner_mean, moments.logvar, moments.planner_logvar)
    return {name: tensor for (_, name), tensor in zip(tensor_names(view), values) if tensor is not None}


def suffix(view: View) -> str:
    """Return the suffix of the names of a view's tensors."""
    return ("" if view.crop == CENTRE else f".crop{view.crop}") + (".flipped" if view.flip else "")
