import pytest
import torch

from diffusers_mardini.models.transformer_mardini import MarDiniTransformer3DModel
from diffusers_mardini.models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from diffusers_mardini.presets import list_presets, load_preset
from diffusers_mardini.schedulers.scheduling_mardini import MarDiniScheduler


# Table 1: parameters of planner and generator, layers and MLP of the planner, attention of the generator, frames
TABLE_1 = {
    "mardini-s-st": (1.3e9, 288e6, 8, 4096, "spatiotemporal", 9),
    "mardini-l-st": (3.1e9, 288e6, 16, 8192, "spatiotemporal", 9),
    "mardini-s-t": (1.3e9, 288e6, 8, 4096, "temporal", 17),
    "mardini-l-t": (3.1e9, 288e6, 16, 8192, "temporal", 17),
}

OURS = {"mardini-nano": 2.5e6, "mardini-tiny": 12.5e6, "mardini-small": 60e6}


def build(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    preset = load_preset(name)
    with torch.device("meta"):
        planner = MarDiniPlannerTransformer3DModel(**preset["planner"])
        transformer = MarDiniTransformer3DModel(**preset["transformer"])
    return planner, transformer


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_presets_are_the_rows_of_table_1_and_ours():
    assert list_presets() == sorted([*TABLE_1, *OURS])


@pytest.mark.parametrize("name", TABLE_1)
def test_parameter_counts_are_within_five_percent_of_table_1(name):
    planner_count, transformer_count, layers, mlp_dim, attention, frames = TABLE_1[name]
    planner, transformer = build(name)
    assert count(planner) == pytest.approx(planner_count, rel=0.05)
    assert count(transformer) == pytest.approx(transformer_count, rel=0.05)
    preset = load_preset(name)
    assert (preset["planner"]["num_layers"], preset["planner"]["mlp_dim"]) == (layers, mlp_dim)
    assert preset["transformer"]["num_layers"] == 8 and preset["transformer"]["mlp_dim"] == 4096
    assert (preset["transformer"]["temporal_attention"], preset["num_frames"]) == (attention, frames)
    assert preset["paper_parameters"] == {"planner": planner_count, "transformer": transformer_count}
    assert all(parameter.device.type == "meta" for parameter in planner.parameters())


@pytest.mark.parametrize("name", [*TABLE_1, *OURS])
def test_planner_and_transformer_of_a_preset_fit_together(name):
    preset = load_preset(name)
    planner, transformer = preset["planner"], preset["transformer"]
    assert transformer["planning_dim"] == planner["num_attention_heads"] * planner["attention_head_dim"]
    assert transformer["in_channels"] == planner["in_channels"] == 16
    assert preset["height"] % (preset["planner_downscale"] * 8 * planner["patch_size"]) == 0
    assert preset["height"] % (8 * transformer["patch_size"]) == 0
    scheduler = MarDiniScheduler(**preset["scheduler"])
    assert scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", OURS)
def test_our_presets_have_the_parameters_they_promise_and_most_of_them_in_the_planner(name):
    planner, transformer = build(name)
    assert count(planner) + count(transformer) == pytest.approx(OURS[name], rel=0.05)
    assert count(planner) > count(transformer)


@pytest.mark.parametrize("name", OURS)
def test_our_presets_run_on_their_own_windows(name):
    preset = load_preset(name)
    planner, transformer = build(name)
    frames, side = preset["num_frames"], preset["height"] // 8
    mask = torch.zeros(1, frames, dtype=torch.bool, device="meta")
    low = torch.empty(
        1, frames, 16, side // preset["planner_downscale"], side // preset["planner_downscale"], device="meta"
    )
    signals = planner(low, mask).planning_signals
    sample = transformer(
        torch.empty(1, frames, 16, side, side, device="meta"), torch.zeros(1, device="meta"), signals, mask
    ).sample
    assert sample.shape == (1, frames, 16, side, side)


def test_a_loaded_preset_is_the_callers_own_copy():
    load_preset("mardini-tiny")["planner"]["num_layers"] = 99
    assert load_preset("mardini-tiny")["planner"]["num_layers"] == 6


def test_an_unknown_preset_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="'mardini-xl'.*mardini-tiny"):
        load_preset("mardini-xl")
