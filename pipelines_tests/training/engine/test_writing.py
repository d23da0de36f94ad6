"""The thread that writes checkpoints: what it writes is of one moment, and what it cannot write is said."""

import errno
import os
import threading

import pytest
import torch
from accelerate import Accelerator

from training import files
from training.engine import checkpoint as checkpoints
from training.engine import tensor_files
from training.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    clear_leftovers,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
)
from training.engine.writing import CheckpointWriter


class Trained:
    """Weights that training changes in place, and their writer."""

    def __init__(self, folder, keep=10):
        self.weights = {"planner.a": torch.zeros(3, 2), "head.b": torch.zeros(3)}
        self.writer = CheckpointWriter(folder, Accelerator(cpu=True), keep, late_news=False)

    def save(self, step: int) -> None:
        for tensor in self.weights.values():
            tensor.fill_(step)
        state = {"global_step": step, "stage": "joint"}
        self.writer.begin(Checkpoint(self.weights, self.weights, {}, [], state), 0)
        for tensor in self.weights.values():
            tensor.fill_(-1)  # training goes on


@pytest.fixture
def held(monkeypatch):
    """Writing waits until the event is set."""
    event, write = threading.Event(), checkpoints.write_tensors
    monkeypatch.setattr(checkpoints, "write_tensors", lambda *arguments: (event.wait(60), write(*arguments))[1])
    return event


def steps(folder) -> list[int]:
    return [checkpoints.step_of(path) for path in list_checkpoints(folder)]


def test_training_goes_on_and_what_is_written_is_of_the_moment_of_the_call(tmp_path, held):
    trained = Trained(tmp_path)
    trained.save(1)
    assert not trained.writer.ready() and not steps(tmp_path)
    trained.writer.settle(0)  # a step whose sum says that no process is ready
    held.set()
    trained.writer.finish()
    assert trained.writer.ready() and steps(tmp_path) == [1]
    loaded = load_checkpoint(newest_checkpoint(tmp_path))
    assert all((tensor == 1).all() for kind in (loaded.weights, loaded.averages) for tensor in kind.values())


def test_the_next_one_waits_for_the_one_before(tmp_path, held):
    trained = Trained(tmp_path, keep=2)
    trained.save(1)
    threading.Timer(0.05, held.set).start()
    for step in (2, 3):
        trained.save(step)
        assert steps(tmp_path)[-1] >= step - 1
    trained.writer.close()  # alone, a process completes what it has begun
    assert steps(tmp_path) == [2, 3] and (load_checkpoint(newest_checkpoint(tmp_path)).weights["head.b"] == 3).all()


@pytest.mark.parametrize("how", ["settle", "finish", "begin"])
def test_a_full_disk_is_told_at_the_next_occasion_and_leaves_the_last_one_whole(tmp_path, monkeypatch, how):
    trained = Trained(tmp_path)
    trained.save(1)
    trained.writer.finish()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "write_tensors", fail)
    trained.save(2)
    trained.writer._pool.shutdown()
    assert trained.writer.ready()
    act = {
        "settle": lambda: trained.writer.settle(1),
        "finish": trained.writer.finish,
        "begin": lambda: trained.save(3),
    }
    with pytest.raises(CheckpointError, match="step-00000002: .*No space left.*step-00000001 is whole"):
        act[how]()
    assert steps(tmp_path) == [1] and not list(tmp_path.glob(".step-*"))


@pytest.mark.parametrize("nth", range(7))
def test_a_process_that_dies_in_its_thread_leaves_the_last_one_whole(tmp_path, nth):
    if (child := os.fork()) == 0:  # dies without a word at the nth flush of the second checkpoint, as by SIGKILL
        trained = Trained(tmp_path, keep=1)
        trained.save(1)
        trained.writer.finish()
        calls, flush = iter(range(100)), files.flush
        for module in (files, checkpoints, tensor_files):
            module.flush = lambda path: os._exit(9) if next(calls) == nth else flush(path)
        trained.save(2)
        threading.Event().wait(60)  # training goes on
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    newest = newest_checkpoint(tmp_path)
    assert checkpoints.step_of(newest) == (2 if nth >= 5 else 1)  # four files and the folder, then the rename
    weights = load_checkpoint(newest).weights
    assert all((tensor == checkpoints.step_of(newest)).all() for tensor in weights.values())
    clear_leftovers(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_copies_into_pinned_memory_that_is_kept(tmp_path):
    weights = {"planner.a": torch.empty(4096, 4096, device="cuda")}
    writer, buffers = CheckpointWriter(tmp_path, Accelerator(cpu=True), 1, late_news=False), set()
    for step in (1, 2):
        weights["planner.a"].fill_(step)
        writer.begin(Checkpoint(weights, {}, {}, [], {"global_step": step}), 0)
        weights["planner.a"].fill_(-1)  # training goes on
        writer.finish()
        assert (load_checkpoint(newest_checkpoint(tmp_path)).weights["planner.a"] == step).all()
        (buffer,) = writer._copies._pinned.values()
        assert buffer.is_pinned()
        buffers.add(buffer.data_ptr())
    assert len(buffers) == 1
