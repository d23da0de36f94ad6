"""The comparisons of docs/results/ are fair: what must be equal is, by their configurations."""

from pathlib import Path

import pytest

from pipelines_tests.recorded_scripts import commands
from training.config.layers import load_config
from training.engine.models import whole_models
from training.reproduction.run_costs import RunCost, read_run
from training.reproduction.stabilizers import stabilized


CONFIGS = Path("training/configs/reproduction")


def config(name):
    """Without compiled blocks, and without the run that it goes on from, which is not there."""
    found = load_config(CONFIGS / f"{name}.yaml").for_processes(1)
    stages = [stage.model_copy(update={"compile": False}) for stage in found.stages]
    return found.model_copy(update={"stages": stages, "init_from": None})


def windows(name):
    return sum(stage.steps * stage.batch_size for stage in config(name).stages)


def parameters(name):
    models = whole_models(config(name))
    return sum(p.numel() for part in ("planner", "transformer") for p in models[part].parameters())


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_all_see_the_same_clips_through_the_same_autoencoder_at_the_same_pace(name):
    found, pair = config(name), config("pair")
    assert (found.data.train, found.data.validation, found.data.size, found.vae, found.seed) == (
        pair.data.train, pair.data.validation, pair.data.size, pair.vae, pair.seed
    )  # fmt: skip
    assert {stage.num_frames for stage in found.stages} == {9} and all(s.strides == {2: 1.0} for s in found.stages)


def test_the_models_of_table_2_see_equally_many_windows():
    names = ("pair", "large_pair", "planner_alone", "transformer_alone")
    assert {windows(name) for name in names} == {14_000}


def test_the_large_pair_differs_by_its_planner_alone():
    small, large = config("pair"), config("large_pair")
    assert small.stages == large.stages and small.optimizer == large.optimizer
    assert {**small.transformer, "planning_dim": 256} == large.transformer


def test_full_attention_differs_from_identity_attention_in_nothing_else():
    identity, full = config("identity_attention"), config("full_attention")
    unlike = {"identity_attention": False}
    assert full.planner == {**identity.planner, **unlike} and full.transformer == {**identity.transformer, **unlike}
    same = {"planner": identity.planner, "transformer": identity.transformer}
    assert full.model_copy(update=same) == identity


def test_constant_ratios_differ_from_the_falling_one_in_the_ratio_alone():
    falling = config("falling_ratio")
    for name, stage in (("constant_ratio", 0), ("low_ratio", -1)):
        kept = {"reference_ratio": falling.stages[stage].reference_ratio}
        assert [stage.model_copy(update=kept) for stage in falling.stages] == config(name).stages
    ratios = [stage.reference_ratio for stage in falling.stages]
    assert ratios == sorted(ratios, reverse=True) and len(set(ratios)) == 3


def test_the_balanced_sizes_have_equally_many_parameters():
    counts = [parameters(name) for name in ("pair", "planner_heavy", "transformer_heavy")]
    assert max(counts) < 1.01 * min(counts)


def cost(name, *overrides):
    return RunCost.of(load_config(CONFIGS / f"{name}.yaml", overrides)).operations


@pytest.mark.parametrize("name", ["direct", "early_halved", "early_doubled"])
def test_other_lengths_of_stages_cost_what_the_curriculum_does(name):
    assert cost(name) == pytest.approx(cost("pair"), rel=0.01)


def test_early_stages_are_halved_and_doubled():
    early = {name: [s.steps for s in config(name).stages[:-1]] for name in ("pair", "early_halved", "early_doubled")}
    assert [2 * steps for steps in early["early_halved"]] == early["pair"]
    assert [steps // 2 for steps in early["early_doubled"]] == early["pair"]


def test_the_extremes_of_balance_cost_the_same_at_both_sizes(tmp_path):
    (told,) = (c for c in commands("balance.sh", tmp_path) if "training.reproduction.run_costs" in c)
    named = [text for text in told[2 : told.index("--page")] if "at equal cost" in text]
    costs = [RunCost.of(read_run(text)[1]).operations for text in named]
    assert len(costs) == 4 and costs[2] > 2 * costs[0]  # 64 and 96 pixels
    assert costs[0] == pytest.approx(costs[1], rel=0.01) and costs[2] == pytest.approx(costs[3], rel=0.01)


def test_stabilizers_cost_what_identity_attention_does(tmp_path):
    """Full attention asks for all frames, not for the masked ones alone, so that its steps cost a quarter more."""
    (told,) = (c for c in commands("stabilizers.sh", tmp_path) if "training.reproduction.run_costs" in c)
    named = told[2 : told.index("--page")]
    identity, full, tight = (RunCost.of(read_run(text)[1]).operations for text in named)
    assert full == tight == pytest.approx(identity, rel=0.01)
    for stabilizer in ({"marks": True}, {"batch_norm": True}):
        with stabilized(**stabilizer):
            assert RunCost.of(read_run(named[1])[1]).operations == pytest.approx(identity, rel=0.01)


def test_tight_clipping_differs_from_full_attention_by_the_norm_alone():
    full, tight = config("full_attention"), config("tight_clipping")
    assert tight.optimizer.max_grad_norm == full.optimizer.max_grad_norm / 10
    assert tight.model_copy(update={"optimizer": full.optimizer}) == full
