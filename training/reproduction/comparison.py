"""Compare methods of several evaluations that scored the same windows.

    python -m training.reproduction.comparison "small pair=outputs/pair" "large pair=outputs/large:ours, 25 steps" \\
        -o outputs/table-2

A method is a label, the folder of `training.evaluate`'s results and, after a colon, one of its rows; default is the
first row of ours. Several folders, `"small pair=outputs/pair-0,outputs/pair-1"`, are trainings of one method with
different seeds: their scores are averaged window by window, and the standard deviation over trainings is reported.
Writes a table and every method's paired difference to the first, with 95% intervals by bootstrap over clips; where
both have as many trainings, also the difference of each pair of trainings, in order. The intervals do not cover the
variation between trainings; a line says from which size on a difference is clear beside both. They go to
`comparison.md` and, with `--page PAGE NAME`, into the block `NAME` of a page, the differences alone into `NAME,
differences` (`page_blocks.py`). Scores of single windows are means over the seeds of each evaluation.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.evaluation.intervals import Bootstrap, least_difference
from training.evaluation.methods import OURS
from training.evaluation.metrics import summarize
from training.evaluation.results import read_results
from training.evaluation.scores import COMPARED, paired_difference
from training.evaluation.tables import COLUMNS, DIGITS, difference_table, present_columns, score_table, spread_table
from training.page_blocks import fill_all


# Facts of results.json that evaluations of the same windows have in common.
SETTING = ("task", "size", "num_frames", "stride", "fps", "windows_digest")
# And those that evaluations of several trainings of one method have in common.
SAMPLING = ("seeds", "guidance_scale", "scheduler", "dtype")


@dataclass(frozen=True)
class ComparedMethod:
    """A row of an evaluation, or rows of several trainings.

    Attributes:
        label: its name here.
        rows: of `results.json`, one for each training.
        windows: clip and start of each window.
        setting: the facts of `SETTING`.
        sampling: the facts of `SAMPLING`.
    """

    label: str
    rows: tuple[dict[str, Any], ...]
    windows: list[dict[str, Any]]
    setting: dict[str, Any]
    sampling: dict[str, Any]

    @property
    def is_trained(self) -> bool:
        """Return whether it is a model, and no simple method, which is the same beside each training."""
        return self.rows[0]["kind"] == OURS

    @property
    def each(self) -> list[dict[str, torch.Tensor]]:
        """Return the scores of each training that all have, float64 `(windows,)` by name."""
        names = [name for name in self.rows[0]["windows"] if all(name in row["windows"] for row in self.rows)]
        return [{name: torch.tensor(row["windows"][name], dtype=torch.float64) for name in names} for row in self.rows]

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """Return the mean over trainings of each window, float64 `(windows,)` by name."""
        return {name: torch.stack([scores[name] for scores in self.each]).mean(dim=0) for name in self.each[0]}

    def row(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """Return the row of the table: means over trainings, with their standard deviation as `spread`."""
        if len(self.rows) == 1:
            return {**self.rows[0], "method": self.label, "spread": {}}
        mean = self.scores
        values = {name: [row[name] for row in self.rows] for name in present_columns(self.rows)}
        return {
            "method": self.label,
            **{name: sum(found) / len(found) for name, found in values.items()},
            "intervals": {name: bootstrap.interval(mean, name) for name in summarize(mean)},
            "spread": {
                name: torch.tensor(found, dtype=torch.float64).std().item()
                for name, found in values.items()
                if self.is_trained
            },
        }


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the facts of `SETTING` that differ."""
    digests = (one.get("windows_digest"), other.get("windows_digest"))
    return [
        name
        for name in SETTING
        if one.get(name) != other.get(name) and not (name == "windows_digest" and None in digests)
    ]


def read_method(text: str) -> ComparedMethod:
    """Parse `LABEL=FOLDER[,FOLDER...][:METHOD]` and read the results.

    Raises:
        ValueError: if the results or the method are missing, a folder is named twice, or trainings of one method
            scored different windows.
    """
    label, equals, rest = text.partition("=")
    folders, _, wanted = rest.partition(":")
    if not equals or not label or not all(folders.split(",")):
        raise ValueError(f"{text!r} is not of the form LABEL=FOLDER[,FOLDER] or LABEL=FOLDER[,FOLDER]:METHOD")
    if len(set(folders.split(","))) < len(folders.split(",")):
        raise ValueError(f"{text!r} names a folder twice; give each training once")
    trainings = [_read_training(label, folder, wanted) for folder in folders.split(",")]
    for training in trainings[1:]:
        _refuse_other_windows(trainings[0], training)
        if training.sampling != trainings[0].sampling or training.rows[0]["method"] != trainings[0].rows[0]["method"]:
            sampled = [f"{t.rows[0]['method']!r} ({t.sampling})" for t in (trainings[0], training)]
            raise ValueError(
                f"{label!r} has trainings that were sampled as {' and as '.join(sampled)}; sample all alike"
            )
    return replace(trainings[0], rows=tuple(training.rows[0] for training in trainings))


def _read_training(label: str, folder: str, wanted: str) -> ComparedMethod:
    results = read_results(Path(folder))
    rows = results["rows"]
    found = [row for row in rows if row["method"] == wanted] if wanted else [r for r in rows if r["kind"] == OURS]
    if not found:
        raise ValueError(f"{folder} has no row {wanted or 'of ours'!r}; it has {', '.join(r['method'] for r in rows)}")
    setting, sampling = ({name: results.get(name) for name in names} for names in (SETTING, SAMPLING))
    return ComparedMethod(label, (found[0],), results["windows"], setting, sampling)


def _refuse_other_windows(first: ComparedMethod, method: ComparedMethod) -> None:
    if method.windows != first.windows or differing(first.setting, method.setting):
        scored = [
            f"{m.label!r} scored {len(m.windows)} windows ({', '.join(f'{k} {v}' for k, v in m.setting.items())})"
            for m in (first, method)
        ]
        raise ValueError(
            f"{' and '.join(scored)}, which differ; evaluate both with the same clips, size, stride, windows per clip "
            "and task"
        )


def compare(methods: Sequence[ComparedMethod]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the table, and the differences of every method to the first.

    Raises:
        ValueError: if two did not score the same windows, or have the same label.
    """
    first = methods[0]
    labels = [method.label for method in methods]
    if len(set(labels)) < len(labels):
        raise ValueError(f"the labels are {', '.join(map(repr, labels))}; give each method one of its own")
    for method in methods[1:]:
        _refuse_other_windows(first, method)
    bootstrap = Bootstrap([window["clip"] for window in first.windows])
    differences = []
    for method in methods[1:]:
        scores = {method.label: method.scores, first.label: first.scores}
        differences.append(paired_difference(method.label, first.label, scores, bootstrap))
        if len(method.rows) == len(first.rows) > 1 and method.is_trained:
            for number, (one, two) in enumerate(zip(method.each, first.each, strict=True), start=1):
                scores = {method.label: one, first.label: two}
                of_training = paired_difference(method.label, first.label, scores, bootstrap)
                differences.append(of_training | {"than": f"{first.label}, training {number}"})
    return [method.row(bootstrap) for method in methods], differences


def clear_from(methods: Sequence[ComparedMethod], differences: Sequence[dict]) -> str:
    """Return from which size on a difference is clear, in words; empty without two methods of several trainings."""
    trained = [method for method in methods if len(method.rows) > 1 and method.is_trained]
    labels = {method.label for method in trained}
    paired = [found for found in differences if found["method"] in labels and found["than"] in labels]
    if not paired:
        return ""
    rows = [row for method in trained for row in method.rows]
    least = []
    for name in (name for name in present_columns(rows) if name in COMPARED):
        scores = [[row[name] for row in method.rows] for method in trained]
        value = max(least_difference(scores, found["intervals"][name]) for found in paired)
        least.append(f"{COLUMNS[name]} {value:.{DIGITS[name]}f}")
    return (
        "Beside the chance of trainings and clips together (95%, deviations between trainings pooled), a difference "
        f"between trained models is clear from this size on: {', '.join(least)}. "
        "A true difference as large as that is found in about half of all cases."
    )


def tables(rows: Sequence[dict], differences: Sequence[dict], shown: str = "") -> str:
    """Return all tables in markdown."""
    parts = [
        score_table(rows),
        spread_table(rows, "trainings"),
        f"Paired differences to {rows[0]['method']} on the same windows:" if differences else "",
        difference_table(differences),
        shown,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.comparison", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "methods",
        nargs="+",
        metavar="LABEL=FOLDER[,FOLDER...][:METHOD]",
        help="all others are compared with the first",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for comparison.md")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        methods = [read_method(text) for text in options.methods]
        rows, differences = compare(methods)
        shown = clear_from(methods, differences)
        quoted = " ".join(f'"{text}"' if " " in text else text for text in given)
        options.output.mkdir(parents=True, exist_ok=True)
        text = f"`{parser.prog} {quoted}`\n\n{tables(rows, differences, shown)}"
        (options.output / "comparison.md").write_text(text, encoding="utf-8")
        if options.page:
            page, name = options.page
            own = "\n\n".join(part for part in (difference_table(differences), shown) if part)
            fill_all(Path(page), {name: tables(rows, differences, shown), f"{name}, differences": own})
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{score_table(rows)}\n")
    there = present_columns(rows)
    if left_out := [
        name for column, name in COLUMNS.items() if column not in there and any(column in row for row in rows)
    ]:
        print(f"left out, because not all methods have them: {', '.join(left_out)}")
    print(f"Wrote {options.output / 'comparison.md'}")


if __name__ == "__main__":
    main()
