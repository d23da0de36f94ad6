"""Unlimited driving clips that anyone can make: Gymnasium's CarRacing-v3, seeded tracks, a scripted driver.

    python -m training.data.car_racing OUT --clips 600 --first-seed 0

writes a folder of mp4 with `metadata.jsonl`. `--palette desert` paints road and grass otherwise: the same tracks as another domain, to adapt a model
to. Needs the extra `sim` (`gymnasium[box2d]`); runs headless. Reading such a folder back is the business of `training/data/clips.py`.
"""

import argparse
import math
import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from diffusers_mardini.video_io import write_video
from training.data.metadata import write_metadata


FPS = 25  # the simulator makes 50 steps a second; every second one is kept
ROWS = 84  # of 96: below them the simulator draws its score bar
WARM_UP_STEPS = 60  # the camera zooms in during the first 50
MAX_ATTEMPTS = 12
SOURCE = "gymnasium CarRacing-v3 (training/data/car_racing.py)"
LICENSE = "own recording of Gymnasium (MIT)"

# Road, ground and the squares of grass on it, in RGB up to 255, as Gymnasium's attributes are called; the first are its own colours.
PALETTES = {
    "meadow": {"road_color": (102, 102, 102), "bg_color": (102, 204, 102), "grass_color": (102, 230, 102)},
    "desert": {"road_color": (92, 66, 60), "bg_color": (214, 178, 118), "grass_color": (236, 202, 140)},
}


@dataclass(frozen=True)
class Driver:
    """How one clip is driven. Lengths in simulator units (the road is 13.3 wide), speeds in units per second."""

    look_ahead: float  # distance of the point on the road that is steered at
    gain: float  # steering per radian of error
    speed: float  # on the straight
    caution: float  # how much bends slow the car down
    offset: float  # to the side of the road's middle
    noise: float  # of the steering, slowly changing
    start: float  # where on the lap, 0 to 1

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Driver":
        return cls(
            look_ahead=round(rng.uniform(14, 28), 2),
            gain=round(rng.uniform(0.6, 1.8), 2),
            speed=round(rng.uniform(20, 52), 1),
            caution=round(rng.uniform(8, 25), 1),
            offset=round(rng.uniform(-3.2, 3.2), 2),
            noise=round(rng.uniform(0.0, 0.1), 3),
            start=round(rng.uniform(0, 1), 4),
        )


def drive(env, seed: int, num_frames: int) -> tuple[np.ndarray, Driver, int]:
    """Drives one clip on the track of `seed`, trying other drivers on it until one stays on the road.

    Returns:
        Frames, `uint8` shaped `(num_frames, 84, 96, 3)`, the driver, and how many attempts it took.

    Raises:
        ValueError: if no driver of `MAX_ATTEMPTS` keeps the car on the road.
    """
    rng = np.random.default_rng(seed)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        driver = Driver.draw(rng)
        frames = _attempt(env, seed, driver, rng, num_frames)
        if frames is not None:
            return frames, driver, attempt
    raise ValueError(f"seed {seed}: none of {MAX_ATTEMPTS} drivers stayed on the road")


def _attempt(env, seed: int, driver: Driver, rng: np.random.Generator, num_frames: int) -> np.ndarray | None:
    from gymnasium.envs.box2d.car_dynamics import Car

    env.drawn = False
    env.reset(seed=seed)
    road = np.array([(x, y) for _, _, x, y in env.track])  # (tiles, 2)
    tile_length = float(np.linalg.norm(road[1] - road[0]))
    start = int(driver.start * len(road)) % len(road)
    # The simulator always starts at the same place of a lap; laps would then be seen from their first corner only.
    env.car.destroy()
    env.car = Car(env.world, *env.track[start][1:4])

    frames, nearest, wobble = [], start, 0.0
    for step in range(WARM_UP_STEPS + 2 * num_frames):
        hull = env.car.hull
        position, speed = np.array(hull.position), math.hypot(*hull.linearVelocity)
        window = (nearest + np.arange(-5, 12)) % len(road)
        nearest = int(window[np.linalg.norm(road[window] - position, axis=1).argmin()])
        middle = _ahead(road, nearest, driver.look_ahead / tile_length)
        forward = _ahead(road, nearest, driver.look_ahead / tile_length + 1) - middle
        forward /= np.linalg.norm(forward)
        target = middle + driver.offset * np.array([forward[1], -forward[0]])
        error = _heading_error(target - position, hull.angle)
        bend = abs(_wrap(_heading(forward) - _heading(road[(nearest + 1) % len(road)] - road[nearest])))

        off_road = np.linalg.norm(road[nearest] - position) > 9.0  # half the road and a little grass
        stalled = step > WARM_UP_STEPS and speed < 0.4 * min(driver.speed, 30)
        if off_road or stalled or abs(error) > 1.2:
            return None

        wobble = 0.9 * wobble + driver.noise * rng.normal() * math.sqrt(1 - 0.9**2)
        wanted = driver.speed / (1 + driver.caution * bend / driver.look_ahead)
        gas = float(np.clip(0.08 * (wanted - speed), 0, 0.8))
        brake = float(np.clip(0.03 * (speed - wanted - 4), 0, 0.5))
        steer = float(np.clip(-driver.gain * error + wobble, -1, 1))
        env.drawn = step >= WARM_UP_STEPS and (step - WARM_UP_STEPS) % 2 == 0
        observation, _, terminated, truncated, _ = env.step(np.array([steer, gas, brake], dtype=np.float32))
        if terminated or truncated:
            return None
        if env.drawn:
            frames.append(observation[:ROWS])
    return np.stack(frames)


def _ahead(road: np.ndarray, tile: int, tiles: float) -> np.ndarray:
    whole, part = int(tiles), tiles - int(tiles)
    return (1 - part) * road[(tile + whole) % len(road)] + part * road[(tile + whole + 1) % len(road)]


def _heading(direction: np.ndarray) -> float:
    return math.atan2(-direction[0], direction[1])  # the car looks along +y at angle 0


def _wrap(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _heading_error(direction: np.ndarray, angle: float) -> float:
    return _wrap(_heading(direction) - angle)


def _make_env(palette: str):
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gymnasium.envs.box2d.car_racing import CarRacing
    except ImportError as error:
        raise SystemExit(
            f"CarRacing needs Gymnasium with Box2D ({error}); install the extra: pip install -e '.[sim]'"
        ) from error

    class SparselyDrawnCarRacing(CarRacing):
        """CarRacing-v3 that draws only the steps that are kept: drawing is nine tenths of its time."""

        drawn = True

        def _render(self, mode):
            return super()._render(mode) if self.drawn else None

    env = SparselyDrawnCarRacing(continuous=True)
    for name, color in PALETTES[palette].items():
        setattr(env, name, np.array(color))
    return env


_ENV = None  # one simulator for each worker process; a process records in one palette


def _record(job: tuple[int, int, Path, str]) -> dict:
    global _ENV
    seed, num_frames, folder, palette = job
    _ENV = _ENV or _make_env(palette)
    name = f"carracing_{seed:06d}.mp4"
    try:
        frames, driver, attempts = drive(_ENV, seed, num_frames)
    except ValueError as error:
        return {"file_name": name, "skipped": str(error)}
    write_video(folder / name, frames, FPS, crf=10)
    return {
        "file_name": name,
        "seed": seed,
        "fps": FPS,
        "num_frames": num_frames,
        "width": frames.shape[2],
        "height": frames.shape[1],
        "driver": asdict(driver),
        "attempts": attempts,
        "palette": palette,
        "source": SOURCE,
        "license": LICENSE,
    }


def record(
    folder: Path, clips: int, first_seed: int, num_frames: int, workers: int, palette: str = "meadow"
) -> list[dict]:
    """Records clips with the seeds `first_seed …` into `folder`; returns the lines of its `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "metadata.jsonl").exists():
        raise SystemExit(f"'{folder}' already holds recorded clips; give another folder or delete it first")
    jobs = [(seed, num_frames, folder, palette) for seed in range(first_seed, first_seed + clips)]
    rows = []
    with multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else _Here() as pool:
        for row in pool.imap(_record, jobs):
            rows.append(row)
            if len(rows) % 50 == 0:
                print(f"{len(rows)} of {clips} clips", flush=True)
    skipped = [row for row in rows if "skipped" in row]
    rows = [row for row in rows if "skipped" not in row]
    for row in skipped:
        print(f"left out {row['file_name']}: {row['skipped']}")
    write_metadata(folder, rows)
    print(f"{len(rows)} clips ({len(skipped)} left out) lie in {folder}")
    return rows


class _Here:
    """A pool of no processes."""

    imap = staticmethod(map)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=64, help="frames of each clip, 25 a second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--palette", choices=PALETTES, default="meadow", help="colours of road and grass")
    arguments = parser.parse_args()
    record(
        arguments.out, arguments.clips, arguments.first_seed, arguments.frames, arguments.workers, arguments.palette
    )


if __name__ == "__main__":
    main()
