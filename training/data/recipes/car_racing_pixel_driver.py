"""A driver of CarRacing that sees only the picture and shares no code with those of `car_racing_drivers.py`.

Its clips are never trained on: they show whether a model has learned the simulator or only the habits of one driver.
"""

import math
from dataclasses import dataclass

import numpy as np


ROWS = np.arange(20, 60, 4)  # of the 96x96 picture; the car is at row 70 and faces up
CAR_COLUMN, CAR_ROW = 48, 70


@dataclass(frozen=True)
class PixelDriver:
    """The settings of a driver who steers towards the grey of the road, the faster the more road is in sight.

    Attributes:
        start: position on the lap, 0 to 1.
        eagerness: steering per radian between the car's heading and the visible road.
        damping: steering by the change of that angle, less at high speed.
        fast, slow: speeds with much and with little road in sight.
        pulse: steps between two pushes of the gas pedal, which people do not hold still.
    """

    start: float
    eagerness: float
    damping: float
    fast: float
    slow: float
    pulse: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "PixelDriver":
        """Draw the settings of a driver."""
        return cls(
            start=round(rng.uniform(0, 1), 4),
            eagerness=round(rng.uniform(0.8, 1.6), 2),
            damping=round(rng.uniform(0.05, 0.2), 3),
            fast=round(rng.uniform(45, 70), 1),
            slow=round(rng.uniform(22, 32), 1),
            pulse=int(rng.integers(3, 9)),
        )

    def at_wheel(self, road, rng: np.random.Generator) -> "PixelHands":
        """Return the hands that drive this clip; they do not use `road`."""
        return PixelHands(self)


class PixelHands:
    """Drives by the picture of the step before, which the recorder sets (`needs_pictures`)."""

    needs_pictures = True

    def __init__(self, driver: PixelDriver):
        self.driver = driver
        self.picture: np.ndarray | None = None  # of the step before, uint8 (96, 96, 3)
        self.before = 0.0
        self.lost = 0

    def act(self, hull, step: int) -> tuple[float, float, float] | None:
        """Return the action of a step, or `None` to give up: no road in sight for half a second."""
        angle, sight = (0.0, 0.0) if self.picture is None else look(self.picture)
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


def look(picture: np.ndarray) -> tuple[float, float]:
    """Return the angle to the road ahead in radians, right is positive, and the share of rows that show road.

    Args:
        picture: as the simulator draws it, uint8 `(96, 96, 3)`.
    """
    pixels = picture[ROWS].astype(int)  # (rows, 96, 3)
    grey = (np.ptp(pixels, axis=-1) < 12) & (pixels.mean(axis=-1) > 60) & (pixels.mean(axis=-1) < 140)
    counts = grey.sum(axis=1)
    seen = counts >= 4
    if not seen.any():
        return 0.0, 0.0
    columns = (grey * np.arange(96)).sum(axis=1)[seen] / counts[seen]
    angles = np.arctan2(columns - CAR_COLUMN, CAR_ROW - ROWS[seen])
    weights = 1.0 / (1 + np.abs(ROWS[seen] - 44) / 12)  # the middle distance predicts the next half second best
    return float((angles * weights).sum() / weights.sum()), float(seen.mean())
