"""Measure whether rollouts obey actions, beside the true futures of the same states; needs no simulator.

A rollout obeys if it is nearer to the true future of its own action than to those of the other actions. Frames are in
[0, 1]; `training/counterfactuals.py` is the program.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffusers_mardini import MarDiniPipeline
from training.data.recipes.car_racing import ACTION_NAMES
from training.evaluation.intervals import Bootstrap
from training.evaluation.metrics import score_frames


Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of frames (n, 3, h, w) to distances (n,)

REGISTERED_SIZE = 128  # frames are enlarged to about this many pixels before they are registered


def sample_futures(
    pipe: MarDiniPipeline,
    given: torch.Tensor,
    given_actions: torch.Tensor,
    held: torch.Tensor,
    num_frames: int,
    fps: float,
    seeds: Sequence[int],
    window: int,
    **sampling: Any,
) -> torch.Tensor:
    """Roll out every state once with each held action, all from the same noise.

    Args:
        pipe: the checkpoint.
        given: the frames that lead to the states, `(states, given frames, 3, height, width)`.
        given_actions: their actions, `(states, given frames, 3)`.
        held: actions, `(actions, 3)`.
        num_frames: frames of a rollout.
        fps: their frames per second.
        seeds: of each state.
        window: frames of a window, given ones included.
        sampling: further arguments of `pipe.rollout`, such as the number of steps.

    Returns:
        Frames `(states, actions, num_frames, 3, height, width)`.
    """
    states, num_given = given.shape[:2]
    rows = states * len(held)

    rollout = pipe.rollout(
        given.repeat_interleave(len(held), dim=0),
        window=window,
        overlap=num_given,
        # A generator for each row: the three of a state begin with the same seed.
        generator=[torch.Generator().manual_seed(seed) for seed in seeds for _ in held],
        output_type="pt",
        conditions=action_conditions(pipe, given_actions.repeat_interleave(len(held), dim=0), fps),
        **sampling,
    )
    frames: list[torch.Tensor] = []
    while (missing := num_frames - sum(part.shape[1] for part in frames)) > 0:
        # Whole windows, as the model was trained; what is too much is dropped.
        new = held.repeat(states, 1)[:, None].expand(rows, rollout.most_new_frames, -1)
        frames.append(rollout.step(conditions=action_conditions(pipe, new, fps)).frames[:, :missing].float().cpu())
    return torch.cat(frames, dim=1).unflatten(0, (states, len(held)))


def action_conditions(pipe: MarDiniPipeline, actions: torch.Tensor, fps: float) -> dict[str, torch.Tensor]:
    """Return the conditions of frames: their actions, and their distance in time if the checkpoint takes it.

    Args:
        pipe: the checkpoint.
        actions: in the order of `ACTION_NAMES`, `(videos, frames, 3)`.
        fps: frames per second.
    """
    values = {action_condition(pipe): actions[..., _columns(pipe)]}
    if "rate" in pipe.conditions:
        values["rate"] = torch.full((*actions.shape[:2], 1), 1 / fps)
    return values


def action_condition(pipe: MarDiniPipeline) -> str:
    """Return the name of the condition with steering and pedals.

    Raises:
        ValueError: if the checkpoint has none.
    """
    found = [name for name, one in pipe.conditions.items() if ACTION_NAMES[0] in one.names]
    if not found or not set(pipe.conditions[found[0]].names) <= set(ACTION_NAMES):
        takes = "; ".join(map(str, pipe.conditions.values())) or "no conditions"
        raise ValueError(
            f"the checkpoint takes {takes}; driving needs one that takes a condition whose channels are named "
            f"{', '.join(ACTION_NAMES)}, as training with the tables of training.data.recipes.car_racing makes it"
        )
    return found[0]


def _columns(pipe: MarDiniPipeline) -> list[int]:
    return [ACTION_NAMES.index(name) for name in pipe.conditions[action_condition(pipe)].names]


def distances(rollouts: torch.Tensor, futures: torch.Tensor, distance: Distance) -> torch.Tensor:
    """Return distances of every rollout to every future of its state, frame by frame.

    Args:
        rollouts: `(states, actions, frames, 3, height, width)`.
        futures: the true ones, same shape.
        distance: of frames.

    Returns:
        `(states, actions of the rollout, actions of the future, frames)`.
    """
    states, actions, frames = rollouts.shape[:3]
    found = torch.empty(states, actions, actions, frames)
    for state in range(states):
        for one in range(actions):
            for other in range(actions):
                found[state, one, other] = distance(rollouts[state, one], futures[state, other])
    return found


def mean_squared_error(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return a distance for each frame."""
    return (frames - truth).square().mean(dim=(1, 2, 3))


def dissimilarity(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return 1 - SSIM for each frame."""
    return 1 - score_frames(frames[None], truth[None])["ssim"][0]


def obeyed(found: torch.Tensor, rollouts: torch.Tensor, horizon: int) -> torch.Tensor:
    """Return whether each rollout obeys, bool `(states, actions)`.

    Args:
        found: result of `distances`.
        rollouts: the rollouts themselves; those of a state that are all equal obey nothing.
        horizon: the first frames that count, by their mean distance.
    """
    mean = found[..., :horizon].mean(dim=-1)  # (states, rollouts, futures)
    own = mean.diagonal(dim1=1, dim2=2)
    others = mean + torch.diag(torch.full((mean.shape[1],), torch.inf))
    first = rollouts[:, :, :horizon]
    differ = (first != first[:, :1]).flatten(1).any(dim=1)  # (states,)
    return (own < others.amin(dim=2)) & differ[:, None]


def obedience(
    found: Mapping[str, torch.Tensor], rollouts: torch.Tensor, horizons: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the share of rollouts that obey, for each distance and horizon, with intervals over states.

    Args:
        found: results of `distances` by the name of the distance.
        rollouts: the rollouts.
        horizons: numbers of frames.
        names: of the actions.
    """
    rows = []
    bootstrap = Bootstrap([f"{i:09d}" for i in range(len(rollouts))])
    for distance, values in found.items():
        for horizon in horizons:
            each = obeyed(values, rollouts, horizon).float()
            low, high = bootstrap.interval({"obeyed": each.mean(dim=1)}, "obeyed")
            by_action = dict(zip(names, each.mean(dim=0).tolist()))
            rows.append(
                {
                    "distance": distance,
                    "frames": horizon,
                    "obeyed": each.mean().item(),
                    "interval": [low, high],
                    "by_action": by_action,
                }
            )
    return rows


def turns_of(frames: torch.Tensor) -> torch.Tensor:
    """Measure by how much the view turns from each frame to the next, by registration of the two pictures.

    Args:
        frames: `(frames, 3, height, width)`, seen from above by a camera that turns with the car.

    Returns:
        Radians, `(frames - 1,)`, to the left positive; NaN where two pictures cannot be registered.
    """
    import cv2

    scale = max(1, round(REGISTERED_SIZE / frames.shape[-1]))
    pixels = (frames.mean(dim=1) * 255).clamp(0, 255).numpy().astype(np.float32)
    pictures = [cv2.resize(one, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for one in pixels]
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
    height, width = pictures[0].shape[:2]
    mask = np.full((height, width), 255, np.uint8)
    # The car itself does not turn in the picture.
    mask[round(0.68 * height) : round(0.92 * height), round(0.42 * width) : round(0.58 * width)] = 0
    turns = []
    for before, after in itertools.pairwise(pictures):
        found = []
        # Started at several angles: the search climbs to the nearest peak only.
        for degrees in (0, -6, 6):
            try:
                score, warp = cv2.findTransformECC(
                    before, after, _turn(degrees, width, height), cv2.MOTION_EUCLIDEAN, criteria, mask, 5
                )
                found.append((score, float(np.arctan2(warp[1, 0], warp[0, 0]))))
            except cv2.error:
                continue
        turns.append(max(found)[1] if found else np.nan)
    return torch.tensor(turns, dtype=torch.float32)


def _turn(degrees: float, width: int, height: int) -> np.ndarray:
    """Return the affine map of a turn about the car."""
    angle = np.radians(degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    place = np.array([0.5 * width, 0.8 * height])
    return np.concatenate([matrix, (place - matrix @ place)[:, None]], axis=1).astype(np.float32)


def correlation(measured: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """Return the correlation of turns with the true ones, their slope, and the share that could not be measured."""
    known = ~measured.isnan()
    one, other = measured[known].double(), true[known].double()
    facts = {"not_measured": 1 - known.float().mean().item(), "correlation": float("nan"), "slope": float("nan")}
    if known.sum() > 2 and one.std() > 0 and other.std() > 0:
        facts["correlation"] = torch.corrcoef(torch.stack([one, other]))[0, 1].item()
        facts["slope"] = ((one - one.mean()) * (other - other.mean())).sum().item() / (
            (other - other.mean()).square().sum().item()
        )
    return facts
