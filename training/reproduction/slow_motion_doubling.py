"""Slow nine frames down more and more, by powers of two, and score what lies between: up to a thousand frames.

    python -m training.reproduction.slow_motion_doubling CHECKPOINT CLIPS -o outputs/doubling --factors 2 4 8 16

The nine frames lie `--apart` frames apart in each clip, so that sampled frames up to that factor have a true one each.
Scored are the frames that a factor adds to those of the factor before it, every second one; beyond `--apart` these have
a true frame only in the same clips at twice the rate, `--finer`. Sharpness and colours are those of all sampled frames,
and motion that from frame to frame, as a share of the true clip's at that pace. Beside it stand the autoencoder alone,
which is the ceiling where there is a true frame, and a cross-fade. Writes `results.json` and a chart; after an interruption, the
same command goes on.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.sizes import Size
from training.evaluation.baselines import cross_fade
from training.evaluation.drift import colour_distance, colour_moments
from training.evaluation.evaluation_windows import EvaluationWindows, digest_of, load_windows, to_bytes
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.intervals import Bootstrap
from training.evaluation.methods import BASELINE, CEILING, OURS, model_key, sampling_key
from training.evaluation.metrics import frame_sharpness, motion_steps
from training.evaluation.networks.lpips import Lpips
from training.evaluation.results import without_nan
from training.evaluation.sampling import reconstruct
from training.evaluation.tables import markdown_table
from training.figures.charts import Panel, Point, draw
from training.files import write_whole
from training.page_blocks import fill, picture
from training.reproduction.frame_scores import row, score_each_frame
from training.reproduction.shared_options import add_options, facts, load_lpips, load_pipeline


GIVEN = 9
BLOCK = "slow motion by powers of two"
METHODS = {OURS: "ours", CEILING: "autoencoder", BASELINE: "cross-fade"}
MEASURES = {"ssim": "SSIM of added frames", "lpips": "LPIPS of added frames", "motion": "motion", "sharpness": "sharpness", "colours": "colours"}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        _measure(options, "python -m training.reproduction.slow_motion_doubling " + shlex.join(typed))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    powers = [2**power for power in range(1, 12)]
    if any(number not in powers for number in (*options.factors, options.apart)):
        raise ValueError(f"--factors {options.factors} and --apart {options.apart}: give powers of two, from 2")
    span = (GIVEN - 1) * options.apart + 1
    pipe, finished = load_pipeline(options), FinishedParts(options.output / "kept")
    windows = load_windows(options.clips, options.size, span, stride=1, per_clip=1, max_clips=options.max_clips)
    if len(windows.clips) < 2:
        raise ValueError(f"{options.clips}: one clip, whose colours have none to be compared with; give at least 2")
    finer = None if options.finer is None else finer_frames(options.finer, windows, options.size)
    network = load_lpips(options.size, span)[0].lpips.get("alex")
    rows, bootstrap = [], Bootstrap(windows.clips)
    with torch.no_grad():
        for factor in tqdm(sorted(options.factors), unit="factor", disable=None):
            truth = windows.frames if finer is None or factor <= options.apart else finer
            made = {OURS: slowed(pipe, windows, factor, options, finished), **references(pipe, truth, factor)}
            for kind, frames in made.items():
                scores = scores_of(frames, truth, factor, network)
                rows.append(row(f"{frames.shape[1]:,} frames", kind, scores, bootstrap, factor=factor))
    record = facts(options, command, model_key(pipe)["checkpoint"]) | {"rows": rows, "clips": windows.clips}
    write_whole(options.output / "results.json", json.dumps(without_nan(record), indent=1) + "\n")
    text = table(rows)
    chart = draw(options.chart or options.output / "chart.png", panels(rows))
    if options.page:
        shown = picture(chart, options.page, "Scores by the number of frames that nine are slowed down to")
        fill(options.page, BLOCK, f"{shown}\n\n{text}")
    print(f"\n{text}\n\nWrote results.json and a chart")


def finer_frames(clips: Path, windows: EvaluationWindows, size: Size) -> torch.Tensor:
    """Return the frames of the same clips at twice their rate, as those of `windows`.

    Raises:
        ValueError: if they are other clips.
    """
    length = windows.frames.shape[1]
    found = load_windows(clips, size, 2 * length - 1, stride=1, per_clip=1, max_clips=len(windows.clips))
    if found.clips == windows.clips:
        # Encoded twice, frames differ a little, and less than from those between them.
        same, between = (
            (found.frames[:, first : first + 2 * length - 2 : 2] - windows.frames[:, :-1]).abs().mean(dim=(1, 2, 3, 4))
            for first in (0, 1)
        )
        if (same < between / 2).all():
            return found.frames
    raise ValueError(f"--finer is {clips}, whose every second frame is not the clips' own; record both alike")


def slowed(
    pipe: MarDiniPipeline,
    windows: EvaluationWindows,
    factor: int,
    options: argparse.Namespace,
    finished: FinishedParts,
) -> torch.Tensor:
    """Return the slowed clips in [0, 1], `(clips, (GIVEN - 1) * factor + 1, 3, height, width)`."""
    given = windows.frames[:, :: options.apart]
    key = {"slow motion": factor, **model_key(pipe), **sampling_key(pipe.scheduler, options.steps)}
    key |= {"given": digest_of(given), "seed": options.seeds[0]}
    parts = []
    for first in range(0, len(given), options.batch_size):
        last = min(first + options.batch_size, len(given))
        generators = [torch.Generator().manual_seed(options.seeds[0] * 1_000_003 + i) for i in range(first, last)]

        def make(first: int = first, last: int = last, generators: list = generators) -> dict[str, torch.Tensor]:
            made = pipe.slow_motion(
                given[first:last], factor, GIVEN, num_inference_steps=options.steps, generator=generators,
                output_type="pt",
            ).frames  # fmt: skip
            return {"frames": to_bytes(made.float().cpu())}

        parts.append(finished.get(key, first, last, make)["frames"])
    return torch.cat(parts).float() / 255


def references(pipe: MarDiniPipeline, truth: torch.Tensor, factor: int) -> dict[str, torch.Tensor]:
    """Return by kind what the slowed clips are compared with: a cross-fade, and true frames encoded and decoded.

    Args:
        pipe: the checkpoint.
        truth: the clips whose every `apart`-th frame was given, `(clips, (GIVEN - 1) * apart + 1, 3, height, width)`.
        factor: of the slow motion; beyond `apart` there are no true frames.
    """
    apart = (truth.shape[1] - 1) // (GIVEN - 1)
    places = range(0, (GIVEN - 1) * factor + 1, factor)
    empty = truth.new_zeros(len(truth), places[-1] + 1, *truth.shape[2:])
    empty[:, places] = truth[:, ::apart]
    made = {BASELINE: cross_fade(empty, places)}
    if factor <= apart:
        made[CEILING] = reconstruct(pipe, truth[:, :: apart // factor], places)
    return made


def scores_of(
    frames: torch.Tensor, truth: torch.Tensor, factor: int, network: Lpips | None
) -> dict[str, torch.Tensor]:
    """Return the scores of each slowed clip, `(clips,)` by name; "not a number" for those without true frames.

    Args:
        frames: slowed clips in [0, 1], `(clips, (GIVEN - 1) * factor + 1, 3, height, width)`.
        truth: the clips whose every `apart`-th frame was given, `(clips, (GIVEN - 1) * apart + 1, 3, height, width)`.
        factor: of the slow motion.
        network: LPIPS; `None` leaves it out.
    """
    apart = (truth.shape[1] - 1) // (GIVEN - 1)
    if factor <= apart:
        stride = apart // factor
        each = score_each_frame(frames[:, 1::2], truth[:, stride :: 2 * stride], network)
        scores = {name: each[name].mean(dim=1) for name in ("ssim", "psnr", "lpips") if name in each}
        scores["true_motion"] = motion_steps(truth[:, ::stride]).mean(dim=1)
    else:  # not even the motion: half the distance is not half of it
        unknown = ("ssim", "psnr", "lpips", "true_motion") if network else ("ssim", "psnr", "true_motion")
        scores = {name: torch.full((len(frames),), torch.nan) for name in unknown}
    sampled = [place for place in range(frames.shape[1]) if place % factor]
    scores["sharpness"] = frame_sharpness(frames[:, sampled]).mean(dim=1)
    scores["true_sharpness"] = frame_sharpness(truth).mean(dim=1)
    scores["motion"] = motion_steps(frames).mean(dim=1)
    true_colours = colour_moments(truth)
    scores["colours"] = colour_distance(colour_moments(frames[:, sampled]), true_colours)
    scores["true_colours"] = colour_distance(true_colours, true_colours)
    return scores


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a row for each factor and method in markdown, with 95% intervals."""
    shown = [name for name in MEASURES if all(name in found for found in rows)]
    cells = []
    for found in rows:
        values = [
            f"{found[name]:.{digits}f} [{found['intervals'][name][0]:.{digits}f}, {found['intervals'][name][1]:.{digits}f}]"
            if math.isfinite(found[name])
            else "no true frame"
            for name in shown
            for digits in (3 if name in ("ssim", "lpips") else 2,)
        ]
        cells.append([found["method"], found["factor"], METHODS[found["kind"]], *values])
    return markdown_table(["slowed to", "factor", "method", *(MEASURES[name] for name in shown)], cells)


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """Return a chart of each measure over the number of frames, with a line for each method."""
    made = []
    for name, label in MEASURES.items():
        if all(name in found for found in rows):
            lines = {
                text: [
                    Point((GIVEN - 1) * found["factor"] + 1, found[name], *found["intervals"][name])
                    for found in rows
                    if found["kind"] == kind and math.isfinite(found[name])
                ]
                for kind, text in METHODS.items()
            }
            lines = {text: points for text, points in lines.items() if points}
            levels = {"true clips": 1.0} if name in ("motion", "sharpness", "colours") else None
            ticks = [point.x for point in max(lines.values(), key=len, default=[])]
            made.append(Panel(label, "frames", label, lines, levels, log_x=True, ticks=ticks))
    return made


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.slow_motion_doubling", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128], help="powers of two")
    parser.add_argument("--apart", type=int, default=32, help="clip frames from one given frame to the next")
    parser.add_argument("--finer", type=Path, help="folder of the same clips at twice the rate")
    parser.add_argument("--max-clips", type=int, help="use only the first clips")
    parser.add_argument("--chart", type=Path, help="PNG, also of the page")
    return parser


if __name__ == "__main__":
    main()
