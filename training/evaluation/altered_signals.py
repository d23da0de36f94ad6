"""Planning signals altered before the transformer sees them: none, another window's, or the planner's own made worse.

The loss of quality shows how much the transformer relies on the signals. `sampling.py` puts them in;
`reproduction/degraded_signals.py` measures the loss.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusers_mardini import MarDiniPipeline


@dataclass(frozen=True)
class SignalContext:
    """The facts that an alteration may use beside the signals.

    Attributes:
        unconditional: the transformer's unconditional planning signal, `(channels,)`.
        given: positions of the given frames.
        generators: one for each window, so that random numbers do not depend on the batch.
        regenerate: samples the given frames anew, in [0, 1], `(batch, given frames, 3, height, width)`.
    """

    unconditional: torch.Tensor
    given: Sequence[int]
    generators: Sequence[torch.Generator]
    regenerate: Callable[[], torch.Tensor] | None = None

    def masked(self, num_frames: int) -> list[int]:
        """Return the positions of the masked frames."""
        return [i for i in range(num_frames) if i not in set(self.given)]


@dataclass(frozen=True)
class Alteration:
    """One way to alter planning signals.

    Attributes:
        key: unique name; part of the key of saved results.
        suffix: appended to the name of the method.
        apply: planning signals `(batch, frames, rows, columns, channels)` and the context to new signals of that
            shape.
        around: changes how the pipeline plans, inside a `with` block (`altered_planner.py`).
    """

    key: str
    suffix: str
    apply: Callable[[torch.Tensor, SignalContext], torch.Tensor] = lambda signals, context: signals
    around: Callable[[MarDiniPipeline, SignalContext], AbstractContextManager[None]] | None = None


def _drop(signals: torch.Tensor, context: SignalContext) -> torch.Tensor:
    return context.unconditional.to(signals).expand_as(signals)


def _of_another(signals: torch.Tensor, context: SignalContext) -> torch.Tensor:
    if len(signals) < 2:
        raise ValueError("the planning signals of another window need at least 2 windows")
    return signals.roll(len(signals) // 2, dims=0)


# The unconditional signal at every place of the planner's grid equals no planning signal at all: the cross-attention
# averages equal values.
DROPPED = Alteration("none", ", planning signal dropped", _drop)
# Windows of a clip follow each other: half a batch further is another clip if no clip fills more than half a batch.
OTHER = Alteration("half a batch further", ", planning signals of another window", _of_another)


def batch_of_others(clips: Sequence[str]) -> int:
    """Return the smallest batch in which `OTHER` takes all planning signals from other clips.

    Args:
        clips: the clip of each window; windows of a clip follow each other.

    Raises:
        ValueError: if there are fewer windows than that.
    """
    least = 2 * max(Counter(clips).values())
    if len(clips) < least:
        raise ValueError(
            f"planning signals of another clip's window need at least {least} windows where a clip has {least // 2}; "
            f"there are {len(clips)}: add clips, or take fewer windows of each"
        )
    return least


def noisy(deviations: float) -> Alteration:
    """Return an alteration that adds normal noise, as many times as strong as the signals' own deviation.

    That deviation is taken per channel over all places of the window's masked frames.
    The noise of a window is the same at any strength.
    """
    if not deviations > 0:
        raise ValueError(f"noise of {deviations:g} standard deviations; give a positive number")

    def apply(signals: torch.Tensor, context: SignalContext) -> torch.Tensor:
        own = signals[:, context.masked(signals.shape[1])].float().std(dim=(1, 2, 3), keepdim=True)
        noise = _drawn(torch.randn, signals.shape[1:], context).to(own.device)
        return (signals.float() + deviations * own * noise).to(signals.dtype)

    suffix = f", planning signals with noise {deviations:g} times their deviation"
    return Alteration(f"noise {deviations:g}", suffix, apply)


def tokens_dropped(share: float) -> Alteration:
    """Return an alteration that makes each token unconditional with this probability.

    A larger share drops the tokens of a smaller one and more.
    """
    if not 0 < share < 1:
        raise ValueError(f"share of dropped tokens is {share:g}; give a number between 0 and 1")

    def apply(signals: torch.Tensor, context: SignalContext) -> torch.Tensor:
        dropped = _drawn(torch.rand, signals.shape[1:-1], context) < share  # (batch, frames, rows, columns)
        return torch.where(dropped[..., None].to(signals.device), context.unconditional.to(signals), signals)

    return Alteration(f"dropped {share:g}", f", {share:.0%} of the planning tokens dropped", apply)


def pooled(side: int = 1, over_frames: bool = False) -> Alteration:
    """Return an alteration that replaces each block of tokens by its mean.

    Args:
        side: a block is a square of so many tokens on each side.
        over_frames: whether a block reaches over all masked frames. Given frames keep their own signals.
    """
    if side < 1 or (side == 1 and not over_frames):
        raise ValueError(f"means over {side}x{side} tokens of one frame change nothing; give a side of at least 2")

    def apply(signals: torch.Tensor, context: SignalContext) -> torch.Tensor:
        batch, frames, rows, columns, _ = signals.shape
        new = signals.float()
        if side > 1:
            grid = new.flatten(0, 1).movedim(-1, 1)  # (batch * frames, channels, rows, columns)
            grid = F.avg_pool2d(grid, side, ceil_mode=True, count_include_pad=False)
            grid = grid.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)[..., :rows, :columns]
            new = grid.movedim(1, -1).unflatten(0, (batch, frames))  # (batch, frames, rows, columns, channels)
        if over_frames:
            masked = context.masked(frames)
            mean = new[:, masked].mean(dim=1, keepdim=True).expand(-1, len(masked), -1, -1, -1)
            new = new.index_copy(1, torch.tensor(masked, device=new.device), mean)
        return new.to(signals.dtype)

    blocks = [f"{side}x{side} tokens"] * (side > 1) + ["all sampled frames"] * over_frames
    key = f"pooled {side}{' over frames' if over_frames else ''}"
    return Alteration(key, f", planning signals averaged over {' and '.join(blocks)}", apply)


def _drawn(draw: Callable[..., torch.Tensor], shape: Sequence[int], context: SignalContext) -> torch.Tensor:
    return torch.stack([draw(tuple(shape), generator=generator) for generator in context.generators])
