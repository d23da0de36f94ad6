"""The blocks are `MarDiniPipeline` cut into pieces: the same results to the bit, and pieces that can be exchanged."""

import inspect
import json
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    ModularPipeline,
    ModularPipelineBlocks,
    PyramidAttentionBroadcastConfig,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffusers_mardini import (
    AutoencoderPatchBasis,
    MarDiniBlocks,
    MarDiniModularPipeline,
    MarDiniPipeline,
    MarDiniScheduler,
)
from diffusers_mardini.format_version import SHIM
from diffusers_mardini.modular_pipelines import MarDiniInterpolationInputStep, MarDiniVaeEncoderStep
from pipelines_tests.hub_server import running_hub
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


FRAMES = 5
TASKS = {
    "image_to_video": {"image": clip(1)[0]},
    "interpolation": {"image": clip(2)[0], "last_image": clip(2)[1]},
    "expansion": {"video": clip(3)},
    "any_frames": {"video": clip(2), "frame_indices": [3, 1]},
}


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def modular_folder(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("modular") / "repository"
    load(folder).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch):
    """Code from a folder is copied before it is imported; not into the user's cache."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def modular_of(pipe: MarDiniPipeline, blocks: ModularPipelineBlocks | None = None) -> MarDiniModularPipeline:
    """A modular pipeline of the same parts."""
    modular = (MarDiniBlocks() if blocks is None else blocks).init_pipeline()
    modular.update_components(**pipe.components, planner_downscale=pipe.config.planner_downscale)
    modular.set_progress_bar_config(disable=True)
    return modular


def load(folder, **kwargs) -> MarDiniModularPipeline:
    modular = MarDiniModularPipeline.from_pretrained(folder, **kwargs)
    modular.load_components()
    modular.set_progress_bar_config(disable=True)
    return modular


def call(pipe, seed=0, **kwargs):
    defaults = {"num_frames": FRAMES, "num_inference_steps": 3, "output_type": "latent", "generator": seeded(seed)}
    if not {"image", "video"} & kwargs.keys():
        defaults |= TASKS["interpolation"]
    if isinstance(pipe, MarDiniPipeline):
        return pipe(**{**defaults, **kwargs}).frames
    return pipe(**{**defaults, **kwargs}, output="videos")


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return np.array_equal(np.array(first), np.array(second))


# The same results


@pytest.mark.parametrize("guidance_scale", [None, 1.0, 3.0])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_what_the_pipeline_gives(pipe, task, guidance_scale):
    kwargs = {**TASKS[task], "guidance_scale": guidance_scale}
    assert torch.equal(call(modular_of(pipe), **kwargs), call(pipe, **kwargs))
    assert not torch.equal(call(modular_of(pipe), **kwargs), call(pipe, seed=1, **kwargs))


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_type_is_the_pipelines(pipe, output_type):
    expected, videos = call(pipe, output_type=output_type), call(modular_of(pipe), output_type=output_type)
    assert type(videos) is type(expected) and same(videos, expected)
    if output_type == "pil":
        assert isinstance(videos[0][0], PIL.Image.Image)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"video": clip(2, 2), "frame_indices": [0, 4], "num_videos_per_prompt": 2},
        {"video": clip(2, 2), "generator": "two"},
        {"latents": torch.randn(1, FRAMES, 16, 4, 4, generator=seeded(7))},
        {"timesteps": [900, 500, 100]},
        {"eta": 0.7},
        {"image": clip(1, size=64)[0], "height": 32, "width": 32},
        {"attention_kwargs": {"scale": 0.5}, "guidance_scale": 2.0},
        {"paste_given": True, "output_type": "pt"},
        {"paste_given": True, "blend": 2, "output_type": "pt", "video": clip(2), "num_videos_per_prompt": 2},
    ],
    ids=lambda kwargs: "-".join(kwargs),
)
def test_every_argument_means_the_same(pipe, kwargs):
    def fresh():
        return {**kwargs, "generator": [seeded(1), seeded(2)]} if "generator" in kwargs else kwargs

    assert torch.equal(call(modular_of(pipe), **fresh()), call(pipe, **fresh()))


@pytest.mark.parametrize("use_window_state", [True, False])
def test_both_compute_a_window_as_asked(pipe, use_window_state):
    for one in (pipe, modular_of(pipe)):
        counter = CallCounter(one)
        call(one, use_window_state=use_window_state, guidance_scale=1.0)
        assert (counter.counts["window_state"], counter.counts["transformer"]) == (int(use_window_state), 3)


def test_no_more_frames_than_asked_for_pass_the_autoencoder_at_once(pipe):
    modular, sizes = modular_of(pipe), []
    for layer in (pipe.vae.to_latents, pipe.vae.from_latents):
        layer.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    whole = call(modular, video=clip(4), output_type="pt", decode_chunk_size=100)
    assert max(sizes) == FRAMES
    sizes.clear()
    chunked = call(modular, video=clip(4), output_type="pt", decode_chunk_size=2)
    assert max(sizes) == 2
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vae", ["patch_basis", "kl"])
def test_other_parts_may_be_put_in(pipe, vae):
    modular = modular_of(pipe)
    call(modular)
    other = tiny_pipeline(vae, planner_downscale=4)
    assert isinstance(other.vae, AutoencoderKL if vae == "kl" else AutoencoderPatchBasis)
    other.scheduler = DPMSolverMultistepScheduler.from_config(other.scheduler.config)
    modular.update_components(**other.components, planner_downscale=4)
    assert torch.equal(call(modular, output_type="pt"), call(other, output_type="pt"))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("cache", ["pyramid", "faster", "first block"])
def test_caches_work_in_both(pipe, cache, scale):
    modular = modular_of(pipe)

    def config(asked):
        if cache == "first block":
            return FirstBlockCacheConfig(threshold=10.0)
        timestep = {"current_timestep_callback": lambda: asked.current_timestep}
        if cache == "pyramid":
            return PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, **timestep)
        return FasterCacheConfig(**timestep, is_guidance_distilled=True)

    kwargs = {"num_inference_steps": 8, "guidance_scale": scale}
    plain = call(pipe, **kwargs)
    results = []
    for one in (pipe, modular):
        one.transformer.enable_cache(config(one))
        results.append(call(one, **kwargs))
        one.transformer.disable_cache()
    assert torch.equal(*results) and not torch.equal(results[0], plain)
    assert modular.current_timestep is None


def test_a_callback_sees_and_changes_the_same(pipe):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), pipeline.guidance_scale, sorted(tensors)))
        if step == 1:
            pipeline._interrupt = True
        return {"latents": tensors["latents"] * 0.5}

    kwargs = {
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "planning_signals"],
        "num_inference_steps": 4,
    }
    assert torch.equal(call(modular_of(pipe), **kwargs), call(pipe, **kwargs))
    assert len(seen) == 4 and seen[:2] == seen[2:]


# Bad input


@pytest.mark.parametrize(
    "kwargs",
    [
        {"video": None},
        {"video": clip(2), "last_image": clip(1)[0]},
        {"image": clip(1)[0], "frame_indices": [0]},
        {"image": None, "last_image": clip(1)[0]},
        {"num_frames": 1},
        {"image": clip(1, size=40)[0], "height": 33},
        {"guidance_scale": float("nan")},
        {"num_videos_per_prompt": 0},
        {"output_type": "gif"},
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        {"latents": torch.zeros(1)},
        {"paste_given": True},  # latents are asked for
        {"blend": 1, "output_type": "pt"},
    ],
    ids=lambda kwargs: "-".join(kwargs),
)
def test_what_cannot_be_used_gets_the_pipelines_answer_before_any_model_runs(pipe, kwargs):
    with pytest.raises(ValueError) as expected:
        call(pipe, **kwargs)
    counter = CallCounter(pipe)
    with pytest.raises(ValueError) as error:
        call(modular_of(pipe), **kwargs)
    assert str(error.value) == str(expected.value)
    assert set(counter.counts.values()) == {0}


# Blocks


@pytest.mark.parametrize("task", TASKS)
def test_a_workflow_is_the_blocks_of_one_task(pipe, task):
    blocks = MarDiniBlocks().get_workflow(task)
    kind = task.title().replace("_", "")
    assert type(blocks.sub_blocks["input"]).__name__.lower() == f"mardini{kind}inputstep".lower()
    modular = modular_of(pipe, blocks)
    assert type(modular) is ModularPipeline  # diffusers makes plain ones of what it prunes; ours run in them
    assert torch.equal(call(modular, **TASKS[task]), call(pipe, **TASKS[task]))


def test_every_argument_of_the_pipeline_is_an_input_with_its_default():
    arguments = dict(inspect.signature(MarDiniPipeline.__call__).parameters)
    for name in ("self", "return_dict"):
        del arguments[name]
    inputs = {param.name: param.default for param in MarDiniBlocks().inputs}
    assert inputs == {name: parameter.default for name, parameter in arguments.items()}


def test_the_documentation_names_tasks_inputs_and_parts():
    text = MarDiniBlocks().doc
    for word in (*TASKS, "planner_downscale", "guidance_scale", "MarDiniTransformer3DModel", "videos"):
        assert word in text, word
    assert "Class: SequentialPipelineBlocks" in repr(MarDiniBlocks())


class DampenedPlan(ModularPipelineBlocks):
    """A block of somebody else: weakens the planning signals."""

    @property
    def inputs(self):
        return [InputParam("planning_signals", required=True), InputParam("strength", default=0.0)]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.planning_signals = block_state.planning_signals * block_state.strength
        self.set_block_state(state, block_state)
        return components, state


def test_a_block_can_be_put_between_others(pipe):
    blocks = MarDiniBlocks()
    blocks.sub_blocks.insert("dampen", DampenedPlan(), 4)
    modular = modular_of(pipe, blocks)
    assert torch.equal(call(modular, strength=1.0), call(pipe))
    assert not torch.allclose(call(modular, strength=0.0), call(pipe), atol=1e-2)


def test_one_plan_serves_many_samples(pipe):
    """The blocks up to the planner run once; the rest goes on from their state."""
    blocks = MarDiniBlocks()
    names = list(blocks.sub_blocks)
    plan = modular_of(pipe, MarDiniBlocks.from_blocks_dict({name: blocks.sub_blocks[name] for name in names[:4]}))
    rest = MarDiniBlocks.from_blocks_dict({name: blocks.sub_blocks[name] for name in ["sampling_options", *names[4:]]})
    sample = modular_of(pipe, rest)
    state = plan(**TASKS["interpolation"], num_frames=FRAMES, num_inference_steps=3, output_type="latent")
    counter = CallCounter(pipe)
    for seed in (1, 2):
        assert torch.equal(sample(state=state, generator=seeded(seed), output="videos"), call(pipe, seed=seed))
    assert counter.counts["planner"] == 2  # those of `call` alone


def test_a_single_block_needs_its_own_parts_alone(pipe):
    encoder = MarDiniVaeEncoderStep().init_pipeline()
    assert type(encoder) is MarDiniModularPipeline and list(encoder.components) == ["vae"]
    encoder.update_components(vae=pipe.vae, planner_downscale=2)
    pixels = clip(2, 1) * 2 - 1
    state = encoder(pixels=pixels)
    assert torch.equal(state.reference_latents, pipe.encode_frames(pixels))
    assert torch.equal(state.planner_latents, pipe.encode_low_frames(pixels))


def test_a_task_without_its_frames_says_what_is_missing(pipe):
    blocks = SequentialPipelineBlocks.from_blocks_dict({"input": MarDiniInterpolationInputStep})
    with pytest.raises(ValueError, match="no frames were given; pass `image`"):
        modular_of(pipe, blocks)(num_frames=FRAMES)


# Folders


def test_the_folder_of_a_pipeline_is_loaded(pipe, folder):
    modular = MarDiniBlocks().init_pipeline(folder)
    with pytest.raises(
        ValueError, match="needs vae, planner, transformer, which is not loaded; call `load_components"
    ):
        call(modular)
    modular.load_components()
    modular.set_progress_bar_config(disable=True)
    assert modular.config.planner_downscale == 2
    assert torch.equal(call(modular), call(pipe))


def test_parts_are_loaded_with_the_arguments_of_diffusers(folder):
    modular = MarDiniModularPipeline.from_pretrained(folder, workflow="expansion")
    modular.load_components(dtype={"planner": torch.bfloat16, "default": torch.float32})
    assert (modular.planner.dtype, modular.transformer.dtype) == (torch.bfloat16, torch.float32)
    assert type(modular.scheduler) is MarDiniScheduler
    assert "last_image" not in modular.blocks.input_names


def test_a_saved_modular_pipeline_may_be_moved(pipe, modular_folder, tmp_path):
    assert {path.suffix for path in modular_folder.rglob("*") if path.is_file()} == {".json", ".safetensors", ".py"}
    assert str(modular_folder) not in (modular_folder / "modular_model_index.json").read_text()
    moved = modular_folder.rename(tmp_path / "moved")
    try:
        assert torch.equal(call(load(moved)), call(pipe))
    finally:
        moved.rename(modular_folder)


def test_the_generic_class_finds_the_blocks_in_a_modular_folder(pipe, modular_folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipeline.from_pretrained(modular_folder)
    modular = ModularPipeline.from_pretrained(modular_folder, trust_remote_code=True)
    assert type(modular.blocks) is MarDiniBlocks
    modular.load_components()
    modular.set_progress_bar_config(disable=True)
    assert torch.equal(call(modular), call(pipe))


def test_our_class_runs_no_code_from_the_folder(modular_folder, tmp_path):
    code = modular_folder / "modular_mardini.py"
    text = code.read_text()
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + text)
    try:
        load(modular_folder)
    finally:
        code.write_text(text)
    assert not (tmp_path / "ran").exists()
    assert "MarDiniBlocks = plugin.MarDiniBlocks" in text and "MarDiniPipeline" not in text
    assert text.count("\n") == SHIM.count("\n")


@pytest.mark.parametrize("kind", ["model_index.json", "modular_model_index.json"])
def test_a_folder_of_a_newer_format_says_what_to_update(kind, folder, modular_folder):
    file = (folder if kind == "model_index.json" else modular_folder) / kind
    text = file.read_text()
    file.write_text(json.dumps({**json.loads(text), "_mardini_format": 99}))
    try:
        with pytest.raises(ValueError, match="format 99 by a newer diffusers-mardini"):
            MarDiniModularPipeline.from_pretrained(file.parent)
    finally:
        file.write_text(text)


@pytest.mark.parametrize("kind", ["pipeline", "modular"])
def test_the_parts_are_loaded_from_the_hub(pipe, folder, modular_folder, tmp_path, kind):
    with running_hub(tmp_path / "hub", token=None) as hub:
        hub.add_folder("somebody/mardini", folder if kind == "pipeline" else modular_folder)
        assert torch.equal(call(load("somebody/mardini")), call(pipe))


# LoRA


@pytest.fixture
def lora(tmp_path):
    other = tiny_pipeline()
    torch.manual_seed(3)
    other.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "new")
    layers = get_peft_model_state_dict(other.transformer, adapter_name="new")
    MarDiniPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    return tmp_path / "pytorch_lora_weights.safetensors"


def test_adapters_are_loaded_scaled_and_taken_out(pipe, lora, tmp_path):
    base = call(pipe)
    modular = modular_of(tiny_pipeline())
    for one in (pipe, modular):
        one.load_lora_weights(lora, adapter_name="turn")
        one.set_adapters("turn", 0.7)
    assert modular.get_active_adapters() == ["turn"]
    adapted = call(modular)
    assert torch.equal(adapted, call(pipe)) and not torch.allclose(adapted, base, atol=1e-2)
    assert torch.equal(call(modular, attention_kwargs={"scale": 0.5}), call(pipe, attention_kwargs={"scale": 0.5}))
    with pytest.raises(ValueError, match="LoRA adapters are loaded: turn"):
        modular.save_pretrained(tmp_path / "saved")
    modular.unload_lora_weights()
    assert torch.equal(call(modular), base)


def test_a_saved_modular_pipeline_describes_its_node_for_mellon(modular_folder):
    node = MellonPipelineConfig.load(modular_folder)
    params = node.node_params["custom"]["params"]
    assert node.label == "MarDini"
    assert {"planner", "transformer", "vae"} <= params.keys() and "generated_noise" not in params
    assert params["image"]["type"] == "image" and params["num_frames"]["type"] in ("int", "float")
    assert params["videos"] == {"label": "Videos", "type": "video", "display": "output"}
