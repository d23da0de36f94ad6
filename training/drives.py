"""Drive inside a checkpoint of CarRacing for a minute, and see whether road, speed and colours persist.

    python -m training.drives checkpoints/mardini-tiny-carracing -o outputs/drives

A driver who sees only the newest frames keeps the car on the road, on tracks that exist inside the model, from states
of unseen tracks on; the same driver drives the simulator from the same states. Both are compared second by second:
road in sight, motion and sharpness as shares of the simulator's, colours, and the Fréchet distance to its frames.
Writes `drives.json`, `drives.md`, a contact sheet and the first drive as `drive.mp4`; after an interruption,
the same command goes on. Needs the extra `sim`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.schedulers.named import scheduler_named
from diffusers_mardini.video_io import write_video
from training.counterfactuals import FIRST_SEED, checkpoint_name
from training.data.recipes.car_racing import make_env
from training.data.recipes.car_racing_futures import Pace, drive_on
from training.drift import MEASURES, scored
from training.evaluation.counterfactuals import action_condition
from training.evaluation.drives import Chauffeur, curves_of, drive_inside, loses_road, road_in_sight
from training.evaluation.evaluation_windows import digest_of
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import model_key, sampling_key
from training.evaluation.networks.frechet import load_efficientnet
from training.evaluation.results import without_nan
from training.evaluation.sampling import batches, load_pipeline, scheduler_replaced
from training.evaluation.tables import markdown_table
from training.figures.contact_sheets import contact_sheet
from training.files import write_whole


SPANS = ((0, 5), (10, 15), (25, 30), (55, 60))  # seconds that are compared
TRUE_SECONDS = 10  # of each drive of the simulator, that colours and the Fréchet distance are taken against
INSIDE, SIMULATOR = "inside the model", "simulator"
SHOWN_DRIVES = 3  # of the contact sheet
LOST_SECONDS = 2  # without any road in sight: the driver has lost it
MOST_TRIES = 4  # tracks for each drive


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    command = "python -m training.drives " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    try:
        _measure(options, command)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    # 1. Check
    ranges = spans_of(options.seconds, options.fps)
    if options.given < 2 or options.each < 1 or options.drives < 2:
        raise ValueError(
            f"--given is {options.given}, --drives {options.drives} and --each {options.each}; give at least 2, 2 and 1"
        )
    if options.window <= options.given:
        raise ValueError(
            f"--window is {options.window} and --given {options.given}, so that a window adds no frame; raise --window"
        )
    pace = Pace(options.given, round(options.seconds * options.fps), options.fps, options.size)
    _ = pace.steps
    pipe, how = load_pipeline(options.checkpoint, options.device, options.dtype)
    print(
        f"{options.checkpoint}: {options.drives} drives of {options.seconds:g} seconds, {options.fps:g} frames a "
        f"second, by `{action_condition(pipe)}`; {how}"
    )
    # 2. Drive
    finished = FinishedParts(options.output / "kept")
    true, tracks = true_drives(finished, options.drives, pace, options.each)
    frames = {SIMULATOR: true["frames"], INSIDE: inside_drives(finished, pipe, true, pace, options)}
    # 3. Score
    try:
        features = load_efficientnet()[0]
    except ValueError as error:
        print(error)
        features = None
    curves = {arm: curves_of(true["given"], drives) for arm, drives in frames.items()}
    reference = true["frames"][:, : round(TRUE_SECONDS * options.fps)].float() / 255
    rows = scored(curves, reference, [f"{track}" for track in tracks], ranges, features)
    some = max(1, round(options.fps / 5))
    for row in rows:
        row["road"] = road_in_sight(frames[row["arm"]][:, row["first"] - 1 : row["last"] : some])
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    result = {**facts, "command": command, "sampled_by": model_key(pipe), "tracks": tracks, "rows": rows}
    write(options.output / checkpoint_name(options.checkpoint), result, true["given"], frames, options.fps)


def spans_of(seconds: float, fps: float) -> list[tuple[int, int]]:
    """Return the spans within so many seconds as first and last frames, counted from 1.

    Raises:
        ValueError: if not even the first one fits.
    """
    found = [(round(low * fps) + 1, round(high * fps)) for low, high in SPANS if high <= seconds]
    if not found:
        raise ValueError(f"--seconds is {seconds:g}; give at least {SPANS[0][1]}")
    return found


def true_drives(
    finished: FinishedParts, drives: int, pace: Pace, each: int
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return the results of `drive_on` for so many drives, one below the other, and their tracks.

    Tracks on which the driver loses the simulator's road are left out, so that there is something to compare with.
    Drives that are not kept are driven.

    Raises:
        ValueError: if the driver loses the road on most tracks.
    """
    env = None

    def drive(seed: int) -> dict[str, torch.Tensor]:
        nonlocal env
        env = env or make_env()
        driver = Chauffeur()
        return drive_on(env, seed, pace, lambda *frames: driver.act(*(one.float() / 255 for one in frames)), each)

    key = {"drive": 1, "pace": vars(pace), "each": each, "first_seed": FIRST_SEED}
    found, tracks, lost_within = [], [], round(LOST_SECONDS * pace.fps)
    with tqdm(total=drives, unit="drive", desc=SIMULATOR, disable=None) as bar:
        for i in range(MOST_TRIES * drives):
            one = finished.get(key, i, i + 1, lambda i=i: drive(FIRST_SEED + i))
            if not loses_road(one["frames"], lost_within):
                found.append(one)
                tracks.append(FIRST_SEED + i)
                bar.update()
            if len(found) == drives:
                return {name: torch.stack([one[name] for one in found]) for name in found[0]}, tracks
    raise ValueError(
        f"the driver keeps to the simulator's road on {len(found)} of {MOST_TRIES * drives} tracks, and {drives} drives "
        "were asked for; lower --each, --seconds or --drives"
    )


def inside_drives(
    finished: FinishedParts,
    pipe: MarDiniPipeline,
    true: Mapping[str, torch.Tensor],
    pace: Pace,
    options: argparse.Namespace,
) -> torch.Tensor:
    """Return the drives inside the model, bytes `(drives, frames, 3, size, size)`; drives those that are not kept."""
    scheduler = scheduler_named(pipe.scheduler, options.scheduler) if options.scheduler else None
    sampling = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    sampling |= {"window": options.window, "overlap": options.given, "generated_noise": options.generated_noise}
    key = {"drives": 1, "seed": options.seed, "each": options.each, "truth": digest_of(true["given"] / 255)}
    key |= {"pace": vars(pace), "window": options.window, "noise": options.generated_noise, **model_key(pipe)}
    key |= sampling_key(scheduler or pipe.scheduler, options.steps, options.guidance_scale, options.scheduler)
    parts = []
    for first, last in tqdm(
        list(batches(options.drives, options.batch_size)), unit="batch", desc=INSIDE, disable=None
    ):

        def drive(first: int = first, last: int = last) -> dict[str, torch.Tensor]:
            seeds = [options.seed * 1_000_003 + i for i in range(first, last)]
            given, actions = true["given"][first:last].float() / 255, true["given_actions"][first:last]
            with scheduler_replaced(pipe, scheduler):
                return {
                    "frames": drive_inside(
                        pipe, given, actions, pace.num_frames, pace.fps, seeds, options.each, **sampling
                    )
                }

        parts.append(finished.get(dict(key), first, last, drive)["frames"])
    return torch.cat(parts)


def write(
    folder: Path, result: Mapping[str, Any], given: torch.Tensor, frames: Mapping[str, torch.Tensor], fps: float
) -> None:
    """Write results, table, contact sheet, and the first drive inside the model as a film.

    Args:
        folder: of the checkpoint's results.
        result: `rows`, and what was asked for.
        given: bytes that lead to the drives, `(drives, given frames, 3, size, size)`.
        frames: bytes of the drives by where they were driven, `(drives, frames, 3, size, size)`.
        fps: their frames per second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = result["rows"]
    columns = ["drive", "seconds", "road in sight", *MEASURES]
    columns += ["FD-EfficientNetLite0"] if "fd_efficientnet_lite0" in rows[0] else []
    table = markdown_table(columns, [_cells(row, fps) for row in rows])
    write_whole(folder / "drives.json", json.dumps(without_nan(dict(result)), indent=1) + "\n")
    setting = (
        f"{len(given)} drives from states of unseen tracks ({result['tracks'][0]} to {result['tracks'][-1]}, without "
        f"those on which the driver lost the simulator's road), {fps:g} frames a second, the same driver in both; road in "
        "sight: share of the rows ahead of the car; motion and sharpness: shares of the simulator's in the first "
        f"{TRUE_SECONDS} seconds; colours: distance from its other drives, over that of its own drives; in brackets "
        "95% intervals over drives."
    )
    write_whole(folder / "drives.md", "\n\n".join([f"`{result['command']}`", setting, table]) + "\n")
    seconds = [low for low, _ in SPANS if low * fps < frames[INSIDE].shape[1]] + [frames[INSIDE].shape[1] / fps]
    numbers = sorted({max(1, round(second * fps)) for second in seconds})
    groups = [
        (
            f"track {result['tracks'][drive]}",
            {
                arm: torch.stack([given[drive, -1], *(drives[drive, number - 1] for number in numbers)]).float() / 255
                for arm, drives in frames.items()
            },
        )
        for drive in range(min(SHOWN_DRIVES, len(given)))
    ]
    names = ["given", *(f"{number / fps:.1f} s" for number in numbers)]
    contact_sheet(groups, [0], title="drives", names=names).save(folder / "drives.png", optimize=True)
    shown = torch.cat([given[0], frames[INSIDE][0]]).permute(0, 2, 3, 1).numpy()
    write_video(folder / "drive.mp4", list(shown), fps, overwrite=True)
    print("\n" + table)
    print(f"\nWrote drives.json, .md and .png and drive.mp4 to {folder}")


def _cells(row: Mapping[str, Any], fps: float) -> list[str]:
    cells = [row["arm"], f"{(row['first'] - 1) / fps:.0f} to {row['last'] / fps:.0f}", f"{row['road']:.0%}"]
    for name in MEASURES:
        low, high = row["intervals"][name]
        cells.append(f"{row[name]:.2f} [{low:.2f}, {high:.2f}]")
    if "fd_efficientnet_lite0" in row:
        cells.append(f"{row['fd_efficientnet_lite0']:.1f}")
    return cells


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.drives", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline that takes actions")
    parser.add_argument("--drives", type=int, default=24, help="each from a state of a track of its own")
    parser.add_argument("--seconds", type=float, default=60, help="of each drive")
    parser.add_argument("--fps", type=float, default=12.5, help="frames per second; 50 divided by a whole number")
    parser.add_argument("--each", type=int, default=4, help="frames for which the driver holds an action")
    parser.add_argument("--given", type=int, default=5, help="frames that lead a window")
    parser.add_argument("--window", type=int, default=9, help="frames of a window, given ones included")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--scheduler", default="", help="of diffusers, made by from_config")
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's own")
    parser.add_argument("--generated-noise", type=float, default=0.0, help="see MarDiniPipeline.extend")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="most drives at once")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/drives"), help="folder")
    return parser


if __name__ == "__main__":
    main()
