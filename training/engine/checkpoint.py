"""Checkpoints on disk, whole or absent. `resuming.py` decides what they hold, `writing.py` when they are written.

A checkpoint is a folder of safetensors and one `state.json`. Each process writes a file of each kind (`KINDS`) with
its parts of the tensors; `state.json` has the shapes of the whole tensors, and size and SHA-256 of every file. A
folder called `step-…` was whole once (`files.py`); if it was damaged since, `load_checkpoint` says how instead of
using another one. Exported models are in `models.py`.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from training.engine.tensor_files import Part, TensorFiles, write_tensors
from training.files import UNFINISHED, flush, hidden_folder, remove_folder, take_place, write_whole


STATE = "state.json"
LATEST = "latest"
KINDS = ("weights", "ema", "optimizer")  # of tensors, in the order of `Checkpoint`
Parts = dict[str, dict[str, Part]]  # by kind and name


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a run resumes.

    Args:
        weights, averages: parameters and their moving averages by name; those of one that is read are `TensorFiles`.
        moments: the optimizers' tensors by name, see `optimizers.optimizer_tensors`.
        optimizers: the rest of each optimizer's state, as JSON.
        state: everything else, as JSON.
    """

    weights: Mapping[str, torch.Tensor]
    averages: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    optimizers: list[dict]
    state: dict

    def tensors(self) -> dict[str, Mapping[str, torch.Tensor]]:
        """Return the tensors by kind."""
        return dict(zip(KINDS, (self.weights, self.averages, self.moments)))


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, keep: int, good_until: int = 0, late_news: bool = False
) -> Path:
    """Write `folder/step-<global step>` of a single process; see `write_parts` and `complete`.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; earlier checkpoints are untouched.
    """
    target = checkpoint_folder(folder, checkpoint.state)
    parts = {
        kind: {name: Part(tensor, (0,) * tensor.ndim) for name, tensor in tensors.items()}
        for kind, tensors in checkpoint.tensors().items()
    }
    try:
        files = write_parts(target, parts, 0, 1)
        complete(target, state_of(checkpoint), files, keep, good_until, late_news)
    except CheckpointError:
        discard(target)
        raise
    return target


def checkpoint_folder(folder: Path, state: Mapping[str, Any]) -> Path:
    """Return the folder of the checkpoint of a state."""
    return folder / f"step-{state['global_step']:08d}"


def state_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `state.json` holds, without the files."""
    shapes = {
        kind: {name: list(tensor.shape) for name, tensor in tensors.items()}
        for kind, tensors in checkpoint.tensors().items()
    }
    return {**checkpoint.state, "optimizers": checkpoint.optimizers, "tensors": shapes}


def write_parts(target: Path, parts: Parts, rank: int, ranks: int) -> dict[str, dict[str, Any]]:
    """Write a process's files of a checkpoint, flushed, into its hidden folder; return size and digest by name.

    Args:
        target: folder of the checkpoint.
        parts: on the CPU.
        rank, ranks: number of this process, and of all that write.

    Raises:
        CheckpointError: if they cannot be written; earlier checkpoints are untouched.
    """
    hidden = hidden_folder(target)
    with _named_write_errors(target):
        hidden.mkdir(parents=True, exist_ok=True)
        names = {kind: f"{kind}.safetensors" for kind in KINDS}
        if ranks > 1:
            names = {kind: f"{kind}-{rank + 1:05d}-of-{ranks:05d}.safetensors" for kind in KINDS}
        return {names[kind]: write_tensors(hidden / names[kind], parts[kind]) for kind in KINDS}


def complete(
    target: Path, state: dict[str, Any], files: dict[str, dict], keep: int, good_until: int, late_news: bool
) -> None:
    """Rename a checkpoint of which all files are written, then delete all but the newest `keep` and the last good one.

    Args:
        target: folder of the checkpoint.
        state: the result of `state_of`.
        files: sizes and digests of all processes' files.
        keep: number of checkpoints.
        good_until: the last global step at which the loss is known to be good.
        late_news: whether that is known only some steps later; the next one to be known is kept, too.

    Raises:
        CheckpointError: if it cannot be written; earlier checkpoints are untouched.
    """
    hidden, folder = hidden_folder(target), target.parent
    with _named_write_errors(target):
        (hidden / STATE).write_text(json.dumps({**state, "files": files}, indent=1))
        flush(hidden / STATE)
        flush(hidden)
        take_place(hidden, target)
        write_whole(folder / LATEST, target.name + "\n")
    good = good_checkpoint(folder, good_until)
    unknown = [path for path in list_checkpoints(folder) if step_of(path) > good_until]
    kept = [good, *(unknown[:1] if late_news else [])]
    for old in list_checkpoints(folder)[:-keep]:
        if old not in kept:
            try:
                remove_folder(old)
            except OSError as error:  # on Windows, while another program reads it
                print(f"the old checkpoint '{old}' could not be deleted ({error}); it is tried again at the next one")


def discard(target: Path) -> None:
    """Remove what is written of a checkpoint that cannot be completed."""
    shutil.rmtree(hidden_folder(target), ignore_errors=True)


@contextlib.contextmanager
def _named_write_errors(target: Path) -> Iterator[None]:
    """Turn errors of writing a checkpoint into one sentence."""
    try:
        yield
    except OSError as error:
        left = list_checkpoints(target.parent)
        raise CheckpointError(
            f"cannot write the checkpoint {target}: {error}. "
            + (f"{left[-1]} is whole and untouched; " if left else "There is no earlier checkpoint; ")
            + "make room or make the folder writable, then type the same command again"
        ) from error


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


def load_checkpoint(path: Path, needed: Iterable[str] = (), rank: int = 0, ranks: int = 1) -> Checkpoint:
    """Open a checkpoint and check every file against its recorded size and SHA-256; nothing is unpickled.

    Args:
        path: the checkpoint.
        needed: keys that the state must have.
        rank, ranks: number of this process, and of all that open it; they share the work of checking.

    Raises:
        CheckpointError: if a file is missing, shorter or otherwise not what was written.
    """
    try:
        state = json.loads((path / STATE).read_bytes())
        files, optimizers = state.pop("files"), state.pop("optimizers")
        # Before there was a file for each process, one of each kind held whole tensors.
        shapes = state.pop("tensors", dict.fromkeys(KINDS))
        missing = [name for name in needed if name not in state]
        files = {name: (expected["bytes"], expected["sha256"]) for name, expected in files.items()}
        of_kind = {kind: sorted(path / name for name in files if _kind(name) == kind) for kind in KINDS}
        near = {kind: rank * len(paths) // ranks for kind, paths in of_kind.items()}
        tensors = [TensorFiles(of_kind[kind], shapes[kind], near[kind]) for kind in KINDS]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its {STATE} cannot be read ({error})") from error
    if missing:
        raise _damaged(path, f"its {STATE} has no {', no '.join(missing)}")
    for name, (size, sha256) in sorted(files.items())[rank::ranks]:
        file = path / name
        if not file.is_file():
            raise _damaged(path, f"{name} is missing")
        if file.stat().st_size != size:
            raise _damaged(path, f"{name} has {file.stat().st_size} bytes instead of {size}")
        if _sha256(file) != sha256:
            raise _damaged(path, f"the contents of {name} have changed since they were written")
    try:
        for kind in tensors:
            kind.open()
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"its tensors cannot be read ({error})") from error
    return Checkpoint(*tensors, optimizers, state)


def _kind(name: str) -> str:
    """Return the kind of a file of tensors."""
    return name.removesuffix(".safetensors").partition("-")[0]


def clear_leftovers(folder: Path) -> None:
    """Remove what killed runs left half written or half deleted."""
    for path in folder.glob(f".*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _damaged(path: Path, what: str) -> CheckpointError:
    others = [other for other in list_checkpoints(path.parent) if other != path]
    advice = (
        f"delete {path} to go on from {others[-1].name}" if others else "there is no other checkpoint in its folder"
    )
    return CheckpointError(f"the checkpoint {path} is damaged: {what}; {advice}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
