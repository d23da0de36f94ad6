"""Training state on disk: whole or absent. Exported models are ordinary `from_pretrained` folders and are written elsewhere."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_checkpoint(
    folder: Path,
    weights: dict[str, torch.Tensor],
    averages: dict[str, torch.Tensor],
    optimizers: list[dict],
    state: dict,
    keep: int,
) -> Path:
    """Writes `folder/step-<global step>` under a temporary name, renames it, then deletes all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state['global_step']:08d}"
    temporary = folder / f".{target.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()},
        temporary / "weights.safetensors",
    )
    save_file(
        {name: tensor.detach().contiguous().clone() for name, tensor in averages.items()},
        temporary / "ema.safetensors",
    )
    torch.save(optimizers, temporary / "optimizer.pt")
    (temporary / "state.json").write_text(json.dumps(state, indent=2))
    for path in temporary.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first; what a killed run left half written carries another name and is not listed."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(path: Path) -> tuple[dict, dict, list[dict], dict]:
    """Returns `(weights, averages, optimizers, state)`; nothing in the folder is unpickled beyond tensors and numbers."""
    missing = [n for n in ("weights.safetensors", "ema.safetensors", "optimizer.pt") if not (path / n).is_file()]
    if missing:
        raise ValueError(f"the checkpoint {path} lacks {missing}; delete the folder to resume from the one before it")
    return (
        load_file(path / "weights.safetensors"),
        load_file(path / "ema.safetensors"),
        torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        json.loads((path / "state.json").read_text()),
    )
