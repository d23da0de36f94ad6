"""Noise levels that are not evenly spaced: the map of flow-matching schedulers' `shift` (arXiv 2403.03206, Sec. 5.3.2), for any timesteps."""

import math
from typing import TypeVar

import numpy as np


Times = TypeVar("Times")  # a number, an array or a tensor


def shift_times(times: Times, shift: float) -> Times:
    """Moves times in [0, 1], 1 being pure noise, towards noise (`shift` above 1) or away from it (below); both ends stay."""
    return shift * times / (1 + (shift - 1) * times)


def shifted_timesteps(num_inference_steps: int, shift: float, num_train_timesteps: int = 1000) -> list[int]:
    """Noise levels for the pipeline's `timesteps`: trailing ones (arXiv 2305.08891, Sec. 3.3), shifted.

    Below 1, few steps decide where things are and many paint them. Few steps on pure noise stay close to the mean of what is possible, which
    scores of likeness favour, and many at the end keep it sharp.

    Args:
        num_inference_steps: how many steps.
        shift: 1 is the scheduler's own, even spacing.
        num_train_timesteps: of the scheduler.

    Returns:
        `num_inference_steps` levels from `num_train_timesteps - 1` down, strictly falling.

    Raises:
        ValueError: if there are no steps, or more than levels, or if `shift` is not a positive number.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"{num_inference_steps} steps; give 1 to {num_train_timesteps}, the levels of training")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"`shift` is {shift}; give a positive number, 1 for evenly spaced levels")
    places = np.arange(num_inference_steps)
    times = (places + 1) / num_inference_steps
    levels = np.round(shift_times(times, shift) * num_train_timesteps).astype(int) - 1
    # Where levels are dense, rounding makes some alike: at least one apart, from both ends.
    levels = np.maximum.accumulate(np.maximum(levels, 0) - places) + places
    levels = np.minimum(levels, num_train_timesteps - num_inference_steps + places)
    return levels[::-1].tolist()
