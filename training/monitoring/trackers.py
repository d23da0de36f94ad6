"""Losses and pictures to TensorBoard, trackio or Weights & Biases, through accelerate's trackers; `metrics.jsonl` is written in any case.

TensorBoard and trackio keep everything on this machine; wandb goes where its own settings say (`WANDB_MODE=offline` keeps it here).
"""

import importlib.util
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image

from training.config.schema import RunConfig


PROJECT = "mardini"  # what runs are filed under


def tracker_arguments(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """What `Accelerator` needs to be given for these trackers.

    Raises:
        ValueError: if one of them is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"`trackers` names {', '.join(missing)}, not installed here; `pip install {' '.join(missing)}`, or leave it out: "
            f"trackers=[{', '.join(name for name in names if name not in missing)}]"
        )
    return {
        "log_with": list(names),
        "project_config": ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "tensorboard")),
    }


def start_trackers(accelerator: Accelerator, config: RunConfig, folder: Path, global_step: int) -> None:
    """Starts the trackers that the accelerator was made for, where `global_step` steps lie behind; what came later is forgotten.

    A second call does nothing.
    """
    if accelerator.trackers:
        return
    resolved = config.model_dump(mode="json")
    identity = folder / "wandb_id"  # with it a resumed run goes on with its curves there, instead of beginning others
    if accelerator.is_main_process and "wandb" in config.trackers and not (global_step and identity.is_file()):
        identity.write_text(uuid.uuid4().hex[:8] + "\n")
    arguments = {
        "tensorboard": {"purge_step": global_step + 1 if global_step else None},
        "wandb": {"name": config.name, "dir": str(folder), "resume": "allow", "config": resolved}
        | ({"id": identity.read_text().strip()} if identity.is_file() else {}),
        "trackio": {"name": config.name, "resume": "allow", "embed": False, "config": resolved},
    }
    accelerator.init_trackers(PROJECT, init_kwargs=arguments)


def track(accelerator: Accelerator, record: dict) -> None:
    """Sends the numbers of a line of `metrics.jsonl`: `train/<name>` or `heldout/<name>`."""
    if "heldout" in record:
        values = {f"heldout/{name}": value for name, value in record["heldout"].items()}
    elif "loss" in record:
        values = {f"train/{name}": value for name, value in record.items() if name != "global_step"}
    else:
        return
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    accelerator.log(numbers, step=record["global_step"])


def track_sheets(accelerator: Accelerator, sheets: dict[str, Path], global_step: int) -> None:
    """Sends contact sheets, by task."""
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        for task, path in sheets.items():
            name = f"samples/{task}"
            if tracker.name == "trackio":
                import trackio

                tracker.log({name: trackio.Image(str(path))}, step=global_step)
                continue
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=global_step, dataformats="NHWC")
            else:
                tracker.log_images({name: [pixels]}, step=global_step)


def finish_trackers(accelerator: Accelerator) -> None:
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
