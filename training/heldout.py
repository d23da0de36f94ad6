"""Held-out losses: fixed windows, fixed noise, fixed timesteps, so that two steps of a run, or two runs, can be compared."""

import torch
from accelerate import Accelerator

from diffusers_mardini.masking import interpolation_indices, reference_mask_from_indices

from .config import StageConfig
from .curriculum import Batch
from .data.latents import LatentClips
from .randomness import step_generator
from .step import MarDiniTrainingModel


NOISE_LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)


@torch.no_grad()
def heldout_losses(
    planner,
    head,
    transformer,
    scheduler,
    data: LatentClips,
    stage: StageConfig,
    num_windows: int,
    seed: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Losses of interpolation windows (first and last frame given), the processes sharing the windows between them.

    Returns:
        `planner` (reconstruction at low resolution), `diffusion/<share of the timesteps>` and, without the planning signal,
        `diffusion_unplanned/<share>`, as far as the stage trains what they need.
    """
    stride = max(stage.strides, key=stage.strides.get)
    starts = data.windows(stage.num_frames, stride)
    chosen = starts[torch.linspace(0, len(starts) - 1, min(num_windows, len(starts))).long()]
    mine = torch.arange(accelerator.process_index, len(chosen), accelerator.num_processes)
    generator = step_generator(seed, "heldout")
    latents, planner_latents = data.gather(chosen, stage.num_frames, stride)
    noise = torch.randn(latents.shape, generator=generator)
    latents, planner_latents, noise = latents[mine], planner_latents[mine], noise[mine]
    kept = interpolation_indices(stage.num_frames)
    reference_mask = reference_mask_from_indices(kept, stage.num_frames, len(mine))
    trained = (planner if stage.trains != "transformer" else None, transformer if stage.trains != "planner" else None)
    planned = MarDiniTrainingModel(trained[0], head if trained[0] is not None else None, trained[1], scheduler)
    unplanned = MarDiniTrainingModel(None, None, transformer, scheduler)

    def loss(model: MarDiniTrainingModel, share: float, name: str) -> float:
        timestep = int(share * scheduler.config.num_train_timesteps)
        batch = Batch(
            latents, planner_latents, reference_mask, stage.num_frames - len(kept), noise,
            torch.full((len(mine),), timestep), torch.ones(len(mine), dtype=torch.bool),
        )  # fmt: skip
        value = model(batch.to(accelerator.device))[name] * len(mine)
        return accelerator.reduce(value, "sum").item() / len(chosen)

    losses = {}
    if trained[0] is not None:
        losses["planner"] = loss(MarDiniTrainingModel(planner, head, None, scheduler), 0.0, "planner_loss")
    if trained[1] is not None:
        losses |= {f"diffusion/{share}": loss(planned, share, "diffusion_loss") for share in NOISE_LEVELS}
        if trained[0] is not None:
            losses["diffusion_unplanned/0.95"] = loss(unplanned, 0.95, "diffusion_loss")
    return {name: round(value, 5) for name, value in losses.items()}
