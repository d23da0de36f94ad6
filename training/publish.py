"""Makes a checkpoint to carry or upload out of a finished run: its pipeline, and a model card from what the run itself recorded.

    python -m training.publish runs/tiny-carracing training/runs/mardini-tiny-carracing.yaml outputs/evaluation-carracing/results.json \
        -o checkpoints/mardini-tiny-carracing

The YAML file holds what no record tells (description, data, limits); stages come from the run's `config.json` and `metrics.jsonl`, scores
from `results.json` of `training.evaluate`.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from diffusers_mardini.cards import write_model_card

from .config import RunConfig
from .evaluate import COLUMNS


def stages_of(run: Path) -> list[dict]:
    """One row for each stage of a finished run, with the windows it has really seen.

    Raises:
        ValueError: if the run has no record of a stage's end.
    """
    config = RunConfig.model_validate_json((run / "config.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows, before = [], 0
    for stage in config.stages:
        seen = [record["windows_seen"] for record in records if record["stage"] == stage.name]
        if not seen:
            raise ValueError(f"{run} has no record of stage {stage.name!r}; let the run end first")
        low, high = stage.reference_ratio
        rows.append(
            {
                "stage": stage.name,
                "trains": stage.trains,
                "steps": max(record["step"] for record in records if record["stage"] == stage.name),
                "windows": seen[-1] - before,
                "kept frames": f"{low:.0%} to {high:.0%}",
                "attention": "" if stage.trains == "planner" else stage.temporal_attention,
            }
        )
        before = seen[-1]
    return rows


def scores_of(results: Path) -> tuple[list[dict], str]:
    """The rows of `results.json` for the card, and the command that made it."""
    record = json.loads(results.read_text(encoding="utf-8"))
    rows = [{"method": row["method"], **{COLUMNS[c]: row[c] for c in COLUMNS}} for row in record["rows"]]
    return rows, record["command"]


def publish(run: Path, card: Path, results: Path, output: Path) -> Path:
    """Copies the pipeline of a run and writes its card; `output` is replaced whole.

    Raises:
        ValueError: if the run is not finished, or `output` holds something else than a pipeline.
    """
    pipeline = run / "pipeline"
    if not (pipeline / "model_index.json").is_file():
        raise ValueError(f"{run} has no finished pipeline; type its training command again until it ends")
    if output.exists() and not (output / "model_index.json").is_file():
        raise ValueError(f"{output} exists and is no pipeline; give another folder")
    metrics, command = scores_of(results)
    facts = yaml.safe_load(card.read_text(encoding="utf-8"))
    facts["metrics_setting"] = f"{facts['metrics_setting'].strip()}\n\n`{command}`"
    temporary = output.with_name(f".{output.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(pipeline, temporary)
    write_model_card(temporary, {"name": output.name, **facts, "stages": stages_of(run), "metrics": metrics})
    shutil.rmtree(output, ignore_errors=True)
    temporary.rename(output)
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("card", type=Path, help="YAML file with the facts that no record tells")
    parser.add_argument("results", type=Path, help="results.json of training.evaluate")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the checkpoint")
    options = parser.parse_args(arguments)
    try:
        print(f"the checkpoint lies in {publish(options.run, options.card, options.results, options.output)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
