"""What data and logging take of a training step: `python -m benchmarks.train_monitoring`; at most 5% is allowed.

The trainer's own loop runs the joint step of `mardini-tiny` on the latent cache of made-up clips, with a line of `metrics.jsonl`, TensorBoard and a drawing of
the panel after every step, ten times as often as by default, and its own lines say where the time went.
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
from training.config import RunConfig
from training.data.moving_shapes import record
from training.loop import Run
from training.run_data import prepare_data
from training.step_costs import uses_bfloat16
from training.trackers import finish_trackers, tracker_arguments

from .train_step import make_config


def logging_every_step(config: RunConfig, folder: Path, steps: int) -> RunConfig:
    """The run with one stage of some steps, a line after each of them, and all it keeps in a folder."""
    stages = [config.stages[0].model_copy(update={"steps": steps})]
    paths = {"train": str(folder / "clips"), "cache": folder / "latents", "manifests": folder / "manifests"}
    data = config.data.model_copy(update=paths)
    return config.model_copy(update={"data": data, "stages": stages, "log_every": 1, "checkpoint_every": steps})


def shares(lines: list[dict], batch_size: int) -> dict[str, float]:
    """Median seconds of a step, of its wait for data, and of all between two steps, from lines that were written after every step."""
    steps = [batch_size / line["windows_per_second"] for line in lines]
    return {
        "step": statistics.median(steps),
        "data": statistics.median(line["waiting_seconds"] for line in lines),
        # What writing and showing the line of a step takes lies before the next line.
        "logging": statistics.median(
            max(0.0, line["seconds"] - step) for line, step in zip(lines[1:], steps[1:], strict=True)
        ),
    }


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_monitoring", description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = logging_every_step(make_config(options.batch_size, "muon"), folder, options.steps)
        record(Path(config.data.train), 16, 64, 64)
        accelerator = Accelerator(
            mixed_precision="bf16" if uses_bfloat16(config) else "no", **tracker_arguments(["tensorboard"], folder)
        )
        vae = AutoencoderPatchBasis().eval()
        run = Run(config, accelerator, vae, prepare_data(config, vae, folder, accelerator).train, None, folder)
        run.monitor.refresh_seconds = 0.0
        run.monitor.console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
        run.train()
        finish_trackers(accelerator)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = shares(lines[2:], options.batch_size)  # two warm up
    print(
        f"A joint step of mardini-tiny, {options.batch_size} windows, on {accelerator.device}, {torch.get_num_threads()} thread(s), "
        f"median of {len(lines) - 2}"
    )
    for part, value in seconds.items():
        print(f"{part:<8} {1000 * value:9.2f} ms {value / seconds['step']:7.2%}")
    total = (seconds["data"] + seconds["logging"]) / seconds["step"]
    print(f"data and logging together {total:.2%} of a step (allowed: 5%)")
    return seconds


if __name__ == "__main__":
    main()
