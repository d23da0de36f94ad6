"""Draw the input of a training step (Sec. 2.4, Fig. 4): masks, timesteps, dropped signals; compute learning rates.

The stages of Fig. 4 are configurations: `configs/figure4_st.yaml` and `figure4_t.yaml`, on which
`mardini_{s,l}_{st,t}.yaml` build. Pure functions of a stage and a `Draw`. Windows come from `data/windows.py`; the
losses of a batch are in `losses.py`.
"""

import math
from collections.abc import Iterator, Mapping

import torch

from diffusers_mardini.masking import (
    num_reference_frames_range,
    random_reference_mask,
    reference_mask_from_indices,
    task_indices,
)
from training.config.schema import StageConfig
from training.data.batches import Batch, Draw
from training.data.buckets import WindowRequest
from training.data.windows import ClipWindows, WindowDraw


def draw_reference_mask(stage: StageConfig, num_frames: int, draw: Draw) -> torch.Tensor:
    """Return the mask `(count, num_frames)`: one task and number of given frames, random places per row."""
    generator = draw.shared("mask")
    weights = torch.tensor([stage.tasks.random, stage.tasks.interpolation, stage.tasks.leading])
    task = ("random", "interpolation", "leading")[_choice(weights, generator)]
    if task == "interpolation":
        return reference_mask_from_indices(task_indices(task, num_frames), num_frames, draw.count)
    if task == "leading":
        given = task_indices("expansion", num_frames, _uniform_integer(*stage.leading_frames, generator))
        return reference_mask_from_indices(given, num_frames, draw.count)
    given = _uniform_integer(*num_reference_frames_range(num_frames, stage.reference_ratio), generator)
    return torch.cat([random_reference_mask(1, num_frames, given, row) for row in draw.rows("mask")])


def draw_timesteps(num_train_timesteps: int, shift: float, draw: Draw) -> torch.Tensor:
    """Return integer timesteps `(count,)`, one from each of `total` equal parts of [0, 1), for a steadier loss."""
    strata = torch.randperm(draw.total, generator=draw.shared("timestep"))[draw.first : draw.first + draw.count]
    u = (strata + torch.cat([torch.rand(1, generator=row) for row in draw.rows("timestep")])) / draw.total
    u = shift * u / (1 + (shift - 1) * u)
    return (u * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def draw_reference_timesteps(num_train_timesteps: int, reference_noise: float, draw: Draw) -> torch.Tensor:
    """Return timesteps of the given frames, integers `(count,)`: 0, for clean ones, in half of the rows, and from 1 to
    `reference_noise * num_train_timesteps` in the others."""
    most = max(1, round(reference_noise * num_train_timesteps))
    chosen = [torch.randint(1, 2 * most + 1, (1,), generator=row) for row in draw.rows("reference timestep")]
    timesteps = torch.cat(chosen)
    return timesteps.where(timesteps <= most, 0)


def draw_batch(
    stage: StageConfig, request: WindowRequest, data: ClipWindows, num_train_timesteps: int, draw: Draw
) -> Batch:
    """Draw everything random of a step: windows of `data`, masks, noise, timesteps, dropped signals.

    Raises:
        ValueError: if no clip of the step's bucket can be read any more.
    """
    windows = data.draw(request, draw.places(), draw.rows("window"))
    latents, planner_latents = data.batch(windows, draw.rows("latents"))  # clips that broke are replaced in `windows`
    conditions = data.conditions(windows, latents)
    reference_mask = draw_reference_mask(stage, latents.shape[1], draw)
    kept = torch.cat([torch.rand(1, generator=row) for row in draw.rows("dropout")]) >= stage.planning_dropout
    share = torch.cat([torch.rand(1, generator=row) for row in draw.rows("conditions dropout")])
    told = kept & (share >= stage.conditions_dropout)
    reference_timesteps, planner_noise = None, None
    if stage.reference_noise:
        reference_timesteps = draw_reference_timesteps(num_train_timesteps, stage.reference_noise, draw)
        planner_noise = _normal(planner_latents, draw.rows("planner noise"))
    return Batch(
        latents=latents,
        planner_latents=planner_latents,
        reference_mask=reference_mask,
        num_masked_frames=int((~reference_mask[0]).sum()),
        noise=_normal(latents, draw.rows("noise")),
        timesteps=draw_timesteps(num_train_timesteps, stage.timestep_shift, draw),
        planning_signals_mask=kept,
        reference_timesteps=reference_timesteps,
        planner_noise=planner_noise,
        windows=tuple(map(str, windows)),
        conditions=drop_conditions(conditions, data.condition_drops, told, draw),
    )


def draw_windows(
    stage: StageConfig, request: WindowRequest, data: ClipWindows, seed: int, steps: range, attempt: int
) -> Iterator[WindowDraw]:
    """Yield the windows of all processes in some steps, as `draw_batch` draws them before any clip is read."""
    total = stage.windows_per_step
    for step in steps:
        draw = Draw(seed, stage.name, step, 0, total, total, attempt)
        yield from data.draw(request, draw.places(), draw.rows("window"))


def drop_conditions(
    conditions: dict[str, torch.Tensor], drops: Mapping[str, float], kept: torch.Tensor, draw: Draw
) -> dict[str, torch.Tensor]:
    """Drop whole rows of each condition at random, so that both models learn to do without one or all of them.

    Args:
        conditions: `(count, frames, channels)` by name.
        drops: share of the rows that are dropped, by name.
        kept: `(count,)`; the other rows lose all conditions: those whose planning signals are dropped, as in guidance,
            and `conditions_dropout` of a stage.
        draw: the rows.
    """
    remaining = {}
    for name, values in conditions.items():
        chosen = torch.cat([torch.rand(1, generator=row) for row in draw.rows(f"condition {name}")]) >= drops[name]
        remaining[name] = values.masked_fill(~(chosen & kept)[:, None, None], torch.nan)
    return remaining


def learning_rate_factor(
    step: int, steps: int, warmup_steps: int, final: float = 0.0, risen: float = 0.0, decayed: float = 0.0
) -> float:
    """Return the factor of the peak rate: a linear warm-up, then a cosine towards `final` (Appendix B).

    Args:
        step: of the stage, or since its number of steps was changed.
        steps: of the stage, or left of it since then.
        warmup_steps: as many of them.
        final: factor that the step after the last one would have.
        risen: share of the warm-up, from 0 to 1, at step 0.
        decayed: share of the cosine, from 0 to 1, at step 0.
    """
    if step < warmup_steps:
        return risen + (1 - risen) * (step + 1) / warmup_steps
    progress = decayed + (1 - decayed) * min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _normal(like: torch.Tensor, rows: list[torch.Generator]) -> torch.Tensor:
    """Return noise shaped like a batch, each row from its own generator."""
    return torch.stack([torch.randn(like.shape[1:], generator=row) for row in rows])


def _choice(weights: torch.Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights.float(), 1, generator=generator))


def _uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
