"""Send losses and pictures to TensorBoard, trackio or Weights & Biases through accelerate's trackers.

TensorBoard and trackio store everything on this machine; wandb follows its own settings (`WANDB_MODE=offline` stores
it here). `metrics.jsonl` is always written.
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


PROJECT = "mardini"  # the trackers' name of the project


def tracker_arguments(names: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the arguments of `Accelerator` for these trackers.

    Raises:
        ValueError: if one of them is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"`trackers` names {', '.join(missing)}, not installed here; `pip install {' '.join(missing)}`, or "
            f"leave it out: trackers=[{', '.join(name for name in names if name not in missing)}]"
        )
    return {
        "log_with": list(names),
        "project_config": ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "tensorboard")),
    }


def start_trackers(accelerator: Accelerator, config: RunConfig, folder: Path, global_step: int) -> None:
    """Start the accelerator's trackers after `global_step` finished steps; later values of an earlier start are
    dropped.

    A second call does nothing.
    """
    if accelerator.trackers:
        return
    resolved = config.model_dump(mode="json")
    identity = folder / "wandb_id"  # with it a resumed run continues its curves
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
    """Send the numbers of a line of `metrics.jsonl` as `train/<name>` or `heldout/<name>`."""
    if "heldout" in record:
        values = {f"heldout/{name}": value for name, value in record["heldout"].items()}
    elif "loss" in record:
        values = {f"train/{name}": value for name, value in record.items() if name != "global_step"}
    else:
        return
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    accelerator.log(numbers, step=record["global_step"])


def track_sheets(accelerator: Accelerator, sheets: dict[str, Path], global_step: int) -> None:
    """Send contact sheets by task."""
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
    """Finish and remove the accelerator's trackers."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
