"""Models written tensor by tensor: the files of `save_pretrained`, with one tensor at a time in memory."""

import weakref
from functools import partial
from pathlib import Path

import pytest
import torch

from pipelines_tests.training.test_train_mardini import make_config
from training.engine.exporting import _save_model
from training.engine.models import CLASSES, make_models


class OneAtATime(dict):
    """Tensors that are made when they are asked for, none while the one before is still held."""

    last = staticmethod(lambda: None)

    def __getitem__(self, name: str) -> torch.Tensor:
        assert self.last() is None, f"a tensor is held while {name} is read"
        tensor = super().__getitem__(name).clone()
        self.last = weakref.ref(tensor)
        return tensor


@pytest.mark.parametrize("size", ["10GB", "4KB"])  # a file, and several with an index
def test_files_are_those_of_save_pretrained(tmp_path, size):
    planner = make_models(make_config())["planner"]
    with torch.device("meta"):
        empty = CLASSES["planner"].from_config(planner.config)
    values = OneAtATime({f"planner.{name}": parameter.detach() for name, parameter in planner.named_parameters()})
    save = partial(_save_model, empty, values, "planner.", torch.float32)
    save(str(tmp_path / "ours"), max_shard_size=size)
    planner.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == files and len(files) == (
        2 if size == "10GB" else 6
    )
    for name in files:
        if name.endswith(".json"):
            assert Path(tmp_path, "ours", name).read_text() == Path(tmp_path, "theirs", name).read_text()
    loaded = CLASSES["planner"].from_pretrained(tmp_path / "ours")
    assert all(torch.equal(tensor, planner.get_parameter(name)) for name, tensor in loaded.state_dict().items())
