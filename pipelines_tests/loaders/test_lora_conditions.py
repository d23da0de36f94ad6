"""Adapters that add conditions: loaded whole or refused, part of the pipeline while active, gone without a trace."""

import json

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.format_version import LORA_DESCRIPTION_KEY
from diffusers_mardini.models.adapter_conditions import condition_parameters
from pipelines_tests.loaders.adapters import (
    BOTH,
    CONDITIONS,
    INFO,
    TARGETS,
    differ,
    run,
    save_adapter,
    save_conditioned,
    weights,
)
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


FILE = "pytorch_lora_weights.safetensors"
LEFT = {"action": torch.tensor([[-1.0, 0.2]] * 4)}
RIGHT = {"action": torch.tensor([[1.0, 0.2]] * 4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("conditioned")
    save_conditioned(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    save_adapter(path, seed=1)
    return path


@pytest.fixture
def loaded(pipe, folder):
    pipe.load_lora_weights(folder, adapter_name="drive")
    return pipe


def config_of(pipe):
    return [dict(getattr(pipe, name).config) for name in BOTH]


# Loaded, active, resting, gone


def test_a_new_condition_changes_nothing_before_it_is_trained(pipe, base):
    for name in BOTH:
        config = LoraConfig(r=4, target_modules=TARGETS)
        getattr(pipe, name).add_adapter(config, "new", CONDITIONS, INFO)
    assert torch.equal(run(pipe, conditions=LEFT), run(pipe))
    pipe.disable_lora()
    torch.testing.assert_close(run(pipe), base)


def test_the_loaded_adapter_does_what_the_one_that_was_trained_does(loaded, tmp_path):
    trained = save_conditioned(tmp_path)
    assert loaded.conditions.keys() == {"action"} and str(loaded.conditions["action"]) == (
        "action: 2 channels (steer -1 to 1, gas 0 to 1), in shares"
    )
    for given in (LEFT, RIGHT, None):
        torch.testing.assert_close(run(loaded, conditions=given), run(trained, conditions=given))
    assert differ(run(loaded, conditions=LEFT), run(loaded, conditions=RIGHT))
    assert differ(run(loaded, conditions=LEFT), run(loaded))


def test_the_file_describes_the_conditions(folder):
    description = MarDiniPipeline.lora_description(folder)
    assert description.conditions == CONDITIONS and description.condition_info == INFO
    assert MarDiniPipeline.lora_state_dict(folder).keys() == load_file(folder / FILE).keys()


def test_unloaded_and_deleted_adapters_leave_nothing(pipe, folder, base):
    before, configs = weights(pipe), config_of(pipe)
    for remove in (pipe.unload_lora_weights, lambda: pipe.delete_adapters("drive")):
        pipe.load_lora_weights(folder, adapter_name="drive")
        remove()
        assert pipe.planner.condition_embedder is None and pipe.transformer.condition_embedder is None
        assert pipe.conditions == {} and config_of(pipe) == configs
        after = weights(pipe)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(run(pipe), base)
        with pytest.raises(ValueError, match="has action, but the models of this pipeline take none"):
            run(pipe, conditions=LEFT)


def test_own_conditions_of_the_base_stay_as_they_are(pipe, folder):
    for name in BOTH:
        model = getattr(pipe, name)
        model.add_conditions({"rate": 1})
        for parameter in model.condition_embedder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    rate = {"rate": torch.full((4,), 0.1)}
    base = run(pipe, conditions=rate)
    pipe.load_lora_weights(folder, adapter_name="drive")
    assert pipe.conditions.keys() == {"rate", "action"}
    assert differ(run(pipe, conditions={**rate, **LEFT}), base)
    pipe.set_adapters("drive", 0.0)
    torch.testing.assert_close(run(pipe, conditions={**rate, **LEFT}), base)
    pipe.unload_lora_weights()
    assert torch.equal(run(pipe, conditions=rate), base)


def test_while_the_adapter_is_not_active_its_conditions_count_for_nothing(pipe, folder, plain, tmp_path):
    pipe.load_lora_weights(plain, adapter_name="plain")
    with_plain = run(pipe)
    pipe.load_lora_weights(folder, adapter_name="drive")
    told = run(pipe, conditions=LEFT)
    pipe.set_adapters("plain")
    assert torch.equal(run(pipe), with_plain) and "action" not in pipe.conditions
    message = "`conditions` has action, which the adapter 'drive' adds, and that is not active"
    with pytest.raises(ValueError, match=message):
        run(pipe, conditions=LEFT)
    latents, mask = torch.zeros(1, 3, 16, 2, 2), torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match=message):
        pipe.planner(latents, mask, conditions={"action": torch.zeros(1, 3, 2)})
    pipe.set_adapters("drive")
    torch.testing.assert_close(run(pipe, conditions=LEFT), told)
    pipe.disable_lora()
    assert pipe.conditions == {}
    with pytest.raises(ValueError, match=message):
        pipe.extend(clip(4), num_new_frames=2, window=4, overlap=2, conditions={"action": torch.zeros(6, 2)})
    pipe.enable_lora()
    torch.testing.assert_close(run(pipe, conditions=LEFT), told)
    pipe.delete_adapters("plain")
    torch.testing.assert_close(run(pipe, conditions=LEFT), told)


def test_an_adapter_loaded_later_rests_the_conditions_of_the_first(loaded, plain):
    loaded.load_lora_weights(plain, adapter_name="plain")
    assert loaded.conditions == {} and loaded.get_active_adapters() == ["plain"]
    loaded.set_adapters(["drive", "plain"], [1.0, 0.5])
    assert loaded.conditions.keys() == {"action"}
    assert differ(run(loaded, conditions=LEFT), run(loaded, conditions=RIGHT))


def test_in_a_model_of_which_the_adapter_rests_alone_it_does_not_count(loaded):
    transformer = loaded.transformer
    transformer.disable_adapters()
    assert loaded.conditions.keys() == {"action"}  # of the planner
    only_planner = run(loaded, conditions=LEFT)
    transformer.enable_adapters()
    assert differ(run(loaded, conditions=LEFT), only_planner)


def test_the_weight_of_the_adapter_is_that_of_its_conditions(loaded, base):
    told = run(loaded, conditions=LEFT)
    half = run(loaded, conditions=LEFT, attention_kwargs={"scale": 0.5})
    assert differ(half, told)
    torch.testing.assert_close(run(loaded, conditions=LEFT, attention_kwargs={"scale": 0.0}), base)
    torch.testing.assert_close(run(loaded, conditions=LEFT), told, rtol=0, atol=0)
    loaded.set_adapters("drive", {"planner": 0.5, "transformer": 0.5})
    torch.testing.assert_close(run(loaded, conditions=LEFT), half)
    assert loaded.transformer.condition_embedder["action"].scaling == {"drive": 0.5}


# In use


def test_window_states_are_the_whole_window(loaded):
    transformer, frames = loaded.transformer, 4
    latents, signals = torch.randn(2, frames, 16, 4, 4), torch.randn(2, frames, 2, 2, 32)
    mask = torch.tensor([[True, False, False, True]] * 2)
    conditions = {"action": torch.rand(2, frames, 2)}
    conditions["action"][0, 1] = torch.nan
    state = transformer(latents, 0, signals, mask, 2, conditions=conditions, return_window_state=True)
    step = torch.tensor([500, 500])
    whole = transformer(latents, step, signals, mask, 2, conditions=conditions).sample
    torch.testing.assert_close(transformer(latents[:, 1:3], step, window_state=state).sample, whole[:, 1:3])


def test_long_videos_rollouts_and_other_rates_take_the_conditions(loaded):
    options = {"num_inference_steps": 1, "output_type": "latent"}

    def action(rows, steer):
        return {"action": torch.tensor([[steer, 0.5]] * rows)}

    for call in (
        lambda s: loaded.extend(
            clip(3), num_new_frames=2, window=4, overlap=2, conditions=action(5, s), generator=seeded(), **options
        ),
        lambda s: loaded.slow_motion(
            clip(2), factor=2, window=3, conditions=action(3, s), generator=seeded(), **options
        ),
    ):
        assert differ(call(-1.0).frames, call(1.0).frames)
    for steer in (-1.0, 1.0):
        rollout = loaded.rollout(clip(3), window=4, overlap=2, generator=seeded(), **options)
        rollout.step(num_frames=2, conditions=action(2, steer))
    assert rollout.state()["conditions.action"].shape == (1, 2, 2)
    smooth = loaded.retime(clip(2), fps=20, source_fps=10, window=3, conditions=action(3, 1.0), num_inference_steps=1)
    assert len(smooth.frames[0]) == 3


def test_compiled_into_one_graph_the_models_take_the_conditions(loaded):
    planner = loaded.planner
    del planner.transformer_blocks[1:]  # compiling takes seconds
    latents, mask = torch.randn(1, 3, 16, 2, 2), torch.tensor([[True, False, True]])
    conditions = {"action": torch.rand(1, 3, 2)}
    expected = planner(latents, mask, 1, conditions=conditions).planning_signals
    planner.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(planner(latents, mask, 1, conditions=conditions).planning_signals, expected)
    loaded.disable_lora()
    assert differ(planner(latents, mask, 1).planning_signals, expected)


# Refused


def test_adapters_with_conditions_are_neither_fused_nor_swapped(loaded, folder, plain):
    before = run(loaded, conditions=LEFT)
    with pytest.raises(ValueError, match="'drive' adds the condition 'action', which has no weights in the model"):
        loaded.fuse_lora()
    with pytest.raises(ValueError, match="cannot swap the adapter 'drive', since conditions would be added or taken"):
        loaded.load_lora_weights(plain, adapter_name="drive", hotswap=True)
    loaded.load_lora_weights(plain, adapter_name="plain")
    with pytest.raises(ValueError, match="cannot swap the adapter 'plain', since conditions"):
        loaded.load_lora_weights(folder, adapter_name="plain", hotswap=True)
    loaded.fuse_lora(adapter_names="plain")
    assert loaded.conditions == {}
    loaded.unfuse_lora()
    loaded.set_adapters("drive")
    torch.testing.assert_close(run(loaded, conditions=LEFT), before)


def test_a_condition_that_is_there_already_is_refused_by_name(loaded, folder):
    with pytest.raises(ValueError, match="condition 'action', as the loaded one 'drive' does; unload that"):
        loaded.load_lora_weights(folder, adapter_name="again")
    with pytest.raises(ValueError, match="the model has conditions of 'drive'"):
        loaded.planner.add_conditions({"rate": 1})
    assert loaded.get_list_adapters() == {"planner": ["drive"], "transformer": ["drive"]}
    own = tiny_pipeline()
    own.planner.add_conditions({"action": 2})
    with pytest.raises(ValueError, match="condition 'action', which this model has already; load the base model"):
        own.load_lora_weights(folder)
    assert own.get_list_adapters() == {} and own.transformer.condition_embedder is None


def changed(folder, target, change, header=None):
    """Writes the file of a folder to another one, with changed tensors or description."""
    with safe_open(folder / FILE, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(folder / FILE)
    change(tensors)
    metadata[LORA_DESCRIPTION_KEY] = json.dumps(json.loads(metadata[LORA_DESCRIPTION_KEY]) | (header or {}))
    save_file(tensors, target / FILE, metadata)


def wider(tensors):
    tensors["planner.condition_embedder.action.null"] = torch.zeros(48)


def without_null(tensors):
    del tensors["transformer.condition_embedder.action.null"]


def not_finite(tensors):
    tensors["transformer.condition_embedder.action.linear_1.weight"][0, 0] = torch.nan


def without_planner(tensors):
    for name in [name for name in tensors if name.startswith("planner.") and "lora_" in name]:
        del tensors[name]


def same(tensors):
    pass


@pytest.mark.parametrize("change, header, message", [
    (wider, {}, r"`planner.condition_embedder.action.null` of the LoRA has the shape \(48,\)"),
    (same, {"conditions": {"action": 3}, "condition_info": None}, r"linear_1.weight` of the LoRA has the shape"),
    (without_null, {}, "1 of their tensors are missing, such as `transformer.condition_embedder.action.null`"),
    (same, {"conditions": {"action": 2, "rate": 1}}, "10 of their tensors are missing"),
    (same, {"conditions": None, "condition_info": None}, "tensors of conditions that its header does not describe"),
    (same, {"conditions": {"keys": 2}, "condition_info": None}, "has the name 'keys'; choose another"),
    (same, {"condition_info": {"action": 2}}, "`condition_info` is {'action': 2}; give a mapping of names"),
    (not_finite, {}, "linear_1.weight` of the LoRA holds values that are not finite"),
    (without_planner, {}, "changes layers of transformer; one that adds conditions must change layers of both"),
])  # fmt: skip
def test_a_file_that_does_not_fit_completely_is_refused(pipe, folder, tmp_path, base, change, header, message):
    changed(folder, tmp_path, change, header)
    with pytest.raises(ValueError, match=message):
        pipe.load_lora_weights(tmp_path)
    assert pipe.get_list_adapters() == {} and pipe.conditions == {} and torch.equal(run(pipe), base)


def test_what_fails_half_way_leaves_nothing(pipe, folder, base, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "_refuse_unfilled", lambda name: [][0])
    with pytest.raises(IndexError):
        pipe.load_lora_weights(folder)
    assert pipe.get_list_adapters() == {} and pipe.conditions == {} and torch.equal(run(pipe), base)
    assert pipe.planner.condition_embedder is None and pipe.transformer.condition_embedder is None


def test_one_model_alone_does_not_load_what_belongs_to_both(pipe, folder):
    with pytest.raises(ValueError, match="adds conditions, with tensors such as .*; load it into the pipeline"):
        pipe.transformer.load_lora_adapter(folder, prefix="transformer")
    assert pipe.get_list_adapters() == {}


def test_tensors_without_their_header_are_refused(pipe, folder):
    with pytest.raises(ValueError, match="tensors of conditions that its header does not describe"):
        pipe.load_lora_weights(load_file(folder / FILE))


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path):
    pipe = save_conditioned(tmp_path / "whole")
    layers = get_peft_model_state_dict(pipe.planner, adapter_name="new")
    with pytest.raises(ValueError, match="describes the conditions action, but 10 of their tensors are missing"):
        MarDiniPipeline.save_lora_weights(tmp_path / "part", layers, layers, conditions=CONDITIONS)
    with pytest.raises(ValueError, match="header does not describe"):
        added = condition_parameters(pipe.planner, "new")
        MarDiniPipeline.save_lora_weights(tmp_path / "part", {**layers, **added})
    assert not (tmp_path / "part").exists()
