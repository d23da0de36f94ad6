"""What a stage of the curriculum draws (Sec. 2.4, Fig. 4): windows, masks, timesteps, dropped signals, learning rate.

Pure functions of a stage and a `Draw`; which clip and which frames a window has is in `data/`, the models meet the result in `step.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from diffusers_mardini.masking import (
    interpolation_indices,
    leading_indices,
    num_reference_frames_range,
    random_reference_mask,
    reference_mask_from_indices,
)
from training.config.schema import RunConfig, StageConfig
from training.data.buckets import Bucket, WindowRequest
from training.data.order import StepRows
from training.data.windows import ClipWindows
from training.randomness import step_generator


@dataclass(frozen=True)
class Draw:
    """Which rows of which step are drawn: `count` of the `total` rows of the global batch, from row `first` on.

    What all rows share comes from `shared`, what belongs to one row from `rows`; so a global batch is the same for any number of
    processes and of accumulated parts.

    Args:
        seed, stage, step: the run's seed, the stage's name, the step within the stage.
        first, count, total: the rows.
        attempt: how often the run was rolled back to before this step; other numbers draw other batches.
    """

    seed: int
    stage: str
    step: int
    first: int
    count: int
    total: int
    attempt: int = 0

    def shared(self, what: str) -> torch.Generator:
        return step_generator(self.seed, self.stage, self.step, self.attempt, what)

    def rows(self, what: str) -> list[torch.Generator]:
        return [step_generator(self.seed, self.stage, self.step, self.attempt, what, row) for row in self._rows]

    def places(self) -> StepRows:
        """The same rows, for the order of the clips."""
        return StepRows(self.seed, self.step, self.total, tuple(self._rows), self.attempt)

    @property
    def _rows(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Batch:
    """One step's input, for one process.

    Args:
        latents: `(batch, frames, channels, height, width)`, clean.
        planner_latents: `(batch, frames, channels, low height, low width)`, clean.
        reference_mask: `(batch, frames)` bool.
        num_masked_frames: masked frames of every row.
        noise: like `latents`.
        timesteps: `(batch,)` integers.
        planning_signals_mask: `(batch,)` bool, False where the planning signal is dropped.
        windows: where each row was cut out, in words, for reports.
        conditions: what each frame is told, `(batch, frames, channels)` by name, NaN where it is told nothing.
    """

    latents: torch.Tensor
    planner_latents: torch.Tensor
    reference_mask: torch.Tensor
    num_masked_frames: int
    noise: torch.Tensor
    timesteps: torch.Tensor
    planning_signals_mask: torch.Tensor
    windows: tuple[str, ...] = ()
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """On `device`; the host does not wait for what is `pinned`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In memory from which a GPU copies by itself."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        changed = {k: change(v) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **changed, conditions={k: change(v) for k, v in self.conditions.items()})


def window_request(config: RunConfig, stage: StageConfig) -> WindowRequest:
    """What a stage asks of the clips it trains on."""
    shapes = config.by_bucket(stage)
    return WindowRequest(
        stage.name,
        tuple(Bucket(*config.size_of(shape), shape.num_frames) for shape in shapes),
        tuple(sorted((stage.strides or {}).items())),
        stage.fps,
        config.data.flip,
        stage.off_centre,
    )


def heldout_window_request(config: RunConfig, stage: StageConfig) -> WindowRequest:
    """What a stage's held-out losses ask of the clips: its first bucket, its most frequent stride, the centre, nothing mirrored."""
    drawn = window_request(config, stage)
    strides = ((max(stage.strides, key=stage.strides.get), 1.0),) if stage.strides else ()
    return WindowRequest(f"{stage.name}, held out", drawn.buckets[:1], strides, stage.fps)


def draw_reference_mask(stage: StageConfig, num_frames: int, draw: Draw) -> torch.Tensor:
    """`(count, num_frames)`: one task and one number of kept frames for all rows of a step, random positions per row."""
    generator = draw.shared("mask")
    weights = torch.tensor([stage.tasks.random, stage.tasks.interpolation, stage.tasks.leading])
    task = ("random", "interpolation", "leading")[_choice(weights, generator)]
    if task == "interpolation":
        return reference_mask_from_indices(interpolation_indices(num_frames), num_frames, draw.count)
    if task == "leading":
        kept = _uniform_integer(*stage.leading_frames, generator)
        return reference_mask_from_indices(leading_indices(kept), num_frames, draw.count)
    kept = _uniform_integer(*num_reference_frames_range(num_frames, stage.reference_ratio), generator)
    return torch.cat([random_reference_mask(1, num_frames, kept, row) for row in draw.rows("mask")])


def draw_timesteps(num_train_timesteps: int, shift: float, draw: Draw) -> torch.Tensor:
    """`(count,)` integer timesteps, stratified: one from each of `total` equal parts of [0, 1), which steadies the loss."""
    strata = torch.randperm(draw.total, generator=draw.shared("timestep"))[draw.first : draw.first + draw.count]
    u = (strata + torch.cat([torch.rand(1, generator=row) for row in draw.rows("timestep")])) / draw.total
    u = shift * u / (1 + (shift - 1) * u)
    return (u * num_train_timesteps).long().clamp(max=num_train_timesteps - 1)


def draw_batch(
    stage: StageConfig, sampling: WindowRequest, data: ClipWindows, num_train_timesteps: int, draw: Draw
) -> Batch:
    """Everything random of a step: windows of `data`, masks, noise, timesteps, dropped signals.

    Raises:
        ValueError: if no clip of the step's bucket can be read any more.
    """
    windows = data.draw(sampling, draw.places(), draw.rows("window"))
    latents, planner_latents = data.batch(windows, draw.rows("latents"))  # clips that broke are replaced in `windows`
    conditions = data.conditions(windows, latents)
    reference_mask = draw_reference_mask(stage, latents.shape[1], draw)
    kept = torch.cat([torch.rand(1, generator=row) for row in draw.rows("dropout")]) >= stage.planning_dropout
    return Batch(
        latents=latents,
        planner_latents=planner_latents,
        reference_mask=reference_mask,
        num_masked_frames=int((~reference_mask[0]).sum()),
        noise=torch.stack([torch.randn(latents.shape[1:], generator=row) for row in draw.rows("noise")]),
        timesteps=draw_timesteps(num_train_timesteps, stage.timestep_shift, draw),
        planning_signals_mask=kept,
        windows=tuple(map(str, windows)),
        conditions=drop_conditions(conditions, data.condition_drops, kept, draw),
    )


def drop_conditions(
    conditions: dict[str, torch.Tensor], drops: Mapping[str, float], kept: torch.Tensor, draw: Draw
) -> dict[str, torch.Tensor]:
    """Leave conditions out at random, whole rows of each: both models learn to do without them, one by one and all together.

    Args:
        conditions: `(count, frames, channels)` by name.
        drops: share of the rows that are told nothing of it, by name.
        kept: `(count,)`; rows whose planning signal is dropped are told nothing at all, as in guidance.
        draw: the rows.
    """
    told = {}
    for name, values in conditions.items():
        chosen = torch.cat([torch.rand(1, generator=row) for row in draw.rows(f"condition {name}")]) >= drops[name]
        told[name] = values.masked_fill(~(chosen & kept)[:, None, None], torch.nan)
    return told


def learning_rate_factor(stage: StageConfig) -> Callable[[int], float]:
    """Linear warm-up, then a cosine to the end of the stage (Appendix B), as a factor of the peak."""
    final = stage.final_learning_rate / stage.learning_rate

    def factor(step: int) -> float:
        if step < stage.warmup_steps:
            return (step + 1) / stage.warmup_steps
        progress = min(1.0, (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def _choice(weights: torch.Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights.float(), 1, generator=generator))


def _uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))
