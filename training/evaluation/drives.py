"""Drives inside a model: a driver who sees only the frames, and what becomes of road, speed and colours meanwhile.

The same driver drives the simulator, for comparison (`training/data/recipes/car_racing_futures.py`);
`training/drives.py` is the program.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from diffusers_mardini import MarDiniPipeline
from training.data.recipes.car_racing import ROWS
from training.data.recipes.car_racing_pixel_driver import look
from training.evaluation.counterfactuals import action_conditions
from training.evaluation.drift import Curves, colour_moments
from training.evaluation.evaluation_windows import to_bytes
from training.evaluation.metrics import frame_sharpness, motion_steps


PICTURE = 96  # side of the simulator's pictures, in which the driver looks for the road
EAGERNESS, DAMPING = 0.5, 0.1  # of the steering, by the angle to the road and by its change
WANTED = (
    3.0  # pixels of a 64-pixel frame by which the ground moves from a frame to the next: about 35 of the simulator
)


class Driver(Protocol):
    """Choose an action from time to time."""

    def act(self, before: torch.Tensor, newest: torch.Tensor) -> tuple[float, float, float]:
        """Return steering, gas and brake.

        Args:
            before, newest: the two newest frames, in [0, 1], `(3, size, size)`.
        """
        ...


@dataclass(frozen=True)
class Held:
    """A driver who holds one action, as one holds a key."""

    action: tuple[float, float, float]

    def act(self, before: torch.Tensor, newest: torch.Tensor) -> tuple[float, float, float]:
        """Return steering, gas and brake, the same for all frames."""
        return self.action


class Chauffeur:
    """Keep a car on the road by the two newest frames, wherever they come from."""

    def __init__(self):
        self._angle = 0.0

    def act(self, before: torch.Tensor, newest: torch.Tensor) -> tuple[float, float, float]:
        """Return steering, gas and brake; see `Driver`."""
        angle = look(as_picture(newest))[0]
        steering = EAGERNESS * angle + DAMPING * (angle - self._angle)
        self._angle = angle
        speed = ground_speed(before, newest)
        gas, brake = 0.3 * (speed < WANTED), 0.2 * (speed > WANTED + 2)
        return float(np.clip(steering, -1, 1)), gas, brake


def as_picture(frame: torch.Tensor) -> np.ndarray:
    """Return a square frame in [0, 1], `(3, size, size)`, as the simulator's picture that it was cropped from, uint8.

    What the crop left out is black, and no road.
    """
    import cv2

    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    picture = np.zeros((PICTURE, PICTURE, 3), np.uint8)
    side = (PICTURE - ROWS) // 2
    picture[:ROWS, side : side + ROWS] = cv2.resize(pixels, (ROWS, ROWS), interpolation=cv2.INTER_LINEAR)
    return picture


def ground_speed(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return by how many pixels the ground moves down from a frame to the next, for a frame 64 pixels high.

    By phase correlation of the part ahead of the car; rough where there is little to see.
    """
    import cv2

    size = before.shape[-1]
    ahead = [one[:, : 3 * size // 4].mean(dim=0).numpy().astype(np.float32) for one in (before, after)]
    double = [cv2.resize(one, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for one in ahead]
    (_, down), _ = cv2.phaseCorrelate(*double, cv2.createHanningWindow(double[0].shape[::-1], cv2.CV_32F))
    return down / 2 * 64 / size


@torch.no_grad()
def drive_inside(
    pipe: MarDiniPipeline,
    given: torch.Tensor,
    given_actions: torch.Tensor,
    num_frames: int,
    fps: float,
    seeds: Sequence[int],
    each: int,
    drivers: Sequence[Driver] | None = None,
    **sampling: Any,
) -> torch.Tensor:
    """Drive inside a model, once from each of several states.

    Args:
        pipe: the checkpoint.
        given: the frames that lead to the states, in [0, 1], `(drives, given frames, 3, size, size)`, at least 2.
        given_actions: their actions, `(drives, given frames, 3)`.
        num_frames: of each drive.
        fps: their frames per second.
        seeds: of each drive.
        each: frames for which a driver holds an action, and which are made at once.
        drivers: one for each drive; a `Chauffeur` each by default.
        sampling: further arguments of `pipe.rollout`, such as window and number of steps.

    Returns:
        Bytes `(drives, num_frames, 3, size, size)`.
    """
    drivers = [Chauffeur() for _ in given] if drivers is None else drivers
    rollout = pipe.rollout(
        given,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
        conditions=action_conditions(pipe, given_actions, fps),
        **sampling,
    )
    newest, parts = given[:, -2:], []
    while (missing := num_frames - sum(part.shape[1] for part in parts)) > 0:
        actions = torch.tensor([one.act(*frames) for one, frames in zip(drivers, newest, strict=True)])
        count = min(each, rollout.most_new_frames)
        new = action_conditions(pipe, actions[:, None].expand(-1, count, -1), fps)
        frames = rollout.step(count, new).frames.float().cpu()
        newest = torch.cat([newest, frames], dim=1)[:, -2:]
        parts.append(to_bytes(frames[:, :missing]))
    return torch.cat(parts, dim=1)


def curves_of(given: torch.Tensor, frames: torch.Tensor) -> Curves:
    """Measure drives frame by frame; all frames are kept.

    Args:
        given: bytes that lead to the drives, `(drives, given frames, 3, size, size)`.
        frames: bytes `(drives, frames, 3, size, size)`.
    """
    each = []
    for before, drive in zip(
        given[:, -1:], frames, strict=True
    ):  # one at a time: as floats they are four times as large
        shown = torch.cat([before, drive])[None].float() / 255
        each.append((motion_steps(shown), frame_sharpness(shown[:, 1:]), colour_moments(shown[:, 1:])))
    kept = {number: frames[:, number - 1] for number in range(1, frames.shape[1] + 1)}
    return Curves(*(torch.cat(values) for values in zip(*each)), kept=kept)


def road_in_sight(frames: torch.Tensor) -> float:
    """Return the mean share of the rows ahead of the car that show road, for bytes `(..., 3, size, size)`."""
    shares = [look(as_picture(frame.float() / 255))[1] for frame in frames.flatten(0, -4)]
    return sum(shares) / len(shares)


def loses_road(frames: torch.Tensor, within: int) -> bool:
    """Return whether no road is in sight for `within` frames in a row, of bytes `(frames, 3, size, size)`."""
    lost = 0
    for frame in frames:
        lost = 0 if look(as_picture(frame.float() / 255))[1] > 0 else lost + 1
        if lost >= within:
            return True
    return False
