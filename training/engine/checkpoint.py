"""Training state on disk: whole or absent. Exported models are ordinary `from_pretrained` folders and are written elsewhere.

A checkpoint is a folder of safetensors and one `state.json`, which names every file with its size and SHA-256. It is written under
a hidden name, flushed to the disk and renamed; a deleted one is renamed to a hidden name first. So whatever is called `step-…` was
whole once, and if it is not so any more, `load_checkpoint` says what is wrong instead of going on from something else.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


STATE = "state.json"
LATEST = "latest"
FILES = ("weights", "ema", "optimizer")  # of tensors, in the order of `Checkpoint`


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Args:
        weights, averages: parameters and their moving averages by name; whole tensors.
        moments: the optimizers' tensors by name, see `optimizers.optimizer_tensors`; whole tensors.
        optimizers: the rest of each optimizer's state, as JSON.
        state: whatever else, as JSON.
    """

    weights: Mapping[str, torch.Tensor]
    averages: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    optimizers: list[dict]
    state: dict


class TensorFile(Mapping[str, torch.Tensor]):
    """The tensors of a safetensors file, each read when it is asked for, so that no process need hold more than one of them."""

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


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `folder/step-<global step>`, then deletes all but the newest `keep`.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    target = folder / f"step-{checkpoint.state['global_step']:08d}"
    temporary = folder / f".{target.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write(temporary, checkpoint)
        if target.exists():
            _delete(target)
        temporary.rename(target)
        _flush(folder)
        _write_latest(folder, target.name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        left = list_checkpoints(folder)
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {error}. "
            + (f"{left[-1]} is whole and untouched; " if left else "There is no earlier checkpoint; ")
            + "make room or make the folder writable, then type the same command again"
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        _delete(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; what a killed run left half written or half deleted carries another name and is not listed."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from; `None` where the run has never written one.

    Raises:
        CheckpointError: if the run has written checkpoints and all are gone; it would begin anew in silence otherwise.
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
    """Opens a checkpoint, every file checked against its recorded size and SHA-256; nothing is unpickled.

    Args:
        path: the checkpoint.
        check_contents: whether to read all files for their SHA-256; one process of many does.
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
    """Removes what killed runs left half written or half deleted."""
    for path in folder.glob(".step-*"):
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
    for path in [*folder.iterdir(), folder]:
        _flush(path)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in memory that is no other tensor's; no copy where it is so already, since there may be many gigabytes of it."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _write_latest(folder: Path, name: str) -> None:
    temporary = folder / f".{LATEST}.partial"
    temporary.write_text(name + "\n")
    _flush(temporary)
    temporary.replace(folder / LATEST)


def _delete(path: Path) -> None:
    hidden = path.with_name(f".{path.name}.deleted")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _damaged(path: Path, what: str) -> CheckpointError:
    others = [other for other in list_checkpoints(path.parent) if other != path]
    advice = (
        f"delete {path} to go on from {others[-1].name}" if others else "there is no other checkpoint in its folder"
    )
    return CheckpointError(f"the checkpoint {path} is damaged: {what}; {advice}")


def _flush(path: Path) -> None:
    """Wait until a file or a folder's list of files is on the disk; Windows does so for files only, opened to write."""
    if path.is_dir():
        if os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems refuse folders
            raise
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
