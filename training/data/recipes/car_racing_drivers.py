"""Scripted drivers of CarRacing that know the road: a careful one that stays on it, and varied ones that may leave it.

`car_racing.py` records them. Lengths are in simulator units (the road is 13.3 wide), speeds in units per second, times
in simulator steps (50 a second); an action is `(steering in [-1, 1], gas in [0, 1], brake in [0, 1])`.
"""

import math
from dataclasses import dataclass

import numpy as np


WARM_UP_STEPS = 60  # the camera zooms in during the first 50
ON_ROAD = 9.0  # distance from the middle of the road: half its width and a little grass


class Road:
    """The middle of a track as a closed line of tiles, and a car's position on it.

    Args:
        track: Gymnasium's list of `(alpha, beta, x, y)`.
        tile: index of the tile at which the car starts.
    """

    def __init__(self, track: list[tuple[float, float, float, float]], tile: int):
        self.points = np.array([(x, y) for _, _, x, y in track])  # (tiles, 2)
        self.tile_length = float(np.linalg.norm(self.points[1] - self.points[0]))
        self.tile = tile

    def follow(self, position: np.ndarray) -> None:
        """Move `tile` to the nearest one, for a car that was near it before."""
        window = (self.tile + np.arange(-5, 12)) % len(self.points)
        self.tile = int(window[np.linalg.norm(self.points[window] - position, axis=1).argmin()])

    def find(self, position: np.ndarray) -> None:
        """Move `tile` to the nearest of all, for a car that may have left the road."""
        self.tile = int(np.linalg.norm(self.points - position, axis=1).argmin())

    def distance(self, position: np.ndarray) -> float:
        """Return the car's distance from the middle of the road."""
        return float(np.linalg.norm(self.points[self.tile] - position))

    def ahead(self, distance: float) -> np.ndarray:
        """Return the point in the middle of the road `distance` further on."""
        tiles = distance / self.tile_length
        whole, part = int(tiles), tiles - int(tiles)
        count = len(self.points)
        first, second = self.points[(self.tile + whole) % count], self.points[(self.tile + whole + 1) % count]
        return (1 - part) * first + part * second


@dataclass(frozen=True)
class Driver:
    """The settings of a driver who follows the road for one clip and gives up when off it."""

    look_ahead: float  # distance of the point on the road to steer at
    gain: float  # steering per radian of error
    speed: float  # on the straight
    caution: float  # how much bends slow the car down
    offset: float  # sideways from the middle of the road
    noise: float  # slowly changing noise of the steering
    start: float  # position on the lap, 0 to 1

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Driver":
        """Draw the settings of a driver."""
        return cls(
            look_ahead=round(rng.uniform(14, 28), 2),
            gain=round(rng.uniform(0.6, 1.8), 2),
            speed=round(rng.uniform(20, 52), 1),
            caution=round(rng.uniform(8, 25), 1),
            offset=round(rng.uniform(-3.2, 3.2), 2),
            noise=round(rng.uniform(0.0, 0.1), 3),
            start=round(rng.uniform(0, 1), 4),
        )

    def at_wheel(self, road: Road, rng: np.random.Generator) -> "CarefulHands":
        """Return the hands that drive this clip."""
        return CarefulHands(self, road, rng)


class CarefulHands:
    """Steers at a point of the road ahead, as fast as the next bend allows."""

    def __init__(self, driver: Driver, road: Road, rng: np.random.Generator):
        self.driver, self.road, self.rng = driver, road, rng
        self.wobble = 0.0

    def act(self, hull, step: int) -> tuple[float, float, float] | None:
        """Return the action of a step, or `None` to give up: off the road, stalled or turned around."""
        position, speed = np.array(hull.position), math.hypot(*hull.linearVelocity)
        self.road.follow(position)
        error = self._error(position, hull.angle)
        stalled = step > WARM_UP_STEPS and speed < 0.4 * min(self.driver.speed, 30)
        if self.road.distance(position) > ON_ROAD or stalled or abs(error) > 1.2:
            return None
        return self._toward(error, speed)

    def _error(self, position: np.ndarray, angle: float) -> float:
        """Return the angle by which the car must turn, in radians; left is positive."""
        driver, road = self.driver, self.road
        middle = road.ahead(driver.look_ahead)
        forward = road.ahead(driver.look_ahead + road.tile_length) - middle
        self.forward = forward / np.linalg.norm(forward)
        target = middle + driver.offset * np.array([self.forward[1], -self.forward[0]])
        return heading_error(target - position, angle)

    def _toward(self, error: float, speed: float) -> tuple[float, float, float]:
        driver, road = self.driver, self.road
        along = road.points[(road.tile + 1) % len(road.points)] - road.points[road.tile]
        bend = abs(_wrap(_heading(self.forward) - _heading(along)))
        self.wobble = 0.9 * self.wobble + driver.noise * self.rng.normal() * math.sqrt(1 - 0.9**2)
        wanted = driver.speed / (1 + driver.caution * bend / driver.look_ahead)
        gas = float(np.clip(0.08 * (wanted - speed), 0, 0.8))
        brake = float(np.clip(0.03 * (speed - wanted - 4), 0, 0.5))
        return float(np.clip(-driver.gain * error + self.wobble, -1, 1)), gas, brake


@dataclass(frozen=True)
class Event:
    """Steps `first` to `last` during which wheel and pedals are held still, regardless of the road."""

    first: int
    last: int
    steer: float
    gas: float
    brake: float


@dataclass(frozen=True)
class VariedDriver(Driver):
    """The settings of a driver at any speed who does not always follow the road and never gives up.

    A third only follow the road; a third brake, swerve and accelerate now and then and return to it; a third hold the
    wheel for a second or longer, which ends in spins and on the grass. One in six starts from a standstill.
    """

    standing: bool = False
    events: tuple[Event, ...] = ()

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "VariedDriver":
        """Draw the settings of a driver."""
        base = {
            "look_ahead": round(rng.uniform(10, 32), 2),
            "gain": round(rng.uniform(0.4, 2.4), 2),
            "speed": round(rng.uniform(15, 75), 1),
            "caution": round(rng.uniform(2, 25), 1),
            "offset": round(rng.uniform(-4.5, 4.5), 2),
            "noise": round(rng.uniform(0.0, 0.2), 3),
            "start": round(rng.uniform(0, 1), 4),
            "standing": bool(rng.uniform() < 1 / 6),
        }
        kind = rng.choice(["follows", "swerves", "wild"])
        lengths = {"follows": [], "swerves": [(12, 60)] * int(rng.integers(1, 4)), "wild": [(50, 180)]}[kind]
        return cls(**base, events=tuple(cls._event(rng, *length) for length in lengths))

    @staticmethod
    def _event(rng: np.random.Generator, shortest: int, longest: int) -> Event:
        first = WARM_UP_STEPS + int(rng.integers(0, 100))
        pedals = rng.choice(["gas", "brake", "none"], p=[0.5, 0.25, 0.25])
        steer = float(rng.choice([0.0, rng.uniform(-0.6, 0.6), rng.uniform(-1, 1)], p=[0.15, 0.55, 0.3]))
        return Event(
            first,
            first + int(rng.integers(shortest, longest + 1)),
            round(steer, 2),
            round(float(rng.uniform(0.1, 1.0)), 2) if pedals == "gas" else 0.0,
            round(float(rng.uniform(0.2, 1.0)), 2) if pedals == "brake" else 0.0,
        )

    def at_wheel(self, road: Road, rng: np.random.Generator) -> "VariedHands":
        """Return the hands that drive this clip."""
        return VariedHands(self, road, rng)


class VariedHands(CarefulHands):
    """Follows the road except during events; returns from the grass to the nearest place of the road."""

    def act(self, hull, step: int) -> tuple[float, float, float] | None:
        """Return the action of a step."""
        position, speed = np.array(hull.position), math.hypot(*hull.linearVelocity)
        (self.road.follow if self.road.distance(position) < 2 * ON_ROAD else self.road.find)(position)
        if self.driver.standing and step < WARM_UP_STEPS:
            return 0.0, 0.0, 1.0
        for event in self.driver.events:
            if event.first <= step < event.last:
                return event.steer, event.gas, event.brake
        error = self._error(position, hull.angle)
        if abs(error) > 1.2:  # turned around: drive slowly at full lock
            return (-math.copysign(1.0, error), 0.3 if speed < 12 else 0.0, 0.3 if speed > 20 else 0.0)
        return self._toward(error, speed)


def _heading(direction: np.ndarray) -> float:
    return math.atan2(-direction[0], direction[1])  # the car looks along +y at angle 0


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def heading_error(direction: np.ndarray, angle: float) -> float:
    """Return the angle by which a car at `angle` must turn to face `direction`, in radians; left is positive."""
    return _wrap(_heading(direction) - angle)
