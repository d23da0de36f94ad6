"""Part of `benchmarks.gpu.check`: CarRacing from nothing, with `training/configs/gpu-carracing.yaml`.

    python -m benchmarks.gpu.carracing -o outputs/gpu/carracing.json

Records clips with all processors (or takes `--clips`), trains the autoencoder and the models, scores them on clips
never trained on, and keeps a contact sheet and the weights in files of less than 16 MB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffusers_mardini.hardware import choose_device

from .rows import Rows


CONFIG = "training/configs/gpu-carracing.yaml"
HELD_OUT_SEED = 100_000  # tracks that no training set has
DRY = ["hours=null", "stages.joint.steps=2", "stages.joint.batch_size=2", "stages.joint.warmup_steps=1",
       "stages.joint.compile=false", "preset=mardini-nano", "validation_windows=2", "quality_windows=0"]  # fmt: skip


def commands(work: Path, clips: Path | None, hours: float, dry: bool) -> list[tuple[str, list[str]]]:
    """Return the steps by name, each a command of this repository without the interpreter; write what they read.

    Args:
        work: folder for data and runs.
        clips: a folder with `train` and `val`; `None` to record them.
        hours: of the training of both models.
        dry: at toy size.
    """
    data, vae, run = clips or work / "data", work / "autoencoder", work / "gpu-carracing"
    workers, counts = str(os.cpu_count() or 1), (4, 2) if dry else (400, 24)
    steps = []
    if clips is None:
        for name, count, seed in (("train", counts[0], 0), ("val", counts[1], HELD_OUT_SEED)):
            if (data / name / "metadata.jsonl").is_file():  # of an earlier check
                continue
            record = ["-m", "training.data.recipes.car_racing", str(data / name), "--clips", str(count)]
            steps.append((f"record {name}", [*record, "--first-seed", str(seed), "--workers", workers]))
    write_autoencoder(work, data, vae, dry)
    steps.append(("autoencoder", ["-m", "training.train_autoencoder", str(work / "autoencoder.yaml")]))
    changes = [
        f"data.train={data / 'train'}", f"data.validation={data / 'val'}", f"data.cache={work / 'latents'}",
        f"data.manifests={work / 'manifests'}", f"vae={vae}", f"hours={hours}", *(DRY if dry else []),
    ]  # fmt: skip
    steps.append(("train", ["-m", "training.train_mardini", CONFIG, "--runs", str(work), *changes]))
    scored = ["-m", "training.evaluate", str(run / "pipeline"), str(data / "val"), "--stride", "2"]
    scored += ["--steps", "2" if dry else "25", "-o", str(work / "evaluation")]
    steps.append(("evaluate", scored))
    return steps


def write_autoencoder(work: Path, data: Path, vae: Path, dry: bool) -> None:
    """Write the configuration of the autoencoder, whose program takes no changes on the command line."""
    small = {"width": 8, "decoder_blocks": 1, "basis_frames": 64, "eval_frames": 16}
    config = {
        "clips": str(data / "train"), "held_out": str(data / "val"), "output": str(vae), "train_encoder": False,
        "steps": 2 if dry else 1500, **(small if dry else {}),
    }  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    (work / "autoencoder.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carracing", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/gpu/carracing.json"), help="json")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-check"), help="folder for clips and runs")
    parser.add_argument("--clips", type=Path, help="folder with train and val, instead of recording")
    parser.add_argument("--seconds", type=float, default=100, help="of the training of both models")
    parser.add_argument("--dry", action="store_true", help="at toy size, to try the program")
    options = parser.parse_args(arguments)
    rows = Rows(options.output, choose_device(), options.seconds)
    for name, command in commands(options.work, options.clips, options.seconds / 3600, options.dry):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        tail = (done.stdout + done.stderr).strip().splitlines()[-15:]
        rows.add(step=name, seconds=time.perf_counter() - started, exit_code=done.returncode)
        if done.returncode:
            rows.know(failed=name, output=tail)
            print("\n".join(tail))
            raise SystemExit(1)
    rows.know(scores=scores_of(options.work / "evaluation"))
    keep(options.work, options.output.parent)
    return {"rows": rows.rows, **rows.facts}


def scores_of(folder: Path) -> list[dict[str, Any]]:
    """Return the numbers of each row of an evaluation."""
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    return [{name: value for name, value in row.items() if isinstance(value, (str, int, float))} for row in rows]


def keep(work: Path, folder: Path) -> None:
    """Copy one contact sheet and the weights of both models, in float16, to `folder`."""
    sheets = sorted((work / "evaluation").glob("*.png"))
    if sheets:
        shutil.copyfile(sheets[0], folder / "carracing.png")
    for part in ("planner", "transformer"):
        (found,) = (work / "gpu-carracing" / "pipeline" / part).glob("*.safetensors")
        shutil.copyfile(found, folder / f"{part}.safetensors")


if __name__ == "__main__":
    main()
