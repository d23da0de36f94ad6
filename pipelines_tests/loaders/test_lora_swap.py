"""Putting one adapter in the place of another: whole or not at all, at its own strength, and leaving others alone."""

import pytest
import torch

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.loaders.adapters import BOTH, save_adapter


def matrices(pipe, adapter: str) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part in BOTH
        for name, parameter in getattr(pipe, part).named_parameters()
        if name.endswith((f"lora_A.{adapter}.weight", f"lora_B.{adapter}.weight"))
    }


def test_swapping_leaves_other_adapters_alone(pipe, folder, other):
    """peft fills with zeros what has the name of the adapter anywhere in its own, and `t` is in all of them."""
    pipe.load_lora_weights(folder, adapter_name="other")
    pipe.load_lora_weights(folder, adapter_name="t")
    before = matrices(pipe, "other")
    pipe.load_lora_weights(other, adapter_name="t", hotswap=True)
    after = matrices(pipe, "other")
    assert len(after) == len(before) > 0 and all(torch.equal(after[name], before[name]) for name in before)
    tensors = MarDiniPipeline.lora_state_dict(other)
    assert all(
        torch.equal(t, tensors[name.replace(".t.weight", ".weight")]) for name, t in matrices(pipe, "t").items()
    )


@pytest.mark.parametrize("prepared", [False, True])
def test_weights_after_a_swap_are_parts_of_the_new_strength(pipe, folder, tmp_path, prepared):
    save_adapter(tmp_path, rank=2, alpha=6)  # 3, and 2 before
    if prepared:
        pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(folder, adapter_name="slot")
    pipe.load_lora_weights(tmp_path, adapter_name="slot", hotswap=True)
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    assert layer.scaling["slot"] == 3.0
    pipe.set_adapters("slot", 0.5)
    assert layer.scaling["slot"] == 1.5


@pytest.mark.parametrize("config", [{"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}])
def test_another_kind_of_adapter_is_not_put_in_the_place_of_one(pipe, folder, tmp_path, config):
    save_adapter(tmp_path, config=config)
    pipe.load_lora_weights(folder, adapter_name="slot")
    before = matrices(pipe, "slot")
    with pytest.raises(
        ValueError, match=f"cannot swap the adapter 'slot' of the planner: `{next(iter(config))}` differs"
    ):
        pipe.load_lora_weights(tmp_path, adapter_name="slot", hotswap=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in matrices(pipe, "slot").items())


def test_a_swap_that_fails_in_the_second_model_is_taken_back_in_the_first(pipe, folder, other, tmp_path):
    # peft compares drop-out, model by model, when it swaps.
    pipe.load_lora_weights(folder, adapter_name="slot")
    pipe.set_adapters("slot", 0.5)
    pipe.transformer.peft_config["slot"].lora_dropout = 0.5
    before, layer = matrices(pipe, "slot"), pipe.planner.transformer_blocks[0].attn.to_q
    with pytest.raises(ValueError, match="lora_dropout"):
        pipe.load_lora_weights(other, adapter_name="slot", hotswap=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in matrices(pipe, "slot").items())
    assert layer.scaling["slot"] == 1.0
