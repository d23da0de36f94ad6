"""Sample the moving pictures of the pages with the carried checkpoint: `python -m docs.moving_pictures`.

One recorded CarRacing clip, seed 0, nothing chosen; about a minute on a CPU. Given frames have a border, and what is
masked is grey. Drawings are `docs/figures`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.app.driving import ACTION
from diffusers_mardini.masking import task_indices
from diffusers_mardini.video_io import read_video
from training.data.recipes.car_racing_futures import HELD
from training.evaluation.baselines import cross_fade
from training.evaluation.counterfactuals import ACTION_NAMES
from training.evaluation.drives import Chauffeur, Held, drive_inside
from training.figures.contact_sheets import side_by_side


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/images/moving"
DRIVING = ROOT / "checkpoints/mardini-tiny-driving"
CHECKPOINT, CLIP = ROOT / "checkpoints/mardini-tiny-carracing", ROOT / "examples/clips/carracing_200000.mp4"
FRAMES, PACE, SIZE = 9, 2, 64  # as the checkpoint was trained
FACTOR, LEAD, NEW = 4, 5, 16
DRIVING_STEPS = 10
DRIVEN, RATE = 60, 12.5  # frames of a drive, and how many are a second


def moving_pictures(pipe: MarDiniPipeline, clip: torch.Tensor, steps: int) -> dict[str, list[Image.Image]]:
    """Return the frames of every picture by name.

    Args:
        pipe: the checkpoint.
        clip: true frames at the pace of the training, `(frames, 3, 64, 64)` in [0, 1], at least 21.
        steps: of the sampler.
    """

    def options(seed: int = 0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        return {"num_inference_steps": steps, "generator": generator, "output_type": "pt"}

    def show(given: Sequence[int], videos: dict[str, torch.Tensor], length: int = FRAMES) -> list[Image.Image]:
        grey = torch.full_like(clip[:length], 0.55)
        grey[list(given)] = clip[list(given)]
        return side_by_side([("", {"given": grey, **videos})], given)

    true = clip[:FRAMES]
    ends, places, lead = task_indices("interpolation", FRAMES), [0, 5, 8], list(range(LEAD))
    pictures = {}

    between = pipe(image=clip[0], last_image=clip[FRAMES - 1], num_frames=FRAMES, **options()).frames[0]
    pictures["interpolation"] = show(ends, {"sampled": between, "true": true})

    futures = [pipe(image=clip[0], num_frames=FRAMES, **options(seed)).frames[0] for seed in (0, 1)]
    pictures["animate"] = show([0], {"seed 0": futures[0], "seed 1": futures[1], "true": true})

    filled = pipe(video=clip[places], frame_indices=places, num_frames=FRAMES, **options()).frames[0]
    pictures["fill"] = show(places, {"sampled": filled, "true": true})

    slower = pipe.slow_motion(true, factor=FACTOR, **options()).frames[0]
    given = list(range(0, len(slower), FACTOR))
    held = true[[i // FACTOR for i in range(len(slower))]]
    slow = torch.zeros_like(slower)
    slow[given] = true
    shown = {"given": held, "cross-fade": cross_fade(slow[None], given)[0], "sampled": slower}
    pictures["slow-motion"] = side_by_side([("", shown)], given)

    longer = pipe.extend(clip[:LEAD], num_new_frames=NEW, **options()).frames[0]
    pictures["extension"] = show(lead, {"sampled": longer, "true": clip[: LEAD + NEW]}, LEAD + NEW)
    return pictures


def drives(pipe: MarDiniPipeline, start: torch.Tensor, steps: int) -> list[Image.Image]:
    """Return the frames of drives from one start, `(frames, 3, 64, 64)`: held to a side, and by one who looks at the road."""
    drivers = {
        "held left": Held(HELD["left"]),
        "driven by eye": Chauffeur(),
        "held right": Held(HELD["right"]),
    }
    given = start.expand(len(drivers), *start.shape)
    unknown = torch.full((len(drivers), len(start), len(ACTION_NAMES)), torch.nan)
    frames = drive_inside(
        pipe, given, unknown, DRIVEN, RATE, [0] * len(drivers), FRAMES - LEAD, list(drivers.values()),
        num_inference_steps=steps, window=FRAMES, overlap=LEAD,
    )  # fmt: skip
    shown = torch.cat([given, frames.float() / 255], dim=1)
    return side_by_side([("", dict(zip(drivers, shown, strict=True)))], list(range(LEAD)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, help="folder for the WebP files")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="its folder")
    parser.add_argument("--driving", type=Path, default=DRIVING, help="one that takes actions, if that does not")
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args(arguments)
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    frames, _ = read_video(CLIP)
    fitted = [ImageOps.fit(Image.fromarray(frame), (SIZE, SIZE)) for frame in frames[::PACE]]
    clip = pipe.video_processor.preprocess(fitted) / 2 + 0.5  # (frames, 3, height, width) in [0, 1]
    options.output.mkdir(parents=True, exist_ok=True)
    shown = moving_pictures(pipe, clip, options.steps)
    driven = pipe if ACTION in pipe.conditions else MarDiniPipeline.from_pretrained(options.driving)
    driven.set_progress_bar_config(disable=True)
    shown["drive"] = drives(driven, clip[:LEAD], min(options.steps, DRIVING_STEPS))
    for name, pictures in shown.items():
        path = options.output / f"{name}.webp"
        rate = RATE if len(pictures) > 2 * FRAMES else 5
        times = [round(1000 / rate)] * (len(pictures) - 1) + [900]  # the last frame stays a moment
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=82, method=6)
        print(f"wrote {path}: {len(pictures)} frames, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
