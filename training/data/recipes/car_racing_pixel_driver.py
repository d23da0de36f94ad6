"""A driver of CarRacing that sees only the picture: another hand than those of `car_racing_drivers.py`, with which it shares no code.

Clips of it are never trained on. They show whether a model knows the simulator or only the habits of one driver.
"""

import math
from dataclasses import dataclass

import numpy as np


ROWS = np.arange(20, 60, 4)  # of the 96x96 picture; the car stands at row 70, and looks up
CAR_COLUMN, CAR_ROW = 48, 70


@dataclass(frozen=True)
class PixelDriver:
    """Turns towards the grey of the road in the picture, and goes as fast as it sees road ahead.

    Attributes:
        start: where on the lap, 0 to 1.
        eagerness: steering per radian between the car's nose and the road that is seen.
        damping: steering against the turning that the picture shows.
        fast, slow: speeds with much and with little road in sight.
        pulse: number of steps between two pushes of the gas pedal; people do not hold it still.
    """

    start: float
    eagerness: float
    damping: float
    fast: float
    slow: float
    pulse: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "PixelDriver":
        return cls(
            start=round(rng.uniform(0, 1), 4),
            eagerness=round(rng.uniform(0.8, 1.6), 2),
            damping=round(rng.uniform(0.05, 0.2), 3),
            fast=round(rng.uniform(45, 70), 1),
            slow=round(rng.uniform(22, 32), 1),
            pulse=int(rng.integers(3, 9)),
        )

    def at_wheel(self, road, rng: np.random.Generator) -> "PixelHands":
        """Return what drives this clip; the road that the simulator knows is not looked at."""
        return PixelHands(self)


class PixelHands:
    """Needs a picture of every step: `needs_pictures`."""

    needs_pictures = True

    def __init__(self, driver: PixelDriver):
        self.driver = driver
        self.picture: np.ndarray | None = None  # of the step before, uint8 (96, 96, 3)
        self.before = 0.0
        self.lost = 0

    def act(self, hull, step: int) -> tuple[float, float, float] | None:
        """Return the action of a step, or `None` to give up: no road in sight for half a second."""
        angle, sight = self._look()
        self.lost = self.lost + 1 if sight == 0 and step > 60 else 0
        if self.lost > 25:
            return None
        driver, speed = self.driver, math.hypot(*hull.linearVelocity)
        steer = driver.eagerness * angle + driver.damping * (angle - self.before) * 50 / max(speed, 10)
        self.before = angle
        wanted = driver.slow + (driver.fast - driver.slow) * sight**2
        gas = 0.7 if speed < wanted and step % driver.pulse < 2 + driver.pulse // 3 else 0.0
        brake = 0.4 if speed > wanted + 8 else 0.0
        return float(np.clip(steer, -1, 1)), gas, brake

    def _look(self) -> tuple[float, float]:
        """Return the angle to the road ahead in radians, right being positive, and the share of rows that show any."""
        if self.picture is None:
            return 0.0, 0.0
        pixels = self.picture[ROWS].astype(int)  # (rows, 96, 3)
        grey = (np.ptp(pixels, axis=-1) < 12) & (pixels.mean(axis=-1) > 60) & (pixels.mean(axis=-1) < 140)
        counts = grey.sum(axis=1)
        seen = counts >= 4
        if not seen.any():
            return 0.0, 0.0
        columns = (grey * np.arange(96)).sum(axis=1)[seen] / counts[seen]
        angles = np.arctan2(columns - CAR_COLUMN, CAR_ROW - ROWS[seen])
        weights = 1.0 / (1 + np.abs(ROWS[seen] - 44) / 12)  # the middle distance says most about the next half second
        return float((angles * weights).sum() / weights.sum()), float(seen.mean())
