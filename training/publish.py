"""Make a checkpoint folder out of a finished run: its pipeline or adapter, and a model card from the run's records.

    python -m training.publish runs/tiny-carracing training/runs/mardini-tiny-carracing.yaml \
        outputs/evaluation-carracing/results.json -o checkpoints/mardini-tiny-carracing

The YAML file contains what no run records: description, data, limits. Stages, hardware and hours come from the run's
`config.json`, `metrics.jsonl` and `starts.jsonl`, scores from `results.json` of `training.evaluate`. `--keep-record`
saves them in a JSON file beside the YAML file, so that `card.py` can write the card again without the run. `--steps`
and `--solver` become the defaults of `mardini`, where they were measured to be as good as 25 steps of DDIM. Pictures
that the YAML file lists as `samples` are copied from the folder of `results.json`. A run that went on from a published
checkpoint, with `--start-at`, takes its earlier stages from that JSON file. An adapter's `base_model` is the
`init_from` of its run, unless the YAML file gives its place on the Hub.
"""

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cards import write_model_card
from diffusers_mardini.hardware import DTYPES
from diffusers_mardini.measured_sampling import MeasuredSampling
from training.card import facts_of, read_record, refuse_other_weights, scores_of, without_folders, write_record
from training.config.layers import read_run_config
from training.config.schema import RunConfig
from training.engine.adapter import adapter_loaded
from training.evaluation.sampling import weights_digest
from training.files import read_json, read_lines, whole_folder
from training.monitoring.records import METRICS


# The facts of the hardware in a line of `starts.jsonl`.
_START = {"processes": int, "threads": int, "device": str, "processor": str, "cores": int, "mixed_precision": str}


def stages_of(run: Path, earlier: Sequence[dict] = ()) -> list[dict]:
    """Return a row for each stage of a finished run, with the windows it has really seen.

    Args:
        run: its folder.
        earlier: rows of the checkpoint that the run went on from (`init_from`), for stages that it did not train.

    Raises:
        ValueError: if a stage has no record.
    """
    config = read_run_config(run)
    records = read_lines(run / "metrics.jsonl", METRICS)
    known = {row["stage"]: row for row in earlier} if config.init_from is not None else {}
    rows, before = [], 0
    for stage in config.stages:
        seen = [record["windows_seen"] for record in records if record["stage"] == stage.name]
        if not seen and not before and stage.name in known:
            rows.append(known[stage.name])
            continue
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


def resources_of(run: Path) -> dict[str, Any]:
    """Return `hardware` and `hours`, if the run recorded them."""
    facts: dict[str, Any] = {}
    described = [_hardware(start) for start in read_lines(run / "starts.jsonl", _START)]
    if described:
        facts["hardware"] = "; then ".join(dict.fromkeys(described))
    records = read_lines(run / "metrics.jsonl")
    if records and all("seconds" in record for record in records):
        facts["hours"] = sum(record["seconds"] for record in records) / 3600
    return facts


def publish(
    run: Path,
    card: Path,
    results: Path,
    output: Path,
    keep_record: bool = False,
    measured: MeasuredSampling | None = None,
) -> Path:
    """Copy the pipeline or the adapter of a run and write its card; `output` is replaced as a whole.

    Args:
        run: folder of a finished run.
        card: YAML file with the facts that no run records.
        results: `results.json` of `training.evaluate`.
        output: folder of the checkpoint.
        keep_record: whether to save the recorded facts in a JSON file beside `card`.
        measured: how a pipeline is sampled by default.

    Raises:
        ValueError: if the run is not finished, `output` contains anything else, a sample is missing, or the scores are
            of other weights than the run's.
    """
    config = read_run_config(run)
    kind, mark = ("pipeline", "model_index.json") if config.lora is None else ("adapter", LORA_WEIGHT_NAME_SAFE)
    if not (run / kind / mark).is_file():
        raise ValueError(f"{run} has no finished {kind}; type its training command again until it ends")
    if output.exists() and not (output / mark).is_file():
        raise ValueError(f"{output} exists and is no {kind}; give another folder")
    measured = measured or MeasuredSampling()
    if measured != MeasuredSampling() and config.lora is not None:
        raise ValueError(
            "an adapter has no steps, solver and anchors of its own; leave out --steps, --solver, --anchors"
        )
    _check_sampled_by(config, run / kind, results)
    stages = stages_of(run, read_record(card).get("stages", []))
    # A run that went on from a checkpoint recorded its own hours, not those of earlier stages.
    whole = {row["stage"] for row in stages} <= {
        record["stage"] for record in read_lines(run / "metrics.jsonl", METRICS)
    }
    resources = resources_of(run) if whole else {}
    record = {"stages": stages, **resources, **scores_of(results)}
    if config.lora is not None and "base_model" not in facts_of(card, {}):
        record["base_model"] = without_folders(config.init_from)
    facts = facts_of(card, record)
    pictures = [results.parent / sample["file"] for sample in facts.get("samples", [])]
    missing = [picture.name for picture in pictures if not picture.is_file()]
    if missing:
        raise ValueError(f"{card} names the samples {', '.join(missing)}, which are not in {results.parent}")
    with whole_folder(output) as unfinished:
        shutil.copytree(run / kind, unfinished, dirs_exist_ok=True)
        if measured != MeasuredSampling():
            index = {**read_json(unfinished / mark), **measured.config}
            (unfinished / mark).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for picture in pictures:
            shutil.copy(picture, unfinished)
        _refuse_folders(write_model_card(unfinished, {"name": output.name, **facts}), card)
    if keep_record:
        write_record(card, record)
    return output


def _check_sampled_by(config: RunConfig, finished: Path, results: Path) -> None:
    """Raise `ValueError` if the scores are of other weights; results without a digest are accepted."""
    if config.lora is None:
        refuse_other_weights(finished, results)
        return
    sampled_by = read_json(results).get("sampled_by")
    if sampled_by is None:
        return
    pipe = MarDiniPipeline.from_pretrained(config.init_from, dtype=DTYPES[sampled_by["dtype"].removeprefix("torch.")])
    with adapter_loaded(pipe, finished):
        digest = weights_digest(pipe)
    if sampled_by.get("adapted") != digest:
        raise ValueError(
            f"{results} holds scores of other weights than {finished}: evaluate {config.init_from} with --adapter "
            f"{finished}, or give the results that are its own"
        )


def _refuse_folders(written: Path, card: Path) -> None:
    """Raise `ValueError` if a card names the home or the working directory of whoever published it."""
    text = written.read_text(encoding="utf-8")
    for folder in (Path.home(), Path.cwd()):
        if folder != Path(folder.anchor) and re.search(re.escape(str(folder)) + r"(?![\w.-])", text):
            raise ValueError(f"the card would name {folder}, a folder of this machine; take it out of {card}")


def _hardware(start: dict[str, Any]) -> str:
    """Describe the hardware of one start of a run; see `starts.jsonl`."""
    autocast = "" if start["mixed_precision"] == "no" else f", {start['mixed_precision']}"
    processes = f"{start['processes']} process{'es' if start['processes'] > 1 else ''}"
    if start["device"] != "cpu":
        return f"{processes}, each on {start['device']}{autocast}"
    threads = f"{start['threads']} thread{'s' if start['threads'] > 1 else ''}"
    return f"{processes} of {threads} on {start['processor']}, {start['cores']} cores{autocast}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("card", type=Path, help="YAML file with the facts that no run records")
    parser.add_argument("results", type=Path, help="results.json of training.evaluate")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--keep-record", action="store_true", help="save the recorded facts for training.card beside the YAML file"
    )
    parser.add_argument("--steps", type=int, help="of `mardini` by default; needs --solver")
    parser.add_argument("--solver", help="name of the scheduler's class, such as UniPCMultistepScheduler")
    parser.add_argument("--anchors", type=int, help="of `mardini extend` by default, if they help against drift")
    options = parser.parse_args(arguments)
    try:
        measured = MeasuredSampling(options.steps, options.solver, options.anchors)
        output = publish(options.run, options.card, options.results, options.output, options.keep_record, measured)
        print(f"Wrote the checkpoint to {output}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
