"""Compare how clips are continued for long, by several checkpoints or in several ways, from results of `training.drift`.

    python -m training.reproduction.drift_comparison "curriculum=outputs/drift/a-1,outputs/drift/a-2" "direct=..." \
        -o chart.png --page PAGE BLOCK

A method is a label, the folders that `training.drift` wrote (trainings of one method, or noise, with different seeds)
and, after a colon, one of its arms, by default the first. Writes a row for each method and range of frames, what stays
within the interval of the first range until the last, the differences to the first method on the same clips, with 95%
intervals by bootstrap over clips, from which size on a difference is clear beside the chance of trainings, and a chart
over the ranges. All measures are best at 1, so that differences are those of the distance from it, the size of the
logarithm, of each training by itself: 0.1 is a tenth too much or too little.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.drift import MEASURES, SHARE, drift_table, stays
from training.evaluation.intervals import Bootstrap, interval_of, least_difference
from training.evaluation.metrics import summarize
from training.evaluation.results import with_nan
from training.evaluation.tables import markdown_table
from training.figures.charts import Panel, Point, draw
from training.files import read_json
from training.page_blocks import fill, picture


# Settings of training.drift that folders of one method have in common.
SETTINGS = ("frames", "given", "steps", "scheduler", "guidance_scale", "size", "stride", "fps", "dtype", "tell")


@dataclass(frozen=True)
class Continued:
    """An arm of a checkpoint, or the mean of several trainings.

    Attributes:
        label: its name here.
        clips: names of the continued clips.
        truth: digest of the true clips.
        ranges: of frames, first and last.
        scores: of each range, float64 `(clips,)` by name, true counterparts included.
        frechet: distance of each range, if all trainings have it.
        settings: the facts of `SETTINGS`.
        trainings: those that it is the mean of; empty for one of them.
    """

    label: str
    clips: list[str]
    truth: str
    ranges: list[tuple[int, int]]
    scores: list[dict[str, torch.Tensor]]
    frechet: list[float]
    settings: dict[str, Any]
    trainings: tuple["Continued", ...] = ()

    @classmethod
    def read(cls, text: str) -> "Continued":
        """Parse `LABEL=FOLDER[,FOLDER...][:ARM]` and read the results.

        Raises:
            ValueError: if results or arm are missing, or if trainings of one method are of other clips or ranges.
        """
        label, _, rest = text.partition("=")
        folders, _, arm = rest.partition(":")
        if not label or not all(folders.split(",")):
            raise ValueError(f"{text!r} is not of the form LABEL=FOLDER[,FOLDER] or LABEL=FOLDER[,FOLDER]:ARM")
        trainings = [cls._of(label, Path(folder), arm) for folder in folders.split(",")]
        first = trainings[0]
        for other in trainings[1:]:
            first.refuse_other(other)
            if other.settings != first.settings:
                raise ValueError(
                    f"{label!r} was continued with {first.settings} and with {other.settings}; do all alike"
                )
        means = [
            {name: torch.stack([scores[name] for scores in each]).mean(dim=0) for name in each[0]}
            for each in zip(*(training.scores for training in trainings))
        ]
        frechet = [sum(each) / len(each) for each in zip(*(training.frechet for training in trainings))]
        return cls(label, first.clips, first.truth, first.ranges, means, frechet, first.settings, tuple(trainings))

    @classmethod
    def _of(cls, label: str, folder: Path, arm: str) -> "Continued":
        found = with_nan(read_json(folder / "drift.json", ("rows", "names", "truth")))
        arm = arm or found["rows"][0]["arm"]
        rows = [row for row in found["rows"] if row["arm"] == arm]
        if not rows:
            arms = ", ".join(dict.fromkeys(row["arm"] for row in found["rows"]))
            raise ValueError(f"{folder} has no arm {arm!r}; it has {arms}")
        if any("true_colours" not in row["each"] for row in rows):
            raise ValueError(f"{folder} is of an earlier version; run training.drift again, which keeps its frames")
        scores = [
            {name: torch.tensor(values, dtype=torch.float64) for name, values in row["each"].items()} for row in rows
        ]
        distances = [row["fd_efficientnet_lite0"] for row in rows if "fd_efficientnet_lite0" in row]
        ranges, settings = [(r["first"], r["last"]) for r in rows], {name: found.get(name) for name in SETTINGS}
        return cls(label, found["names"], found["truth"], ranges, scores, distances, settings)

    def refuse_other(self, other: "Continued") -> None:
        """Raise `ValueError` if the other one is of other clips or ranges."""
        if (self.clips, self.truth, self.ranges) != (other.clips, other.truth, other.ranges):
            raise ValueError(
                f"{self.label!r} and {other.label!r} continued other clips or measured other frames; run "
                "training.drift on both with the same clips, sizes and ranges"
            )

    def only(self, ranges: Sequence[tuple[int, int]]) -> "Continued":
        """Return what was measured of some ranges of frames.

        Raises:
            ValueError: if one was not measured.
        """
        if missing := [span for span in ranges if span not in self.ranges]:
            low, high = missing[0]
            measured = ", ".join(f"{first} to {last}" for first, last in self.ranges)
            raise ValueError(f"--range is {low} {high}; of {self.label!r} were measured {measured}")
        places = [self.ranges.index(span) for span in ranges]
        return replace(
            self,
            ranges=list(ranges),
            scores=[self.scores[i] for i in places],
            frechet=[self.frechet[i] for i in places] if self.frechet else [],
            trainings=tuple(training.only(ranges) for training in self.trainings),
        )

    def rows(self, bootstrap: Bootstrap) -> list[dict[str, Any]]:
        """Return a row of `drift_table` for each range."""
        rows = []
        for number, ((low, high), scores) in enumerate(zip(self.ranges, self.scores)):
            row = {"arm": self.label, "first": low, "last": high, **summarize(scores)}
            row["intervals"] = {name: bootstrap.interval(scores, name) for name in MEASURES}
            rows.append(row | ({"fd_efficientnet_lite0": self.frechet[number]} if self.frechet else {}))
        return rows

    def distance(self, place: int, name: str) -> float:
        """Return how far a measure in a range lies from 1, the mean over trainings of what each has."""
        return sum(self.distances(place, name)) / len(self.trainings)

    def distances(self, place: int, name: str) -> list[float]:
        """Return the same of each training."""
        ratios = [summarize(training.scores[place])[name] for training in self.trainings]
        return [away(torch.tensor(ratio, dtype=torch.float64)).item() for ratio in ratios]

    def resampled(self, bootstrap: Bootstrap, place: int, name: str) -> torch.Tensor:
        """Return `distance` of each resample of the clips."""
        each = [away(bootstrap.resampled(training.scores[place], name)) for training in self.trainings]
        return torch.stack(each).mean(dim=0)


def away(ratios: torch.Tensor) -> torch.Tensor:
    """Return the distance of ratios from 1, the size of their logarithm."""
    return ratios.clamp(min=1e-12).log().abs()


def differences(method: Continued, first: Continued, bootstrap: Bootstrap) -> list[list[str]]:
    """Return the cells of a table: the method's distance from the truth minus the first's, with 95% intervals."""
    lines = []
    for place, (low, high) in enumerate(method.ranges):
        cells = []
        for name in MEASURES:
            value = method.distance(place, name) - first.distance(place, name)
            low_end, high_end = _interval(method, first, place, name, bootstrap)
            cells.append(f"{value:+.2f} [{low_end:+.2f}, {high_end:+.2f}]")
        lines.append([f"{method.label} − {first.label}", f"{low} to {high}", *cells])
    return lines


def clear_from(methods: Sequence[Continued], bootstrap: Bootstrap) -> list[str]:
    """Return the cells of a line: from which size on differences to the first method are clear, in the last range."""
    first, *others = methods
    cells = []
    for name in MEASURES:
        trainings = [method.distances(-1, name) for method in methods]
        intervals = [_interval(other, first, -1, name, bootstrap) for other in others]
        cells.append(f"{max(least_difference(trainings, interval) for interval in intervals):.2f}")
    low, high = first.ranges[-1]
    return ["clear from, beside the chance of trainings", f"{low} to {high}", *cells]


def _interval(method: Continued, first: Continued, place: int, name: str, bootstrap: Bootstrap) -> tuple[float, float]:
    return interval_of(method.resampled(bootstrap, place, name) - first.resampled(bootstrap, place, name))


def frechet_of_each(method: Continued) -> str:
    """Return the distances in the last range, of each seed, in words."""
    return f"{method.label} {' and '.join(f'{each.frechet[-1]:.0f}' for each in method.trainings)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.drift_comparison", description=__doc__.splitlines()[0]
    )
    parser.add_argument("methods", nargs="+", metavar="LABEL=FOLDER[,FOLDER...][:ARM]", help="compared with the first")
    parser.add_argument("--range", type=int, nargs=2, action="append", default=[], metavar=("FIRST", "LAST"),
                        help="new frames that are shown, as they were measured; default: all ranges")  # fmt: skip
    parser.add_argument("-o", "--chart", type=Path, help="PNG")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        methods = [Continued.read(text) for text in options.methods]
        first, *others = methods
        for method in others:
            first.refuse_other(method)
        if options.range:
            first, *others = methods = [
                method.only([(low, high) for low, high in options.range]) for method in methods
            ]
        bootstrap = Bootstrap(first.clips)
        rows = {method.label: method.rows(bootstrap) for method in methods}
        text = drift_table([row for found in rows.values() for row in found])
        if len(first.ranges) > 1:
            text += "\n\n" + "\n".join(stays(found, label) for label, found in rows.items())
        several = all(len(method.trainings) > 1 for method in methods)
        if several and all(method.frechet for method in methods):
            text += "\n\nFD-EfficientNetLite0 of each seed: " + "; ".join(map(frechet_of_each, methods))
        if others:
            lines = [line for method in others for line in differences(method, first, bootstrap)]
            if several:
                lines.append(clear_from(methods, bootstrap))
            text += (
                f"\n\nHow much farther from 1 than {first.label}, as the absolute logarithm of the measure, so that −0.10 is "
                "about a tenth nearer:\n\n"
            )
            text += markdown_table(["difference", "frames", *MEASURES], lines)
        print(text)
        if options.chart:
            print(f"Wrote {draw(options.chart, _panels(rows))}")
        if options.page:
            page, name = Path(options.page[0]), options.page[1]
            if options.chart:
                shown = picture(
                    options.chart, page, f"{', '.join(MEASURES)} of {', '.join(rows)} by the last new frame"
                )
                text = f"{shown}\n\n{text}"
            fill(page, name, text)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _panels(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    panels = []
    for name in MEASURES:
        curves = {
            label: [Point(row["last"], row[name], *row["intervals"][name]) for row in found]
            for label, found in rows.items()
        }
        ticks = tuple(row["last"] for row in next(iter(rows.values())))
        panels.append(Panel(name, "last new frame", SHARE, curves, {"true clips": 1.0}, log_x=True, ticks=ticks))
    return panels


if __name__ == "__main__":
    main()
