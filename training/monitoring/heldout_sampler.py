"""Sample held-out windows while a run trains, with the users' pipeline, from encoded latents.

The caller decides on the weights; a run uses its moving averages. Nothing here uses a global generator, so that
sampling does not change what a run learns.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from accelerate import Accelerator

from diffusers_mardini import MarDiniPipeline, MarDiniScheduler
from diffusers_mardini.latents import decode_latents
from diffusers_mardini.masking import reference_mask_from_indices, task_indices
from diffusers_mardini.models.embeddings import unpatchify
from diffusers_mardini.pipelines.sampling_options import SamplingOptions
from training.config.schema import StageConfig
from training.randomness import step_generator


class HeldoutSampler:
    """A run's models as a pipeline.

    Args:
        vae, planner, head, transformer, scheduler: of the run; used on their devices and not changed.
        planner_downscale: of the run.
        steps: denoising steps.
        seed: of the noise; a window has the same noise whenever it is sampled.
        accelerator: gives device and precision.
    """

    def __init__(
        self, vae, planner, head, transformer, scheduler, planner_downscale: int, steps: int, seed: int,
        accelerator: Accelerator,
    ):  # fmt: skip
        # A scheduler of its own, because sampling changes its timesteps.
        scheduler = MarDiniScheduler.from_config(scheduler.config)
        self.pipe = MarDiniPipeline(vae, planner, transformer, scheduler, planner_downscale)
        self.pipe.set_progress_bar_config(disable=True)
        self.head = head
        self.steps = steps
        self.seed = seed
        self.accelerator = accelerator

    @torch.no_grad()
    def sample(
        self,
        latents: torch.Tensor,
        planner_latents: torch.Tensor,
        given_indices: Sequence[int],
        numbers: Sequence[int],
        stage: StageConfig,
        conditions: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Sample all masked frames with the pipeline's default guidance.

        If the stage trains the transformer alone, it uses the unconditional signal, as in training.

        Args:
            latents, planner_latents: clean windows, see `HeldoutWindows`; only given frames are read.
            given_indices: places of the given frames.
            numbers: of the windows, `(windows,)`; each has its own noise.
            stage: must train the transformer.
            conditions: of each frame, `(windows, frames, channels)` by name.

        Returns:
            Clean latents `(windows, frames, channels, height, width)`.
        """
        device, given = self.accelerator.device, list(given_indices)
        alone = stage.trains == "transformer"
        options = SamplingOptions(self.steps, guidance_scale=1.0 if alone else None)
        sampled = []
        # As many at once as a step of the stage has: without gradients they need less memory.
        for rows in torch.arange(len(latents)).split(stage.batch_size):
            noise = torch.stack(
                [
                    torch.randn(latents.shape[1:], generator=step_generator(self.seed, "painting", numbers[row]))
                    for row in rows.tolist()
                ]
            )
            values = {name: each[rows] for name, each in conditions.items()}
            with self.accelerator.autocast():
                signals = None
                if not alone:
                    low = planner_latents[rows][:, given].to(device)
                    signals = self.pipe.plan(low, given, latents.shape[1], conditions=values)
                noise = self.pipe.prepare_latents(tuple(noise.shape), latents=noise)
                references = latents[rows][:, given].to(device)
                with self.pipe.progress_bar(total=self.steps) as bar:
                    sampled.append(self.pipe.denoise(noise, references, given, signals, options, bar, values))
        return torch.cat(sampled)

    @torch.no_grad()
    def reconstruct(
        self,
        planner_latents: torch.Tensor,
        given_indices: Sequence[int],
        conditions: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Return windows `(windows, frames, channels, h, w)` with masked frames reconstructed (Sec. 2.4.1)."""
        windows, frames = planner_latents.shape[:2]
        planner_latents = planner_latents.to(self.accelerator.device)
        mask = reference_mask_from_indices(given_indices, frames, windows, planner_latents.device)
        planner = self.pipe.planner
        with self.accelerator.autocast():
            signals = planner(
                planner_latents,
                mask,
                num_masked_frames=frames - len(given_indices),
                conditions={name: values.to(planner_latents.device) for name, values in conditions.items()} or None,
            ).planning_signals
            filled = unpatchify(self.head(signals), planner.config.patch_size)
        return torch.where(mask[:, :, None, None, None], planner_latents, filled.float())

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return frames in [0, 1] on the CPU, `(windows, frames, 3, height, width)`, decoded one window at a time."""
        vae = self.pipe.vae
        with _lent(vae, self.accelerator.device):
            frames = [decode_latents(vae, window[None].to(vae.device, vae.dtype)).float().cpu() for window in latents]
        return (torch.cat(frames) / 2 + 0.5).clamp(0, 1)


def tasks(num_frames: int) -> dict[str, list[int]]:
    """Return the given frames by task, for tasks that mask at least one frame."""
    given = {task: task_indices(task, num_frames) for task in ("interpolation", "image-to-video")}
    return {task: indices for task, indices in given.items() if len(indices) < num_frames}


@contextlib.contextmanager
def _lent(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to a device and back, so that the autoencoder does not take the trainer's memory all the time."""
    home = next(module.parameters()).device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
