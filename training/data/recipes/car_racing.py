"""Record driving clips in Gymnasium's CarRacing-v3, on seeded tracks with a scripted driver.

    python -m training.data.recipes.car_racing OUT --clips 600 --first-seed 0

writes a folder of mp4 files, a CSV of actions beside each, and `metadata.jsonl`. `--drivers varied` drives at all
speeds and also off the road, for models conditioned on actions. `--palette desert` changes the colours of road and
grass: the same tracks as another domain, to adapt a model to. Needs the extra `sim` (`gymnasium[box2d]`); runs
headless.
"""

import argparse
import csv
import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from diffusers_mardini.video_io import write_video
from training.data.metadata import write_metadata
from training.data.recipes.car_racing_drivers import WARM_UP_STEPS, Driver, Road, VariedDriver
from training.data.recipes.car_racing_pixel_driver import PixelDriver


STEPS_A_SECOND = 50  # of the simulator
RATES = (25, 50)  # frames per second of the clips, the first by default
ROWS = 84  # of 96; the score bar is below
MAX_ATTEMPTS = 12
ACTION_NAMES = ("steering", "gas", "brake")  # in [-1, 1], [0, 1] and [0, 1]; the columns of the CSV beside each clip
DRIVERS = {"careful": Driver, "varied": VariedDriver, "pixels": PixelDriver}
SOURCE = "gymnasium CarRacing-v3 (training/data/recipes/car_racing.py)"
LICENSE = "own recording of Gymnasium (MIT)"

# Colours of road, ground and grass squares by Gymnasium's attribute names, RGB up to 255; "meadow" has its defaults.
PALETTES = {
    "meadow": {"road_color": (102, 102, 102), "bg_color": (102, 204, 102), "grass_color": (102, 230, 102)},
    "desert": {"road_color": (92, 66, 60), "bg_color": (214, 178, 118), "grass_color": (236, 202, 140)},
}


def drive(
    env, seed: int, num_frames: int, kind: type = Driver, fps: int = RATES[0]
) -> tuple[np.ndarray, np.ndarray, Driver, int]:
    """Drive one clip on the track of `seed`, drawing drivers of a kind until one does not give up.

    The course is the same at any rate, if the clips take equally long.

    Returns:
        Frames, `uint8` shaped `(num_frames, 84, 96, 3)`; actions, `(num_frames, 3)`, each the mean over the interval
        that leads to its frame; the driver; and the number of attempts.

    Raises:
        ValueError: if all of `MAX_ATTEMPTS` drivers give up.
    """
    rng = np.random.default_rng(seed)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        driver = kind.draw(rng)
        driven = _attempt(env, seed, driver, rng, num_frames, STEPS_A_SECOND // fps)
        if driven is not None:
            return *driven, driver, attempt
    raise ValueError(f"seed {seed}: none of {MAX_ATTEMPTS} drivers stayed on the road")


def _attempt(
    env, seed: int, driver: Driver, rng: np.random.Generator, num_frames: int, steps_per_frame: int
) -> tuple[np.ndarray, np.ndarray] | None:
    env.drawn = False
    start = put_car(env, seed, driver)
    hands = driver.at_wheel(Road(env.track, start), rng)
    sees = getattr(hands, "needs_pictures", False)
    frames, actions = [], []  # frames of the kept steps, actions of all steps
    for step in range(WARM_UP_STEPS + steps_per_frame * num_frames):
        action = hands.act(env.car.hull, step)
        if action is None:
            return None
        kept = step >= WARM_UP_STEPS and (step - WARM_UP_STEPS) % steps_per_frame == 0
        env.drawn = kept or sees
        observation, _, terminated, truncated, _ = env.step(np.array(action, dtype=np.float32))
        if terminated or truncated:
            return None
        actions.append(action)
        if sees:
            hands.picture = observation
        if kept:
            frames.append(observation[:ROWS])
    # The first interval begins a frame before the clip.
    leading = np.array(actions)[WARM_UP_STEPS - steps_per_frame + 1 :]
    leading = leading[: steps_per_frame * num_frames].reshape(num_frames, steps_per_frame, len(ACTION_NAMES))
    return np.stack(frames), leading.mean(axis=1)


def put_car(env, seed: int, driver: Driver) -> int:
    """Make the track of `seed` and put a car where the driver starts; return the index of that tile.

    The simulator always starts at the same place of a lap, so the clips would only show the first corner.
    """
    from gymnasium.envs.box2d.car_dynamics import Car

    env.reset(seed=seed)
    start = int(driver.start * len(env.track)) % len(env.track)
    env.car.destroy()
    env.car = Car(env.world, *env.track[start][1:4])
    return start


def make_env(palette: str = "meadow"):
    """Return the simulator, which draws only while its attribute `drawn` is true."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gymnasium.envs.box2d.car_racing import CarRacing
    except ImportError as error:
        raise SystemExit(
            f'CarRacing needs Gymnasium with Box2D ({error}); install the extra: pip install -e ".[sim]"'
        ) from error

    class SparselyDrawnCarRacing(CarRacing):
        """CarRacing-v3 that renders only the kept steps: rendering takes nine tenths of its time."""

        drawn = True

        def _render(self, mode):
            return super()._render(mode) if self.drawn else None

    env = SparselyDrawnCarRacing(continuous=True)
    for name, color in PALETTES[palette].items():
        setattr(env, name, np.array(color))
    return env


_ENV = None  # one simulator per worker process, which records in one palette


def _record(job: tuple[int, int, Path, str, str, int]) -> dict:
    global _ENV
    seed, num_frames, folder, palette, drivers, fps = job
    _ENV = _ENV or make_env(palette)
    name = f"carracing_{seed:06d}.mp4"
    try:
        frames, actions, driver, attempts = drive(_ENV, seed, num_frames, DRIVERS[drivers], fps)
    except ValueError as error:
        return {"file_name": name, "skipped": str(error)}
    write_video(folder / name, frames, fps, crf=10)
    _write_actions((folder / name).with_suffix(".csv"), actions)
    return {
        "file_name": name,
        "seed": seed,
        "fps": fps,
        "num_frames": num_frames,
        "width": frames.shape[2],
        "height": frames.shape[1],
        "drivers": drivers,
        "driver": asdict(driver),
        "attempts": attempts,
        "palette": palette,
        "source": SOURCE,
        "license": LICENSE,
    }


def _write_actions(path: Path, actions: np.ndarray) -> None:
    """Write the actions beside a clip, one line per frame."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(ACTION_NAMES)
        writer.writerows([f"{value:.4g}" for value in row] for row in actions.tolist())


def record(
    folder: Path,
    clips: int,
    first_seed: int,
    num_frames: int,
    workers: int,
    palette: str = "meadow",
    drivers: str = "careful",
    fps: int = RATES[0],
) -> list[dict]:
    """Record clips with the seeds `first_seed …` and their actions; return the rows of `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "metadata.jsonl").exists():
        raise SystemExit(f"'{folder}' already holds recorded clips; give another folder or delete it first")
    jobs = [(seed, num_frames, folder, palette, drivers, fps) for seed in range(first_seed, first_seed + clips)]
    rows = []
    with multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else _SameProcess() as pool:
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


class _SameProcess:
    """Stand-in for a process pool that works in this process."""

    imap = staticmethod(map)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def main() -> None:
    """Record the clips that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=64, help="frames of each clip")
    parser.add_argument("--fps", type=int, choices=RATES, default=RATES[0], help="frames per second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--palette", choices=PALETTES, default="meadow", help="colours of road and grass")
    parser.add_argument(
        "--drivers", choices=DRIVERS, default="careful",
        help="careful: stays on the road; varied: all speeds, also off the road; pixels: sees only the picture, for "
        "tests",
    )  # fmt: skip
    arguments = parser.parse_args()
    record(
        arguments.out,
        arguments.clips,
        arguments.first_seed,
        arguments.frames,
        arguments.workers,
        arguments.palette,
        arguments.drivers,
        arguments.fps,
    )


if __name__ == "__main__":
    main()
