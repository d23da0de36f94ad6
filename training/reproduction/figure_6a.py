"""Draw Fig. 6a: quality against the number of steps, a curve for each solver.

    python -m training.reproduction.figure_6a outputs/results/figure-6a-ddim outputs/results/figure-6a-solvers \
        -o docs/images/results/figure_6a.png --page docs/results/figure_6a.md

Reads results of `training.evaluate --steps ... --scheduler ...` on the same windows, and writes their table into the
block `table` of a page. `comparison.py` gives differences with their intervals.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.methods import OURS
from training.evaluation.results import read_results
from training.evaluation.tables import COLUMNS, markdown_table, score_cell
from training.figures.charts import Panel, Point, draw
from training.page_blocks import fill
from training.reproduction.comparison import SETTING, differing


SOLVERS = {"": "DDIM", "DPMSolverMultistepScheduler": "DPM-Solver++", "UniPCMultistepScheduler": "UniPC"}
TABLE = ("mid_ssim", "mid_lpips", "fd_efficientnet_lite0", "fd_window", "motion", "sharpness")
DRAWN = {
    "mid_ssim": "higher is better",
    "mid_lpips": "lower is better",
    "fd_efficientnet_lite0": "lower is better",
    "motion": "1 is the true clips'",
}

# A row by solver and number of steps.
Rows = dict[tuple[str, int], dict[str, Any]]


def read_rows(paths: Sequence[Path]) -> Rows:
    """Read the rows of ours with the planner's own signals from several results.

    Raises:
        ValueError: if windows, weights or guidance of the results differ, two have the same row, or none has one.
    """
    rows, windows = {}, None
    same = ("checkpoint", "sampled_by", "guidance_scale", "seeds", "windows")
    for path in paths:
        results = read_results(path)
        scored = {key: results.get(key) for key in (*same, *SETTING)}
        if windows is not None and (any(windows[key] != scored[key] for key in same) or differing(windows, scored)):
            raise ValueError(
                f"{path} has other windows, seeds, task, guidance, checkpoint or weights than {paths[0]}; "
                "evaluate both alike"
            )
        windows = scored
        for row in results["rows"]:
            found = re.fullmatch(r"ours, (\d+) steps?(?:, (\w+))?(?:, guidance [^,]+)?", row["method"])
            if row["kind"] == OURS and found:
                solver = found[2] or ""
                key = SOLVERS.get(solver, solver), int(found[1])
                if key in rows:
                    raise ValueError(f"{key[0]} with {key[1]} steps is in two of the results; leave it out of {path}")
                rows[key] = row
    if not rows:
        raise ValueError(f"no row of ours in {', '.join(map(str, paths))}; run training.evaluate with --steps")
    return dict(sorted(rows.items(), key=lambda item: (list(SOLVERS.values()) + [item[0][0]]).index(item[0][0])))


def table(rows: Rows) -> str:
    """Return the table in markdown, with 95% intervals; Fréchet distances, which are of whole sets, have none."""
    columns = [column for column in TABLE if all(column in row for row in rows.values())]
    cells = [
        [solver, steps, *(score_cell(row, column) for column in columns)] for (solver, steps), row in rows.items()
    ]
    return markdown_table(["solver", "steps", *(COLUMNS[column] for column in columns)], cells)


def panels(rows: Rows) -> list[Panel]:
    """Return a chart for each score of `DRAWN` that all rows have."""
    solvers = dict.fromkeys(solver for solver, _ in rows)
    ticks = sorted({steps for _, steps in rows})
    result = []
    for column, reading in DRAWN.items():
        if all(column in row for row in rows.values()):
            curves = {
                solver: [
                    Point(steps, row[column], *row["intervals"].get(column, (None, None)))
                    for (name, steps), row in sorted(rows.items(), key=lambda item: item[0][1])
                    if name == solver
                ]
                for solver in solvers
            }
            result.append(
                Panel(f"{COLUMNS[column]}: {reading}", "steps", COLUMNS[column], curves, log_x=True, ticks=ticks)
            )
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.figure_6a", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="FOLDER", help="results of training.evaluate")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture, PNG")
    parser.add_argument("--page", type=Path, help="markdown file whose block `table` is filled")
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.results)
        print(f"{table(rows)}\n")
        print(f"Wrote {draw(options.output, panels(rows))}")
        if options.page:
            fill(options.page, "table", table(rows))
            print(f"Filled {options.page}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
