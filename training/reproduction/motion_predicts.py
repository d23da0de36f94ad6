"""Ask whether the motion of clips predicts how models trained on some score on others.

    python -m training.reproduction.motion_predicts runs/data/carracing/by-speed/motion.json \\
        slow/fast=outputs/slow-on-fast-1,outputs/slow-on-fast-2 ... --page PAGE BLOCK

Each argument is what a model was trained on and what it is judged on, as the lists of `clips_by_speed.py` are called,
and the folders of `training.evaluate`, one for each training. Motion is the mean change in grey levels between frames
`SECONDS` apart, of a list the median over its clips. Writes what each model gains on each list, and how well the motion
of a held-out clip ranks the gains there: Spearman's correlation over all clips, with 95% intervals by resampling them.
A clip of several lists counts once, with the mean of its scores.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torchmetrics.functional.regression import spearman_corrcoef

from training.evaluation.intervals import Bootstrap, interval_of
from training.evaluation.tables import markdown_table
from training.files import read_json
from training.page_blocks import fill
from training.reproduction.comparison import ComparedMethod, read_method


SECONDS = "0.1"
FLOW = "DIS optical flow"
SCORES = {"mid_ssim": "mid SSIM", "ssim": "mean SSIM", "mid_lpips": "mid LPIPS", "lpips": "mean LPIPS"}
BETTER_LESS = ("mid_lpips", "lpips")
ByClip = dict[str, dict[str, float]]  # scores of each clip, by its name and theirs


def read_scores(text: str) -> tuple[tuple[str, str], ComparedMethod, ComparedMethod]:
    """Read `TRAINED/JUDGED=FOLDER[,FOLDER]`: the two kinds, the model and optical flow.

    Raises:
        ValueError: if the argument is of another form, or the results are missing.
    """
    kinds, _, folders = text.partition("=")
    trained, slash, judged = kinds.partition("/")
    if not (slash and trained and judged and folders):
        raise ValueError(f"{text!r} is not of the form TRAINED/JUDGED=FOLDER[,FOLDER], such as slow/fast=outputs/one")
    return (trained, judged), read_method(f"own={folders}"), read_method(f"flow={folders}:{FLOW}")


def gain(name: str, score: float, than: float) -> float:
    """Return how much better a score is than another one."""
    return than - score if name in BETTER_LESS else score - than


def by_clip(methods: Sequence[ComparedMethod], shown: Sequence[str]) -> ByClip:
    """Return the mean scores of each clip over the windows of all evaluations."""
    found: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        for name in shown:
            for window, score in zip(method.windows, method.scores[name].tolist(), strict=True):
                found.setdefault(window["clip"], {}).setdefault(name, []).append(score)
    return {clip: {name: sum(v) / len(v) for name, v in scores.items()} for clip, scores in found.items()}


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> tuple[float, tuple[float, float]]:
    """Return Spearman's correlation of two values of each clip, `(clips,)`, and its 95% interval over clips."""
    clips = torch.arange(len(one))
    weights = Bootstrap([f"{i:06d}" for i in clips]).weights.long()
    places = [clips.repeat_interleave(counts) for counts in weights]
    each = torch.stack([spearman_corrcoef(one[chosen], other[chosen]) for chosen in places])
    return spearman_corrcoef(one, other).item(), interval_of(each.double())


def predictions(motion: Mapping, arguments: Sequence[str]) -> str:
    """Return a row for each model and kind of clips, and the correlations, in markdown.

    Args:
        motion: of the lists, as `clips_by_speed.py` writes it.
        arguments: see `read_scores`.

    Raises:
        ValueError: also if no model was trained on a kind that another one is judged on, or the motion of a clip is not
            known.
    """
    found = {kinds: (own, flow) for kinds, own, flow in map(read_scores, arguments)}
    shown = [
        name for name in SCORES if all(name in method.rows[0]["windows"] for pair in found.values() for method in pair)
    ]
    mean = {kinds: [summary(method, shown) for method in pair] for kinds, pair in found.items()}
    rows = []
    for (trained, judged), (own, flow) in mean.items():
        if (judged, judged) not in mean:
            raise ValueError(f"{trained}/{judged} has no {judged}/{judged} beside it to be compared with")
        home = mean[judged, judged][0]
        trained_motion, judged_motion = (
            motion["lists"][f"{side}-{kind}"][SECONDS][1] for side, kind in (("train", trained), ("val", judged))
        )
        gains = [
            f"{gain(n, own[n], flow[n]):+.3f}, {gain(n, own[n], home[n]) if trained != judged else 0.0:+.3f}"
            for n in shown
        ]
        rows.append([trained, judged, f"{judged_motion:.1f}", f"{trained_motion / judged_motion:.2f}", *gains])
    columns = ["trained on", "judged on", "motion judged", "motion trained over judged"]
    columns += [f"{SCORES[name]}: gain over flow, over the model of that kind" for name in shown]
    return f"{markdown_table(columns, rows)}\n\n{correlations(motion, found, shown)}"


def summary(method: ComparedMethod, shown: Sequence[str]) -> dict[str, float]:
    """Return a method's means over windows and trainings."""
    return {name: method.scores[name].mean().item() for name in shown}


def correlations(
    motion: Mapping, found: Mapping[tuple[str, str], tuple[ComparedMethod, ComparedMethod]], shown: Sequence[str]
) -> str:
    """Return the rank correlations of a clip's motion with what models gain there, in markdown."""
    kinds = list(dict.fromkeys(trained for trained, _ in found))
    own = {kind: by_clip([pair[0] for (of, _), pair in found.items() if of == kind], shown) for kind in kinds}
    flow = by_clip([pair[1] for pair in found.values()], shown)
    clips = sorted(set.intersection(*(set(scores) for scores in (*own.values(), flow))))
    if missing := [clip for clip in clips if clip not in motion["clips"]]:
        raise ValueError(f"the motion of {missing[0]} is not known; run training.reproduction.clips_by_speed again")
    moves = torch.tensor([motion["clips"][clip] for clip in clips], dtype=torch.float64)
    of_list = {kind: motion["lists"][f"train-{kind}"][SECONDS][1] for kind in kinds}
    calm, lively = min(kinds, key=of_list.__getitem__), max(kinds, key=of_list.__getitem__)
    compared = [(f"the gain over optical flow of the model trained on {kind}", own[kind], flow) for kind in kinds]
    if calm != lively:
        compared.append(
            (f"the lead of the model trained on {lively} over that trained on {calm}", own[lively], own[calm])
        )
    lines = []
    for what, ours, theirs in compared:
        cells = []
        for name in shown:
            gains = [gain(name, ours[clip][name], theirs[clip][name]) for clip in clips]
            value, (low, high) = rank_correlation(moves, torch.tensor(gains, dtype=torch.float64))
            cells.append(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append([what, *cells])
    head = [f"rank correlation over {len(clips)} clips, of their motion with", *(SCORES[name] for name in shown)]
    return markdown_table(head, lines)


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
        text = predictions(read_json(options.motion, ("lists", "clips")), options.scores)
        if options.page:
            fill(Path(options.page[0]), options.page[1], text)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(text)


if __name__ == "__main__":
    main()
