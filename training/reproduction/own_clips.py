"""Fill the page on own clips with what `training.fit` found: `python -m training.reproduction.own_clips PAGE FIT ...`.

Each fit fills the block of its folder's name with the probe, what was chosen, the scores, the verdict and the minutes
and the memory of each step.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.results import with_nan
from training.evaluation.tables import COLUMNS, markdown_table, score_cell, score_table
from training.evaluation.verdict import verdict
from training.files import read_json
from training.own_clips.present import short_name
from training.page_blocks import fill


PROBED = ("mid_ssim", "mid_lpips")


def block_of(fit: Path) -> str:
    """Return the block of a fit in markdown; without scores where it was advised against training.

    Raises:
        ValueError: if the folder holds no fit, or one that has not been probed.
    """
    record, probed = read_json(fit / "fit.json", ("seconds", "done")), read_json(fit / "probe.json")
    hours = record["asked"]["hours"]
    clips = short_name(record["asked"]["clips"])
    rate = record["asked"].get("picture_fps")
    options = f"--hours {hours:g}" + (f" --picture-fps {rate:g}" if rate else "")
    parts = [f"`python -m training.fit {clips} {fit.resolve().name} {options}`", _probe(probed)]
    parts += [f"Before the training: {sentence}." for sentence in probed["verdict"]]
    if "choose" in record["done"]:
        choices = read_json(fit / "choices.json")
        parts.append("\n".join(f"- {name.replace('_', ' ')}: {why}" for name, why in choices["why"].items()))
    if "judge" in record["done"]:
        results = with_nan(read_json(fit / "evaluation" / "results.json", ("rows", "differences")))
        parts += [score_table(results["rows"]), *verdict(results["rows"], results["differences"])]
    else:
        parts.append("Nothing was trained.")
    seconds, memory = record["seconds"], record.get("gib", {})
    rows = [["minutes", *(f"{value / 60:.1f}" for value in seconds.values()), f"{sum(seconds.values()) / 60:.1f}"]]
    if memory:
        rows.append(["most memory, GiB", *(f"{memory[step]:.2f}" if step in memory else "–" for step in seconds), ""])
    parts.append(markdown_table(["step", *seconds, "together"], rows))
    return "\n\n".join(parts)


def _probe(probed: dict[str, Any]) -> str:
    tables = []
    for column in PROBED:
        rows = probed["distances"]
        if not rows or column not in rows[0]["rows"][0]:
            continue
        cells = [
            [f"{1 / row['seconds']:.3g} a second", *(score_cell(score, column) for score in row["rows"])]
            for row in rows
        ]
        tables.append(markdown_table([COLUMNS[column], *(score["method"] for score in rows[0]["rows"])], cells))
    return "\n\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.own_clips", description=__doc__.splitlines()[0]
    )
    parser.add_argument("page", type=Path, help="markdown file with the blocks")
    parser.add_argument("fits", type=Path, nargs="+", help="folders of training.fit")
    options = parser.parse_args(arguments)
    try:
        for fit in options.fits:
            fill(options.page, fit.resolve().name, block_of(fit))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
