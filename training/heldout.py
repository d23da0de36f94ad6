"""Held-out losses: fixed windows, fixed noise, fixed masks, fixed timesteps, so that two steps of a run, or two runs, can be compared.

They are told by timestep, by task and by the number of masked frames, which is what the models learn to deal with.
"""

import torch
from accelerate import Accelerator

from diffusers_mardini.masking import (
    interpolation_indices,
    leading_indices,
    random_reference_mask,
    reference_mask_from_indices,
)

from .config import StageConfig
from .curriculum import Batch
from .data.buckets import Sampling
from .data.windows import Windows
from .randomness import step_generator
from .step import MarDiniTrainingModel


NOISE_LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)  # shares of the timesteps, for interpolation
PATTERN_NOISE_LEVELS = (0.4, 0.8)  # for the other patterns: their mean is told


def patterns(num_frames: int, num_windows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Masks `(windows, frames)` by name: the tasks, and random positions with one, half and all but one of the frames masked."""

    def fixed(indices: list[int]) -> torch.Tensor:
        return reference_mask_from_indices(indices, num_frames, num_windows)

    masks = {
        "task/interpolation": fixed(interpolation_indices(num_frames)),
        "task/image-to-video": fixed(leading_indices(1)),
    }
    if num_frames > 2:
        masks["task/expansion"] = fixed(leading_indices((num_frames + 1) // 2))
    for masked in sorted({1, num_frames // 2, num_frames - 1}):
        masks[f"masked/{masked}"] = random_reference_mask(num_windows, num_frames, num_frames - masked, generator)
    return masks


@torch.no_grad()
def heldout_losses(
    planner,
    head,
    transformer,
    scheduler,
    data: Windows,
    sampling: Sampling,
    stage: StageConfig,
    num_windows: int,
    seed: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Losses of fixed windows, the processes sharing them.

    Args:
        head: the planner's, or `None`: then there is no reconstruction.
        data, sampling: which windows; see `heldout_sampling`.
        stage: what is trained.

    Returns:
        As far as the stage trains what they need, with the first and the last frame given: `planner` (reconstruction at low
        resolution), `diffusion/<share of the timesteps>` and, without the planning signal, `diffusion_unplanned/0.95`. For every name
        of `patterns`: `planner/<pattern>` and `diffusion/<pattern>`, the mean over `PATTERN_NOISE_LEVELS`.
    """
    chosen = data.heldout(sampling, num_windows)
    mine = torch.arange(accelerator.process_index, len(chosen), accelerator.num_processes)
    own_windows = len(mine)
    if not own_windows:
        # Fewer windows than processes: it computes one that does not count, since shards are gathered together.
        mine = torch.zeros(1, dtype=torch.long)

    def generators(what: str) -> list[torch.Generator]:
        return [step_generator(seed, "heldout", what, window) for window in mine.tolist()]

    masks = patterns(sampling.buckets[0].frames, len(chosen), step_generator(seed, "heldout", "masks"))
    latents, planner_latents = data.batch([chosen[window] for window in mine.tolist()], generators("latents"))
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators("noise")])
    trained = (planner if stage.trains != "transformer" else None, transformer if stage.trains != "planner" else None)
    reconstruction = MarDiniTrainingModel(planner, head, None, scheduler)
    planned = MarDiniTrainingModel(trained[0], None, trained[1], scheduler)
    unplanned = MarDiniTrainingModel(None, None, transformer, scheduler)

    def loss(model: MarDiniTrainingModel, pattern: str, share: float, name: str = "diffusion_loss") -> float:
        timestep = int(share * scheduler.config.num_train_timesteps)
        mask = masks[pattern][mine]
        num_masked_frames = int((~masks[pattern][0]).sum())
        batch = Batch(
            latents, planner_latents, mask, num_masked_frames, noise,
            torch.full((len(mine),), timestep), torch.ones(len(mine), dtype=torch.bool),
        )  # fmt: skip
        value = model(batch.to(accelerator.device))[name] * own_windows
        return accelerator.reduce(value, "sum").item() / len(chosen)

    given_ends = "task/interpolation"
    losses = {}
    if trained[0] is not None and head is not None:
        losses["planner"] = loss(reconstruction, given_ends, 0.0, "planner_loss")
        losses |= {f"planner/{pattern}": loss(reconstruction, pattern, 0.0, "planner_loss") for pattern in masks}
    if trained[1] is not None:
        losses |= {f"diffusion/{share}": loss(planned, given_ends, share) for share in NOISE_LEVELS}
        for pattern in masks:
            values = [loss(planned, pattern, share) for share in PATTERN_NOISE_LEVELS]
            losses[f"diffusion/{pattern}"] = sum(values) / len(values)
        if trained[0] is not None:
            losses["diffusion_unplanned/0.95"] = loss(unplanned, given_ends, 0.95)
    return {name: round(value, 5) for name, value in losses.items()}
