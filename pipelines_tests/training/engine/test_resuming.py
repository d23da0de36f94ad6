"""Runs that go on from checkpoints of another form."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipelines_tests.training.test_train_mardini import make_config, make_run, records
from training.engine.checkpoint import KINDS, list_checkpoints, load_checkpoint
from training.monitoring.panel import TIMES


def as_before(checkpoint: Path) -> None:
    """Rewrite a checkpoint as the trainer did before each process had files of its own."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["tensors"]
    for kind in KINDS:
        path = checkpoint / f"{kind}.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(tensors, path)
        contents = path.read_bytes()
        state["files"][path.name] = {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
    (checkpoint / "state.json").write_text(json.dumps(state, indent=1))


def test_a_checkpoint_of_one_file_a_kind_without_shapes_is_gone_on_from_bit_for_bit(tmp_path):
    config = make_config(keep_checkpoints=100)
    make_run(tmp_path / "through", config).train()
    shutil.copytree(tmp_path / "through", tmp_path / "old")
    for checkpoint in list_checkpoints(tmp_path / "old" / "checkpoints"):
        as_before(checkpoint) if checkpoint.name <= "step-00000004" else shutil.rmtree(checkpoint)
    make_run(tmp_path / "old", config).train()
    through, old = (load_checkpoint(list_checkpoints(tmp_path / n / "checkpoints")[-1]) for n in ("through", "old"))
    assert through.state["global_step"] == old.state["global_step"] == 8
    for ours, theirs in zip(old.tensors().values(), through.tensors().values()):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = [
        [{k: v for k, v in r.items() if k not in TIMES} for r in records(tmp_path / n)] for n in ("through", "old")
    ]
    assert lines[0] == lines[1]
