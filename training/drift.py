"""Measure drift: continue held-out clips for a thousand frames, and compare frames far out with those near the clip.

    python -m training.drift checkpoints/mardini-tiny-carracing runs/data/carracing/val -o outputs/drift \
        --arm plain --arm 'noise: generated_noise=0.1' --arm 'overlap 6: overlap=6'

Each arm is a way of continuing. Motion and sharpness are shares of the true clips', and so are colours: the distance of
each frame's means and deviations of red, green and blue from the mean of the other clips' true frames, in deviations
between these, over the same distance of the true clips. The Fréchet distance is that of the frames of a range to true
frames. Writes `drift.json`, `drift.md`, a chart and a contact sheet; after an interruption,
the same command goes on.
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
from training.counterfactuals import checkpoint_name
from training.evaluation.drift import RANGES, Arm, Curves, colour_distance, colour_moments, continue_clips
from training.evaluation.evaluation_windows import add_window_options, choose_window, digest_of, load_windows
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.intervals import Bootstrap
from training.evaluation.methods import model_key, sampling_key
from training.evaluation.metrics import frame_sharpness, motion_steps, summarize
from training.evaluation.networks.frechet import Features, frechet_distance, load_efficientnet
from training.evaluation.results import without_nan
from training.evaluation.sampling import batches, load_pipeline, scheduler_replaced
from training.evaluation.tables import markdown_table
from training.figures.charts import Panel, Point, draw
from training.figures.contact_sheets import contact_sheet
from training.files import write_whole


MEASURES = ("motion", "sharpness", "colours")
SHARE = "share of the true clips'"
BIN = 25  # frames of a point of the chart


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    command = "python -m training.drift " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    try:
        _measure(options, command)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    # 1. Check
    ranges = chosen_ranges(options.range or RANGES, options.frames)
    pipe, how = load_pipeline(options.checkpoint, options.device, options.dtype)
    print(f"{options.checkpoint} on {options.clips}: {choose_window(options, pipe.trained_window)}; {how}")
    base = Arm("", options.num_frames, options.given, options.steps, options.guidance_scale)
    arms = [Arm.read(text, base) for text in options.arm]
    if len({arm.name for arm in arms}) < len(arms):
        raise ValueError(f"--arm names {', '.join(arm.name for arm in arms)}; give every arm a name of its own")
    conditions = dict(_told(text, pipe) for text in options.tell)
    windows = load_windows(options.clips, options.size, options.true_frames, options.stride, 1, options.fps)
    true, clips = windows.frames, windows.clips[: options.max_clips]
    if len(true) < 2:
        raise ValueError(f"{options.clips} has one clip, whose colours have none to be compared with; give at least 2")
    if options.true_frames <= options.given:
        raise ValueError(f"--true-frames is {options.true_frames}; give more than the {options.given} that lead")
    scheduler = scheduler_named(pipe.scheduler, options.scheduler) if options.scheduler else None
    # 2. Continue
    finished = FinishedParts(options.kept or options.output / "kept")
    key = {"drift": 1, "frames": options.frames, "given": options.given, "seed": options.seed, "told": conditions}
    key |= {"truth": digest_of(true), "size": options.size, **model_key(pipe)}
    key |= {"ranges": ranges} if options.range else {}
    curves = {}
    with scheduler_replaced(pipe, scheduler):
        for arm in tqdm(arms, unit="arm", disable=None):
            settings = sampling_key(pipe.scheduler, arm.steps, arm.guidance_scale, options.scheduler)
            curves[arm.name] = _continued(
                finished, key | {"arm": vars(arm) | {"name": ""}} | settings, pipe, true[: len(clips), : options.given], arm,
                options, ranges, conditions,
            )  # fmt: skip
    # 3. Score
    try:
        features = load_efficientnet()[0]
    except ValueError as error:
        print(error)
        features = None
    rows = scored(curves, true, clips, ranges, features)
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    result = {**facts, "command": command, "sampled_by": model_key(pipe), "clips": len(clips), "rows": rows}
    result |= {"names": clips, "truth": digest_of(true)}
    write(options.output / checkpoint_name(options.checkpoint), result, curves, true, ranges)


def chosen_ranges(ranges: Sequence[Sequence[int]], frames: int) -> list[tuple[int, int]]:
    """Return the ranges of frames, counted from 1, that end within so many frames.

    Raises:
        ValueError: if one is empty, or if there is none.
    """
    for low, high in ranges:
        if not 1 <= low <= high:
            raise ValueError(f"--range is {low} {high}; give the first and the last frame, counted from 1")
    kept = [(low, high) for low, high in ranges if high <= frames]
    if not kept:
        raise ValueError(f"--frames is {frames}; give at least {ranges[0][1]}, which is the first range")
    return kept


def _continued(
    finished: FinishedParts,
    key: Mapping[str, Any],
    pipe: MarDiniPipeline,
    given: torch.Tensor,
    arm: Arm,
    options: argparse.Namespace,
    ranges: Sequence[tuple[int, int]],
    conditions: Mapping[str, float],
) -> Curves:
    """Continue all clips in one way, batch by batch; those that are kept are not sampled again."""
    parts = []
    for first, last in batches(len(given), options.batch_size):
        seeds = [options.seed * 1_000_003 + i for i in range(first, last)]

        def make(first: int = first, last: int = last, seeds: Sequence[int] = seeds) -> dict[str, torch.Tensor]:
            made = continue_clips(pipe, given[first:last], arm, options.frames, seeds, ranges, conditions)
            return {name: getattr(made, name) for name in MEASURES} | {
                f"frame {number:06d}": frame for number, frame in made.kept.items()
            }

        parts.append(finished.get(dict(key), first, last, make))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    kept = {int(name.split()[1]): frames for name, frames in whole.items() if name.startswith("frame ")}
    return Curves(whole["motion"], whole["sharpness"], whole["colours"], kept)


def scored(
    curves: Mapping[str, Curves],
    true: torch.Tensor,
    clips: Sequence[str],
    ranges: Sequence[tuple[int, int]],
    features: Features | None,
) -> list[dict[str, Any]]:
    """Return a row for each arm and range, with 95% intervals over clips.

    Args:
        curves: of each arm.
        true: two true clips or more in [0, 1], `(clips, frames, 3, height, width)`.
        clips: names of those that were continued, the first ones.
        ranges: of frames, counted from 1.
        features: of the Fréchet distance, if there are any.
    """
    bootstrap = Bootstrap(clips)
    true_motion, true_sharpness = motion_steps(true).mean(), frame_sharpness(true).mean()
    true_colours = colour_moments(true)
    usual_colours = colour_distance(true_colours, true_colours).mean()
    true_features = None if features is None else features.extract_all(true.flatten(0, 1))
    rows = []
    for arm, curve in curves.items():
        for low, high in ranges:
            places = slice(low - 1, high)
            scores = {
                "motion": curve.motion[:, places].mean(dim=1),
                "true_motion": true_motion.expand(len(clips)),
                "sharpness": curve.sharpness[:, places].mean(dim=1),
                "true_sharpness": true_sharpness.expand(len(clips)),
                "colours": colour_distance(curve.colours[:, places], true_colours),
                "true_colours": usual_colours.expand(len(clips)),
            }
            row: dict[str, Any] = {"arm": arm, "first": low, "last": high, **summarize(scores)}
            row["intervals"] = {name: bootstrap.interval(scores, name) for name in MEASURES}
            row["each"] = {name: values.tolist() for name, values in scores.items()}
            if features is not None:
                frames = torch.stack([curve.kept[number] for number in range(low, high + 1)]).flatten(0, 1) / 255
                row["fd_efficientnet_lite0"] = frechet_distance(
                    features.extract_all(frames), true_features, features.components
                )
            rows.append(row)
    return rows


def held(rows: Sequence[Mapping[str, Any]], arm: str) -> list[str]:
    """Return the measures of an arm whose last range lies within the interval of the first."""
    first, *_, last = [row for row in rows if row["arm"] == arm]
    return [name for name in MEASURES if first["intervals"][name][0] <= last[name] <= first["intervals"][name][1]]


def stays(rows: Sequence[Mapping[str, Any]], arm: str) -> str:
    """Return a line of markdown that says the same of an arm of two ranges or more."""
    first, *_, last = [row for row in rows if row["arm"] == arm]
    inside = held(rows, arm)
    outside = [name for name in MEASURES if name not in inside]
    return (
        f"- {arm}: in frames {last['first']} to {last['last']} within the interval of frames {first['first']} to "
        f"{first['last']}: {', '.join(inside) or 'nothing'}; outside: {', '.join(outside) or 'nothing'}"
    )


def write(
    folder: Path,
    result: Mapping[str, Any],
    curves: Mapping[str, Curves],
    true: torch.Tensor,
    ranges: Sequence[tuple[int, int]],
) -> None:
    """Write results, table, chart and contact sheet."""
    rows = result["rows"]
    table = drift_table(rows)
    verdicts = [stays(rows, arm) for arm in curves] if len(ranges) > 1 else []
    write_whole(folder / "drift.json", json.dumps(without_nan(dict(result)), indent=2) + "\n")
    page = "\n\n".join([f"# Drift of {folder.name}", f"```bash\n{result['command']}\n```", table, "\n".join(verdicts)])
    write_whole(folder / "drift.md", page + "\n")
    draw(folder / "drift.png", _panels(curves, true))
    count = min(3, result["clips"])
    numbers = sorted({number for low, high in ranges for number in (low, high)})
    groups = [
        (
            f"clip {clip}",
            {
                arm: torch.stack([true[clip, 0], *(curve.kept[number][clip] / 255 for number in numbers)])
                for arm, curve in curves.items()
            },
        )
        for clip in range(count)
    ]
    names = ["given", *map(str, numbers)]
    contact_sheet(groups, [0], title="continued", names=names).save(folder / "drift-sheet.png", optimize=True)
    print("\n" + table + "\n\n" + "\n".join(verdicts))
    print(f"\nWrote drift.json, .md and .png and drift-sheet.png to {folder}")


def drift_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the measures of each arm and range in markdown, with 95% intervals."""
    columns = ["arm", "frames", *MEASURES]
    columns += ["FD-EfficientNetLite0"] if all("fd_efficientnet_lite0" in row for row in rows) else []
    cells = []
    for row in rows:
        measured = [
            f"{row[name]:.2f} [{', '.join(f'{end:.2f}' for end in row['intervals'][name])}]" for name in MEASURES
        ]
        frechet = [f"{row['fd_efficientnet_lite0']:.1f}"] if len(columns) > 2 + len(MEASURES) else []
        cells.append([row["arm"], f"{row['first']} to {row['last']}", *measured, *frechet])
    return markdown_table(columns, cells)


def _panels(curves: Mapping[str, Curves], true: torch.Tensor) -> list[Panel]:
    """Return a panel for each measure: means over clips, in bins of frames."""
    true_motion, true_sharpness, true_colours = (
        motion_steps(true).mean(),
        frame_sharpness(true).mean(),
        colour_moments(true),
    )
    usual_colours = colour_distance(true_colours, true_colours).mean()
    values = {
        "motion": lambda curve, places: curve.motion[:, places].mean() / true_motion,
        "sharpness": lambda curve, places: curve.sharpness[:, places].mean() / true_sharpness,
        "colours": lambda curve, places: (
            colour_distance(curve.colours[:, places], true_colours).mean() / usual_colours
        ),
    }
    panels = []
    for name, value in values.items():
        lines = {}
        for arm, curve in curves.items():
            size = min(BIN, curve.motion.shape[1])
            bins = range(0, curve.motion.shape[1] - size + 1, size)
            lines[arm] = [Point(first + size / 2, float(value(curve, slice(first, first + size)))) for first in bins]
        panels.append(Panel(name, "new frame", SHARE, lines, levels={"true clips": 1.0}))
    return panels


def _told(text: str, pipe: MarDiniPipeline) -> tuple[str, float]:
    """Read `name=value`, one value for all frames of a condition with one channel."""
    name, _, value = text.partition("=")
    known = {key: condition for key, condition in pipe.conditions.items() if condition.channels == 1}
    if name not in known:
        raise ValueError(
            f"--tell names {name!r}; conditions of one channel of this checkpoint: {', '.join(known) or 'none'}"
        )
    try:
        return name, float(value)
    except ValueError as error:
        raise ValueError(f"--tell gives {name} the value {value!r}; give a number") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.drift", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/drift"), help="folder")
    parser.add_argument("--kept", type=Path, help="folder of finished parts, to share it with other runs; default: kept, "
                        "in the output folder")  # fmt: skip
    parser.add_argument("--frames", type=int, default=1000, help="new frames of each clip")
    parser.add_argument("--given", type=int, default=4, help="true frames that lead the first window")
    parser.add_argument("--true-frames", type=int, default=32, help="frames of each true clip to compare with")
    parser.add_argument("--arm", action="append", default=[], required=True, metavar="NAME[: KEY=VALUE ...]",
                        help="a way of continuing: window, overlap, steps, guidance_scale, generated_noise, anchors, "
                        "keyframe_interval, colours")  # fmt: skip
    parser.add_argument("--range", type=int, nargs=2, action="append", default=[], metavar=("FIRST", "LAST"),
                        help="new frames that are measured, counted from 1; default: "
                        + ", ".join(f"{low} to {high}" for low, high in RANGES))  # fmt: skip
    parser.add_argument("--tell", action="append", default=[], metavar="NAME=VALUE", help="a condition of all frames")
    add_window_options(parser)
    parser.add_argument("--max-clips", type=int, help="continue so many, and compare them with all")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--scheduler", default="", help="of diffusers, made by from_config")
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="most clips continued together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    return parser


if __name__ == "__main__":
    main()
