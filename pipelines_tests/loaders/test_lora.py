"""LoRA files: what they hold, what is loaded from them, and what is refused."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.modular_pipelines import MarDiniDecoderStep, MarDiniDenoiseStep
from pipelines_tests.loaders.adapters import BOTH, TARGETS, run, save_adapter, weights
from pipelines_tests.tiny_pipeline import tiny_pipeline


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


def test_an_adapter_that_was_trained_with_dropout_drops_nothing_when_it_samples(pipe, tmp_path):
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
    with pytest.raises(ValueError, match="this is not a LoRA: .* without `lora`"):
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
    with pytest.raises(ValueError, match="is not a number that belongs to a pair of matrices"):
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


def test_weights_of_several_adapters_may_be_a_tuple(pipe, folder):
    for name in ("x", "y"):
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(["x", "y"], (0.5, 0.25))
    assert pipe.get_active_adapters() == ["x", "y"]
    pipe.set_adapters(["x", "y"], [0.5, 0.25])
