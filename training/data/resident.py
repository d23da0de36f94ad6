"""Latents of a small data set that stay on the device: batches are gathered there, bit for bit those of the cache.

Noise is still drawn on the CPU, whose generators give the same numbers on every machine. `latents.py` holds the cache
that the latents are read from; `windows.py` asks either.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from training.data.clips import View
from training.data.entries import Entries, Entry
from training.data.latents import LatentCache
from training.data.moments import POINT, ClipError, Moments


@dataclass(frozen=True)
class ResidentLatents:
    """The latents of clips at one size, in all views of its cache, on a device.

    Attributes:
        means: at full size and at the planner's, `(frames, channels, height, width)`, as they are stored.
        deviations: their standard deviations, in float32; `None` if the autoencoder is deterministic.
        begins: index of a clip's first frame, by the hash of the clip and the view.
    """

    means: tuple[torch.Tensor, torch.Tensor]
    deviations: tuple[torch.Tensor, torch.Tensor] | None
    begins: dict[tuple[str, View], int]

    @property
    def num_bytes(self) -> int:
        """Memory on the device."""
        return sum(tensor.nbytes for tensor in (*self.means, *(self.deviations or ())))

    def batch(
        self, windows: Sequence[tuple[Entry, Sequence[int], View]], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents of both sizes, `(batch, frames, channels, height, width)`, float32 on the device.

        Args:
            windows: clip, indices of its frames and view; all with as many frames.
            generators: one per window, from which latents are sampled if there are deviations.
        """
        device = self.means[0].device
        rows = [self.begins[entry.sha256, view] + frame for entry, frames, view in windows for frame in frames]
        index = _sent(torch.tensor(rows), device)
        latents, low_latents = (
            mean.index_select(0, index).float().unflatten(0, (len(windows), -1)) for mean in self.means
        )
        if self.deviations is None:
            return latents, low_latents
        shapes = [tensor.shape[1:] for tensor in (latents, low_latents)]
        noises = zip(*([torch.randn(shape, generator=row) for shape in shapes] for row in generators))
        # Not `addcmul`, which rounds once on a GPU where the cache's sampling rounds twice.
        latents, low_latents = (
            mean + deviation.index_select(0, index).view_as(mean) * _sent(torch.stack(noise), device)
            for mean, deviation, noise in zip((latents, low_latents), self.deviations, noises)
        )
        return latents, low_latents


def size_on_device(cache: LatentCache, entries: Entries) -> int:
    """Return the bytes of clips in all views, as their first frames have them; 0 if none can be read."""
    for entry in entries:
        try:
            means, deviations = _tensors(cache.read(entry, [0]))
        except ClipError:
            continue
        frame = sum(tensor.nbytes for tensor in (*means, *(deviations or ())))
        return int(frame * entries.total("num_frames") * len(cache.views))
    return 0


def put_on_device(cache: LatentCache, entries: Iterable[Entry], device: torch.device) -> ResidentLatents | None:
    """Return the latents of clips on a device; `None` if none can be read.

    A clip that cannot be read is left out, and so is one without a variance in all its frames, if others have one: the
    cache gives their windows, or refuses them.
    """
    all_means, all_deviations, begins, frames = [], [], {}, 0
    for entry in entries:
        for view in sorted(cache.views):
            try:
                moments = cache.read(entry, range(entry.num_frames), view)
            except ClipError:
                continue
            means, deviations = _tensors(moments)
            uneven = all_deviations and (deviations is None) != (all_deviations[0] is None)
            if uneven or _is_partly_a_point(moments) or (entry.sha256, view) in begins:
                continue
            begins[entry.sha256, view] = frames
            frames += entry.num_frames
            all_means.append(means)
            all_deviations.append(deviations)
    if not begins:
        return None
    latents, low_latents = (torch.cat(each).to(device) for each in zip(*all_means))
    if all_deviations[0] is None:
        return ResidentLatents((latents, low_latents), None, begins)
    deviations, low_deviations = (torch.cat(each).to(device) for each in zip(*all_deviations))
    return ResidentLatents((latents, low_latents), (deviations, low_deviations), begins)


def _tensors(moments: Moments) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
    """Return means and standard deviations of both sizes; no deviations without a variance."""
    logvars = [each for each in (moments.logvar, moments.planner_logvar) if each is not None]
    deviations = tuple(torch.exp(0.5 * each.float()) for each in logvars)  # as `Moments.sample` computes them
    return (moments.mean, moments.planner_mean), deviations or None


def _is_partly_a_point(moments: Moments) -> bool:
    """Tell whether some frames, or one of the sizes, have a variance and others none."""
    logvars = moments.logvar, moments.planner_logvar
    return (logvars[0] is None) != (logvars[1] is None) or any(
        bool((each.flatten(1) == POINT).all(dim=1).any()) for each in logvars if each is not None
    )


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device; a GPU does so by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
