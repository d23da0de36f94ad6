"""Adapters that programs of the trainer load for a while (`training.evaluate --adapter`, `training.publish`)."""

import pytest
import torch

from pipelines_tests.tiny_pipeline import tiny_pipeline
from training.engine.adapter import adapter_loaded


LAYER = "transformer.transformer_blocks.0.temporal_attn.to_q"


def weights(pipe) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{n}": t for part in ("planner", "transformer") for n, t in getattr(pipe, part).state_dict().items()
    }


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "adapter.pt"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_pickle_is_refused_alone_and_in_a_folder_and_the_pipeline_stays_as_it_was(tmp_path, name, alone):
    file = tmp_path / name
    torch.save({f"{LAYER}.lora_A.weight": torch.zeros(2, 32), f"{LAYER}.lora_B.weight": torch.zeros(32, 2)}, file)
    pipe = tiny_pipeline()
    before = {name: tensor.clone() for name, tensor in weights(pipe).items()}
    refused = pytest.raises(ValueError, match=f"{name} is a pickle.*Convert a file of your own")
    with refused, adapter_loaded(pipe, file if alone else tmp_path):
        pass
    after = weights(pipe)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
