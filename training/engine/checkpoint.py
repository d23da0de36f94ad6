"""Checkpoints on disk, whole or absent. `resuming.py` decides what they hold; exported models are in `models.py`.

A checkpoint is a folder of safetensors and one `state.json`, which names every file with its size and SHA-256. A
folder called `step-…` was whole once (`files.py`); if it was damaged since, `load_checkpoint` says how instead of
using another one.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.files import UNFINISHED, remove_folder, whole_folder, write_whole


STATE = "state.json"
LATEST = "latest"
FILES = ("weights", "ema", "optimizer")  # of tensors, in the order of `Checkpoint`


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run resumes.

    Args:
        weights, averages: parameters and their moving averages by name; whole tensors.
        moments: the optimizers' tensors by name, see `optimizers.optimizer_tensors`; whole tensors.
        optimizers: the rest of each optimizer's state, as JSON.
        state: everything else, as JSON.
    """

    weights: Mapping[str, torch.Tensor]
    averages: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    optimizers: list[dict]
    state: dict


class TensorFile(Mapping[str, torch.Tensor]):
    """Read each tensor of a safetensors file when it is asked for: a process need not hold more than one of them."""

    def __init__(self, path: Path):
        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, keep: int, good_until: int = 0, late_news: bool = False
) -> Path:
    """Write `folder/step-<global step>`, then delete all but the newest `keep` and the last good one.

    Args:
        folder: of the checkpoints.
        checkpoint: what is written.
        keep: number of checkpoints.
        good_until: the last global step at which the loss is known to be good.
        late_news: whether that is known only some steps later; the next one to be known is kept, too.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"step-{checkpoint.state['global_step']:08d}"
    try:
        with whole_folder(target) as unfinished:
            _write(unfinished, checkpoint)
        write_whole(folder / LATEST, target.name + "\n")
    except (OSError, SafetensorError) as error:
        left = list_checkpoints(folder)
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {error}. "
            + (f"{left[-1]} is whole and untouched; " if left else "There is no earlier checkpoint; ")
            + "make room or make the folder writable, then type the same command again"
        ) from error
    good = good_checkpoint(folder, good_until)
    unknown = [path for path in list_checkpoints(folder) if step_of(path) > good_until]
    kept = [good, *(unknown[:1] if late_news else [])]
    for old in list_checkpoints(folder)[:-keep]:
        if old not in kept:
            remove_folder(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints, oldest first; leftovers of killed runs have hidden names and are not listed."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def step_of(checkpoint: Path) -> int:
    """Return the global step of a checkpoint, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def good_checkpoint(folder: Path, good_until: int) -> Path | None:
    """Return the newest checkpoint that a loss measured at `good_until` or later has shown to be good."""
    return max((path for path in list_checkpoints(folder) if step_of(path) <= good_until), default=None)


def set_aside_after(good: Path) -> list[Path]:
    """Rename the checkpoints after a good one to `diverged-…`, so that the run goes on from it; return them."""
    aside = []
    for path in list_checkpoints(good.parent):
        if path > good:
            target = path.with_name(f"diverged-{path.name}")
            if target.exists():
                remove_folder(target)
            aside.append(path.rename(target))
    if aside:
        write_whole(good.parent / LATEST, good.name + "\n")
    return aside


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to resume from; `None` if the run has never written one.

    Raises:
        CheckpointError: if the run has written checkpoints and all are gone; it would restart in silence otherwise.
    """
    checkpoints = list_checkpoints(folder)
    if checkpoints:
        return checkpoints[-1]
    latest = folder / LATEST
    if latest.is_file():
        raise CheckpointError(
            f"{latest} names {latest.read_text(errors='replace').strip()!r}, but {folder} holds no checkpoint; put "
            f"it back, or delete {folder} to begin anew"
        )
    return None


def load_checkpoint(path: Path, check_contents: bool = True, needed: Iterable[str] = ()) -> Checkpoint:
    """Open a checkpoint and check every file against its recorded size and SHA-256; nothing is unpickled.

    Args:
        path: the checkpoint.
        check_contents: read all files for their SHA-256; one process of many does.
        needed: keys that the state must have.

    Raises:
        CheckpointError: if a file is missing, shorter or otherwise not what was written.
    """
    try:
        state = json.loads((path / STATE).read_bytes())
        files, optimizers = state.pop("files"), state.pop("optimizers")
        missing = [name for name in needed if name not in state]
        files = {name: (expected["bytes"], expected["sha256"]) for name, expected in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its {STATE} cannot be read ({error})") from error
    if missing:
        raise _damaged(path, f"its {STATE} has no {', no '.join(missing)}")
    for name, (size, sha256) in files.items():
        file = path / name
        if not file.is_file():
            raise _damaged(path, f"{name} is missing")
        if file.stat().st_size != size:
            raise _damaged(path, f"{name} has {file.stat().st_size} bytes instead of {size}")
        if check_contents and _sha256(file) != sha256:
            raise _damaged(path, f"the contents of {name} have changed since they were written")
    try:
        tensors = [TensorFile(path / f"{name}.safetensors") for name in FILES]
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"its tensors cannot be read ({error})") from error
    return Checkpoint(*tensors, optimizers, state)


def clear_leftovers(folder: Path) -> None:
    """Remove checkpoints that killed runs left half written or half deleted."""
    for path in folder.glob(f".step-*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    files = {}
    for name, values in zip(FILES, (checkpoint.weights, checkpoint.averages, checkpoint.moments)):
        path = folder / f"{name}.safetensors"
        save_file({key: _own(value) for key, value in values.items()}, path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    (folder / STATE).write_text(
        json.dumps({**checkpoint.state, "files": files, "optimizers": checkpoint.optimizers}, indent=1)
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous CPU tensor that owns its storage; copies only if needed, as there may be many gigabytes."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _damaged(path: Path, what: str) -> CheckpointError:
    others = [other for other in list_checkpoints(path.parent) if other != path]
    advice = (
        f"delete {path} to go on from {others[-1].name}" if others else "there is no other checkpoint in its folder"
    )
    return CheckpointError(f"the checkpoint {path} is damaged: {what}; {advice}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
