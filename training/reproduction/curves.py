"""Draw curves of several runs in one picture; runs with different seeds as their mean and range.

    python -m training.reproduction.curves "identity attention=runs/a-0,runs/a-1" "full attention=runs/b-0,runs/b-1" \
        --values loss:diffusion_loss -o docs/images/results/figure_6c.png

Reads the trainer's `metrics.jsonl`: values of `heldout:` are drawn as they are; those of `loss:`, which are single
steps, as means over `--every` lines. Prints the last value of every curve; with `--page PAGE BLOCK` they and the
picture fill a block.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.evaluation.tables import markdown_table
from training.figures.charts import Panel, Point, draw
from training.files import read_lines
from training.page_blocks import fill, picture


KINDS = {"heldout": "held-out loss", "loss": "training loss"}


def read_curve(run: Path, value: str, every: int) -> list[tuple[int, float]]:
    """Return `(windows seen, value)` of a run.

    Args:
        run: its folder.
        value: `heldout:NAME` or `loss:NAME`.
        every: number of `loss:` lines that are averaged to a point; a rest at the end belongs to the last one.

    Returns:
        Means of the finite values; points without any are left out.

    Raises:
        ValueError: if the run has no such value.
    """
    if every < 1:
        raise ValueError(f"a point is the mean of {every} lines; give at least 1")
    kind, colon, name = value.partition(":")
    if not colon or kind not in KINDS:
        raise ValueError(f"value {value!r} is neither heldout:NAME nor loss:NAME")
    records = read_lines(run / "metrics.jsonl", {"windows_seen": int})
    if not records:
        raise ValueError(f"there is nothing in {run / 'metrics.jsonl'}; train the run first")
    if kind == "heldout":
        lines = [(r["windows_seen"], r["heldout"][name]) for r in records if name in r.get("heldout", {})]
        every = 1
    else:
        lines = [(r["windows_seen"], r[name]) for r in records if name in r]
    # Grouped before values that are not finite are left out, so that all runs of a curve have points at the same
    # places.
    starts = range(0, max(min(1, len(lines)), len(lines) - every + 1), every)
    groups = [lines[i : None if i == starts[-1] else i + every] for i in starts]
    finite = [(group[-1][0], [found for _, found in group if isinstance(found, (int, float))]) for group in groups]
    points = [(seen, sum(found) / len(found)) for seen, found in finite if found]
    if not points:
        raise ValueError(f"{run / 'metrics.jsonl'} has no {value}")
    return points


def mean_and_range(curves: Sequence[Sequence[tuple[int, float]]]) -> list[Point]:
    """Return the mean of several curves with their range, at the places that all of them have."""
    by_place = [dict(curve) for curve in curves]
    places = sorted(set.intersection(*(set(curve) for curve in by_place)))
    if not places:
        raise ValueError("the runs of one curve have no place in common; they must have the same stages and batches")
    found = {place: [curve[place] for curve in by_place] for place in places}
    several = len(curves) > 1
    return [
        Point(place, sum(v) / len(v), min(v) if several else None, max(v) if several else None)
        for place, v in found.items()
    ]


def stage_ends(run: Path) -> dict[str, int]:
    """Return the windows seen at the end of each stage of a run."""
    return {
        record["stage"]: record["windows_seen"]
        for record in read_lines(run / "metrics.jsonl", {"stage": str, "windows_seen": int})
    }


def title_of(value: str) -> str:
    """Return the title of a value; names of held-out losses are those of `monitoring/heldout_losses.py`."""
    kind, _, name = value.partition(":")
    family, _, rest = name.partition("/")
    if kind == "loss":
        return {"diffusion_loss": "velocity, all tasks", "planner_loss": "reconstruction, all tasks"}.get(name, name)
    loss = {
        "planner": "reconstruction",
        "diffusion": "velocity",
        "diffusion_unplanned": "velocity without planning signals",
    }.get(family)
    if loss is None:
        return name
    if rest.startswith("task/"):
        return f"{loss}, {rest.removeprefix('task/')}"
    if rest.startswith("masked/"):
        return f"{loss}, {rest.removeprefix('masked/')} frames sampled"
    return f"{loss}, interpolation" + (f", t = {rest}" if rest else "")


def panel_of(
    value: str, runs: Mapping[str, Sequence[Path]], every: int, log_y: bool, marks: Mapping[str, float]
) -> Panel:
    """Return the chart of a value, with a curve for each label of `runs`."""
    curves = {
        label: mean_and_range([read_curve(run, value, every) for run in folders]) for label, folders in runs.items()
    }
    return Panel(title_of(value), "windows seen", KINDS[value.partition(":")[0]], curves, log_y=log_y, marks=marks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.curves", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "runs", nargs="+", metavar="LABEL=RUN[,RUN...]", help="a curve, of one run or of several seeds"
    )
    parser.add_argument("--values", nargs="+", required=True, metavar="KIND:NAME", help="a panel each")
    parser.add_argument("--every", type=int, default=5, help="lines of training losses averaged to a point")
    parser.add_argument("--log", action="store_true", help="logarithmic vertical axis")
    parser.add_argument("--stages", action="store_true", help="mark where the stages of the first run end")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        runs = {}
        for text in options.runs:
            label, equals, folders = text.partition("=")
            if not equals or not folders:
                raise ValueError(f"{text!r} is not of the form LABEL=RUN[,RUN...]")
            if label in runs:
                raise ValueError(f"two curves are called {label!r}; give each a name of its own, or one all its runs")
            runs[label] = [Path(folder) for folder in folders.split(",")]
        marks = stage_ends(next(iter(runs.values()))[0]) if options.stages else {}
        panels = [panel_of(value, runs, options.every, options.log, marks) for value in options.values]
        draw(options.output, panels)
        if options.page:
            page, name = Path(options.page[0]), options.page[1]
            shown = picture(options.output, page, "; ".join(f"{panel.y_label}: {panel.title}" for panel in panels))
            fill(page, name, f"{shown}\n\nAt the end:\n\n{last_values(panels)}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for panel, value in zip(panels, options.values, strict=True):
        for label, points in panel.curves.items():
            print(f"{value.partition(':')[2]}, {label}: {_shown(points[-1])} after {points[-1].x:,} windows")
    print(f"Wrote {options.output}")


def last_values(panels: Sequence[Panel]) -> str:
    """Return the last value of each curve in markdown; of several seeds their mean, lowest and highest."""
    labels = list(panels[0].curves)
    rows = [[label, *(_shown(panel.curves[label][-1]) for panel in panels)] for label in labels]
    return markdown_table(["run", *(f"{panel.y_label}: {panel.title}" for panel in panels)], rows)


def _shown(last: Point) -> str:
    return f"{last.y:.4f}" + ("" if last.low is None else f" ({last.low:.4f} to {last.high:.4f})")


if __name__ == "__main__":
    main()
