"""Held-out losses with fixed windows, noise, masks and timesteps, to compare steps of a run, or several runs.

They are reported by timestep, by task and by the number of masked frames: the variation that the models learn.
"""

from dataclasses import replace
from itertools import product

import torch
from accelerate import Accelerator

from diffusers_mardini.masking import (
    random_reference_mask,
    reference_mask_from_indices,
    task_indices,
)
from training.config.schema import StageConfig
from training.data.batches import Batch
from training.engine.sharding import layout_of
from training.losses import diffusion_loss, make_planning_signals, reconstruction_loss
from training.monitoring.heldout_windows import HeldoutWindows
from training.randomness import step_generator


NOISE_LEVELS = (0.2, 0.4, 0.6, 0.8, 0.95)  # shares of the timesteps, for interpolation
PATTERN_NOISE_LEVELS = (0.4, 0.8)  # for the other patterns, of which the mean is reported


def patterns(num_frames: int, num_windows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return masks `(windows, frames)`: the tasks', and random ones with one, half and all but one frame masked."""

    # Two frames have nothing between them.
    tasks = ("image-to-video", "interpolation", "expansion") if num_frames > 2 else ("image-to-video",)
    masks = {
        f"task/{task}": reference_mask_from_indices(task_indices(task, num_frames), num_frames, num_windows)
        for task in tasks
    }
    for masked in sorted({1, num_frames // 2, num_frames - 1}):
        masks[f"masked/{masked}"] = random_reference_mask(num_windows, num_frames, num_frames - masked, generator)
    return masks


@torch.no_grad()
def heldout_losses(
    planner,
    head,
    transformer,
    scheduler,
    windows: HeldoutWindows,
    stage: StageConfig,
    seed: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Return losses of fixed windows, which the processes share; the planner runs once per pattern.

    Args:
        planner, transformer, scheduler: of the run.
        head: the planner's reconstruction head, or `None` for no reconstruction.
        windows: this process's share, see `heldout_windows`.
        stage: decides which losses there are.
        seed: of the noise and the masks.
        accelerator: of the run.

    Returns:
        Losses of the models that the stage trains. With the first and the last frame given (of two frames, the first):
        `planner` (reconstruction at low resolution), `diffusion/<share of the timesteps>` and, without planning
        signals, `diffusion_unplanned/0.95`. For every name of `patterns`: `planner/<pattern>` and
        `diffusion/<pattern>`, the mean over `PATTERN_NOISE_LEVELS`.
    """
    latents, numbers = windows.latents, list(windows.numbers)
    noises = [step_generator(seed, "heldout", "noise", number) for number in numbers]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in noises])
    masks = patterns(latents.shape[1], windows.total, step_generator(seed, "heldout", "masks"))
    plans, samples = stage.trains != "transformer", stage.trains != "planner"
    given_ends = "task/interpolation" if "task/interpolation" in masks else "task/image-to-video"
    planner_losses: dict[str, torch.Tensor] = {}
    diffusion_losses: dict[tuple[str, float], torch.Tensor] = {}
    unplanned_losses: dict[str, torch.Tensor] = {}

    def add(losses: dict, key: str | tuple[str, float], loss: torch.Tensor, counted: int) -> None:
        losses[key] = losses.get(key, 0) + loss * counted

    layout = layout_of(accelerator)
    parts = _parts(windows, stage.batch_size, layout.data_ranks)
    for (pattern, mask), (rows, counted) in product(masks.items(), parts):
        batch = Batch(
            latents[rows], windows.planner_latents[rows], mask[numbers][rows], int((~mask[0]).sum()), noise[rows],
            torch.zeros(len(rows), dtype=torch.long), torch.ones(len(rows), dtype=torch.bool),
            conditions={name: values[rows] for name, values in windows.conditions.items()},
        ).to(accelerator.device)  # fmt: skip
        with accelerator.autocast():  # as in training
            signals = make_planning_signals(planner, batch, scheduler) if plans else None
            if plans and head is not None:
                add(planner_losses, pattern, reconstruction_loss(planner, head, batch, signals), counted)
            for share in _noise_levels(pattern == given_ends) if samples else ():
                noisy = replace(batch, timesteps=torch.full_like(batch.timesteps, _timestep(share, scheduler)))
                loss = diffusion_loss(transformer, scheduler, noisy, signals)
                add(diffusion_losses, (pattern, share), loss, counted)
            if plans and samples and pattern == given_ends:
                noisy = replace(
                    batch, timesteps=torch.full_like(batch.timesteps, _timestep(0.95, scheduler)), conditions={}
                )
                add(unplanned_losses, pattern, diffusion_loss(transformer, scheduler, noisy, None), counted)

    found = [*planner_losses.values(), *diffusion_losses.values(), *unplanned_losses.values()]
    sums = accelerator.reduce(torch.stack(found), "sum")
    # Processes that share tokens have the same windows.
    means = (total / (windows.total * layout.context) for total in sums.tolist())
    planner_means = {pattern: next(means) for pattern in planner_losses}
    diffusion_means = {key: next(means) for key in diffusion_losses}

    losses = {}
    if planner_losses:
        losses["planner"] = planner_means[given_ends]
        losses |= {f"planner/{pattern}": mean for pattern, mean in planner_means.items()}
    if samples:
        losses |= {f"diffusion/{share}": diffusion_means[given_ends, share] for share in NOISE_LEVELS}
        for pattern in masks:
            values = [diffusion_means[pattern, share] for share in PATTERN_NOISE_LEVELS]
            losses[f"diffusion/{pattern}"] = sum(values) / len(values)
    if unplanned_losses:
        losses["diffusion_unplanned/0.95"] = next(means)
    return {name: round(value, 5) for name, value in losses.items()}


def _parts(windows: HeldoutWindows, batch_size: int, processes: int) -> list[tuple[torch.Tensor, int]]:
    """Return rows that are scored together, at most as many as a step's batch, and how many of them count.

    Every process has as many parts, because all must take part when sharded models are gathered: one with fewer
        windows
    repeats a row that does not count.
    """
    most = -(-windows.total // processes)
    rows = torch.arange(len(windows.latents))
    return [
        (part, len(part)) if len(part) and windows.counted else (rows[:1], 0)
        for part in rows.tensor_split(-(-most // batch_size))
    ]


def _noise_levels(given_ends: bool) -> list[float]:
    return sorted({*NOISE_LEVELS, *PATTERN_NOISE_LEVELS}) if given_ends else list(PATTERN_NOISE_LEVELS)


def _timestep(share: float, scheduler) -> int:
    return int(share * scheduler.config.num_train_timesteps)
