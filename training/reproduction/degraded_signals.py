"""How good the planning signal has to be: what is sampled by it is scored with noise on it, with tokens dropped, and with means in their place.

    python -m training.reproduction.degraded_signals checkpoints/mardini-tiny-carracing CLIPS -o outputs/results/degraded-signals

Windows and scores are those of `training.evaluate`; every change of the plan is sampled from the same noise, so that differences are
paired. Writes `results.json`, `results.csv`, `results.md` and `chart.png`; typed again after an interruption, it goes on. The changes are
defined in `evaluation/alterations.py`.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusers_mardini.masking import TASKS, task_indices
from training.evaluation.altered_signals import DROPPED, OTHER, Alteration, noisy, pooled, tokens_dropped
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import SamplerSettings, baselines, model_key, ours
from training.evaluation.results import write_results
from training.evaluation.scores import Evaluation
from training.evaluation.tables import difference_table, score_table
from training.figures.charts import Panel, Point, draw
from training.reproduction.page_blocks import fill_all
from training.reproduction.shared_options import add_options, facts, load_lpips, load_pipeline


SCORE, SCORE_LABEL = "ssim", "change of mean SSIM"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        _measure(options, "python -m training.reproduction.degraded_signals " + shlex.join(typed))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    changes = alterations(options.noise, options.dropped, options.squares)
    windows = load_windows(options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip)
    given = task_indices(options.task, options.num_frames)
    networks, missing = load_lpips(options.size, options.num_frames)
    pipe = load_pipeline(options)
    count = len(windows.frames)
    print(f"{count} windows of {len(set(windows.clips))} clips, {len(changes)} changes of the plan", flush=True)
    sampling = SamplerSettings(
        steps=(options.steps,), seeds=tuple(options.seeds), batch_size=options.batch_size, alterations=tuple(changes)
    )
    methods = baselines(count, given, options.num_frames, None) + ours(pipe, windows.clips, sampling)
    with torch.no_grad():
        evaluation = Evaluation(windows, given, networks, FinishedParts(options.output / "kept"))
        rows, differences, _ = evaluation.run(methods)

    own = sampling.label(options.steps)
    paired = [found for found in differences if found["method"] == own]
    told = facts(options, command, model_key(pipe)["checkpoint"])
    told |= {"networks": networks.sources, "not_measured": missing}
    write_results(options.output, told, rows, paired, windows)
    if options.page:
        fill_all(options.page, {"scores": score_table(rows), "differences": difference_table(paired)})
    of_plans = {found["than"]: found for found in paired}
    chart = draw(options.output / "chart.png", panels(of_plans, own, options.noise, options.dropped, options.squares))
    print(f"\n{difference_table([of_plans[own + change.suffix] for change in changes])}\n")
    print(f"Wrote results.json, results.csv, results.md and {chart.name} to {options.output}")


def alterations(noise: Sequence[float], dropped: Sequence[float], squares: Sequence[int]) -> list[Alteration]:
    """Every change that is measured; no plan at all, and another window's, are the ends of the scale.

    Args:
        noise: strengths, see `noisy`.
        dropped: shares, see `tokens_dropped`.
        squares: sides, see `pooled`; means over all sampled frames are taken of single tokens.
    """
    return [
        *map(noisy, noise),
        *map(tokens_dropped, dropped),
        *map(pooled, squares),
        pooled(over_frames=True),
        DROPPED,
        OTHER,
    ]


def panels(
    differences: Mapping[str, Mapping[str, Any]],
    own: str,
    noise: Sequence[float],
    dropped: Sequence[float],
    squares: Sequence[int],
) -> list[Panel]:
    """Charts of how much the score changes.

    Args:
        differences: of the planner's own plan to the changed one, as `Evaluation.run` has them, by method.
        own: the method with the planner's own plan.
        noise, dropped, squares: that were measured.
    """

    def point(x: float, change: Alteration) -> Point:
        found = differences[own + change.suffix]
        low, high = found["intervals"][SCORE]
        return Point(x, -found["difference"][SCORE], -high, -low)

    ends = {"no plan": point(0, DROPPED).y}
    untouched = Point(0, 0, 0, 0)
    return [
        Panel(
            "noise on the plan",
            "in deviations of the plan",
            SCORE_LABEL,
            {"": [untouched, *(point(x, noisy(x)) for x in sorted(noise))]},
            levels=ends,
        ),
        Panel(
            "tokens dropped",
            "share of the plan's tokens",
            SCORE_LABEL,
            {"": [untouched, *(point(x, tokens_dropped(x)) for x in sorted(dropped)), point(1, DROPPED)]},
            levels=ends,
        ),
        Panel(
            "means in place of tokens",
            "side of the squares, in tokens",
            SCORE_LABEL,
            {
                "of each frame": [Point(1, 0, 0, 0), *(point(side, pooled(side)) for side in sorted(squares))],
                "of all sampled frames": [point(1, pooled(over_frames=True))],
            },
            levels=ends,
            ticks=(1, *sorted(squares)),
        ),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.degraded_signals", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    parser.add_argument("--num-frames", type=int, default=9, help="frames of a window")
    parser.add_argument("--stride", type=int, default=2, help="distance of neighbouring window frames in the clip")
    parser.add_argument("--windows-per-clip", type=int, default=2)
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], help="in standard deviations of the plan"
    )
    parser.add_argument(
        "--dropped", type=float, nargs="+", default=[0.25, 0.5, 0.75, 0.9], help="shares of the plan's tokens"
    )
    parser.add_argument(
        "--squares", type=int, nargs="+", default=[2, 4], help="sides, in tokens, of squares to take means of"
    )
    return parser


if __name__ == "__main__":
    main()
