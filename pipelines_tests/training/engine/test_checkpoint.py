"""Checkpoints: whole or absent, proven when read, and never a silent return to the beginning."""

import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from training import files
from training.engine import checkpoint as module
from training.engine import tensor_files
from training.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    clear_leftovers,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from training.engine.optimizers import load_optimizers, optimizer_tensors


def make(step: int, optimizers=()) -> Checkpoint:
    weights = {"planner.a": torch.full((3, 2), float(step)), "head.b": torch.arange(3.0)}
    averages = {name: tensor / 2 for name, tensor in weights.items()}
    return Checkpoint(weights, averages, *optimizer_tensors(list(optimizers)), {"global_step": step, "stage": "joint"})


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def test_what_is_saved_is_loaded_with_the_state_of_real_optimizers(tmp_path):
    parameters = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))]
    optimizer = torch.optim.AdamW(
        [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}], lr=0.1
    )
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    path = save_checkpoint(tmp_path, make(7, [optimizer]), keep=2)
    loaded = load_checkpoint(path)
    assert all(torch.equal(loaded.weights[k], v) for k, v in make(7).weights.items())
    assert all(torch.equal(loaded.averages[k], v) for k, v in make(7).averages.items())
    assert loaded.state == {"global_step": 7, "stage": "joint"}

    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    other = torch.optim.AdamW([{"params": copies[:1]}, {"params": copies[1:], "weight_decay": 0.0}], lr=0.1)
    load_optimizers([other], loaded.moments, loaded.optimizers)
    for going_on, its_optimizer in ((parameters, optimizer), (copies, other)):
        its_optimizer.zero_grad()
        sum(p.pow(3).sum() for p in going_on).backward()
        its_optimizer.step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(copies, parameters))


def test_an_optimizer_goes_on_with_its_own_decays(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    parameter.square().sum().backward()
    optimizer.step()
    changed = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    load_optimizers([changed], *optimizer_tensors([optimizer]))
    (group,) = changed.param_groups
    assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0.5
    assert torch.equal(changed.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_nothing_in_a_checkpoint_needs_unpickling(tmp_path):
    path = save_checkpoint(tmp_path, make(1), keep=1)
    assert sorted(file.suffix for file in path.iterdir()) == [".json"] + 3 * [".safetensors"]


def test_old_checkpoints_go_after_the_new_one_is_whole(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert (tmp_path / "latest").read_text().strip() == "step-00000003"


def test_the_same_step_can_be_saved_again(tmp_path):
    for value in (1, 2):
        checkpoint = make(5)
        checkpoint.weights["head.b"].fill_(value)
        path = save_checkpoint(tmp_path, checkpoint, keep=2)
    assert names(tmp_path) == ["step-00000005"] and load_checkpoint(path).weights["head.b"][0] == 2


@pytest.mark.parametrize("nth", range(7))
def test_a_process_that_dies_at_any_moment_of_writing_leaves_the_last_one_whole(tmp_path, nth):
    save_checkpoint(tmp_path, make(1), keep=1)
    child = os.fork()
    if child == 0:  # dies without a word at the nth flush, as by SIGKILL
        calls = iter(range(100))
        flush = files.flush
        for each in (files, module, tensor_files):
            each.flush = lambda path: os._exit(9) if next(calls) == nth else flush(path)
        save_checkpoint(tmp_path, make(2), keep=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    newest = newest_checkpoint(tmp_path)
    step = int(newest.name[-1])
    assert step == (2 if nth >= 5 else 1)  # five flushes come before the rename: four files and the folder
    assert torch.equal(load_checkpoint(newest).weights["planner.a"], make(step).weights["planner.a"])
    clear_leftovers(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_told_and_leaves_the_last_one_whole(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, make(1), keep=1)

    def fail(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(module, "write_tensors", fail)
    with pytest.raises(CheckpointError, match=f"step-00000002: .*{os.strerror(error)}.*step-00000001 is whole.*again"):
        save_checkpoint(tmp_path, make(2), keep=1)
    assert names(tmp_path) == ["step-00000001"] and not list(tmp_path.glob(".step-*"))
    load_checkpoint(tmp_path / "step-00000001")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="no earlier checkpoint"):
        save_checkpoint(tmp_path / "checkpoints", make(1), keep=1)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def _change(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "file, damage, message",
    [
        ("ema.safetensors", os.unlink, "ema.safetensors is missing"),
        ("weights.safetensors", _cut, "weights.safetensors has .* bytes instead of"),
        ("optimizer.safetensors", _change, "contents of optimizer.safetensors have changed"),
        ("state.json", os.unlink, "state.json cannot be read"),
        ("state.json", lambda path: path.write_text("{}"), "state.json cannot be read"),
    ],
)
def test_damage_is_named_with_the_way_out(tmp_path, file, damage, message):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    for step in (1, 2):
        path = save_checkpoint(tmp_path, make(step, [optimizer]), keep=2)
    damage(path / file)
    assert newest_checkpoint(tmp_path) == path  # not passed over in silence
    with pytest.raises(CheckpointError, match=f"step-00000002 is damaged: .*{message}.*delete .* from step-00000001"):
        load_checkpoint(path)
    load_checkpoint(tmp_path / "step-00000001")


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_in_silence(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None
    path = save_checkpoint(tmp_path, make(1), keep=1)
    path.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(CheckpointError, match="latest names 'step-00000001'.*no checkpoint.*begin anew"):
        newest_checkpoint(tmp_path)


def test_the_state_tells_every_file_and_its_digest(tmp_path):
    path = save_checkpoint(tmp_path, make(1), keep=1)
    files = json.loads((path / "state.json").read_text())["files"]
    assert set(files) == {"weights.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert all(files[name]["bytes"] == (path / name).stat().st_size for name in files)
    assert load_file(path / "weights.safetensors")["head.b"].shape == (3,)


def test_an_old_checkpoint_that_cannot_be_deleted_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    """As on Windows, while another program reads it; the next checkpoint tries again."""
    save_checkpoint(tmp_path, make(1), keep=1)
    with monkeypatch.context() as patched:

        def refuse(path):
            raise PermissionError("in use")

        patched.setattr(module, "remove_folder", refuse)
        save_checkpoint(tmp_path, make(2), keep=1)
    assert "could not be deleted (in use)" in capsys.readouterr().out
    assert len(list_checkpoints(tmp_path)) == 2
    save_checkpoint(tmp_path, make(3), keep=1)
    assert len(list_checkpoints(tmp_path)) == 1
