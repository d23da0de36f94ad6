"""Write the report of a run, with its curves: `python -m training.report runs/NAME` writes `runs/NAME/report.md`.

The trainer writes it whenever a run ends, finished or not. Everything is read from the run's records, so a report can
be written at any time, also of a run that was killed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from training.config.layers import read_run_config
from training.config.schema import RunConfig
from training.engine.layout import Layout
from training.evaluation.tables import markdown_table
from training.figures.charts import Panel, draw
from training.files import read_json, read_lines, write_whole
from training.monitoring.heldout_scores import SCORES
from training.monitoring.records import METRICS
from training.monitoring.run_curves import heldout_panels, quality_panels, training_panels, trends
from training.monitoring.simple_scores import read_simple_scores


CURVES = Path("report")  # folder of the pictures, inside the run's


def write_report(run: Path) -> Path:
    """Write the page and its curves; return its path.

    Raises:
        ValueError: if the folder has no run.
    """
    config = read_run_config(run)
    starts = read_lines(run / "starts.jsonl", {"time": str, "processes": int})
    records = read_lines(run / "metrics.jsonl", METRICS)
    if starts:
        config = config.for_processes(Layout.of_start(starts[-1]).data_ranks)
    sections = (
        _state(run, starts),
        _curves(run, config, records),
        _heldout(config, records),
        _planned(records),
        _samples(records),
        _timings(config, records),
        _left_out(run),
        _environment(config, starts),
        ["## Configuration", "", "As resolved, for the processes of the last start.", ""]
        + ["```yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip(), "```"],
    )
    page = [f"# {config.name}", ""]
    for section in sections:
        page += [*section, ""] if section else []
    write_whole(run / "report.md", "\n".join(page))
    return run / "report.md"


def _state(run: Path, starts: list[dict]) -> list[str]:
    if not (run / "status.json").is_file():
        return ["**Never begun**: there is no status.json."]
    status = read_json(run / "status.json", ("state", "global_step", "time"))
    lines = [f"**{status['state'].capitalize()}** at step {status['global_step']}, {status['time']}."]
    if status["state"] == "running":
        lines[0] += " If no process runs any more, the run was killed; the same command goes on with it."
    if status.get("reason"):
        lines[0] += f" Why: {status['reason']}"
    if len(starts) > 1:
        lines.append(f"Started {len(starts)} times, first {starts[0]['time']}.")
    return lines


def _curves(run: Path, config: RunConfig, records: list[dict]) -> list[str]:
    """Draw the curves that have points."""
    lines = []

    def add(name: str, title: str, panels: list[Panel], where: str, width: float = 8) -> None:
        if panels:
            draw(run / CURVES / f"{name}.png", panels, width=width)
            lines.extend([f"![{title}]({(CURVES / name).as_posix()}.png)", "", where, ""])

    add("training", "Training losses", training_panels(config, records), "Single steps, as they were logged.")
    text = "Averaged weights, first and last frame given; the number is the share of the timesteps."
    add("heldout", "Held-out losses", heldout_panels(config, records), " ".join([text, *trends(config, records)]))
    text = (
        f"{config.sample_steps} denoising steps, first and last frame given. Motion and sharpness are relative to the "
        "truth's (1), which is the autoencoder's decoding: what it reaches itself is the line at 1. SSIM alone "
        "rewards blur."
    )
    panels = quality_panels(config, records, read_simple_scores(run))
    add("quality", "Held-out quality", panels, text, width=5.2)
    return ["## Curves", "", *lines[:-1]] if lines else []


def _heldout(config: RunConfig, records: list[dict]) -> list[str]:
    columns = ["planner", "diffusion/0.6", "diffusion_unplanned/0.95", *(f"quality/{name}" for name in SCORES)]
    rows = []
    for stage in config.stages:
        found = [r for r in records if r["stage"] == stage.name and "heldout" in r]
        if found:
            last = found[-1]
            rows.append([stage.name, last["step"], *(last["heldout"].get(column, "") for column in columns)])
    return (
        ["## Held-out, at the last step of each stage", "", markdown_table(["stage", "step", *columns], rows)]
        if rows
        else []
    )


def _planned(records: list[dict]) -> list[str]:
    """List the changes of the stages' steps: for `hours`, or because held-out losses were flat."""
    changes = [record for record in records if "planned" in record]
    rows = [
        [
            record["global_step"], record["stage"], record["planned"]["why"],
            ", ".join(f"{stage} {steps}" for stage, steps in record["planned"]["steps"].items()),
        ]
        for record in changes
    ]  # fmt: skip
    title = "## Steps that were planned anew"
    return [title, "", markdown_table(["global step", "in stage", "why", "steps"], rows)] if rows else []


def _samples(records: list[dict]) -> list[str]:
    """Show the first and the last contact sheets; link all others."""
    drawn = [record for record in records if "samples" in record]
    if not drawn:
        return []
    lines = ["## Samples", ""]
    for record in [drawn[0], drawn[-1]] if len(drawn) > 1 else drawn:
        for task, each in record["samples"].items():
            lines += [f"![{task}, step {record['global_step']}]({each['sheet']})", ""]
    links = [
        f"step {record['global_step']} ({record['stage']}): "
        + ", ".join(
            f"[{task}]({each['sheet']}) ([video]({each['video']}))" for task, each in record["samples"].items()
        )
        for record in drawn
    ]
    return lines + [f"- {link}" for link in links]


def _timings(config: RunConfig, records: list[dict]) -> list[str]:
    """Return the time of the steps that count; steps after the last checkpoint of a killed run have no record."""
    rows, seen = [], 0
    for stage in config.stages:
        own = [record for record in records if record["stage"] == stage.name]
        if not any("loss" in record for record in own):
            continue
        seconds = {
            kind: sum(record.get("seconds", 0.0) for record in own if kind in record)
            for kind in ("loss", "heldout", "samples")
        }
        waiting = sum(record.get("waiting_seconds", 0) for record in own)
        windows, seen = own[-1]["windows_seen"] - seen, own[-1]["windows_seen"]
        rows.append(
            [
                stage.name, own[-1]["step"], f"{windows:,}", _hours(sum(seconds.values())),
                f"{windows / seconds['loss']:.2f}" if seconds["loss"] else "",
                f"{waiting / max(seconds['loss'], 1e-9):.1%}",
                _hours(seconds["heldout"]), _hours(seconds["samples"]),
            ]
        )  # fmt: skip
    columns = ["stage", "steps", "windows", "all", "windows/s of steps", "waiting for data", "held-out", "samples"]
    return ["## Time", "", markdown_table(columns, rows)] if rows else []


def _left_out(run: Path) -> list[str]:
    keys = ("global_step", "stage", "attempt", "grad_norm", "processes")
    reports = [read_json(path, keys) for path in sorted((run / "nonfinite").glob("*.json"))]
    if not reports:
        return ["No step was left out as not finite."]
    rows = [
        [r["global_step"], r["stage"], r["attempt"], r["grad_norm"], _clips(r)]
        for r in reports
    ]  # fmt: skip
    title = f"## {len(reports)} steps left out, because their loss or gradient was not finite"
    return [title, "", markdown_table(["step", "stage", "attempt", "gradient norm", "windows"], rows)]


def _clips(report: dict) -> str:
    windows = [window for process in report["processes"] for window in process["windows"]]
    return "; ".join(windows[:4]) + (f"; {len(windows) - 4} more" if len(windows) > 4 else "")


def _environment(config: RunConfig, starts: list[dict]) -> list[str]:
    lines = ["## Seed and environment", ""]
    lines += [f"Seed {config.seed}: everything drawn is a function of it, of the stage, the step and the row."]
    if not starts:
        return lines
    shown = starts[-1] | {"layout": Layout.of_start(starts[-1])}
    rows = [[name, value] for name, value in shown.items() if value is not None]
    lines += ["", markdown_table(["at the last start", ""], rows)]
    changed = sorted(
        {n for start in starts for n in start if n not in ("time", "command") and start[n] != starts[-1].get(n)}
    )
    if changed:
        lines += ["", f"Other starts differed in {', '.join(changed)}; see starts.jsonl."]
    return lines


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, runs/NAME")
    try:
        print(f"Wrote {write_report(parser.parse_args(arguments).run)}")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
