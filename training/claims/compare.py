"""Sets methods of several evaluations side by side, as far as they scored the same windows.

    python -m training.claims.compare "small pair=outputs/pair" "large pair=outputs/large-pair:ours, 25 steps" -o outputs/table-2

A method is named by a label, the folder of `training.evaluate`'s results and, after a colon, which of its rows; without one, the first row of ours.
Writes a table, and every method's difference to the first, window by window, with 95% intervals by bootstrap over clips: as `comparison.md` and, with
`--page PAGE NAME`, into the block of that name of a page (`page.py`). Scores of single windows are means over the seeds that each evaluation was told.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..evaluation.intervals import Bootstrap
from ..evaluation.scores import paired_difference
from ..evaluation.tables import difference_table, markdown_table, read_results
from ..evaluation.variants import OURS
from .page import fill


@dataclass(frozen=True)
class Method:
    """A row of an evaluation.

    Attributes:
        label: what it is called here.
        row: of `results.json`.
        windows: clip and start of each that was scored.
        task: whose frames were given.
    """

    label: str
    row: dict[str, Any]
    windows: list[dict[str, Any]]
    task: str

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Of each window, float64 `(windows,)` by name."""
        return {name: torch.tensor(found, dtype=torch.float64) for name, found in self.row["windows"].items()}


def read_method(text: str) -> Method:
    """`LABEL=FOLDER` or `LABEL=FOLDER:METHOD`.

    Raises:
        ValueError: if there are no results, or none of that method.
    """
    label, equals, rest = text.partition("=")
    folder, _, wanted = rest.partition(":")
    if not equals or not label or not folder:
        raise ValueError(f"{text!r} is not of the form LABEL=FOLDER or LABEL=FOLDER:METHOD")
    results = read_results(Path(folder))
    rows = results["rows"]
    found = [row for row in rows if row["method"] == wanted] if wanted else [r for r in rows if r["kind"] == OURS]
    if not found:
        raise ValueError(f"{folder} has no row {wanted or 'of ours'!r}; it has {', '.join(r['method'] for r in rows)}")
    return Method(label, found[0], results["windows"], results["task"])


def compare(methods: Sequence[Method]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, and differences of every method to the first.

    Raises:
        ValueError: if two did not score the same windows.
    """
    first = methods[0]
    for method in methods[1:]:
        if method.windows != first.windows or method.task != first.task:
            raise ValueError(
                f"{first.label!r} scored {len(first.windows)} windows ({first.task}) and {method.label!r} others, {len(method.windows)} "
                f"({method.task}); evaluate both with the same clips, stride, windows per clip and task"
            )
    bootstrap = Bootstrap([window["clip"] for window in first.windows])
    scores = {method.label: method.scores for method in methods}
    rows = [{**method.row, "method": method.label} for method in methods]
    return rows, [paired_difference(method.label, first.label, scores, bootstrap) for method in methods[1:]]


def tables(rows: Sequence[dict], differences: Sequence[dict]) -> str:
    """Both tables in markdown."""
    parts = [
        markdown_table(rows),
        f"Paired differences to {rows[0]['method']} on the same windows:" if differences else "",
        difference_table(differences),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.claims.compare", description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+", metavar="LABEL=FOLDER[:METHOD]", help="the first is compared with")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for comparison.md")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block to be filled")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        rows, differences = compare([read_method(text) for text in options.methods])
        if options.page:
            fill(Path(options.page[0]), options.page[1], tables(rows, differences))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    quoted = " ".join(f'"{text}"' if " " in text else text for text in given)
    options.output.mkdir(parents=True, exist_ok=True)
    text = f"`{parser.prog} {quoted}`\n\n{tables(rows, differences)}"
    (options.output / "comparison.md").write_text(text, encoding="utf-8")
    print(markdown_table(rows))
    print(f"Wrote {options.output / 'comparison.md'}")


if __name__ == "__main__":
    main()
