"""Scores of single frames of long videos, and their means over groups of frames.

`evaluation/scores.py` scores whole windows; here the question is how quality depends on the distance to the given
frames.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from training.evaluation.intervals import Bootstrap
from training.evaluation.metrics import motion_steps, score_frames, summarize
from training.evaluation.networks.lpips import Lpips


Scores = dict[str, torch.Tensor]


def score_each_frame(frames: torch.Tensor, truth: torch.Tensor, network: Lpips | None) -> Scores:
    """Score videos frame by frame.

    Args:
        frames: sampled, in [0, 1], `(videos, frames, 3, height, width)`.
        truth: the real ones, same shape.
        network: LPIPS; `None` leaves it out.

    Returns:
        Float tensors `(videos, frames)`: those of `score_frames`, `lpips`, and `motion` and `true_motion`, the change
        from the frame before (0 at the first).
    """
    scores = score_frames(frames, truth)
    for name, videos in (("motion", frames), ("true_motion", truth)):
        scores[name] = torch.nn.functional.pad(motion_steps(videos), (1, 0))
    if network is not None:
        pairs = zip(frames.flatten(0, 1).split(16), truth.flatten(0, 1).split(16))
        scores["lpips"] = torch.cat([network(one, other) for one, other in pairs]).view(frames.shape[:2])
    return scores


def over(scores: Sequence[Scores], places: Sequence[int]) -> Scores:
    """Return means over some frames and over seeds, one entry of `scores` each: `(videos,)` by name."""
    return {name: torch.stack([each[name][:, list(places)] for each in scores]).mean(dim=(0, 2)) for name in scores[0]}


def row(
    method: str, kind: str, scores: Mapping[str, torch.Tensor], bootstrap: Bootstrap, **labels: Any
) -> dict[str, Any]:
    """Return a row for `tables.score_table` from scores `(videos,)`."""
    means = summarize(dict(scores))
    intervals = {name: bootstrap.interval(scores, name) for name in means}
    return {"method": method, "kind": kind, **labels, **means, "intervals": intervals}
