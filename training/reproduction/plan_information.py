"""How much of a plan is left when it is altered, on one scale for all alterations, and the chart of quality against it.

The information left is the squared correlation of the altered signals with the planner's own, channel by channel over
all places of all sampled frames, weighted by the channels' variance: 1 for the signals themselves, 0 for signals that
say nothing about them. What all windows have in common at a place is left out: it says nothing about any of them. It is
a linear measure: what a transformer could still read in other ways is not counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from diffusers_mardini import MarDiniPipeline
from training.evaluation.altered_planner import GENERATED
from training.evaluation.altered_signals import Alteration
from training.evaluation.evaluation_windows import EvaluationWindows
from training.evaluation.sampling import batches, sample_batch
from training.figures.charts import Panel, Point


# Alterations of one kind are a curve of the chart, by what their suffixes contain.
FAMILIES = {
    "with noise": "noise",
    "tokens dropped": "tokens dropped",
    "averaged over": "means of tokens",
    "planner attends": "planner's attention masked",
    "planner sees": "planner's resolution",
    "plan of generated": "plan of generated frames",
    "signal dropped": "signals dropped",
    "another window": "another window's signals",
}


def information_left(
    pipe: MarDiniPipeline,
    windows: EvaluationWindows,
    given: Sequence[int],
    alterations: Sequence[Alteration],
    steps: int,
    batch_size: int = 8,
) -> dict[str, float]:
    """Return the information that each alteration leaves, by its suffix.

    Args:
        pipe: the checkpoint.
        windows: of held-out clips.
        given: positions of the given frames.
        alterations: of signals or planner.
        steps: with which given frames are generated, where an alteration does that.
        batch_size: most windows planned together.
    """
    parts = batches(len(windows.frames), batch_size, least=2)

    def signals(alteration: Alteration | None) -> torch.Tensor:
        few = steps if alteration is GENERATED else 1  # the others plan before anything is sampled
        found = [planned(pipe, windows.frames[a:b], given, few, a, alteration) for a, b in parts]
        return torch.cat(found)

    own = signals(None)
    return {alteration.suffix: shared_variance(own, signals(alteration)) for alteration in alterations}


def planned(
    pipe: MarDiniPipeline,
    windows: torch.Tensor,
    given: Sequence[int],
    steps: int,
    first: int,
    alteration: Alteration | None,
) -> torch.Tensor:
    """Return the signals of the sampled frames as the transformer gets them, `(batch, frames, rows, columns, channels)`
    in float32, with NaN in place of unconditional ones; see `sample_batch`."""
    seen: list[torch.Tensor] = []

    # The last plan of the call is kept: those before it are for given frames that are generated.
    def remember(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        signals = kwargs.get("planning_signals", args[2] if len(args) > 2 else None)
        if signals is not None:
            seen[:] = [signals]

    handle = pipe.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        sample_batch(pipe, windows, given, steps, first=first, alteration=alteration, guidance_scale=1.0)
    finally:
        handle.remove()
    sampled = [i for i in range(windows.shape[1]) if i not in set(given)]
    signals = seen[0][: len(windows), sampled]
    unconditional = (signals == pipe.transformer.unconditional_planning_signal.to(signals)).all(dim=-1, keepdim=True)
    return signals.float().masked_fill(unconditional, torch.nan).cpu()


def shared_variance(own: torch.Tensor, altered: torch.Tensor) -> float:
    """Return the share of the variance of signals that altered ones explain by a line, from 0 to 1.

    Args:
        own: `(windows, frames, rows, columns, channels)`.
        altered: the same, perhaps with other numbers of rows and columns, to whose places it is resized; NaN says
            nothing, as the transformer knows, and counts as the mean over windows.
    """
    if altered.shape != own.shape:
        grid = altered.flatten(0, 1).movedim(-1, 1)  # (windows * frames, channels, rows, columns)
        grid = F.interpolate(grid, own.shape[2:4], mode="area" if grid.shape[-1] > own.shape[3] else "nearest")
        altered = grid.movedim(1, -1).unflatten(0, own.shape[:2])
    own, altered = own.double(), altered.double()
    own = (own - own.mean(dim=0)).flatten(0, 3)  # (places of all windows, channels)
    altered = (altered - altered.nanmean(dim=0)).nan_to_num().flatten(0, 3)
    variance, other = own.square().mean(dim=0), altered.square().mean(dim=0)
    explained = (own * altered).mean(dim=0).square() / other.clamp(min=1e-12)  # (channels,)
    return float(explained.sum() / variance.sum())


def summary_panels(
    left: Mapping[str, float],
    differences: Mapping[str, Mapping[str, Any]],
    own: str,
    score: tuple[str, str],
) -> list[Panel]:
    """Return the chart of all alterations: the change of a score by the information left.

    Args:
        left: result of `information_left`.
        differences: of the planner's own signals to the altered ones, as `Evaluation.run` returns them, by method.
        own: name of the method with the planner's own signals.
        score: its name and label.
    """
    name, label = score
    curves: dict[str, list[Point]] = {}
    for suffix, share in left.items():
        found = differences[own + suffix]
        low, high = found["intervals"][name]
        curves.setdefault(family_of(suffix), []).append(Point(share, -found["difference"][name], -high, -low))
    ordered = {family: sorted(points, key=lambda point: point.x) for family, points in curves.items()}
    return [
        Panel(
            "quality against information", "information left in the plan", label, ordered, levels={"own signals": 0.0}
        )
    ]


def family_of(suffix: str) -> str:
    """Return the kind of an alteration, from its suffix."""
    return next(kind for part, kind in FAMILIES.items() if part in suffix)
