"""Check that what works on diffusers' own pipelines works here: backends, offload, casting, device maps, single files, the pages
of the docs."""

import importlib.util
import re
from pathlib import Path

import accelerate
import diffusers
import pytest
import safetensors.torch
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.models.attention_dispatch import AttentionBackendName

from diffusers_mardini import MarDiniPipeline, MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.loaders import allow_single_files
from pipelines_tests.loaders.adapters import save_adapter, save_conditioned
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


DOCS = Path(__file__).resolve().parent.parent / "docs"
BOTH = ("planner", "transformer")


def run(pipe, **kwargs) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        video=clip(2), num_frames=4, num_inference_steps=2, output_type="latent", generator=seeded(), **kwargs
    ).frames


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def base():
    return run(tiny_pipeline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
def test_attention_backends_of_a_cpu_give_one_result(pipe, base, backend):
    for name in BOTH:
        getattr(pipe, name).set_attention_backend(backend)
        layer = getattr(pipe, name).transformer_blocks[0].attn
        assert layer.processor._attention_backend == backend
    torch.testing.assert_close(run(pipe), base, rtol=1e-4, atol=1e-4)


def test_every_attention_asks_the_dispatcher(pipe):
    """A backend that cannot work here stops each of them: no attention goes around diffusers' choice."""
    for name in BOTH:
        for block in getattr(pipe, name).transformer_blocks:
            for layer in block.children():
                if hasattr(layer, "processor"):
                    layer.processor._attention_backend = AttentionBackendName._NATIVE_EFFICIENT
                    with pytest.raises(RuntimeError, match="No viable backend"):  # a CPU has none
                        run(pipe)
                    layer.processor._attention_backend = None


@pytest.mark.parametrize(
    "backend, package", [("flash", "flash-attn"), ("sage", "sageattention"), ("xformers", "xformers")]
)
def test_a_backend_that_is_not_installed_says_what_to_install(pipe, backend, package):
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    for name in BOTH:
        with pytest.raises(RuntimeError, match=package):
            getattr(pipe, name).set_attention_backend(backend)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_of_the_whole_pipeline_changes_nothing(pipe, base, kind):
    size = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, **size)
    assert torch.equal(run(pipe), base)
    assert torch.equal(run(pipe), base)


def test_group_offload_to_the_disk_changes_nothing(pipe, base, tmp_path):
    for name in BOTH:
        getattr(pipe, name).enable_group_offload(
            onload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path / name),
        )
        assert {path.suffix for path in (tmp_path / name).iterdir()} == {".safetensors"}
    assert torch.equal(run(pipe), base) and torch.equal(run(pipe), base)


def test_layerwise_casting_and_group_offload_go_together(pipe, base):
    """The recipe for the least memory: weights of eight bits, of which one block at a time is where it is computed
    with."""
    for name in BOTH:
        getattr(pipe, name).enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    cast = run(pipe)
    for name in BOTH:
        getattr(pipe, name).enable_group_offload(
            onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        )
    assert torch.equal(run(pipe), cast) and not torch.equal(cast, base)


def test_model_offload_changes_nothing(pipe, base):
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(run(pipe), base) and torch.equal(run(pipe), base)
    pipe.remove_all_hooks()
    assert torch.equal(run(pipe), base)


def test_model_offload_leaves_nothing_beside_the_planner(pipe, monkeypatch):
    pipe.enable_model_cpu_offload(device="cpu")
    events, forward = [], pipe.planner.forward
    for hook in pipe._all_hooks:
        name = next(name for name, part in pipe.components.items() if part is hook.model)
        monkeypatch.setattr(hook, "offload", lambda name=name: events.append(name))
    pipe.planner.forward = lambda *args, **kwargs: (events.append("plan"), forward(*args, **kwargs))[1]
    run(pipe)
    assert events[: events.index("plan")] == ["transformer", "vae"]
    pipe.remove_all_hooks()


def test_sequential_offload_changes_nothing(pipe, base):
    """Do to every part what `enable_sequential_cpu_offload` does. Itself it names the device `cpu:0`, and accelerate then
    fails."""
    for part in ("vae", *BOTH):
        model = getattr(pipe, part)
        accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=len(model._parameters) > 0)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert torch.equal(run(pipe), base)


def test_layerwise_casting_halves_the_weights_of_blocks(pipe, base):
    for name in BOTH:
        getattr(pipe, name).enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        block = getattr(pipe, name).transformer_blocks[0]
        assert block.attn.to_q.weight.dtype == block.ff.net[2].weight.dtype == torch.float8_e4m3fn
        assert block.norm2.weight.dtype == torch.float32
    cast = run(pipe)
    assert cast.isfinite().all() and not torch.equal(cast, base)
    assert torch.nn.functional.cosine_similarity(cast.flatten(), base.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_device_maps_of_a_pipeline(folder, base, device_map):
    loaded = MarDiniPipeline.from_pretrained(folder, device_map=device_map)
    # Without a GPU there is nothing to balance.
    assert (loaded.hf_device_map is not None) == (device_map == "cpu" or torch.cuda.is_available())
    assert torch.equal(run(loaded), base)


def test_device_map_of_a_model(pipe, folder, base):
    pipe.transformer = MarDiniTransformer3DModel.from_pretrained(folder, subfolder="transformer", device_map="auto")
    assert pipe.transformer.hf_device_map
    assert torch.equal(run(pipe), base)


def test_each_part_has_its_own_dtype(folder):
    loaded = MarDiniPipeline.from_pretrained(folder, dtype={"planner": torch.bfloat16, "default": torch.float32})
    assert (loaded.planner.dtype, loaded.transformer.dtype) == (torch.bfloat16, torch.float32)
    assert loaded.planner.norm_out.weight.dtype == torch.float32
    assert run(loaded).isfinite().all()


def test_blocks_compile_without_breaks(pipe, base):
    torch._dynamo.reset()  # other tests' shapes count against the limit of recompiles
    for name in BOTH:
        getattr(pipe, name).compile_repeated_blocks(fullgraph=True, backend="eager")
    torch.testing.assert_close(run(pipe), base)


@pytest.fixture
def single_files(monkeypatch):
    """Single files are allowed, and forbidden again afterwards."""
    for model_class in (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel):
        assert model_class.__name__ not in SINGLE_FILE_LOADABLE_CLASSES  # importing us changes nothing
        monkeypatch.setitem(SINGLE_FILE_LOADABLE_CLASSES, model_class.__name__, {})
        monkeypatch.setattr(diffusers, model_class.__name__, model_class, raising=False)
    allow_single_files()


def test_single_files_are_loaded_once_they_are_allowed(pipe, folder, base, tmp_path, single_files):
    for name, model_class in zip(BOTH, (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel), strict=True):
        file = tmp_path / f"{name}.safetensors"
        safetensors.torch.save_file(getattr(pipe, name).state_dict(), file)
        loaded = model_class.from_single_file(str(file), config=str(folder), subfolder=name)
        assert type(loaded) is model_class
        setattr(pipe, name, loaded)
    assert torch.equal(run(pipe), base)


def test_single_files_are_not_loaded_unasked(folder, tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="currently only compatible with"):
        MarDiniTransformer3DModel.from_single_file(str(tmp_path / "model.safetensors"), config=str(folder))


@pytest.mark.parametrize("page", ["lora.md", "diffusers.md"])
def test_every_example_of_the_page_runs(page, folder, tmp_path, monkeypatch, single_files):
    """Blocks marked `python` are run from top to bottom, on a tiny pipeline; others are for machines that we have not,
    or train what is loaded (`test_docs.py`)."""
    monkeypatch.chdir(tmp_path)
    save_adapter("runs/lora-shapes/adapter")
    save_conditioned("runs/lora-told/adapter", {"motion": 1}, None)
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 5
    names = {"frames": clip(2), "steps": 4}
    for block in blocks:
        code = re.sub(r"checkpoints/mardini-tiny-\w+", folder.as_posix(), block)
        exec(compile(code, page, "exec"), names)
