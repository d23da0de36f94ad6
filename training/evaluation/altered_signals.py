"""Other planning signals than the planner's own: none, another window's, or its own made worse.

They say how much of the plan the transformer needs. Where they are put in is `sampling.py`; what they cost in quality is measured by
`claims/degraded_plan.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PlanContext:
    """What a change may use beside the plan.

    Attributes:
        unconditional: the transformer's unconditional planning signal, `(channels,)`.
        given: positions of the given frames.
        generators: one for each window, so that what is drawn does not depend on the batch.
    """

    unconditional: torch.Tensor
    given: Sequence[int]
    generators: Sequence[torch.Generator]

    def masked(self, num_frames: int) -> list[int]:
        """Positions of the frames that are sampled."""
        return [i for i in range(num_frames) if i not in set(self.given)]


@dataclass(frozen=True)
class PlanChange:
    """What the transformer meets in place of the plan.

    Attributes:
        key: tells it from every other change; part of what kept results are known by.
        suffix: of the method's name.
        apply: planning signals `(batch, frames, rows, columns, channels)` and the context to new signals of that shape.
    """

    key: str
    suffix: str
    apply: Callable[[torch.Tensor, PlanContext], torch.Tensor]


def _drop(signals: torch.Tensor, context: PlanContext) -> torch.Tensor:
    return context.unconditional.to(signals).expand_as(signals)


def _of_another(signals: torch.Tensor, context: PlanContext) -> torch.Tensor:
    if len(signals) < 2:
        raise ValueError("the plan of another window needs at least 2 windows")
    return signals.roll(len(signals) // 2, dims=0)


# The unconditional signal at every place of the planner's grid is the same as no planning signal at all: the cross-attention
# averages equal values.
DROPPED = PlanChange("none", ", planning signal dropped", _drop)
# Half a batch further: another clip's where no clip has more windows than half a batch (`batch_of_others`), since they follow each other.
OTHER = PlanChange("half a batch further", ", plan of another window", _of_another)


def batch_of_others(clips: Sequence[str]) -> int:
    """Fewest windows of a batch in which `OTHER` takes every plan from another clip.

    Args:
        clips: of each window; a clip's windows follow each other.

    Raises:
        ValueError: if there are not so many windows.
    """
    least = 2 * max(Counter(clips).values())
    if len(clips) < least:
        raise ValueError(
            f"the plan of another clip's window needs at least {least} windows where a clip has {least // 2}; "
            f"there are {len(clips)}: add clips, or take fewer windows of each"
        )
    return least


def noisy(deviations: float) -> PlanChange:
    """Normal noise on every value, so many times as strong as the plan's own deviation.

    That deviation is each channel's, over all places of the sampled frames of the window. A window is given the same noise at any strength.
    """
    if not deviations > 0:
        raise ValueError(f"noise of {deviations:g} standard deviations; give a positive number")

    def apply(signals: torch.Tensor, context: PlanContext) -> torch.Tensor:
        own = signals[:, context.masked(signals.shape[1])].float().std(dim=(1, 2, 3), keepdim=True)
        noise = _drawn(torch.randn, signals.shape[1:], context).to(own.device)
        return (signals.float() + deviations * own * noise).to(signals.dtype)

    return PlanChange(f"noise {deviations:g}", f", plan with noise {deviations:g} times its deviation", apply)


def tokens_dropped(share: float) -> PlanChange:
    """Each token of the plan is the unconditional signal with this probability; a larger share drops the same ones and more."""
    if not 0 < share < 1:
        raise ValueError(f"share of dropped tokens is {share:g}; give a number between 0 and 1")

    def apply(signals: torch.Tensor, context: PlanContext) -> torch.Tensor:
        dropped = _drawn(torch.rand, signals.shape[1:-1], context) < share  # (batch, frames, rows, columns)
        return torch.where(dropped[..., None].to(signals.device), context.unconditional.to(signals), signals)

    return PlanChange(f"dropped {share:g}", f", {share:.0%} of the plan's tokens dropped", apply)


def pooled(side: int = 1, over_frames: bool = False) -> PlanChange:
    """A coarser plan: means over squares of `side` tokens, and over all sampled frames, each in the place of all that it is the mean of.

    Given frames keep a plan of their own.
    """
    if side < 1 or (side == 1 and not over_frames):
        raise ValueError(f"means over {side}x{side} tokens of one frame change nothing; give a side of at least 2")

    def apply(signals: torch.Tensor, context: PlanContext) -> torch.Tensor:
        batch, frames, rows, columns, _ = signals.shape
        new = signals.float()
        if side > 1:
            grid = new.flatten(0, 1).movedim(-1, 1)  # (batch * frames, channels, rows, columns)
            grid = F.avg_pool2d(grid, side, ceil_mode=True, count_include_pad=False)
            grid = grid.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)[..., :rows, :columns]
            new = grid.movedim(1, -1).unflatten(0, (batch, frames))  # (batch, frames, rows, columns, channels)
        if over_frames:
            masked = context.masked(frames)
            new = new.index_copy(
                1,
                torch.tensor(masked, device=new.device),
                new[:, masked].mean(dim=1, keepdim=True).expand(-1, len(masked), -1, -1, -1),
            )
        return new.to(signals.dtype)

    squares = f" of {side}x{side} tokens" if side > 1 else ""
    over = f"{' and' if squares else ' of'} all sampled frames" if over_frames else ""
    return PlanChange(
        f"pooled {side}{' over frames' if over_frames else ''}", f", plan of means{squares}{over}", apply
    )


def _drawn(draw: Callable[..., torch.Tensor], shape: Sequence[int], context: PlanContext) -> torch.Tensor:
    return torch.stack([draw(tuple(shape), generator=generator) for generator in context.generators])
