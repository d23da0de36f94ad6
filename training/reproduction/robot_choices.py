"""Fill the tables of the robot's page beside its scores: paces, autoencoders, and losses in the course of the training.

python -m training.reproduction.robot_choices paces "2nd frame=outputs/robot-strides/2" ... --page PAGE BLOCK
python -m training.reproduction.robot_choices autoencoders runs/autoencoder-robot-16 ... --page PAGE BLOCK
python -m training.reproduction.robot_choices losses runs/tiny-robot task:40 task:440 ... --page PAGE BLOCK
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.evaluation.methods import BASELINE
from training.evaluation.results import read_results
from training.evaluation.tables import COLUMNS, markdown_table, score_cell
from training.files import read_json, read_lines
from training.page_blocks import fill


PACE_COLUMNS = ("mid_ssim", "mid_psnr", "mid_lpips", "ssim", "motion", "sharpness")
TIMESTEPS = ("0.2", "0.4", "0.6", "0.8", "0.95")
QUALITY = {
    "mid_ssim": ("mid SSIM", 3),
    "mid_psnr": ("mid PSNR", 1),
    "motion": ("motion", 2),
    "sharpness": ("sharpness", 2),
}


def paces(named: Sequence[str]) -> str:
    """Return the scores of simple methods at several paces, `LABEL=FOLDER` of `training.evaluate` each."""
    lines = []
    for text in named:
        label, _, folder = text.partition("=")
        results = read_results(Path(folder))
        simple = [row for row in results["rows"] if row["kind"] == BASELINE]
        for number, row in enumerate(simple):
            pace = [label, len(results["windows"])] if number == 0 else ["", ""]
            cells = [score_cell(row, column, column == "mid_ssim") for column in PACE_COLUMNS if column in row]
            lines.append([*pace, row["method"], *cells])
    measured = [COLUMNS[column] for column in PACE_COLUMNS if column in simple[0]]
    return markdown_table(["every", "windows", "method", *measured], lines)


def autoencoders(folders: Sequence[str]) -> str:
    """Return PSNR and SSIM of autoencoders before and after their training, from `training.json` of each folder."""
    lines, steps = [], set()
    for folder in folders:
        record = read_json(Path(folder) / "training.json", ("config", "linear", "trained"))
        config = record["config"]
        steps.add(config["steps"])
        cells = [f"{found['psnr']:.1f} dB / {found['ssim']:.3f}" for found in (record["linear"], record["trained"])]
        lines.append([config["latent_channels"], *cells])
    trained = " or ".join(f"{count:,}" for count in sorted(steps))
    return markdown_table(["latent channels", "linear basis alone", f"decoder trained for {trained} steps"], lines)


def losses(run: Path, places: Sequence[str]) -> str:
    """Return held-out losses and scores of a run at `STAGE:STEP` each."""
    records = read_lines(run / "metrics.jsonl", {"stage": str, "step": int})
    lines, last = [], ""
    for text in places:
        stage, _, step = text.partition(":")
        found: dict[str, float] = {}
        for record in records:
            if (record["stage"], str(record["step"])) == (stage, step):
                found |= record.get("heldout", {})
        names = ["planner", *(f"diffusion/{t}" for t in TIMESTEPS), *(f"quality/{name}" for name in QUALITY)]
        if missing := [name for name in names if name not in found]:
            raise ValueError(f"{run / 'metrics.jsonl'} has no {missing[0]} at step {step} of stage {stage!r}")
        digits = [3] * (1 + len(TIMESTEPS)) + [digit for _, digit in QUALITY.values()]
        cells = [f"{found[name]:.{digit}f}" for name, digit in zip(names, digits)]
        lines.append(["" if stage == last else f"`{stage}`", f"{int(step):,}", *cells])
        last = stage
    head = ["stage", "step", "planner", *(f"{'t = ' if t == '0.2' else ''}{t[1:]}" for t in TIMESTEPS)]
    return markdown_table([*head, *(label for label, _ in QUALITY.values())], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.robot_choices", description=__doc__.splitlines()[0]
    )
    parser.add_argument("table", choices=("paces", "autoencoders", "losses"))
    parser.add_argument("sources", nargs="+", help="see above")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        if options.table == "losses":
            text = losses(Path(options.sources[0]), options.sources[1:])
        else:
            text = {"paces": paces, "autoencoders": autoencoders}[options.table](options.sources)
        print(text)
        if options.page:
            fill(Path(options.page[0]), options.page[1], text)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
