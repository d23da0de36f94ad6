"""Sets methods of several evaluations side by side, as far as they scored the same windows.

    python -m training.claims.compare "small pair=outputs/pair" "large pair=outputs/large-pair:ours, 25 steps" -o outputs/table-2

A method is named by a label, the folder of `training.evaluate`'s results and, after a colon, which of its rows; without one, the first row of ours.
Writes a table, and every method's difference to the first, window by window, with 95% intervals by bootstrap over clips: as `comparison.md` and, with
`--page PAGE NAME`, into the block `NAME` of a page, or the differences alone into `NAME, differences` (`page.py`). Scores of single windows are means over the seeds that each evaluation was told.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..evaluation.intervals import Bootstrap
from ..evaluation.scores import paired_difference
from ..evaluation.tables import COLUMNS, difference_table, markdown_table, present_columns, read_results
from ..evaluation.variants import OURS
from .page import fill_all


# Facts of results.json that two evaluations of the same windows share.
SETTING = ("task", "size", "num_frames", "stride", "fps", "windows_digest")


@dataclass(frozen=True)
class Method:
    """A row of an evaluation.

    Attributes:
        label: what it is called here.
        row: of `results.json`.
        windows: clip and start of each that was scored.
        setting: what was scored, as far as it can make pixels differ: task, size, frames and pace of the windows, and their digest.
    """

    label: str
    row: dict[str, Any]
    windows: list[dict[str, Any]]
    setting: dict[str, Any]

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Of each window, float64 `(windows,)` by name."""
        return {name: torch.tensor(found, dtype=torch.float64) for name, found in self.row["windows"].items()}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Which of `SETTING` differ; results from before there was a digest have none, which is no difference."""
    digests = (one.get("windows_digest"), other.get("windows_digest"))
    return [
        name
        for name in SETTING
        if one.get(name) != other.get(name) and not (name == "windows_digest" and None in digests)
    ]


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
    return Method(label, found[0], results["windows"], {name: results.get(name) for name in SETTING})


def compare(methods: Sequence[Method]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, and differences of every method to the first.

    Raises:
        ValueError: if two did not score the same windows, or have the same label.
    """
    first = methods[0]
    labels = [method.label for method in methods]
    if len(set(labels)) < len(labels):
        raise ValueError(f"the labels are {', '.join(map(repr, labels))}; give each method one of its own")
    for method in methods[1:]:
        if method.windows != first.windows or differing(first.setting, method.setting):
            told = [
                f"{m.label!r} scored {len(m.windows)} windows ({', '.join(f'{k} {v}' for k, v in m.setting.items())})"
                for m in (first, method)
            ]
            raise ValueError(
                f"{' and '.join(told)}, which are others; evaluate both with the same clips, size, stride, windows per clip and task"
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
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        rows, differences = compare([read_method(text) for text in options.methods])
        if options.page:
            page, name = options.page
            fill_all(
                Path(page), {name: tables(rows, differences), f"{name}, differences": difference_table(differences)}
            )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    quoted = " ".join(f'"{text}"' if " " in text else text for text in given)
    options.output.mkdir(parents=True, exist_ok=True)
    text = f"`{parser.prog} {quoted}`\n\n{tables(rows, differences)}"
    (options.output / "comparison.md").write_text(text, encoding="utf-8")
    print(markdown_table(rows))
    shown = present_columns(rows)
    if left_out := [
        name for column, name in COLUMNS.items() if column not in shown and any(column in row for row in rows)
    ]:
        print(f"left out, since not all were measured so: {', '.join(left_out)}")
    print(f"Wrote {options.output / 'comparison.md'}")


if __name__ == "__main__":
    main()
