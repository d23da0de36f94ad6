"""Make clips of known motion: discs and squares that cross a plain background at constant speed and bounce off edges.

    python -m training.data.recipes.moving_shapes OUT --clips 16 --frames 24 --size 64

For tests, examples and runs of seconds that need neither a simulator nor footage; results on them say nothing about
real clips. Everything follows from the seed.
"""

import argparse
from pathlib import Path

import numpy as np

from diffusers_mardini.video_io import write_video
from training.data.metadata import write_metadata


FPS = 10


def draw_clip(seed: int, num_frames: int, size: int) -> np.ndarray:
    """Return `uint8` frames `(num_frames, size, size, 3)` of two or three shapes.

    At size 64 they move 1 to 3 pixels per frame.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size]
    background = rng.integers(20, 90, 3)
    shapes = [
        {
            "radius": size * rng.uniform(0.1, 0.18),
            "start": size * rng.uniform(0.2, 0.8, 2),
            "speed": size / 64 * rng.uniform(1, 3) * np.array([np.sin(a := rng.uniform(0, 2 * np.pi)), np.cos(a)]),
            "colour": rng.integers(120, 255, 3),
            "round": rng.random() < 0.5,
        }
        for _ in range(rng.integers(2, 4))
    ]
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[:] = background
        for shape in shapes:
            y, x = _bounce(shape["start"] + index * shape["speed"], shape["radius"], size)
            inside = (
                np.hypot(rows - y, columns - x) if shape["round"] else np.maximum(abs(rows - y), abs(columns - x))
            ) <= shape["radius"]
            frame[inside] = shape["colour"]
    return frames


def _bounce(position: np.ndarray, radius: float, size: int) -> np.ndarray:
    room = size - 2 * radius
    folded = np.mod(position - radius, 2 * room)
    return radius + np.where(folded > room, 2 * room - folded, folded)


def record(folder: Path, clips: int, num_frames: int, size: int, first_seed: int = 0) -> Path:
    """Write clips with the seeds `first_seed …` and their `metadata.jsonl`; refuse a folder that has one."""
    if (folder / "metadata.jsonl").exists():
        raise ValueError(f"'{folder}' already holds clips; give another folder or delete it first")
    rows = []
    for seed in range(first_seed, first_seed + clips):
        name = f"shapes_{seed:05d}.mp4"
        # Lossless: otherwise x264 does not give the same bytes every time.
        write_video(folder / name, draw_clip(seed, num_frames, size), FPS, crf=0)
        rows.append(
            {"file_name": name, "seed": seed, "fps": FPS, "num_frames": num_frames, "width": size, "height": size}
        )
    write_metadata(folder, rows)
    return folder


def main() -> None:
    """Make the clips that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.recipes.moving_shapes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    try:
        record(options.out, options.clips, options.frames, options.size, options.first_seed)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.clips} clips lie in {options.out}")


if __name__ == "__main__":
    main()
