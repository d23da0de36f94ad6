"""An adapter fits or is refused: names, shapes, values and configuration are known before a model changes."""

import json

import pytest
import safetensors.torch
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils import get_peft_model_state_dict

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.loaders.adapters import BOTH, TARGETS, save_adapter, weights
from pipelines_tests.tiny_pipeline import tiny_pipeline


# Both models of the tiny pipeline have layers of one size; these are the transformer's alone.
LAYERS = ("transformer_blocks.0.temporal_attn.to_q", "transformer_blocks.1.cross_attn.to_out.0")


def adapter(prefix="transformer.", layers=LAYERS, ends=("lora_A.weight", "lora_B.weight"), join=".", rank=2):
    """Tensors of some layers, under the names that a trainer gives them."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer in layers:
        name = prefix + layer.replace(".", join)
        tensors[f"{name}.{ends[0]}"] = torch.randn(rank, 32, generator=generator)
        tensors[f"{name}.{ends[1]}"] = torch.randn(32, rank, generator=generator)
    return tensors


def effect(pipe) -> torch.Tensor:
    """Return the outputs of the adapted layers of the transformer for a fixed input."""
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.stack([pipe.transformer.get_submodule(layer)(x) for layer in LAYERS])


@pytest.fixture(scope="module")
def native():
    pipe = tiny_pipeline()
    pipe.load_lora_weights(adapter())
    return effect(pipe)


def assert_refused(pipe, source, message, **arguments):
    """The adapter is refused by a ValueError, and both models are what they were, to the bit."""
    before = {name: tensor.clone() for name, tensor in weights(pipe).items()}
    active, loaded = pipe.get_active_adapters(), pipe.get_list_adapters()
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(source, **arguments)
    after = weights(pipe)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert (pipe.get_active_adapters(), pipe.get_list_adapters()) == (active, loaded)


# Names


PEFT_ENDS = ("lora_A.default.weight", "lora_B.default.weight")
NAMES = {
    "none": {"prefix": ""},
    "ComfyUI": {"prefix": "diffusion_model."},
    "a whole ComfyUI model": {"prefix": "model.diffusion_model."},
    "peft": {"prefix": "base_model.model."},
    "peft as it is in memory": {"prefix": "base_model.model.", "ends": PEFT_ENDS},
    "the name of an adapter": {"ends": PEFT_ENDS},
    "parallel": {"prefix": "module.transformer."},
    "compiled": {"prefix": "_orig_mod."},
    "kohya": {"prefix": "lora_unet_", "join": "_", "ends": ("lora_down.weight", "lora_up.weight")},
    "kohya for transformers": {
        "prefix": "lora_transformer_",
        "join": "_",
        "ends": ("lora_down.weight", "lora_up.weight"),
    },
    "joined": {"prefix": "lora_", "join": "_"},
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_other_trainers_mean_the_same_adapter(pipe, native, kind):
    pipe.load_lora_weights(adapter(**NAMES[kind]), adapter_name="a")
    assert pipe.get_list_adapters() == {"transformer": ["a"]}
    assert torch.equal(effect(pipe), native)
    assert not any(parameter.is_meta for parameter in pipe.transformer.parameters())


def test_names_that_mean_layers_of_both_models_are_told_apart_by_what_only_one_has(pipe):
    layers = ("transformer_blocks.0.attn.to_q", LAYERS[0])
    pipe.load_lora_weights(adapter("", layers), adapter_name="a")
    assert pipe.get_list_adapters() == {"transformer": ["a"]}
    both = adapter("lora_unet_", (LAYERS[0], "transformer_blocks.0.spatiotemporal_attn.to_q"), join="_")
    pipe.load_lora_weights(both, adapter_name="b")
    assert pipe.get_list_adapters() == {"planner": ["b"], "transformer": ["a", "b"]}


def test_names_that_mean_layers_of_both_models_are_told_apart_by_size(pipe):
    tensors = adapter("", ("transformer_blocks.0.attn.to_q",))
    assert_refused(pipe, tensors, "it fits planner and transformer; put `planner.` or `transformer.` before each name")
    layer = pipe.planner.transformer_blocks[0].attn
    layer.to_q = torch.nn.Linear(48, 32)
    pipe.load_lora_weights(tensors)
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({}, "holds no tensors"),
        ({"transformer.a.lora_A.weight": 1.0}, "is a float"),
        (adapter("unet."), r"`unet.*temporal_attn.to_q.lora_A.weight` is of no layer .*accepted are `planner"),
        (adapter() | adapter("unet."), "4 of the 8 tensors of the LoRA belong to neither planner nor transformer"),
        (adapter(layers=LAYERS[:1]) | adapter("", LAYERS[1:]), "a file that fits only in part is not loaded"),
        (adapter("", ("transformer_blocks.7.attn.to_q",)), "is of no layer of planner or transformer"),
        (adapter("lora_unet_", ("blocks.0.attn",), join="_"), "is of no layer of planner or transformer"),
        (adapter(ends=("lora_C.weight", "lora_D.weight")), "4 of the 4 tensors of the LoRA are not understood"),
        (adapter(ends=("lora_A.a.b.weight", "lora_B.weight")), "2 of the 4 tensors of the LoRA are not understood"),
        (adapter(ends=("lora_A.one.weight", "lora_B.two.weight")), "several adapters: .*lora_A.one.weight.*give one"),
        (adapter() | adapter(ends=("lora_down.weight", "lora_up.weight")), "two tensors `transformer"),
        (adapter() | adapter("module.transformer."), "differ only in a prefix of the layer's name"),
        ({"transformer_blocks.0.attn.to_q.hada_w1_a": torch.zeros(1)}, "this is not a LoRA"),
        ({"lora_foo": torch.tensor(2.0)}, "not understood, such as `lora_foo`"),
    ],
)  # fmt: skip
def test_names_that_are_not_understood_are_refused_whole(pipe, tensors, message):
    assert_refused(pipe, tensors, message)


@pytest.mark.parametrize("name", ["v1.0", ".", "", "keys", 1, ("a",)])
def test_names_of_adapters_that_cannot_be_used_are_refused(pipe, name):
    assert_refused(pipe, adapter(), "`adapter_name` is .*; expected text without a point", adapter_name=name)
    for call in (
        lambda: pipe.transformer.load_lora_adapter(adapter(), adapter_name=name),
        lambda: pipe.transformer.add_adapter(None, name),
    ):
        with pytest.raises(ValueError, match="`adapter_name` is "):
            call()


# Shapes and values


A, B = (f"transformer.{LAYERS[0]}.lora_{matrix}.weight" for matrix in "AB")


@pytest.mark.parametrize(
    "change, message",
    [
        ({A: torch.zeros(3, 32)}, "has a matrix A of rank 3 and a matrix B of rank 2"),
        ({A: torch.zeros(0, 32), B: torch.zeros(32, 0)}, "has a matrix A of rank 0"),
        ({A: torch.zeros(2, 7)}, "has in_features of 7 there and 32 here"),
        ({B: torch.zeros(7, 2)}, "has out_features of 7 there and 32 here"),
        ({A: torch.zeros(2, 32, 1, 1)}, r"has the shape \(2, 32, 1, 1\); expected a matrix"),
        ({A: None}, "has `transformer.*lora_B.weight` but no `lora_A.weight` for that layer"),
        ({B: None}, "but no `lora_B.weight` for that layer"),
        ({A: torch.zeros(2, 32, dtype=torch.int8)}, "has values of type torch.int8; expected floating-point"),
        ({A: torch.zeros(2, 32, device="meta")}, "has no values"),
        ({B: torch.full((32, 2), torch.nan)}, "holds values that are not finite"),
        ({A.replace("_A.weight", "_B.bias"): torch.zeros(32)}, "has `lora_B.bias` in the LoRA and .* has not"),
        ({A.replace("A.weight", "magnitude_vector"): torch.ones(32)}, "has `lora_magnitude_vector` in the LoRA and"),
        ({A.replace("A.weight", "magnitude_vector"): torch.ones(7)}, r"has the shape \(7,\); expected \(32,\)"),
        ({A.replace("_A.weight", "_A.bias"): torch.zeros(2)}, "not understood"),
        ({A.replace("lora_A.weight", "alpha"): torch.tensor(torch.inf)}, "is not a number that belongs to a pair"),
        ({A.replace("to_q.lora_A", "lora_A"): torch.zeros(2, 32)}, "has no such layer, or it is not linear"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_whole(pipe, change, message):
    tensors = {name: tensor for name, tensor in (adapter() | change).items() if tensor is not None}
    assert_refused(pipe, tensors, message)
    pipe.load_lora_weights(adapter(), adapter_name="other")
    assert_refused(pipe, tensors, message)


def test_layers_inside_of_a_loaded_adapter_are_none_of_the_model(pipe):
    pipe.load_lora_weights(adapter())
    assert_refused(pipe, adapter(layers=(f"{LAYERS[0]}.base_layer",)), "has no such layer")


def test_an_alpha_counts_for_the_bias_too(pipe):
    bias = {f"transformer.{layer}.lora_B.bias": torch.ones(32) for layer in LAYERS}
    alphas = {f"transformer.{layer}.alpha": torch.tensor(1.0) for layer in LAYERS}  # half the rank
    pipe.load_lora_weights(adapter() | bias)
    plain, base = effect(pipe), effect(tiny_pipeline())
    pipe.unload_lora_weights()
    pipe.load_lora_weights(adapter() | bias | alphas)
    torch.testing.assert_close(effect(pipe) - base, (plain - base) / 2)


def test_without_a_header_the_scale_is_one_for_layers_of_any_rank(pipe):
    tensors = adapter(layers=LAYERS[:1], rank=2) | adapter(layers=LAYERS[1:], rank=4)
    pipe.load_lora_weights(tensors, adapter_name="a")
    assert [pipe.transformer.get_submodule(layer).scaling["a"] for layer in LAYERS] == [1.0, 1.0]
    pipe.set_adapters("a", 0.5)
    assert [pipe.transformer.get_submodule(layer).scaling["a"] for layer in LAYERS] == [0.5, 0.5]


# Headers


def save(folder, tensors, header=None, file="pytorch_lora_weights.safetensors"):
    metadata = {"format": "pt"} | ({} if header is None else {LORA_ADAPTER_METADATA_KEY: header})
    safetensors.torch.save_file(tensors, folder / file, metadata)
    return folder


@pytest.mark.parametrize(
    "config, message",
    [
        ({"r": 4}, "says rank 4 for `.*`, but its matrices have rank 2"),
        ({"r": 2, "lora_alpha": float("nan")}, "says alpha nan"),
        ({"r": 2, "use_dora": True}, "says use_dora=True, but its layers have no `lora_magnitude_vector`"),
        ({"r": 2, "lora_bias": True}, "says lora_bias=True, but its layers have no `lora_B.bias`"),
        ({"r": 2, "surprise": 1}, "is not a LoraConfig that the installed peft knows"),
        ({"r": 2, "modules_to_save": ["proj_out"]}, "has `modules_to_save`; only adapters of linear layers"),
        ({"r": 2, "init_lora_weights": "pissa"}, "which changes the model's own weights"),
    ],
)
def test_a_header_that_contradicts_the_tensors_is_refused(pipe, tmp_path, config, message):
    header = {f"transformer.{key}": value for key, value in config.items()}
    assert_refused(pipe, save(tmp_path, adapter(), json.dumps(header)), message)


def test_a_header_of_other_models_than_the_tensors_is_refused(pipe, tmp_path):
    for header in ({"r": 2, "lora_alpha": 1}, {"unet.r": 2, "transformer.r": 2}):
        assert_refused(pipe, save(tmp_path, adapter(), json.dumps(header)), "both must name the same models")


def test_a_damaged_file_or_header_is_refused_by_name(pipe, tmp_path):
    assert_refused(pipe, save(tmp_path, adapter(), "{"), "pytorch_lora_weights.safetensors cannot be read as a LoRA")
    assert_refused(
        pipe, save(tmp_path, adapter(), "[]"), "the header of .*pytorch_lora_weights.safetensors cannot be read"
    )
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"not a file of tensors")
    assert_refused(pipe, tmp_path, "pytorch_lora_weights.safetensors cannot be read as a LoRA in safetensors")
    assert_refused(
        pipe, tmp_path, r"there is no .*x.safetensors; the folder holds pytorch", weight_name="x.safetensors"
    )


def trained(folder, alpha=8):
    """A transformer with an adapter that has another scale than 1, and what its layers make of a fixed input."""
    layers = [layer.removeprefix("transformer_blocks.") for layer in LAYERS]
    made = save_adapter(folder, ("transformer",), rank=2, alpha=alpha, config={"target_modules": layers})
    return made, effect(made)


def test_what_a_model_saves_alone_has_its_scale_in_the_pipeline(pipe, tmp_path):
    made, expected = trained(tmp_path / "unused")
    made.transformer.save_lora_adapter(tmp_path / "alone", adapter_name="new")
    pipe.load_lora_weights(tmp_path / "alone", adapter_name="a")
    assert pipe.get_list_adapters() == {"transformer": ["a"]}
    torch.testing.assert_close(effect(pipe), expected)
    with pytest.raises(ValueError, match="only safetensors files are written"):
        made.transformer.save_lora_adapter(tmp_path, adapter_name="new", safe_serialization=False)


def test_the_folder_of_a_peft_model_has_its_scale_too(pipe, tmp_path):
    made, expected = trained(tmp_path / "unused")
    tensors = get_peft_model_state_dict(made.transformer, adapter_name="new")
    save(tmp_path, {f"base_model.model.{name}": t for name, t in tensors.items()}, file="adapter_model.safetensors")
    config = made.transformer.peft_config["new"]
    config.save_pretrained(tmp_path)
    pipe.load_lora_weights(tmp_path)
    torch.testing.assert_close(effect(pipe), expected)
    (tmp_path / "adapter_config.json").write_text("{")
    assert_refused(tiny_pipeline(), tmp_path, "adapter_config.json cannot be read as the configuration of a LoRA")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    assert_refused(tiny_pipeline(), tmp_path, "is an adapter of the kind .*only LoRA is loaded")


# Pickles, and what a model refuses by itself


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".PTH", ".ckpt", ".pkl", ".pickle"])
def test_a_pickle_is_refused_by_pipeline_and_models_and_says_how_to_convert(pipe, tmp_path, suffix):
    name = f"adapter{suffix}"
    torch.save(adapter(""), tmp_path / name)
    for load in (pipe.load_lora_weights, pipe.transformer.load_lora_adapter):
        for source, arguments in ((tmp_path / name, {}), (str(tmp_path), {"weight_name": name})):
            with pytest.raises(ValueError, match=f"adapter{suffix} is a pickle.*Convert.*safetensors.torch.save_file"):
                load(source, **arguments)
    with pytest.raises(ValueError, match="Convert a file of your own"):
        pipe.load_lora_weights(tmp_path)  # a folder that holds nothing else
    with pytest.raises((ValueError, OSError)):
        pipe.transformer.load_lora_adapter(str(tmp_path), prefix=None)
    assert pipe.get_list_adapters() == {}


def test_a_path_may_begin_at_home(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(tmp_path, adapter())
    pipe.load_lora_weights("~")
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}


def test_a_model_keeps_no_adapter_without_values(pipe):
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    tensors = adapter("", ends=PEFT_ENDS)
    with pytest.raises(ValueError, match="has no values for 4 of its matrices, such as `transformer_blocks"):
        pipe.transformer.load_lora_adapter(tensors, prefix=None, adapter_name="a", low_cpu_mem_usage=True)
    after = pipe.transformer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


def test_an_adapter_that_half_fails_is_taken_out_again(pipe, folder, other):
    """peft finds in the midst of the second model that it does not know a layer."""

    class Strange(torch.nn.Module):
        in_features = out_features = 32

    pipe.load_lora_weights(other, adapter_name="old")
    plain = pipe.transformer.transformer_blocks[1].cross_attn
    plain.to_v = Strange()
    assert_refused(pipe, folder, "not supported", adapter_name="new")
    assert not any(hasattr(layer, "lora_A") and "new" in layer.lora_A for layer in pipe.planner.modules())


def test_tensors_of_both_models_fit_each_its_own(pipe, folder):
    tensors = MarDiniPipeline.lora_state_dict(folder)
    pipe.load_lora_weights(tensors)
    loaded = {name for part in BOTH for name, p in getattr(pipe, part).named_parameters() if ".lora_" in name}
    assert len(loaded) == len({name.partition(".")[2] for name in tensors}) and len(TARGETS) == 4
