"""LoRA on both models: loading, mixing, scaling, fusing, swapping, taking out again, and what the files hold."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.modular_pipelines import MarDiniDecoderStep, MarDiniDenoiseStep
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


BOTH = ("planner", "transformer")
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def run(pipe, **kwargs) -> torch.Tensor:
    return pipe(
        video=clip(2), num_frames=4, num_inference_steps=2, output_type="latent", generator=seeded(), **kwargs
    ).frames


def save_adapter(folder, components=BOTH, seed=0, rank=4, alpha=4, metadata=True, **saving):
    """Writes an adapter as the trainer does: added to the models of a pipeline, then saved."""
    pipe = tiny_pipeline()
    torch.manual_seed(seed)
    layers, configs = {}, {}
    for name in components:
        model = getattr(pipe, name)
        config = {"r": rank, "lora_alpha": alpha, "target_modules": TARGETS, "init_lora_weights": False}
        model.add_adapter(LoraConfig(**{**config, **saving.pop("config", {})}), adapter_name="new")
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="new")
        if metadata:
            configs[f"{name}_lora_adapter_metadata"] = model.peft_config["new"].to_dict()
    MarDiniPipeline.save_lora_weights(folder, **layers, **configs, **saving)
    return pipe


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora")
    save_adapter(path, alpha=8)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other")
    save_adapter(path, seed=1)
    return path


@pytest.fixture(scope="module")
def base():
    return run(tiny_pipeline())


def differ(first, second) -> bool:
    return not torch.allclose(first, second, atol=1e-2)


def weights(pipe) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": t for name in BOTH for key, t in getattr(pipe, name).state_dict().items()}


# Files


@pytest.mark.parametrize("components", [BOTH, ("planner",), ("transformer",)])
def test_what_was_saved_is_what_is_loaded(pipe, tmp_path, components):
    trained = save_adapter(tmp_path, components, alpha=8)
    pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {name: ["default_0"] for name in components}
    assert torch.equal(run(pipe), run(trained))


def test_a_file_and_its_folder_and_its_tensors_are_the_same_adapter(folder):
    file = folder / "pytorch_lora_weights.safetensors"
    results = []
    for source in (folder, str(folder), file, str(file)):
        pipe = tiny_pipeline()
        pipe.load_lora_weights(source)
        results.append(run(pipe))
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_tensors_in_memory_are_an_adapter_too_and_stay_as_they_are(pipe, tmp_path):
    trained = save_adapter(tmp_path)
    tensors = MarDiniPipeline.lora_state_dict(tmp_path)
    before = dict(tensors)
    pipe.load_lora_weights(tensors)
    assert tensors.keys() == before.keys()
    assert torch.equal(run(pipe), run(trained))


def test_the_header_tells_rank_alpha_targets_base_and_training(tmp_path):
    save_adapter(tmp_path, rank=2, alpha=6, base_model="somebody/base", training_config={"steps": 300, "data": ["a"]})
    description = MarDiniPipeline.lora_description(tmp_path)
    assert description.base_model == "somebody/base"
    assert description.training_config == {"steps": 300, "data": ["a"]}
    for name in BOTH:
        config = description.adapters[name]
        assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 6, sorted(TARGETS))


def test_the_header_is_in_the_form_of_diffusers(folder):
    with safetensors.safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        header, names = file.metadata(), list(file.keys())
    config = json.loads(header[LORA_ADAPTER_METADATA_KEY])
    assert config["planner.lora_alpha"] == config["transformer.lora_alpha"] == 8
    assert {name.split(".")[0] for name in names} == set(BOTH)


def test_a_file_without_header_has_a_scale_of_one(pipe, tmp_path):
    trained = save_adapter(tmp_path, alpha=4, rank=4, metadata=False)
    assert MarDiniPipeline.lora_description(tmp_path).adapters == {}
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(run(pipe), run(trained))


@pytest.mark.parametrize("config", [{"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"to_q": 2}}])
def test_kinds_of_lora_come_back_as_they_were_trained(pipe, tmp_path, config):
    trained = save_adapter(tmp_path, ("transformer",), alpha=8, config=config)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(run(pipe), run(trained), rtol=1e-5, atol=1e-5)


def test_an_adapter_that_was_trained_with_dropout_drops_nothing_when_it_paints(pipe, tmp_path):
    save_adapter(tmp_path, config={"lora_dropout": 0.5})
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(run(pipe), run(pipe))


def test_only_the_main_process_writes(tmp_path):
    save_adapter(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_nothing_unfinished(tmp_path):
    save_adapter(tmp_path, weight_name="cars.safetensors")
    save_adapter(tmp_path, weight_name="cars.safetensors", seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["cars.safetensors"]


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
    assert torch.equal(pipe.planner(latents, mask, 1, {"scale": 0.5}).planning_signals, expected)
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


# What is refused


def test_pickles_are_refused(pipe, tmp_path):
    torch.save({"transformer.a.lora_A.weight": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.bin")
    for source, kwargs in [
        (tmp_path, {}),
        (tmp_path / "pytorch_lora_weights.bin", {}),
        (tmp_path, {"weight_name": "pytorch_lora_weights.bin"}),
        ("somebody/adapter", {"weight_name": "adapter.pt"}),
    ]:
        with pytest.raises(ValueError, match="is a pickle.*only .safetensors"):
            pipe.load_lora_weights(source, **kwargs)
    with pytest.raises(ValueError, match="unpickle"):
        pipe.load_lora_weights(tmp_path, use_safetensors=False)
    with pytest.raises(ValueError, match="pickle"):
        save_adapter(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match="is a pickle"):
        save_adapter(tmp_path, weight_name="adapter.bin")


def test_unclear_places_are_refused(pipe, folder, tmp_path):
    with pytest.raises(ValueError, match="holds no LoRA"):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        pipe.load_lora_weights(tmp_path / "nowhere")
    save_adapter(tmp_path, weight_name="a.safetensors")
    save_adapter(tmp_path, weight_name="b.safetensors")
    with pytest.raises(ValueError, match="a.safetensors, b.safetensors; choose one with `weight_name`"):
        pipe.load_lora_weights(tmp_path)
    pipe.load_lora_weights(tmp_path, weight_name="b.safetensors")
    with pytest.raises(ValueError, match=r"unknown arguments \['revison'\]"):
        pipe.load_lora_weights(folder, revison="main")


def test_weights_of_a_whole_model_are_no_lora(pipe, tmp_path):
    safetensors.torch.save_file(dict(pipe.planner.state_dict()), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="this is no LoRA: .* without `lora`"):
        pipe.load_lora_weights(tmp_path)


def test_an_adapter_of_another_size_is_refused_before_anything_changes(pipe, folder, tmp_path):
    tensors = MarDiniPipeline.lora_state_dict(folder)
    name = "transformer.transformer_blocks.1.attn.to_q.lora_A.weight"
    before = {key: tensor.clone() for key, tensor in weights(pipe).items()}
    with pytest.raises(
        ValueError,
        match="another transformer: `transformer_blocks.1.attn.to_q` has in_features of 7 there and 32 here",
    ):
        pipe.load_lora_weights({**tensors, name: torch.zeros(4, 7)})
    with pytest.raises(ValueError, match="has no such layer"):
        pipe.load_lora_weights({**tensors, "planner.transformer_blocks.9.attn.to_q.lora_A.weight": torch.zeros(4, 32)})
    assert weights(pipe).keys() == before.keys()

    description = {"transformer_lora_layers": {"transformer_blocks.9.attn.to_q.lora_A.weight": torch.zeros(4, 32)}}
    MarDiniPipeline.save_lora_weights(tmp_path, **description, base_model="somebody/deeper")
    with pytest.raises(ValueError, match="trained on somebody/deeper"):
        pipe.load_lora_weights(tmp_path)


def test_an_adapter_that_half_fails_is_taken_out_again(pipe, folder):
    tensors = MarDiniPipeline.lora_state_dict(folder)
    # The shape is right for either side alone; peft finds that two tensors of one layer disagree.
    name = "transformer.transformer_blocks.1.attn.to_q.lora_A.weight"
    before = {key: tensor.clone() for key, tensor in weights(pipe).items()}
    with pytest.raises(Exception, match="size mismatch"):
        pipe.load_lora_weights({**tensors, name: torch.zeros(3, 32)})
    assert not pipe.get_list_adapters().get("planner")
    pipe.unload_lora_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(pipe).items())


def test_names_that_are_taken_or_missing_are_refused(pipe, folder, tmp_path):
    pipe.load_lora_weights(folder, adapter_name="cars")
    with pytest.raises(ValueError, match="'cars' is loaded already; .*hotswap=True"):
        pipe.load_lora_weights(folder, adapter_name="cars")
    with pytest.raises(ValueError, match="cannot swap the adapter 'laps': it changes nothing, it is not loaded"):
        pipe.load_lora_weights(folder, adapter_name="laps", hotswap=True)
    save_adapter(tmp_path, ("planner",))
    with pytest.raises(ValueError, match="it changes planner and transformer, and the new one planner"):
        pipe.load_lora_weights(tmp_path, adapter_name="cars", hotswap=True)
    with pytest.raises(ValueError, match=r"names \['vae'\]; components are planner, transformer"):
        pipe.set_adapters(["cars"], [{"vae": 1.0}])


def test_saving_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to save"):
        MarDiniPipeline.save_lora_weights(tmp_path)
    layers = {"transformer_lora_layers": {"a.lora_A.weight": torch.zeros(2, 2)}}
    with pytest.raises(ValueError, match="no layers for planner"):
        MarDiniPipeline.save_lora_weights(tmp_path, **layers, planner_lora_adapter_metadata={"r": 2})
    with pytest.raises(TypeError, match="cannot be written into the header"):
        MarDiniPipeline.save_lora_weights(tmp_path, **layers, training_config={"model": torch.zeros(1)})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="which is a file"):
        MarDiniPipeline.save_lora_weights(tmp_path / "file", **layers)


def test_tensors_for_other_parts_are_named_and_left_out(pipe, base, caplog):
    diffusers_logging.set_verbosity_warning()
    ours, theirs = (
        layer_of("transformer", torch.zeros(2, 32), torch.zeros(32, 2)),
        {"unet.mid.lora_A.weight": torch.zeros(2, 2)},
    )
    pipe.load_lora_weights(ours | theirs)
    assert "1 tensors of the LoRA were not used" in caplog.text and "unet.mid.lora_A" in caplog.text
    pipe.unload_lora_weights()
    pipe.load_lora_weights(theirs)  # as diffusers has it: nothing, and it is said
    assert not pipe.get_list_adapters()
    assert torch.equal(run(pipe), base)


def layer_of(component, down, up, names=("lora_A", "lora_B")) -> dict[str, torch.Tensor]:
    """An adapter of one layer, under the names that a trainer gives its matrices."""
    layer = f"{component}.transformer_blocks.0.attn.to_q"
    return {f"{layer}.{names[0]}.weight": down, f"{layer}.{names[1]}.weight": up}


@pytest.mark.parametrize("names", [("lora_down", "lora_up"), ("lora.down", "lora.up")])
def test_names_of_other_trainers_are_understood(names):
    torch.manual_seed(0)
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    results = []
    for each in (("lora_A", "lora_B"), names):
        pipe = tiny_pipeline()
        pipe.load_lora_weights(layer_of("transformer", down, up, each))
        results.append(run(pipe))
    assert torch.equal(*results)


def test_an_alpha_in_a_tensor_is_a_weight_of_alpha_over_rank(folder):
    torch.manual_seed(0)
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    alpha = {"planner.transformer_blocks.0.attn.to_q.alpha": torch.tensor(1.0)}
    results = []
    for tensors in (layer_of("planner", down, up) | alpha, layer_of("planner", down, up / 4)):
        pipe = tiny_pipeline()
        pipe.load_lora_weights(tensors)
        results.append(run(pipe))
    assert torch.equal(*results)
    with pytest.raises(ValueError, match="is no number that belongs to a pair of matrices"):
        tiny_pipeline().load_lora_weights(alpha)


def test_a_fused_adapter_is_not_deleted(pipe, folder, base):
    pipe.load_lora_weights(folder, adapter_name="cars")
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="'cars' is fused into the weights; call `unfuse_lora\\(\\)` first"):
        pipe.delete_adapters("cars")
    pipe.unfuse_lora()
    pipe.delete_adapters("cars")
    assert torch.allclose(run(pipe), base, atol=1e-4)
    pipe.load_lora_weights(folder, adapter_name="cars")  # the name is free again
    pipe.delete_adapters("cars")


def test_a_compiled_wrapper_is_refused_where_it_would_be_ignored(pipe, folder, other, tmp_path):
    pipe.load_lora_weights(folder, adapter_name="cars")
    pipe.transformer = torch.compile(pipe.transformer)
    changes = (pipe.unload_lora_weights, pipe.fuse_lora, pipe.unfuse_lora)
    for call in (*changes, lambda: pipe.set_adapters("cars"), lambda: pipe.delete_adapters("cars")):
        with pytest.raises(ValueError, match="compile it in place, `pipe.transformer.compile\\(\\)`"):
            call()
    pipe.load_lora_weights(other, adapter_name="laps")  # reaches it, and so does saving
    assert set(pipe.transformer.peft_config) == {"cars", "laps"}
    pipe.transformer = torch.compile(tiny_pipeline().transformer)
    pipe.planner.unload_lora()
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").exists()


def test_a_scale_is_refused_where_blocks_run_again_without_it(pipe, folder):
    pipe.load_lora_weights(folder)
    pipe.transformer.enable_gradient_checkpointing()
    arguments = {"reference_mask": torch.tensor([[True, False]]), "attention_kwargs": {"scale": 0.5}}
    with pytest.raises(ValueError, match="scales LoRA layers by 0.5, but with gradient checkpointing"):
        pipe.transformer(torch.zeros(1, 2, 16, 4, 4), 500, None, **arguments)
    with torch.no_grad():
        pipe.transformer(torch.zeros(1, 2, 16, 4, 4), 500, None, **arguments)


def test_a_modular_pipeline_with_some_of_the_models_has_what_adapters_they_can_have(pipe, folder, tmp_path):
    pipe.save_pretrained(tmp_path)
    decoder, denoiser = (step().init_pipeline(tmp_path) for step in (MarDiniDecoderStep, MarDiniDenoiseStep))
    tensors = layer_of("transformer", torch.zeros(2, 32), torch.zeros(32, 2))
    with pytest.raises(ValueError, match="the adapter changes the transformer, which this pipeline does not have"):
        denoiser.load_lora_weights(tensors)
    for modular in (decoder, denoiser):
        modular.load_components()
        modular.unload_lora_weights()
    denoiser.load_lora_weights(tensors, "cars")
    assert denoiser.get_list_adapters() == {"transformer": ["cars"]}
    denoiser.unload_lora_weights()
    assert not getattr(denoiser.transformer, "peft_config", None)
    decoder.save_pretrained(tmp_path / "decoder")


@pytest.mark.slow  # starts Python and imports torch anew
def test_without_peft_everything_else_works(tmp_path):
    program = (
        "import sys\n"
        "sys.modules['peft'] = None\n"
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'peft': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from pipelines_tests.tiny_pipeline import clip, tiny_pipeline\n"
        "pipe = tiny_pipeline()\n"
        "pipe(video=clip(2), num_frames=4, num_inference_steps=1, output_type='latent', attention_kwargs={'scale': 0.5})\n"
        f"pipe.save_pretrained({str(tmp_path)!r})\n"
        "try:\n"
        "    pipe.load_lora_weights('adapter')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert result.returncode == 0, result.stderr
    assert "PEFT backend is required" in result.stdout
