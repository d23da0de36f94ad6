"""Several true futures of one state of CarRacing: the same drive up to there, then another action held in each.

`training/counterfactuals.py` asks a checkpoint for the same futures, `training/drives.py` for the same drives. Box2D repeats a drive exactly, so a state is
reached again by the same actions on the same track. Needs the extra `sim`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.data.clips import fit
from training.data.recipes.car_racing import ACTION_NAMES, MAX_ATTEMPTS, ROWS, put_car
from training.data.recipes.car_racing_drivers import WARM_UP_STEPS, Driver, Road


STEPS_PER_SECOND = 50  # of the simulator
# Steering, gas and brake, held: to the left is negative, as in the recipe's tables.
HELD = {"left": (-0.35, 0.2, 0.0), "straight": (0.0, 0.2, 0.0), "right": (0.35, 0.2, 0.0)}


@dataclass(frozen=True)
class Pace:
    """Frames of a state and of its futures.

    Attributes:
        num_given: frames that lead to the state, which is the last of them.
        num_frames: of each future.
        fps: frames per second of both.
        size: side of the square frames in pixels.
    """

    num_given: int
    num_frames: int
    fps: float
    size: int

    @property
    def steps(self) -> int:
        """Return the steps of the simulator from a frame to the next.

        Raises:
            ValueError: if they are not whole.
        """
        steps = round(STEPS_PER_SECOND / self.fps) if self.fps > 0 else 0
        if steps < 1 or abs(steps * self.fps - STEPS_PER_SECOND) > 1e-6:
            raise ValueError(
                f"fps is {self.fps:g}, but the simulator makes {STEPS_PER_SECOND} steps a second; give "
                f"{STEPS_PER_SECOND} divided by a whole number, such as 25 or 12.5"
            )
        return steps


def futures_of(env, seed: int, pace: Pace, held: Sequence[tuple[float, float, float]]) -> dict[str, torch.Tensor]:
    """Drive to a state of the track of `seed`, and on from it once for each held action.

    Args:
        env: of `car_racing.make_env`.
        seed: of the track, the driver and the place.
        pace: of the frames.
        held: actions, one for each future.

    Returns:
        `given`, `uint8` `(given frames, 3, size, size)`; `given_actions`, `(given frames, 3)`, each the mean over the
        interval that leads to its frame; `futures`, `uint8` `(futures, frames, 3, size, size)`; `turns`, `(futures,
        frames)`, by how much the car turned since the frame before, in radians, to the left positive.

    Raises:
        ValueError: if all drivers give up.
    """
    driver, prefix = _prefix(env, seed, pace)
    runs = [
        _run(env, seed, driver, np.concatenate([prefix, [action] * (pace.steps * pace.num_frames)]), pace)
        for action in held
    ]
    frames = torch.stack(
        [fit(frames, pace.size, pace.size) for frames, _ in runs]
    )  # (futures, all frames, 3, size, size)
    given, futures = frames[:, : pace.num_given], frames[:, pace.num_given :]
    assert (given == given[:1]).all(), "the simulator repeats a drive exactly"
    turns = np.stack([np.diff(angles)[pace.num_given - 1 :] for _, angles in runs])
    return {
        "given": given[0],
        "given_actions": _leading_actions(prefix, pace),
        "futures": futures,
        "turns": torch.from_numpy(turns).float(),
    }


def drive_on(
    env, seed: int, pace: Pace, act: Callable[[torch.Tensor, torch.Tensor], tuple[float, float, float]], each: int
) -> dict[str, torch.Tensor]:
    """Drive to the state of `futures_of`, and on from it by a driver who sees only the frames.

    Args:
        env: of `car_racing.make_env`.
        seed: of the track, the driver who leads to the state, and the place.
        pace: of the frames, at least 2 of them given.
        act: returns steering, gas and brake for the two newest frames, `uint8` `(3, size, size)`.
        each: frames for which an action is held.

    Returns:
        `given` and `given_actions` as of `futures_of`; `frames`, `uint8` `(frames, 3, size, size)`.

    Raises:
        ValueError: if all drivers who could lead to a state give up.
    """
    driver, prefix = _prefix(env, seed, pace)
    given = fit(_run(env, seed, driver, prefix, pace)[0], pace.size, pace.size)
    frames, action = list(given), np.zeros(len(ACTION_NAMES), np.float32)
    for made in range(pace.num_frames):
        if made % each == 0:
            action = np.array(act(*frames[-2:]), dtype=np.float32)
        for step in range(pace.steps):
            env.drawn = step == pace.steps - 1
            observation = env.step(action)[0]
        frames.append(fit(observation[None, :ROWS], pace.size, pace.size)[0])
    return {
        "given": given,
        "given_actions": _leading_actions(prefix, pace),
        "frames": torch.stack(frames[pace.num_given :]),
    }


def _prefix(env, seed: int, pace: Pace) -> tuple[Driver, np.ndarray]:
    """Return the first drawn driver who does not give up before the state, and the actions that lead to it."""
    rng = np.random.default_rng(seed)
    for _ in range(MAX_ATTEMPTS):
        driver = Driver.draw(rng)
        prefix = _drive_to_state(env, seed, driver, rng, WARM_UP_STEPS + pace.steps * pace.num_given)
        if prefix is not None:
            return driver, prefix
    raise ValueError(f"seed {seed}: none of {MAX_ATTEMPTS} drivers stayed on the road")


def _leading_actions(prefix: np.ndarray, pace: Pace) -> torch.Tensor:
    """Return the actions of the given frames, `(given frames, 3)`, each the mean over the interval that leads to it."""
    leading = prefix[WARM_UP_STEPS:].reshape(pace.num_given, pace.steps, len(ACTION_NAMES)).mean(axis=1)
    return torch.from_numpy(leading).float()


def _drive_to_state(env, seed: int, driver: Driver, rng: np.random.Generator, steps: int) -> np.ndarray | None:
    """Return the actions of a drive, `(steps, 3)`; `None` if the driver gives up."""
    env.drawn = False
    start = put_car(env, seed, driver)
    hands, actions = driver.at_wheel(Road(env.track, start), rng), []
    for step in range(steps):
        action = hands.act(env.car.hull, step)
        if action is None:
            return None
        actions.append(action)
        env.step(np.array(action, dtype=np.float32))
    return np.array(actions)


def _run(env, seed: int, driver: Driver, actions: np.ndarray, pace: Pace) -> tuple[np.ndarray, np.ndarray]:
    """Repeat actions from the start of a drive; return the kept frames and the angles of the car in them."""
    put_car(env, seed, driver)
    frames, angles = [], []
    for step, action in enumerate(actions):
        kept = step >= WARM_UP_STEPS and (step - WARM_UP_STEPS + 1) % pace.steps == 0
        env.drawn = kept
        observation = env.step(action.astype(np.float32))[0]
        if kept:
            frames.append(observation[:ROWS])
            angles.append(env.car.hull.angle)
    return np.stack(frames), np.array(angles)
