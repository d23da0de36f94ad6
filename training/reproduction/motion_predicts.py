"""Ask whether the motion of clips predicts how models trained on some score on others.

    python -m training.reproduction.motion_predicts runs/data/carracing/by-speed/motion.json \\
        slow/fast=outputs/slow-on-fast-1,outputs/slow-on-fast-2 ... --page PAGE BLOCK

Each argument is what a model was trained on and what it is judged on, as the lists of `clips_by_speed.py` are called,
and the folders of `training.evaluate`, one for each training. Motion is the median change in grey levels between frames
`SECONDS` apart. Two predictions, each with its rank correlation (Spearman): that a model loses as much to the one that
was trained on clips of the judged kind as their motions differ, and that it gains as much over optical flow as the
judged clips move.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torchmetrics.functional.regression import spearman_corrcoef

from training.evaluation.tables import markdown_table
from training.files import read_json
from training.page_blocks import fill
from training.reproduction.comparison import read_method


SECONDS = "0.1"
FLOW = "DIS optical flow"
SCORES = {"mid_ssim": "mid SSIM", "ssim": "mean SSIM", "mid_lpips": "mid LPIPS", "lpips": "mean LPIPS"}
BETTER_LESS = ("mid_lpips", "lpips")


def read_scores(text: str) -> tuple[tuple[str, str], dict[str, float], dict[str, float]]:
    """Read `TRAINED/JUDGED=FOLDER[,FOLDER]`: the two kinds, the model's scores and those of optical flow.

    Raises:
        ValueError: if the argument is of another form, or the results are missing.
    """
    kinds, _, folders = text.partition("=")
    trained, slash, judged = kinds.partition("/")
    if not (slash and trained and judged and folders):
        raise ValueError(f"{text!r} is not of the form TRAINED/JUDGED=FOLDER[,FOLDER], such as slow/fast=outputs/one")
    own, flow = (
        {name: sum(row[name] for row in method.rows) / len(method.rows) for name in SCORES if name in method.rows[0]}
        for method in (read_method(f"own={folders}"), read_method(f"flow={folders}:{FLOW}"))
    )
    return (trained, judged), own, flow


def gain(name: str, score: float, than: float) -> float:
    """Return how much better a score is than another one."""
    return than - score if name in BETTER_LESS else score - than


def predictions(motion: dict, arguments: Sequence[str]) -> str:
    """Return a row for each model and kind of clips, and the correlations, in markdown.

    Args:
        motion: of the lists, as `clips_by_speed.py` writes it.
        arguments: see `read_scores`.

    Raises:
        ValueError: also if no model was trained on a kind that another one is judged on.
    """
    found = {kinds: (own, flow) for kinds, own, flow in map(read_scores, arguments)}
    shown = [name for name in SCORES if all(name in scores for pair in found.values() for scores in pair)]
    ratios, moves, losses, gains, rows = [], [], {n: [] for n in shown}, {n: [] for n in shown}, []
    for (trained, judged), (own, flow) in found.items():
        if (judged, judged) not in found:
            raise ValueError(f"{trained}/{judged} has no {judged}/{judged} beside it to be compared with")
        at_home = found[judged, judged][0]
        trained_motion, judged_motion = (
            motion[f"{side}-{kind}"][SECONDS][1] for side, kind in (("train", trained), ("val", judged))
        )
        cells = [f"{trained_motion / judged_motion:.2f}"]
        for name in shown:
            over_flow, lost = gain(name, own[name], flow[name]), gain(name, at_home[name], own[name])
            gains[name].append(over_flow)
            if trained != judged:
                losses[name].append(lost)
            cells.append(f"{over_flow:+.3f}, {0.0 - lost:+.3f}")
        moves.append(judged_motion)
        if trained != judged:
            ratios.append(abs(math.log(trained_motion / judged_motion)))
        rows.append([trained, judged, f"{judged_motion:.1f}", *cells])
    columns = ["trained on", "judged on", "motion judged", "motion trained over judged"]
    columns += [f"{SCORES[name]}: gain over flow, over the model of that kind" for name in shown]
    facts = [
        ("what is lost to the model of that kind, and how far the motions differ", ratios, losses),
        ("the gain over optical flow, and how much the judged clips move", moves, gains),
    ]
    lines = [
        [what, *(f"{spearman_corrcoef(torch.tensor(values[n]), torch.tensor(by)).item():+.2f}" for n in shown)]
        for what, by, values in facts
    ]
    head = ["rank correlation of", *(SCORES[name] for name in shown)]
    return f"{markdown_table(columns, rows)}\n\n{markdown_table(head, lines)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.motion_predicts", description=__doc__.splitlines()[0]
    )
    parser.add_argument("motion", type=Path, help="motion.json of training.reproduction.clips_by_speed")
    parser.add_argument("scores", nargs="+", metavar="TRAINED/JUDGED=FOLDER[,FOLDER...]")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "BLOCK"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        text = predictions(read_json(options.motion, ()), options.scores)
        if options.page:
            fill(Path(options.page[0]), options.page[1], text)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(text)


if __name__ == "__main__":
    main()
