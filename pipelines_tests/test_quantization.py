"""Planner and transformer in eight bits and fewer, on the CarRacing checkpoint: near the plain one, small, and saved as safetensors."""

import importlib.util
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import GGUFQuantizationConfig, PipelineQuantizationConfig, QuantoConfig, TorchAoConfig
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from benchmarks.quantized_models import stored_bytes, write_gguf
from diffusers_mardini import MarDiniPipeline, MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.loaders import allow_single_files, layers_to_keep
from pipelines_tests.tiny_pipeline import seeded
from training.evaluation.evaluation_windows import load_windows


ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints/mardini-tiny-carracing"
BOTH = ("planner", "transformer")
GIVEN = [0, 8]
# What a step rounds is amplified by the next: of 5 steps, in dB of PSNR to the frames that float32 weights sample.
NEAR = {"torchao": 45.0, "quanto": 45.0, "Q8_0": 45.0, "Q4_0": 28.0}

pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the checkpoint is not here")


def needs(package: str):
    whole = package.split(".")[0]  # `find_spec` of a part fails where the whole is not there
    is_there = importlib.util.find_spec(whole) is not None and importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not is_there, reason=f"{package} is not installed")


def config_of(kind: str, component: str):
    kept = layers_to_keep(component)
    if kind == "quanto":
        return QuantoConfig("int8", modules_to_not_convert=kept)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)


def load(folder, **kwargs) -> MarDiniPipeline:
    pipe = MarDiniPipeline.from_pretrained(folder, dtype=torch.float32, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quantized(kind: str) -> MarDiniPipeline:
    mapping = {component: config_of(kind, component) for component in BOTH}
    return load(CHECKPOINT, quantization_config=PipelineQuantizationConfig(quant_mapping=mapping))


@pytest.fixture(scope="module")
def window() -> torch.Tensor:
    return load_windows(ROOT / "examples/clips", 64, num_frames=9, stride=2, per_clip=1).frames[:1]


@pytest.fixture(scope="module")
def plain() -> MarDiniPipeline:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def base(plain, window) -> torch.Tensor:
    return sample(plain, window)


@pytest.fixture(
    scope="module",
    params=[pytest.param("torchao", marks=needs("torchao")), pytest.param("quanto", marks=needs("optimum.quanto"))],
)
def small(request) -> tuple[str, MarDiniPipeline]:
    return request.param, quantized(request.param)


def sample(pipe, window) -> torch.Tensor:
    return pipe(
        video=window[0, GIVEN], frame_indices=GIVEN, num_frames=9, num_inference_steps=5, output_type="pt", generator=seeded()
    ).frames[:, 1:8]  # fmt: skip


def decibels(frames: torch.Tensor, reference: torch.Tensor) -> float:
    return -10 * (frames - reference).square().mean().log10().item()


# On the fly


def test_eight_bits_sample_nearly_the_same(small, window, base):
    kind, pipe = small
    assert pipe.planner.is_quantized and pipe.transformer.is_quantized
    frames = sample(pipe, window)
    assert not torch.equal(frames, base)
    assert decibels(frames, base) > NEAR[kind]


def test_eight_bits_take_little_more_than_a_quarter(small, plain):
    _kind, pipe = small
    for name in BOTH:
        assert 0.25 < stored_bytes(getattr(pipe, name)) / stored_bytes(getattr(plain, name)) < 0.28


def test_layers_of_latents_and_norms_stay_as_they_are(small, plain):
    _kind, pipe = small
    for name in BOTH:
        model, before = getattr(pipe, name), getattr(plain, name).state_dict()
        kept = {key for key in before if key.split(".")[0] in layers_to_keep(name) or "norm" in key}
        assert len(kept) > 10
        for key in kept:
            assert torch.equal(model.get_parameter(key), before[key]), key
        for key in ("transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.ff.net.2.weight"):
            assert stored_bytes(model.get_parameter(key)) < 0.3 * stored_bytes(before[key])


def test_it_is_saved_as_safetensors_and_loaded_again(small, window, plain, tmp_path):
    _kind, pipe = small
    pipe.save_pretrained(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".py"}
    size = (tmp_path / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 0.28 * stored_bytes(plain.transformer)
    again = load(tmp_path)  # the configuration is in the folder
    assert again.planner.is_quantized and again.transformer.is_quantized
    assert torch.equal(sample(again, window), sample(pipe, window))


@needs("torchao")
def test_one_model_alone_is_quantized(window, base):
    pipe = load(CHECKPOINT)
    pipe.transformer = MarDiniTransformer3DModel.from_pretrained(
        CHECKPOINT,
        subfolder="transformer",
        quantization_config=config_of("torchao", "transformer"),
        dtype=torch.float32,
    )
    assert pipe.transformer.is_quantized and not getattr(pipe.planner, "is_quantized", False)
    assert decibels(sample(pipe, window), base) > NEAR["torchao"]


def test_quantizing_the_layers_of_latents_does_harm(plain, window, base):
    """What `layers_to_keep` is for, with weights rounded to 4 bits here, of these few layers alone and of one layer of a block."""

    def rounded(names):
        pipe = load(CHECKPOINT)
        for name in names:
            weight = pipe.transformer.get_parameter(f"{name}.weight")
            step = weight.detach().abs().amax(dim=1, keepdim=True) / 7
            weight.data = (weight.detach() / step).round() * step
        return decibels(sample(pipe, window), base), sum(
            pipe.transformer.get_parameter(f"{name}.weight").numel() for name in names
        )

    few, few_weights = rounded(layers_to_keep("transformer"))
    block, block_weights = rounded(["transformer_blocks.2.attn.to_q"])
    assert few < block and few_weights < block_weights


def test_only_what_is_quantized_has_layers_to_keep():
    with pytest.raises(ValueError, match="'vae'; only planner and transformer"):
        layers_to_keep("vae")
    layers_to_keep("planner").append("x")
    assert layers_to_keep("planner") == ["patch_embed"]


# LoRA


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A small random one for both models."""
    folder = tmp_path_factory.mktemp("adapter")
    pipe = load(CHECKPOINT)
    torch.manual_seed(0)
    layers = {}
    for name in BOTH:
        model = getattr(pipe, name)
        model.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"]), "new")
        tensors = get_peft_model_state_dict(model, adapter_name="new")
        layers[f"{name}_lora_layers"] = {key: 0.3 * torch.randn_like(tensor) for key, tensor in tensors.items()}
    MarDiniPipeline.save_lora_weights(folder, **layers)
    return folder


def test_adapters_work_on_a_quantized_base(small, window, base, adapter):
    kind, pipe = small
    alone = sample(pipe, window)
    full = load(CHECKPOINT)
    full.load_lora_weights(adapter)
    adapted = sample(full, window)
    assert decibels(adapted, base) < NEAR[kind] - 10  # the adapter does more than quantizing
    pipe.load_lora_weights(adapter)
    assert decibels(sample(pipe, window), adapted) > NEAR[kind] - 10
    pipe.unload_lora_weights()
    assert torch.equal(sample(pipe, window), alone)


# GGUF


@pytest.fixture
def single_files(monkeypatch):
    """Single files are allowed, and forbidden again afterwards."""
    for model_class in (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel):
        monkeypatch.setitem(SINGLE_FILE_LOADABLE_CLASSES, model_class.__name__, {})
        monkeypatch.setattr(diffusers, model_class.__name__, model_class, raising=False)
    allow_single_files()


@needs("gguf")
@pytest.mark.parametrize("kind, most", [("Q8_0", 0.29), ("Q4_0", 0.17)])
def test_gguf_files_of_both_models_are_loaded(plain, window, base, tmp_path, single_files, kind, most):
    pipe = load(CHECKPOINT)
    classes = (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel)
    for name, model_class in zip(BOTH, classes, strict=True):
        file = tmp_path / f"{name}-{kind}.gguf"
        write_gguf(file, getattr(plain, name), kind, layers_to_keep(name))
        assert file.stat().st_size < most * stored_bytes(getattr(plain, name))
        model = model_class.from_single_file(
            str(file),
            config=str(CHECKPOINT),
            subfolder=name,
            quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
            dtype=torch.float32,
        )
        assert stored_bytes(model) < most * stored_bytes(getattr(plain, name))
        for key in layers_to_keep(name):
            weight = getattr(plain, name).get_parameter(f"{key}.weight")
            assert torch.equal(model.get_parameter(f"{key}.weight"), weight)
        setattr(pipe, name, model)
    assert decibels(sample(pipe, window), base) > NEAR[kind]


@needs("gguf")
def test_weights_of_another_model_are_not_loaded(plain, tmp_path, single_files):
    write_gguf(tmp_path / "planner.gguf", plain.planner, "Q8_0", [])
    with pytest.raises(ValueError, match="next_token expected shape"):
        MarDiniTransformer3DModel.from_single_file(
            str(tmp_path / "planner.gguf"),
            config=str(CHECKPOINT),
            subfolder="transformer",
            quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        )
