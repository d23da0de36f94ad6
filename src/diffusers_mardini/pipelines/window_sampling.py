"""Sample the windows of a whole video into its latents, batch by batch. `window_plans.py` plans them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.torch_utils import get_module_execution_device

from ..latents import decode_latents
from .conditions import Conditions, conditions_at
from .sampling_options import SamplingOptions
from .window_plans import Window


class WindowSamplingMixin:
    """What the methods of `MarDiniPipeline` for long videos share."""

    def _run_windows(
        self,
        pixels: torch.Tensor,
        given_places: list[int],
        num_frames: int,
        batches: Sequence[list[Window]],
        options: SamplingOptions,
        decode_chunk_size: int,
        conditions: Conditions,
    ) -> torch.Tensor:
        """Sample a video window by window.

        Args:
            pixels: the given frames, `(batch, given frames, 3, height, width)` in [-1, 1].
            given_places: their places in the video.
            num_frames: of the video.
            batches: the windows in their order; those of a batch run at once and have the same `given_indices`.
            options: how to sample each.
            decode_chunk_size: most frames that the VAE encodes or decodes at once.
            conditions: of the video, result of `read_conditions`.

        Returns:
            Latents of the video, `(batch, num_frames, channels, h, w)`.
        """
        videos, _, _, height, width = pixels.shape
        shape, factor = self.latents_shape(videos, num_frames, height, width), self.config.planner_downscale
        latents = empty_video(shape, self._execution_device)  # (videos, num_frames, channels, h, w)
        low_latents = empty_video((*shape[:3], shape[3] // factor, shape[4] // factor), self._execution_device)
        given = self.encode_frames(pixels, decode_chunk_size)
        low_given = self.encode_low_frames(pixels, decode_chunk_size)
        latents[:, given_places], low_latents[:, given_places] = given, low_given
        with self.progress_bar(total=len(batches) * self.set_timesteps(options)) as progress_bar:
            self.sample_into(latents, low_latents, batches, options, decode_chunk_size, conditions, progress_bar)
        return latents

    def sample_into(
        self,
        latents: torch.Tensor,
        low_latents: torch.Tensor,
        batches: Sequence[list[Window]],
        options: SamplingOptions,
        decode_chunk_size: int,
        conditions: Conditions,
        progress_bar: Any = None,
    ) -> None:
        """Sample windows into the latents of a video.

        Args:
            latents: of the video, `(batch, frames, channels, h, w)`; given frames are at their places.
            low_latents: the same for the planner, `(batch, frames, channels, h_low, w_low)`.
            batches, options, decode_chunk_size, conditions: see `_run_windows`.
            progress_bar: updated once per step, if given.
        """
        videos = len(latents)
        last_use = {
            window.places[i]: number
            for number, windows in enumerate(batches)
            for window in windows
            for i in window.given_indices
        }

        for number, windows in enumerate(batches):
            if self.interrupt:
                break
            reference_places = [[window.places[i] for i in windows[0].given_indices] for window in windows]
            parts = [conditions_at(conditions, self.conditions, window.places) for window in windows]
            sampled = self.sample_windows(
                windows,
                torch.cat([latents[:, places] for places in reference_places]),
                torch.cat([low_latents[:, places] for places in reference_places]),
                options,
                {name: torch.cat([part[name] for part in parts]) for name in conditions},
                progress_bar,
            )
            for window, rows in zip(windows, sampled.split(videos)):
                latents[:, window.places] = rows
            new_places = {place for window in windows for place in window.new_places}
            leading_on = sorted(place for place in new_places if last_use.get(place, -1) > number)
            if leading_on:
                sampled = latents[:, leading_on]
                low_latents[:, leading_on] = self._low_latents_of_sampled(sampled, decode_chunk_size)

    def sample_windows(
        self,
        windows: Sequence[Window],
        references: torch.Tensor,
        low_references: torch.Tensor,
        options: SamplingOptions,
        conditions: Conditions,
        progress_bar: Any = None,
    ) -> torch.Tensor:
        """Plan and sample windows that are alike, as rows of one batch: those of one window after those of another.

        Args:
            windows: with the same `given_indices`.
            references: latents of their given frames, `(windows * videos, given frames, channels, h, w)`.
            low_references: the same for the planner, `(windows * videos, given frames, channels, h_low, w_low)`.
            options: how to sample each.
            conditions: of the windows' frames, a row for each window of each video.
            progress_bar: updated once per step, if given.

        Returns:
            Latents of all frames, `(windows * videos, frames, channels, h, w)`.
        """
        given_indices, length = windows[0].given_indices, len(windows[0].places)
        positions = windows[0].positions
        planning_signals = self.plan(
            low_references, given_indices, length, options.attention_kwargs, conditions, positions
        )
        self.set_timesteps(options)  # some schedulers' first level depends on them
        shape = (len(references) // len(windows), length, *references.shape[2:])
        device = planning_signals.device
        noise = torch.cat([self.prepare_latents(shape, options.generator, device=device) for _ in windows])
        if isinstance(options.generator, list):
            options = replace(options, generator=options.generator * len(windows))
        return self.denoise(
            noise, references, given_indices, planning_signals, options, progress_bar, conditions, positions=positions
        )

    def _low_latents_of_sampled(self, latents: torch.Tensor, chunk_size: int) -> torch.Tensor:
        """Return what the planner gets of sampled frames, `(videos, frames, channels, h_low, w_low)`.

        They reach it like given ones: as pictures, made smaller and encoded.
        """
        low_latents = []
        for chunk in latents.split(chunk_size, dim=1):
            frames = decode_latents(
                self.vae, chunk.to(get_module_execution_device(self.vae), self.vae.dtype), chunk_size
            )
            low_latents.append(self.encode_low_frames(frames.clamp(-1, 1), chunk_size))
        return torch.cat(low_latents, dim=1)


def empty_video(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return zeros for the latents of a whole video, `(videos, frames, channels, h, w)`.

    Raises:
        ValueError: if they do not fit into memory.
    """
    try:
        return torch.zeros(shape, dtype=torch.float32, device=device)
    except (RuntimeError, MemoryError, TypeError, OverflowError) as error:  # the last two for more than 64 bits
        raise ValueError(
            f"the latents of the {shape[1]} frames asked for take {4 * math.prod(shape) / 2**30:.3g} GiB, which is "
            "more than the memory; ask for fewer frames"
        ) from error
