"""Write the checkpoints of a run in a thread of each process, while training goes on.

A checkpoint begins with copies of what the process holds. It is renamed into place once all processes have written
theirs, which they learn from a sum that the training loop sends in every step; nothing else is sent until then.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    Parts,
    checkpoint_folder,
    complete,
    discard,
    state_of,
    write_parts,
)
from training.engine.sharding import bounds, copies, local
from training.engine.tensor_files import Part


class CheckpointWriter:
    """Write one checkpoint at a time; every process must call every method but `close`, at the same step.

    Args:
        folder: of the checkpoints.
        accelerator: the processes.
        keep, late_news: see `checkpoint.complete`.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int, late_news: bool):
        self.folder = folder
        self.accelerator = accelerator
        self.keep = keep
        self.late_news = late_news
        self._pool: ThreadPoolExecutor | None = None
        self._copies = Copies(accelerator)
        self._parts: Future[dict[str, dict]] | None = None  # this process's files
        self._whole: Future[None] | None = None  # the rename, by the main process
        self._target: Path | None = None  # of the checkpoint that is being written
        self._last: tuple[dict[str, Any], int] = {}, 0  # its state and `good_until`

    def begin(self, checkpoint: Checkpoint, good_until: int) -> None:
        """Copy the parts of this process and leave them to the thread; first, wait for the checkpoint before.

        Raises:
            CheckpointError: on every process, if the one before could not be written.
        """
        self.finish()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._target = checkpoint_folder(self.folder, checkpoint.state)
        self._last = state_of(checkpoint), good_until
        parts, arrived = self._copies.take(checkpoint)
        self._parts = self._pool.submit(self._write, self._target, parts, arrived)
        if self.accelerator.num_processes == 1:
            self._whole = self._pool.submit(self._complete, self._target, self._parts, *self._last)

    def ready(self) -> bool:
        """Return whether this process waits for no thread of its own; `settle` needs the number of those that do so."""
        own = self._parts if self._whole is None else self._whole
        return own is None or own.done()

    def settle(self, ready: int) -> None:
        """Take the next step towards a whole checkpoint if all processes are `ready`, as their sum says.

        Raises:
            CheckpointError: on every process, if one could not write.
        """
        if self._target is not None and ready == self.accelerator.num_processes:
            self._advance()

    def finish(self) -> None:
        """Wait until the checkpoint is whole.

        Raises:
            CheckpointError: on every process, if it could not be written.
        """
        while self._target is not None:
            wait([future for future in (self._parts, self._whole) if future is not None])
            self._advance()

    def close(self) -> None:
        """End the thread when it has written; alone, this process completes its checkpoint."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = self._parts = self._whole = self._target = None

    def _write(self, target: Path, parts: Parts, arrived: "torch.cuda.Event | None") -> dict[str, dict]:
        if arrived is not None:
            arrived.synchronize()
        return write_parts(target, parts, self.accelerator.process_index, self.accelerator.num_processes)

    def _complete(self, target: Path, written: Future[dict[str, dict]], state: dict, good_until: int) -> None:
        complete(target, state, written.result(), self.keep, good_until, self.late_news)

    def _advance(self) -> None:
        """Learn how all processes' threads ended; have the checkpoint renamed, or forget it when it has been."""
        assert self._target is not None, "a checkpoint is being written"
        target, own = self._target, self._parts if self._whole is None else self._whole
        error = None if own is None else own.exception()
        if error is not None and not isinstance(error, CheckpointError):
            raise error
        files = self._parts.result() if error is None and self._whole is None and self._parts is not None else {}
        outcomes: list[tuple[str | None, dict]] = gather_object([(None if error is None else str(error), files)])
        if failed := [text for text, _ in outcomes if text is not None]:
            self._parts = self._whole = self._target = None
            if self.accelerator.is_main_process:
                discard(target)
            raise CheckpointError(failed[0])
        if self._whole is not None:
            self._parts = self._whole = self._target = None
            return
        assert self._pool is not None, "its thread has written"
        everything: Future[dict[str, dict]] = Future()
        everything.set_result({name: file for _, own_files in outcomes for name, file in own_files.items()})
        main = self.accelerator.is_main_process
        self._whole = self._pool.submit(self._complete if main else _nothing, target, everything, *self._last)


class Copies:
    """Copy what this process writes of a checkpoint to the host's memory.

    Values that several processes hold are written by one of them; they share the work.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._pinned: dict[tuple[str, str], torch.Tensor] = {}  # kept, since pinning memory takes long

    def take(self, checkpoint: Checkpoint) -> tuple[Parts, "torch.cuda.Event | None"]:
        """Return the copies, and what to wait for before they are read; a GPU copies while it goes on."""
        kept, self._pinned = self._pinned, {}
        parts = {kind: self._take(kind, tensors, kept) for kind, tensors in checkpoint.tensors().items()}
        if not self._pinned:
            return parts, None
        arrived = torch.cuda.Event()
        arrived.record()
        return parts, arrived

    def _take(
        self, kind: str, tensors: Mapping[str, torch.Tensor], kept: Mapping[tuple[str, str], torch.Tensor]
    ) -> dict[str, Part]:
        parts = {}
        dealt: dict[int, list[int]] = {}  # values that each of so many processes writes
        # The largest first, each to the process with the least so far: they write nearly the same.
        for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].numel()):
            (place, count), values = copies(tensor, self.accelerator), local(tensor)
            loads = dealt.setdefault(count, [0] * count)
            owner = loads.index(min(loads))
            loads[owner] += values.numel()
            if owner == place and values.numel():
                start = tuple(first for first, _ in bounds(tensor))
                parts[name] = Part(self._copy((kind, name), values, kept), start)
        return parts

    def _copy(
        self, key: tuple[str, str], values: torch.Tensor, kept: Mapping[tuple[str, str], torch.Tensor]
    ) -> torch.Tensor:
        if values.device.type != "cuda":
            return values.clone() if values.device.type == "cpu" else values.cpu()
        own = kept.get(key)
        if own is None or own.shape != values.shape or own.dtype != values.dtype:
            own = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._pinned[key] = own
        return own.copy_(values, non_blocking=True)


def _nothing(*_: Any) -> None:
    """Do nothing: the main process renames."""
