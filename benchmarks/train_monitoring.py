"""Measure the share of data and logging in a training step, at most 5%: `python -m benchmarks.train_monitoring`.

The trainer's loop runs the joint step of `mardini-tiny` on cached latents of made-up clips and logs after every step,
ten times as often as by default, to `metrics.jsonl`, TensorBoard and the panel; the times come from its own lines.
With `--heldout`, held-out losses and scores are computed once at the end, and their time is compared with the steps
between two of them by default.
"""

import argparse
import io
import json
import statistics
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console

from diffusers_mardini import AutoencoderPatchBasis
from training.config.schema import RunConfig
from training.data.preparation import prepare_data
from training.data.recipes.moving_shapes import record
from training.engine.sharding import uses_bfloat16
from training.loop import Run
from training.monitoring.trackers import finish_trackers, tracker_arguments

from .train_step import make_config


def logging_every_step(config: RunConfig, folder: Path, steps: int) -> RunConfig:
    """Return the run with one stage of `steps` steps, a line after each, and all files in `folder`."""
    stages = [config.stages[0].model_copy(update={"steps": steps})]
    clips = str(folder / "clips")
    paths = {"train": clips, "validation": clips, "cache": folder / "latents", "manifests": folder / "manifests"}
    data = config.data.model_copy(update=paths)
    once = {"validate_every": steps, "checkpoint_every": steps, "sample_every": 0}
    return config.model_copy(update={"data": data, "stages": stages, "log_every": 1, **once})


def shares(lines: list[dict], batch_size: int) -> dict[str, float]:
    """Return median seconds of a step, of its wait for data, and of logging, from a line after every step."""
    steps = [batch_size / line["windows_per_second"] for line in lines]
    return {
        "step": statistics.median(steps),
        "data": statistics.median(line["waiting_seconds"] for line in lines),
        # The time for logging a step lies before the next line.
        "logging": statistics.median(
            max(0.0, line["seconds"] - step) for line, step in zip(lines[1:], steps[1:], strict=True)
        ),
    }


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_monitoring", description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--heldout", action="store_true", help="also time held-out losses and scores")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = logging_every_step(make_config(options.batch_size, "muon"), folder, options.steps).for_processes(1)
        record(Path(config.data.train), 16, 64, 64)
        accelerator = Accelerator(
            mixed_precision="bf16" if uses_bfloat16(config) else "no", **tracker_arguments(["tensorboard"], folder)
        )
        vae = AutoencoderPatchBasis().eval()
        data = prepare_data(config, vae, folder, accelerator)
        run = Run(config, accelerator, vae, data.train, data.validation if options.heldout else None, folder)
        run.monitor.refresh_seconds = 0.0
        run.monitor.console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
        run.train()
        finish_trackers(accelerator)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in records if "loss" in line]
    seconds = shares(lines[2:], options.batch_size)  # the first two warm up
    print(
        f"A joint step of mardini-tiny, {options.batch_size} windows, on {accelerator.device}, "
        f"{torch.get_num_threads()} thread(s), median of {len(lines) - 2}"
    )
    for part, value in seconds.items():
        print(f"{part:<8} {1000 * value:9.2f} ms {value / seconds['step']:7.2%}")
    total = (seconds["data"] + seconds["logging"]) / seconds["step"]
    print(f"data and logging together {total:.2%} of a step (allowed: 5%)")
    every = RunConfig.model_fields["validate_every"].default
    for heldout in (line["seconds"] for line in records if "heldout" in line):
        print(
            f"held-out losses of {config.validation_windows} windows and scores of {config.quality_windows}: "
            f"{heldout:.1f} s, {heldout / (every * seconds['step']):.2%} of the {every} steps between them"
        )
    return seconds


if __name__ == "__main__":
    main()
