"""Part of `benchmarks.gpu.check`: training steps of the paper's models, random weights and latents.

    python -m benchmarks.gpu.training_step -o outputs/gpu/training_step.json

A joint step of MarDini-S and L at 256 and 512 pixels: tokens a second, the share of this device's measured peak (MFU),
and the most memory beside what `training.plan` predicts.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini.hardware import choose_device
from training.config.schema import RunConfig
from training.costs import count_memory, count_operations, count_tokens, probe
from training.engine.layout import Layout
from training.engine.sharding import uses_bfloat16
from training.monitoring.device_speed import measure_peak

from .rows import Rows, peak_gib, reason_of, reset_peak


# Preset, pixels, frames, windows of a step: from the smallest, so that a lack of memory ends the list and not begins it.
STEPS = (
    ("mardini-s-t", 256, 9, 4),
    ("mardini-s-t", 512, 17, 1),
    ("mardini-l-t", 256, 9, 4),
    ("mardini-l-t", 512, 17, 1),
)
DRY = (("mardini-nano", 64, 3, 1),)


def make_config(preset: str, size: int, frames: int, batch: int) -> RunConfig:
    """Return a joint stage of the presets of the paper, as `training/configs/figure4_t.yaml` has them."""
    stage = {
        "name": "joint", "trains": "joint", "steps": 1, "num_frames": frames, "batch_size": batch,
        "planner_loss_weight": 0.5, "reference_ratio": [0.1, 0.4],
    }  # fmt: skip
    return RunConfig(
        name="check", data={"train": "none", "size": size}, vae="none", preset=preset, gradient_checkpointing=True,
        stages=[stage],
    )  # fmt: skip


def measure(rows: Rows, preset: str, size: int, frames: int, batch: int, device: torch.device, peak: float) -> None:
    """Add a row for one step."""
    config = make_config(preset, size, frames, batch)
    stage = config.stages[0]
    what = {"preset": preset, "size": size, "frames": frames, "windows": batch}
    memory = count_memory(config, stage, Layout(), True)
    predicted = (memory.total - memory.ema) / 2**30  # a probe keeps no averages
    try:
        gc.collect()
        reset_peak(device)
        seconds = probe(config, stage, 3)
    except Exception as error:  # usually a lack of memory
        rows.add(**what, predicted_gib=predicted, failed=reason_of(error))
        return
    tokens = count_tokens(config, stage)
    rows.add(
        **what,
        seconds=seconds,
        planner_tokens_per_second=batch * tokens["planner"] / seconds,
        transformer_tokens_per_second=batch * tokens["transformer"] / seconds,
        # Operations of the model: what checkpointing computes twice counts once.
        mfu=count_operations(config.model_copy(update={"gradient_checkpointing": False}), stage) / seconds / peak,
        peak_gib=peak_gib(device),
        predicted_gib=predicted,
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the part."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.training_step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/gpu/training_step.json"), help="json")
    parser.add_argument("--seconds", type=float, default=60, help="begin nothing new after these")
    parser.add_argument("--dry", action="store_true", help="at toy size, to try the program")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    rows = Rows(options.output, device, options.seconds)
    dtype = torch.bfloat16 if uses_bfloat16(make_config(*DRY[0])) else torch.float32
    peak, how = measure_peak(device, dtype)
    rows.know(peak=how)
    for step in DRY if options.dry else STEPS:
        if rows.time_left <= 0:
            rows.add(preset=step[0], size=step[1], failed="no time was left")
            continue
        measure(rows, *step, device, peak)
    return {"rows": rows.rows}


if __name__ == "__main__":
    main()
