"""Adapters that add conditions to a tiny pipeline: what they learn, exactness, the file, the plan and the card."""

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cards import card_of_folder, read_facts
from pipelines_tests.training.data.test_conditioned_run import CONDITIONS, conditioned_config
from pipelines_tests.training.test_train_mardini import make_run
from pipelines_tests.training.test_train_mardini_lora import (
    base_pipeline,
    last_state,
    make_adapter_config,
    same,
    sample,
    timeless,
    weights,
)
from training.data.conditions import condition_arguments
from training.engine.adapter import frozen_digests
from training.engine.feasibility import find_problems
from training.engine.models import make_models
from training.engine.optimizers import learned
from training.loop import Stopped
from training.plan import make_plan
from training.plan_text import render


PARTS = ("planner", "transformer")
TOLD = {"action": torch.tensor([[0.8, 0.1]] * 4), "rate": torch.full((4, 1), 0.1)}


def make_conditioned_config(folder, names=("action", "rate"), **overrides):
    conditions = {name: CONDITIONS[name] for name in names}
    data = conditioned_config(folder).data.model_dump()
    return make_adapter_config(data={**data, "conditions": conditions}, **overrides)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clips):
    options = {"sample_every": 3, "quality_windows": 1, "sample_steps": 1, "sample_windows": 1}
    config = make_conditioned_config(clips, **options)
    stages = [
        stage.model_copy(update={"steps": 6}) for stage in config.stages
    ]  # so that each value is told and left out
    run = make_run(tmp_path_factory.mktemp("run"), config.model_copy(update={"stages": stages}))
    run.train()
    return run


def told(pipe, conditions=TOLD):
    video = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pipe(
        video=video, frame_indices=[0, 3], num_frames=4, num_inference_steps=2, output_type="latent",
        generator=torch.Generator().manual_seed(0), conditions=conditions,
    ).frames  # fmt: skip


def test_before_its_first_step_the_adapter_changes_nothing_whatever_it_is_told(clips):
    models, pipe = make_models(make_conditioned_config(clips)).eval(), base_pipeline()
    adapted = MarDiniPipeline(pipe.vae, models["planner"], models["transformer"], pipe.scheduler, planner_downscale=2)
    adapted.set_progress_bar_config(disable=True)
    for part in PARTS:  # frozen as the adapter's are: torch multiplies such weights by another kernel
        getattr(pipe, part).requires_grad_(False)
    assert torch.equal(told(adapted), sample(pipe)) and torch.equal(sample(adapted), sample(pipe))


def test_it_learns_its_layers_and_all_of_the_new_conditions_alone(trained):
    names = set(learned(trained.models))
    conditions = {name for name in names if "lora_" not in name}
    assert conditions == {
        f"{part}.condition_embedder.{name}.{key}"
        for part in PARTS
        for name in ("action", "rate")
        for key in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias", "null")
    }
    fresh = dict(make_models(trained.config).named_parameters())
    assert all(not torch.equal(fresh[name], trained.ema.tensors[name]) for name in conditions)
    plain = frozen_digests(make_models(make_adapter_config()))
    assert frozen_digests(trained.models) == plain == {k: trained.checkpoints.frozen[k] for k in plain}


def test_a_run_that_was_stopped_ends_like_one_that_ran_through(tmp_path, clips):
    config = make_conditioned_config(clips, lora={"dropout": 0.3}, checkpoint_every=100)
    make_run(tmp_path / "through", config).train()
    (tmp_path / "stopped").mkdir()
    for _ in range(2):
        (tmp_path / "stopped" / "stop").touch()
        with pytest.raises(Stopped):
            make_run(tmp_path / "stopped", config).train()
    (tmp_path / "stopped" / "stop").unlink()
    make_run(tmp_path / "stopped", config).train()
    assert same(last_state(tmp_path / "through"), last_state(tmp_path / "stopped"))
    assert timeless(tmp_path / "through") == timeless(tmp_path / "stopped")


def test_loaded_into_the_base_it_does_what_the_run_does(trained):
    pipe = base_pipeline()
    before, sampled = weights(pipe), sample(pipe)
    pipe.load_lora_weights(trained.folder / "adapter")
    assert pipe.conditions.keys() == {"action", "rate"} and pipe.conditions["action"].names == ("steer", "gas")
    ours = MarDiniPipeline(pipe.vae, trained.planner.eval(), trained.transformer.eval(), pipe.scheduler, 2)
    ours.set_progress_bar_config(disable=True)
    with trained.ema.swapped():
        for conditions in (TOLD, None, {"action": torch.full((4, 2), torch.nan)}):
            torch.testing.assert_close(told(pipe, conditions), told(ours, conditions), atol=1e-3, rtol=1e-3)
    right = {**TOLD, "action": -TOLD["action"].abs() * torch.tensor([1, -1])}
    assert not torch.equal(told(pipe), told(pipe, right)) and not torch.equal(told(pipe), told(pipe, None))
    pipe.unload_lora_weights()
    assert same(weights(pipe), before) and torch.equal(sample(pipe), sampled)


def test_without_values_it_does_what_training_does_where_they_are_dropped(trained):
    pipe = base_pipeline()
    pipe.load_lora_weights(trained.folder / "adapter")
    latents, mask = torch.randn(1, 4, 16, 2, 2), torch.tensor([[True, False, False, True]])
    dropped = {"action": torch.full((1, 4, 2), torch.nan), "rate": torch.full((1, 4, 1), torch.nan)}
    with trained.ema.swapped(), torch.no_grad():
        expected = trained.planner.eval()(latents, mask, conditions=dropped).planning_signals
    torch.testing.assert_close(pipe.planner.float()(latents, mask).planning_signals, expected, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        pipe.planner.condition_embedder["action"].null.zero_()
    assert not torch.equal(pipe.planner(latents, mask).planning_signals, expected)


def test_conditions_that_the_base_has_stay_as_they_are(tmp_path, clips):
    pipe = base_pipeline()
    for part in PARTS:
        model = getattr(pipe, part)
        model.add_conditions(**condition_arguments({"rate": conditioned_config(clips).data.conditions["rate"]}))
        for parameter in model.condition_embedder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    pipe.save_pretrained(tmp_path / "base")
    run = make_run(tmp_path / "run", make_conditioned_config(clips, base=tmp_path / "base"))
    assert not [name for name in learned(run.models) if "condition_embedder.rate" in name]
    run.train()
    description = MarDiniPipeline.lora_description(run.folder / "adapter")
    assert description.conditions == {"action": 2} and description.condition_info["action"]["names"] == [
        "steer",
        "gas",
    ]
    assert not [name for name in load_file(run.folder / "adapter/pytorch_lora_weights.safetensors") if "rate" in name]
    pipe.load_lora_weights(run.folder / "adapter")
    assert pipe.conditions.keys() == {"action", "rate"}
    other = make_conditioned_config(clips, base=tmp_path / "base").model_dump()
    other["data"]["conditions"]["rate"].update(derive=None, columns=["steer", "gas"])
    changed = type(run.config).model_validate(other)
    assert [problem.text for problem in find_problems(changed)] == [
        f"planner and transformer cannot be adapted: `data.conditions.rate` has 2 channels, but {tmp_path / 'base'} has "
        "1 in the planner and 1 in the transformer; use another name, or as many channels as there"
    ]
    other["data"]["conditions"]["rate"] = {"derive": "rate", "range": [[0, 9]], "unit": "s"}
    (problem,) = find_problems(type(run.config).model_validate(other))
    assert "rate: 1 channel, 0 to 9, in s (sum over skipped frames), but" in problem.text
    assert "give the same, or another name" in problem.text


def test_targets_in_one_model_alone_are_refused(clips):
    (problem,) = find_problems(make_conditioned_config(clips, lora={"targets": "transformer-attention"}))
    assert "adds the conditions action, rate to both models" in problem.text
    assert "changes only the transformer; use targets in both" in problem.text


def test_the_plan_lists_the_conditions_and_counts_their_parameters(clips):
    config = make_conditioned_config(clips)
    plan, models = make_plan(config, flops_per_second=1e9, with_data=False), make_models(config)
    assert plan.parameters == {part: sum(p.numel() for p in learned(models[part]).values()) for part in PARTS}
    assert plan.added == {
        name: sum(p.numel() for key, p in learned(models).items() if f"condition_embedder.{name}." in key)
        for name in ("action", "rate")
    }
    assert "conditions that the adapter adds: action (" in render(plan, "x")


def test_the_card_of_the_adapter_lists_its_conditions(trained):
    facts = read_facts(trained.folder / "adapter")
    assert [row["condition"] for row in facts["conditions"]] == ["action", "rate"]
    assert facts["conditions"][0]["channels"] == "2 (steer, gas)"
    assert facts["conditions"][0]["range"] == "-1 to 1, 0 to 1"
    card = card_of_folder(trained.folder / "adapter", {"base_model": "owner/base"})
    assert "## Conditions" in card and "| rate | 1 | 0.01 to 0.5 | seconds since the frame before" in card
    assert "conditions" not in read_facts_of_plain(trained)


def read_facts_of_plain(trained):
    """Reads the facts of an adapter without conditions."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = base_pipeline()
    pipe.planner.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "new")
    folder = trained.folder / "plain"
    layers = get_peft_model_state_dict(pipe.planner, adapter_name="new")
    MarDiniPipeline.save_lora_weights(folder, layers)
    return read_facts(folder)
