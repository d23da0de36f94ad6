"""Fusing: strengths come back, weights stay whole, and what is fused is told and left alone."""

import pytest
import torch

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.loaders.adapters import BOTH, TARGETS, run, save_adapter, weights
from pipelines_tests.tiny_pipeline import tiny_pipeline


def strengths(pipe) -> list[dict[str, float]]:
    return [
        dict(layer.scaling) for name in BOTH for layer in getattr(pipe, name).modules() if hasattr(layer, "scaling")
    ]


def copies(pipe) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in weights(pipe).items()}


def assert_whole(pipe, before: dict[str, torch.Tensor]):
    after = weights(pipe)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def transformer_only(tmp_path_factory):
    path = tmp_path_factory.mktemp("transformer_only")
    save_adapter(path, ("transformer",), seed=2)
    return path


@pytest.fixture
def loaded(pipe, folder, transformer_only):
    """`a` of both models is active, `b` of the transformer is not."""
    pipe.load_lora_weights(transformer_only, adapter_name="b")
    pipe.load_lora_weights(folder, adapter_name="a")
    return pipe


# Strengths


@pytest.mark.parametrize("safe_fusing", [False, True])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_unfusing_gives_back_the_strength_to_the_bit_however_often(pipe, tmp_path, config, safe_fusing):
    save_adapter(tmp_path, ("transformer",), alpha=6, config=config)
    pipe.load_lora_weights(tmp_path, adapter_name="a")
    layer, x = pipe.transformer.transformer_blocks[1].attn.to_k, torch.randn(3, 32)
    pipe.set_adapters("a", 0.7 * 0.8)
    expected = layer(x)
    pipe.set_adapters("a", 0.7)
    before, unfused, whole = strengths(pipe), layer(x), copies(pipe)
    for _ in range(3):
        pipe.fuse_lora(lora_scale=0.8, safe_fusing=safe_fusing)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        pipe.unfuse_lora()
        assert strengths(pipe) == before
        torch.testing.assert_close(layer(x), unfused, rtol=1e-4, atol=1e-4)
    assert_whole(pipe, whole)


def test_a_call_may_scale_what_was_fused_before(pipe, folder):
    pipe.load_lora_weights(folder)
    expected = run(pipe, attention_kwargs={"scale": 0.8})
    pipe.fuse_lora(lora_scale=0.8)
    torch.testing.assert_close(run(pipe), expected, rtol=1e-3, atol=1e-3)
    pipe.unfuse_lora()
    torch.testing.assert_close(run(pipe, attention_kwargs={"scale": 0.8}), expected, rtol=1e-3, atol=1e-3)


def test_a_model_alone_gives_back_the_strength_too(loaded):
    before = strengths(loaded)
    for name in BOTH:
        model = getattr(loaded, name)
        model.fuse_lora(lora_scale=0.5)
        model.unfuse_lora()
    assert strengths(loaded) == before


def test_a_swapped_adapter_keeps_the_tensor_of_its_strength(pipe, folder):
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(folder, adapter_name="slot")
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    scaling = layer.scaling["slot"]
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unfuse_lora()
    assert layer.scaling["slot"] is scaling and scaling == 2.0


def test_fusing_that_fails_in_the_middle_changes_nothing(loaded):
    # Both matrices are finite, their product is not: found when the planner and a part of the transformer are fused.
    layer = loaded.transformer.transformer_blocks[1].attn.to_v
    for matrix in (layer.lora_A["a"], layer.lora_B["a"]):
        matrix.weight.data.fill_(1e30)
    before, whole = strengths(loaded), copies(loaded)
    with pytest.raises(ValueError, match="NaNs detected"):
        loaded.fuse_lora(lora_scale=0.5, safe_fusing=True)
    assert strengths(loaded) == before and loaded.num_fused_loras == 0
    assert_whole(loaded, whole)
    loaded.set_adapters("b")


# What is refused


CHANGES = {
    "load": lambda pipe, folder: pipe.load_lora_weights(folder, adapter_name="c"),
    "swap": lambda pipe, folder: pipe.load_lora_weights(folder, adapter_name="a", hotswap=True),
    "set": lambda pipe, folder: pipe.set_adapters("a", 0.3),
    "set other": lambda pipe, folder: pipe.set_adapters("b"),
    "delete": lambda pipe, folder: pipe.delete_adapters("b"),
    "fuse": lambda pipe, folder: pipe.fuse_lora(lora_scale=0.5),
    "disable": lambda pipe, folder: pipe.disable_lora(),
    "device": lambda pipe, folder: pipe.set_lora_device(["a"], "cpu"),
    "model sets": lambda pipe, folder: pipe.transformer.set_adapters("a", 0.3),
    "model sets one": lambda pipe, folder: pipe.transformer.set_adapter("b"),
    "model adds": lambda pipe, folder: pipe.transformer.add_adapter(None, "c"),
    "model loads": lambda pipe, folder: pipe.transformer.load_lora_adapter(folder, adapter_name="c"),
    "model deletes": lambda pipe, folder: pipe.transformer.delete_adapters("b"),
    "model disables": lambda pipe, folder: pipe.transformer.disable_lora(),
    "model disables all": lambda pipe, folder: pipe.transformer.disable_adapters(),
    "model fuses": lambda pipe, folder: pipe.transformer.fuse_lora(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_adapters_is_refused_while_one_is_fused(loaded, folder, change):
    whole, before = copies(loaded), strengths(loaded)
    loaded.fuse_lora()
    with pytest.raises(ValueError, match="'a' is fused into the weights; call `unfuse_lora\\(\\)` first"):
        CHANGES[change](loaded, folder)
    assert loaded.fused_loras == {"a"}
    loaded.unfuse_lora()
    assert_whole(loaded, whole)
    assert strengths(loaded) == before and loaded.get_active_adapters() == ["a"]


@pytest.mark.parametrize("change", ["load", "set", "delete", "disable"])
def test_one_fused_model_is_enough_to_refuse(loaded, folder, change):
    loaded.fuse_lora(components=["planner"])
    with pytest.raises(ValueError, match="'a' is fused into the weights"):
        CHANGES[change](loaded, folder)


def test_enabling_what_is_fused_changes_nothing(loaded):
    loaded.fuse_lora()
    expected = run(loaded)
    loaded.enable_lora()
    assert torch.equal(run(loaded), expected)


def test_fusing_what_is_not_there_is_refused(pipe, folder, transformer_only):
    for call in (pipe.fuse_lora, pipe.transformer.fuse_lora):
        with pytest.raises(ValueError, match="nothing to fuse: no adapter is loaded"):
            call()
    for call in (pipe.unfuse_lora, pipe.transformer.unfuse_lora):
        with pytest.raises(ValueError, match="nothing to unfuse: no adapter is fused"):
            call()
    pipe.load_lora_weights(transformer_only, adapter_name="b")
    before = copies(pipe)
    for arguments, message in [
        ({"adapter_names": ["typo"]}, "'typo' not in the list of present adapters: 'b'"),
        ({"adapter_names": ["b", "b"]}, "named twice"),
        ({"adapter_names": []}, "no adapter is active"),
        ({"components": ["planner"]}, "no adapter is loaded"),
        ({"components": ["vae"]}, "can have adapters in planner and transformer"),
        ({"components": []}, "can have adapters in planner and transformer"),
        ({"lora_scale": float("nan")}, "`lora_scale` is nan; expected a finite number"),
        ({"lora_scale": "0.5"}, "`lora_scale` is '0.5'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipe.fuse_lora(**arguments)
    pipe.disable_lora()
    with pytest.raises(ValueError, match="are disabled; call `enable_lora"):
        pipe.fuse_lora()
    pipe.enable_lora()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(pipe).items())
    pipe.fuse_lora(components="transformer", adapter_names="b")
    with pytest.raises(ValueError, match="nothing to unfuse"):
        pipe.unfuse_lora(components="planner")
    assert pipe.fused_loras == {"b"}


def test_an_adapter_of_nan_is_not_fused(loaded):
    loaded.planner.transformer_blocks[0].attn.to_q.lora_B["a"].weight.data.fill_(torch.nan)
    before = {name: tensor for name, tensor in copies(loaded).items() if "lora_" not in name}
    with pytest.raises(ValueError, match="NaNs detected.* in the adapter 'a'"):
        loaded.fuse_lora()
    assert all(torch.equal(weights(loaded)[name], tensor) for name, tensor in before.items())


def test_a_dora_is_fused_alone(pipe, folder, tmp_path):
    save_adapter(tmp_path, config={"use_dora": True})
    pipe.load_lora_weights(tmp_path, adapter_name="dora")
    pipe.load_lora_weights(folder, adapter_name="plain")
    pipe.set_adapters(["dora", "plain"])
    whole = copies(pipe)
    with pytest.raises(ValueError, match="cannot be fused together, because 'dora' is a DoRA"):
        pipe.fuse_lora()
    assert_whole(pipe, whole)
    pipe.set_adapters("dora")
    expected = run(pipe)
    pipe.fuse_lora()
    torch.testing.assert_close(run(pipe), expected, rtol=1e-3, atol=1e-3)
    pipe.unfuse_lora()
    for layer in pipe.planner.modules():
        if hasattr(layer, "scaling"):
            layer.lora_magnitude_vector["dora"].weight.data[0] = 0
    with pytest.raises(ValueError, match="'dora' is a DoRA with lengths of 0"):
        pipe.fuse_lora()


# What is told


def test_fused_adapters_are_those_in_the_weights_of_either_model(loaded):
    loaded.set_adapters(["a", "b"])
    before = strengths(loaded)
    loaded.fuse_lora(components=["planner"])
    assert loaded.fused_loras == {"a"} and loaded.num_fused_loras == 1
    loaded.fuse_lora(components=["transformer"])
    assert loaded.fused_loras == {"a", "b"} and loaded.num_fused_loras == 2
    loaded.unfuse_lora(components=["transformer"])
    assert loaded.fused_loras == {"a"}
    loaded.unfuse_lora()
    assert loaded.fused_loras == set() and strengths(loaded) == before
    assert loaded.get_active_adapters() == ["a", "b"]


def test_another_pipeline_with_the_same_models_tells_what_is_fused(loaded):
    loaded.fuse_lora()
    assert MarDiniPipeline.from_pipe(loaded).fused_loras == {"a"} and tiny_pipeline().fused_loras == set()


def test_adapters_that_are_not_fused_rest_until_unfusing(loaded, tmp_path):
    """Fused layers cannot run others, and half of one is none."""
    save_adapter(tmp_path, seed=5, config={"target_modules": [*TARGETS, "ff.net.2"]})
    loaded.load_lora_weights(tmp_path, adapter_name="wide")
    loaded.set_adapters("b")
    only_b = run(loaded)
    loaded.set_adapters(["a", "b", "wide"], 0.5)
    everything = run(loaded)
    loaded.fuse_lora(adapter_names=["b"], lora_scale=2.0)
    assert loaded.get_active_adapters() == ["b"]
    torch.testing.assert_close(run(loaded), only_b, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'b' is fused into the weights"):
        loaded.fuse_lora(components=["planner"], adapter_names=["a"])
    loaded.unfuse_lora(components=["transformer"])
    assert loaded.get_active_adapters() == ["a", "b", "wide"]
    torch.testing.assert_close(run(loaded), everything, rtol=1e-4, atol=1e-4)
