"""Measure how much plan is needed: score samples with worse signals, and with planners that know less.

    python -m training.reproduction.degraded_signals CHECKPOINT CLIPS -o outputs/results/degraded-signals

Windows and scores are those of `training.evaluate`; all alterations are sampled from the same noise, so differences
are paired. Writes `results.json`, `results.csv`, `results.md` and two charts: of each alteration by its strength, and
of all by the information that is left; after an interruption, the same command goes on. The alterations are defined in
`evaluation/altered_signals.py` and `altered_planner.py`, information in `plan_information.py`.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini.masking import TASKS, task_indices
from training.evaluation.altered_planner import GENERATED, near_frames, planner_at
from training.evaluation.altered_signals import DROPPED, OTHER, Alteration, noisy, pooled, tokens_dropped
from training.evaluation.evaluation_windows import choose_window, load_windows
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import SamplerSettings, baselines, model_key, ours
from training.evaluation.results import write_results
from training.evaluation.scores import Evaluation
from training.evaluation.tables import difference_table, markdown_table, score_table
from training.figures.charts import Panel, Point, draw
from training.page_blocks import fill_all, picture
from training.reproduction.plan_information import information_left, summary_panels
from training.reproduction.shared_options import add_options, facts, load_lpips, load_pipeline


SCORE, SCORE_LABEL = "ssim", "change of mean SSIM"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        _measure(options, "python -m training.reproduction.degraded_signals " + shlex.join(typed))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    altered = alterations(options.noise, options.dropped, options.squares, options.reach, options.sides)
    pipe = load_pipeline(options)
    window = choose_window(options, pipe.trained_window)
    windows = load_windows(
        options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip, options.fps
    )
    given = task_indices(options.task, options.num_frames)
    networks, missing = load_lpips(options.size, options.num_frames)
    count = len(windows.frames)
    print(
        f"{count} windows of {len(set(windows.clips))} clips, {window}; {len(altered)} alterations of the planning "
        "signals",
        flush=True,
    )
    settings = SamplerSettings(
        steps=(options.steps,), seeds=tuple(options.seeds), batch_size=options.batch_size, alterations=tuple(altered)
    )
    methods = baselines(count, given, options.num_frames, None) + ours(pipe, windows.clips, settings)
    with torch.no_grad():
        evaluation = Evaluation(windows, given, networks, FinishedParts(options.output / "kept"))
        rows, differences, _ = evaluation.run(methods)

        left = information_left(pipe, windows, given, altered, options.steps, options.batch_size)

    own = settings.label(options.steps)
    paired = [found for found in differences if found["method"] == own]
    record = facts(options, command, model_key(pipe)["checkpoint"])
    record |= {"networks": networks.sources, "not_measured": missing, "information": left}
    write_results(options.output, record, rows, paired, windows)
    by_method = {found["than"]: found for found in paired}
    strengths = (options.noise, options.dropped, options.squares, options.reach)
    chart = draw(options.chart or options.output / "chart.png", panels(by_method, own, *strengths))
    summary = options.summary or options.output / "summary.png"
    draw(summary, summary_panels(left, by_method, own, (SCORE, SCORE_LABEL)))
    if options.page:
        shown = picture(summary, options.page, "Change of mean SSIM by the information left in the plan")
        tables = {"scores": score_table(rows), "differences": difference_table(paired)}
        fill_all(options.page, tables | {"information": f"{shown}\n\n{information_table(left)}"})
    print(f"\n{difference_table([by_method[own + alteration.suffix] for alteration in altered])}\n")
    print(f"Wrote results.json, results.csv and results.md to {options.output}, and {chart}")


def information_table(left: Mapping[str, float]) -> str:
    """Return the shares of `information_left` in markdown."""
    rows = [[suffix.removeprefix(", "), f"{share:.3f}"] for suffix, share in left.items()]
    return markdown_table(["plan", "information left"], rows)


def alterations(
    noise: Sequence[float],
    dropped: Sequence[float],
    squares: Sequence[int],
    reach: Sequence[int] = (),
    sides: Sequence[int] = (),
) -> list[Alteration]:
    """Return all alterations that are measured, with `DROPPED` and `OTHER` as the ends of the scale.

    Args:
        noise: strengths, see `noisy`.
        dropped: shares, see `tokens_dropped`.
        squares: sides, see `pooled`; the mean over all sampled frames is taken of single tokens.
        reach: frames each way, see `near_frames`.
        sides: factors, see `planner_at`.
    """
    return [
        *map(noisy, noise),
        *map(tokens_dropped, dropped),
        *map(pooled, squares),
        pooled(over_frames=True),
        *map(near_frames, reach),
        *map(planner_at, sides),
        GENERATED,
        DROPPED,
        OTHER,
    ]


def panels(
    differences: Mapping[str, Mapping[str, Any]],
    own: str,
    noise: Sequence[float],
    dropped: Sequence[float],
    squares: Sequence[int],
    reach: Sequence[int] = (),
) -> list[Panel]:
    """Return charts of the change of the score.

    Args:
        differences: of the planner's own signals to the altered ones, as `Evaluation.run` returns them, by method.
        own: name of the method with the planner's own signals.
        noise: strengths that were measured.
        dropped: shares that were measured.
        squares: sides that were measured.
        reach: frames each way that were measured.
    """

    def point(x: float, alteration: Alteration) -> Point:
        found = differences[own + alteration.suffix]
        low, high = found["intervals"][SCORE]
        return Point(x, -found["difference"][SCORE], -high, -low)

    ends = {"signals dropped": point(0, DROPPED).y}
    untouched = Point(0, 0, 0, 0)
    return [
        Panel(
            "noise on the signals",
            "in deviations of the signals",
            SCORE_LABEL,
            {"": [untouched, *(point(x, noisy(x)) for x in sorted(noise))]},
            levels=ends,
        ),
        Panel(
            "tokens dropped",
            "share of the planning tokens",
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
        *([Panel(
            "the planner's attention across frames",
            "frames that it sees each way",
            SCORE_LABEL,
            {"": [point(frames, near_frames(frames)) for frames in sorted(reach)]},
            levels=ends,
            ticks=tuple(sorted(reach)),
        )] if reach else []),
    ]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.degraded_signals", description=__doc__.splitlines()[0]
    )
    add_options(parser, windows=True)
    parser.add_argument("--windows-per-clip", type=int, default=2)
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0], help="in standard deviations of the signals"
    )
    parser.add_argument(
        "--dropped", type=float, nargs="+", default=[0.25, 0.5, 0.75, 0.9], help="shares of the planning tokens"
    )
    parser.add_argument(
        "--squares", type=int, nargs="+", default=[2, 4], help="sides, in tokens, of the squares that are averaged"
    )
    parser.add_argument(
        "--reach", type=int, nargs="*", default=[0, 1, 2, 4], help="frames each way that the planner attends to"
    )
    parser.add_argument(
        "--sides", type=int, nargs="*", default=[1, 4, 8], help="how many times smaller the side is that it sees"
    )
    parser.add_argument("--chart", type=Path, help="PNG of the alterations by their strength")
    parser.add_argument("--summary", type=Path, help="PNG of all alterations by the information that is left")
    return parser


if __name__ == "__main__":
    main()
