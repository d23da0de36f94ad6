"""Show how painted motion follows the motion that a checkpoint is told.

    python -m training.reproduction.told_motion outputs/told --chart told.png --page PAGE BLOCK

Reads an evaluation with `--condition-scale motion=0.5 motion=2 ...`, whose clips were told their own motion once and
multiples of it in further rows. Writes the painted motion over the told one, both as shares of the true clips', with
95% intervals over clips. What is told is less than was asked for where it lies beyond the learned range.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.methods import OURS, TIMES
from training.evaluation.results import read_results
from training.evaluation.tables import markdown_table, score_cell
from training.figures.charts import Panel, Point, draw
from training.page_blocks import fill, picture


SHOWN = {"motion": "motion painted", "mid_ssim": "mid SSIM", "sharpness": "sharpness"}


def told_rows(folder: Path) -> list[tuple[float, dict[str, Any]]]:
    """Return the rows that were told a multiple of their motion, by that factor, 1 for the row that was told its own.

    Raises:
        ValueError: if there are no results, or no clip was told another motion than its own.
    """
    rows = {row["method"]: row for row in read_results(folder)["rows"] if row["kind"] == OURS}
    found = {}
    for method, row in rows.items():
        own, _, factor = method.partition(f", motion{TIMES}")
        if factor:
            found |= {1.0: {**rows[own], "told": {"factor": 1.0, "clamped": 0.0}}, float(factor): row}
    if not found:
        raise ValueError(
            f"{folder} has no row with another motion; evaluate with --condition-scale motion=0.5 motion=2"
        )
    return sorted(found.items(), key=lambda told: told[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.told_motion", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="of training.evaluate's results")
    parser.add_argument("--chart", type=Path, required=True, help="PNG")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "BLOCK"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        rows = told_rows(options.folder)
        told = [row["told"] for _, row in rows]
        cells = [
            [f"{asked:g}", f"{one['factor']:.2f}", f"{one['clamped']:.0%}", *(score_cell(row, name) for name in SHOWN)]
            for (asked, row), one in zip(rows, told)
        ]
        columns = ["times its own motion", "told, within the learned range", "clamped to it"]
        text = markdown_table([*columns, *SHOWN.values()], cells)
        points = [
            Point(one["factor"], row["motion"], *row["intervals"]["motion"]) for (_, row), one in zip(rows, told)
        ]
        as_told = [Point(one["factor"], one["factor"]) for one in told]
        panel = Panel(
            "Motion, as shares of the true clips'", "told", "painted", {"painted": points, "as told": as_told},
            dashed=["as told"], log_x=True, log_y=True, ticks=[round(one["factor"], 2) for one in told],
        )  # fmt: skip
        chart = draw(options.chart, [panel])
        if options.page:
            page = Path(options.page[0])
            shown = picture(chart, page, "Painted motion over the motion that is told")
            fill(page, options.page[1], f"{shown}\n\n{text}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{text}\n\nWrote {chart}")


if __name__ == "__main__":
    main()
