"""Adapters of both models in use: mixing, scaling, fusing, swapping, taking out again."""

import pytest
import torch

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.loaders.adapters import BOTH, TARGETS, differ, run, save_adapter, weights
from pipelines_tests.tiny_pipeline import CallCounter, seeded, tiny_pipeline


# Scales


def test_scale_reaches_both_models_to_the_bit(pipe, folder):
    """`attention_kwargs={"scale": s}` is `set_adapters` with weight `s`, in the planner and in the transformer."""
    pipe.load_lora_weights(folder, adapter_name="cars")
    for name in BOTH:
        outputs = {}
        for how in ("call", "weight"):
            counter = CallCounter(pipe)
            pipe.set_adapters("cars", 0.3 if how == "weight" else 1.0)
            run(pipe, attention_kwargs={"scale": 0.3} if how == "call" else None)
            outputs[how] = [output[0] for _, _, output in counter.inputs[name]]
        assert len(outputs["call"]) == len(outputs["weight"]) > 0
        assert all(map(torch.equal, outputs["call"], outputs["weight"]))


@pytest.mark.parametrize("component", BOTH)
def test_scale_changes_each_model(folder, component, tmp_path):
    save_adapter(tmp_path, (component,))
    pipe = tiny_pipeline()
    pipe.load_lora_weights(tmp_path)
    assert differ(run(pipe), run(pipe, attention_kwargs={"scale": 0.5}))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
def test_a_scale_lasts_for_one_call(pipe, folder, scale):
    pipe.load_lora_weights(folder)
    pipe.set_adapters("default_0", {"planner": 0.7, "transformer": 0.1})
    scales = [
        dict(layer.scaling) for name in BOTH for layer in getattr(pipe, name).modules() if hasattr(layer, "scaling")
    ]
    before = run(pipe)
    run(pipe, attention_kwargs={"scale": scale})
    after = [
        dict(layer.scaling) for name in BOTH for layer in getattr(pipe, name).modules() if hasattr(layer, "scaling")
    ]
    assert after == scales and len(scales) == 40
    assert torch.equal(run(pipe), before)


def test_a_scale_is_taken_back_after_an_error(pipe, folder):
    pipe.load_lora_weights(folder)
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    with pytest.raises(ValueError, match="expected 5 dimensions"):
        pipe.transformer(torch.zeros(1), 0, None, torch.zeros(1, 1), attention_kwargs={"scale": 0.5})
    assert layer.scaling == {"default_0": 2.0}  # alpha 8 over rank 4


def test_a_scale_may_be_given_by_position(pipe, folder):
    pipe.load_lora_weights(folder)
    latents, mask = torch.randn(1, 3, 16, 2, 2, generator=seeded()), torch.tensor([[True, False, True]])
    expected = pipe.planner(latents, mask, attention_kwargs={"scale": 0.5}).planning_signals
    torch.testing.assert_close(pipe.planner(latents, mask, 1, {"scale": 0.5}).planning_signals, expected)
    assert differ(pipe.planner(latents, mask, 1, None).planning_signals, expected)


def test_a_scale_is_refused_where_adapters_are_fused(pipe, folder):
    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match=r"scales LoRA layers by 0.5, but adapters are fused.*lora_scale"):
        run(pipe, attention_kwargs={"scale": 0.5})
    pipe.unfuse_lora()
    run(pipe, attention_kwargs={"scale": 0.5})


def test_a_scale_of_zero_is_the_base_model(pipe, folder, base):
    pipe.load_lora_weights(folder)
    torch.testing.assert_close(run(pipe, attention_kwargs={"scale": 0.0}), base, rtol=1e-4, atol=1e-4)


# Several adapters


def test_several_adapters_add_up_with_their_weights(pipe, folder, other):
    pipe.load_lora_weights(folder, adapter_name="one")
    pipe.load_lora_weights(other, adapter_name="two")
    assert pipe.get_list_adapters() == dict.fromkeys(BOTH, ["one", "two"])
    pipe.set_adapters(["one", "two"], [0.5, 0.25])
    x = torch.randn(3, 32, generator=seeded())
    for name in BOTH:
        layer = getattr(pipe, name).transformer_blocks[1].attn.to_k
        expected = layer.base_layer(x)
        for adapter, scale in (("one", 0.5 * 2), ("two", 0.25)):
            expected = expected + scale * layer.lora_B[adapter](layer.lora_A[adapter](x))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("as_list", [True, False])
def test_each_component_has_its_own_weight(pipe, folder, other, as_list):
    pipe.load_lora_weights(folder, adapter_name="one")
    pipe.load_lora_weights(other, adapter_name="two")
    each = {"planner": 0.5, "transformer": 0.0}
    pipe.set_adapters(["one", "two"], [each, each] if as_list else each)
    assert each == {"planner": 0.5, "transformer": 0.0}
    assert pipe.planner.transformer_blocks[0].attn.to_q.scaling == {"one": 1.0, "two": 0.5}
    assert pipe.transformer.transformer_blocks[0].attn.to_q.scaling == {"one": 0.0, "two": 0.0}


def test_adapters_of_different_components_live_together(pipe, tmp_path, base):
    for name in BOTH:
        save_adapter(tmp_path / name, (name,))
        pipe.load_lora_weights(tmp_path / name)
    # One counter for both models: the second is `default_1`, though it is the transformer's first.
    assert pipe.get_list_adapters() == {"planner": ["default_0"], "transformer": ["default_1"]}
    pipe.set_adapters(["default_0", "default_1"])
    both = run(pipe)
    pipe.set_adapters("default_0")
    planner_only = run(pipe)
    assert differ(both, planner_only) and differ(planner_only, base)
    pipe.delete_adapters("default_0")
    assert pipe.get_list_adapters() == {"transformer": ["default_1"]}


def test_disabled_and_enabled(pipe, folder, base):
    pipe.load_lora_weights(folder)
    adapted = run(pipe)
    pipe.disable_lora()
    torch.testing.assert_close(run(pipe), base, rtol=1e-4, atol=1e-4)
    pipe.enable_lora()
    assert torch.equal(run(pipe), adapted) and differ(adapted, base)


# In and out


def test_unloading_gives_back_the_original_models_bit_for_bit(pipe, folder, other):
    before, kinds = weights(pipe), [type(module) for name in BOTH for module in getattr(pipe, name).modules()]
    before = {name: tensor.clone() for name, tensor in before.items()}
    expected = run(pipe)
    pipe.load_lora_weights(folder, adapter_name="one")
    pipe.load_lora_weights(other, adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, 2.0])
    assert differ(run(pipe, attention_kwargs={"scale": 0.9}), expected)
    pipe.unload_lora_weights()
    after = weights(pipe)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert [type(module) for name in BOTH for module in getattr(pipe, name).modules()] == kinds
    assert pipe.get_list_adapters() == {} and torch.equal(run(pipe), expected)


def test_frozen_weights_are_frozen_and_others_trainable_after_unloading(pipe, folder):
    pipe.planner.requires_grad_(False)
    pipe.load_lora_weights(folder)
    assert not pipe.transformer.proj_out.weight.requires_grad
    pipe.delete_adapters("default_0")
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())
    assert not any(parameter.requires_grad for parameter in pipe.planner.parameters())
    assert type(pipe.planner.transformer_blocks[0].attn.to_q) is torch.nn.Linear


def test_deleting_one_adapter_leaves_the_other(pipe, folder, other):
    pipe.load_lora_weights(other, adapter_name="two")
    alone = run(pipe)
    pipe.load_lora_weights(folder, adapter_name="one")
    pipe.set_adapters(["one", "two"])
    pipe.delete_adapters("one")
    assert pipe.get_list_adapters() == dict.fromkeys(BOTH, ["two"])
    assert torch.equal(run(pipe), alone)


def test_fusing_keeps_the_result_and_unfusing_undoes_it(pipe, folder):
    pipe.load_lora_weights(folder)
    before, expected = {name: tensor.clone() for name, tensor in weights(pipe).items()}, run(pipe)
    pipe.fuse_lora()
    assert pipe.fused_loras == {"default_0"}
    assert not torch.equal(weights(pipe)["planner.transformer_blocks.0.attn.to_q.base_layer.weight"],
                           before["planner.transformer_blocks.0.attn.to_q.base_layer.weight"])  # fmt: skip
    torch.testing.assert_close(run(pipe), expected, rtol=1e-4, atol=1e-4)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    for name, tensor in weights(pipe).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)


def test_fusing_takes_a_scale_and_some_of_the_models_and_adapters(folder, other):
    pipe, expected = tiny_pipeline(), tiny_pipeline()
    for one in (pipe, expected):
        one.load_lora_weights(folder, adapter_name="one")
        one.load_lora_weights(other, adapter_name="two")
    plain = {name: tensor.clone() for name, tensor in weights(pipe).items()}
    pipe.set_adapters("one")
    pipe.fuse_lora(lora_scale=0.5)
    expected.set_adapters("one", 0.5)
    assert differ(run(pipe), run(tiny_pipeline()))
    torch.testing.assert_close(run(pipe), run(expected), rtol=1e-4, atol=1e-4)
    pipe.unfuse_lora()

    pipe.set_adapters(["one", "two"])
    pipe.fuse_lora(components=["planner"], adapter_names=["two"])
    changed = {
        name.split(".")[0]
        for name, tensor in weights(pipe).items()
        if not torch.allclose(tensor, plain[name], atol=1e-4)
    }
    assert changed == {"planner"}
    assert {n for m in pipe.planner.modules() for n in getattr(m, "merged_adapters", ())} == {"two"}


def test_fusing_safely_refuses_what_is_not_a_number(pipe, folder):
    pipe.load_lora_weights(folder)
    next(p for n, p in pipe.planner.named_parameters() if "lora_B" in n).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected"):
        pipe.fuse_lora(safe_fusing=True)


def test_after_unloading_nothing_counts_as_fused(pipe, folder, other):
    pipe.load_lora_weights(folder, adapter_name="a")
    pipe.fuse_lora()
    assert pipe.fused_loras == {"a"}
    kept = run(pipe)
    pipe.unload_lora_weights()
    assert pipe.num_fused_loras == 0 and torch.allclose(run(pipe), kept, atol=1e-4)  # in the weights for good
    pipe.load_lora_weights(other, adapter_name="a")
    pipe.fuse_lora()
    assert pipe.fused_loras == {"a"} and differ(run(pipe), kept)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), kept, atol=1e-3, rtol=1e-3)


def test_a_fused_pipeline_is_saved_and_loaded_without_its_adapter(pipe, folder, tmp_path):
    pipe.load_lora_weights(folder)
    expected = run(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path)
    loaded = MarDiniPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(loaded), expected, rtol=1e-4, atol=1e-4)


def test_a_pipeline_with_adapters_is_not_saved_as_if_it_had_none(pipe, folder, tmp_path):
    pipe.load_lora_weights(folder, adapter_name="cars")
    with pytest.raises(ValueError, match=r"loaded: cars \(planner\); cars \(transformer\).*unload_lora_weights"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_hotswap_puts_one_adapter_in_the_place_of_another(pipe, folder, other):
    pipe.load_lora_weights(other, adapter_name="two")
    expected = run(pipe)
    pipe = tiny_pipeline()
    pipe.load_lora_weights(folder, adapter_name="slot")
    layers = {name: list(getattr(pipe, name).modules()) for name in BOTH}
    pipe.load_lora_weights(other, adapter_name="slot", hotswap=True)
    assert pipe.get_list_adapters() == dict.fromkeys(BOTH, ["slot"])
    assert all(
        old is new for name in BOTH for old, new in zip(layers[name], getattr(pipe, name).modules(), strict=True)
    )
    torch.testing.assert_close(run(pipe), expected, rtol=1e-5, atol=1e-5)


def test_hotswap_between_ranks_and_scales(pipe, folder, tmp_path):
    save_adapter(tmp_path, rank=2, alpha=6, seed=5)
    fresh = tiny_pipeline()
    fresh.load_lora_weights(tmp_path)
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(folder, adapter_name="slot")
    pipe.load_lora_weights(tmp_path, adapter_name="slot", hotswap=True)
    expected = run(pipe)
    torch.testing.assert_close(expected, run(fresh), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        run(pipe, attention_kwargs={"scale": 0.5}), run(fresh, attention_kwargs={"scale": 0.5}), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(run(pipe), expected)


def test_a_hotswap_of_other_layers_is_refused_before_anything_changes(pipe, folder, tmp_path):
    pipe.load_lora_weights(folder, adapter_name="slot")
    before, weights_before = run(pipe), {name: tensor.clone() for name, tensor in weights(pipe).items()}
    save_adapter(tmp_path, seed=3, config={"target_modules": [*TARGETS, "ff.net.2"]})
    with pytest.raises(
        ValueError,
        match="cannot swap the adapter 'slot': the new one changes 2 layers of the .* such as `transformer_blocks.0.ff",
    ):
        pipe.load_lora_weights(tmp_path, adapter_name="slot", hotswap=True)
    assert torch.equal(run(pipe), before)
    assert all(torch.equal(tensor, weights_before[name]) for name, tensor in weights(pipe).items())


def test_adapters_are_loaded_into_an_offloaded_pipeline(pipe, folder, base):
    other = tiny_pipeline()
    other.load_lora_weights(folder)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    pipe.load_lora_weights(folder)
    torch.testing.assert_close(run(pipe), run(other))
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), base)
