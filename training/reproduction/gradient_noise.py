"""Compare how steadily runs train, by the gradient norms that `metrics.jsonl` records.

    python -m training.reproduction.gradient_noise "identity attention=runs/a-0,runs/a-1" "full attention=runs/b-0" \
        --page PAGE BLOCK

The norm of a step falls in the course of a training, so its noise is the deviation of its logarithm from the median of
the lines around it (at the end, of those before), as 1.48 times the median of its size: 0.10 are steps that differ by a
tenth. A spike is a norm of more than twice that median. Norms are those before clipping; the first lines do not count,
where the rate is warmed up and the norm falls steeply.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.config.schema import RunConfig
from training.evaluation.tables import markdown_table
from training.files import read_lines
from training.page_blocks import fill


AROUND = 10  # lines on each side, and those of the beginning that do not count
SPIKE = 2.0
OF_MEDIAN = 1.4826  # a normal distribution's deviation in medians of its size
TAIL = 0.1  # share of the lines whose training loss is the last one


@dataclass(frozen=True)
class Steadiness:
    """How steadily a run trained.

    Attributes:
        median, largest: of the gradient norms.
        noise: robust deviation of their logarithm from its running median.
        spikes: share of the lines with a norm beyond `SPIKE` times the running median.
        clipped: share of the lines with a norm beyond the run's `max_grad_norm`.
        loss: mean training loss of the last lines.
        steps: taken until the last line; fewer than asked for, if the run failed.
    """

    median: float
    largest: float
    noise: float
    spikes: float
    clipped: float
    loss: float
    steps: int = 0


def steadiness(norms: Sequence[float], losses: Sequence[float], limit: float) -> Steadiness:
    """Measure a run by its gradient norms and losses, line by line; `limit` is that of clipping."""
    counted = range(AROUND, len(norms)) or range(len(norms))
    away = [math.log(norms[i] / statistics.median(norms[max(0, i - AROUND) : i + AROUND + 1])) for i in counted]
    return Steadiness(
        median=statistics.median(norms[i] for i in counted),
        largest=max(norms[i] for i in counted),
        noise=OF_MEDIAN * statistics.median(map(abs, away)),
        spikes=statistics.fmean(value > math.log(SPIKE) for value in away),
        clipped=statistics.fmean(norms[i] > limit for i in counted),
        loss=statistics.fmean(losses[-max(1, round(TAIL * len(losses))) :]),
    )


def read_steadiness(run: Path) -> Steadiness:
    """Read a run's `metrics.jsonl` and `config.json`.

    Raises:
        ValueError: if it records no gradient norm.
    """
    records = read_lines(run / "metrics.jsonl", {"windows_seen": int})
    lines = [r for r in records if _positive(r.get("grad_norm")) and _positive(r["loss"])]
    if not lines:
        raise ValueError(f"{run / 'metrics.jsonl'} has no gradient norm; train the run first")
    config = RunConfig.model_validate_json((run / "config.json").read_text(encoding="utf-8"))
    norms, losses = ([line[name] for line in lines] for name in ("grad_norm", "loss"))
    return replace(steadiness(norms, losses, config.optimizer.max_grad_norm), steps=lines[-1]["global_step"])


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0  # what is not finite is written as text


def table(runs: dict[str, Sequence[Steadiness]]) -> str:
    """Return a row for each label in markdown: means over its runs, with the lowest and the highest."""
    columns = {"median": "{:.2f}", "largest": "{:.2f}", "noise": "{:.3f}", "spikes": "{:.1%}", "clipped": "{:.0%}", "loss": "{:.4f}", "steps": "{:.0f}"}  # fmt: skip
    rows = []
    for label, found in runs.items():
        cells = []
        for name, form in columns.items():
            values = [getattr(each, name) for each in found]
            ends = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
            cells.append(form.format(statistics.fmean(values)) + ends)
        rows.append([label, *cells])
    head = [
        "method",
        "median norm",
        "largest",
        "noise of its logarithm",
        "spikes",
        "clipped",
        "last training loss",
        "steps",
    ]
    return markdown_table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.gradient_noise", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN[,RUN...]", help="one run, or several seeds")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        named = [text.partition("=")[::2] for text in options.runs]
        found = table({label: [read_steadiness(Path(run)) for run in runs.split(",")] for label, runs in named})
        print(found)
        if options.page:
            fill(Path(options.page[0]), options.page[1], found)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
