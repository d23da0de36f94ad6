import json

import pytest
import torch
from safetensors.torch import save_file

from diffusers_mardini.cards import FACTS, markdown_table, read_facts, render_model_card, write_model_card


FULL = {
    "name": "mardini-test",
    "path": "checkpoints/mardini-test",
    "num_frames": 9,
    "description": "A model for tests.",
    "license": "apache-2.0",
    "window": "9 frames of 64x64 pixels",
    "parameters": {"planner": 1000, "transformer": 234},
    "data": "Squares that move.",
    "stages": [{"stage": "joint", "steps": 10}, {"stage": "swap", "steps": 5}],
    "command": ["python -m a", "python -m b"],
    "metrics": [{"method": "ours", "mid SSIM": 0.5}],
    "metrics_setting": "32 windows.",
    "limits": ["Small.", "Square."],
    "citation": "Also cite the squares.",
}


def test_every_known_fact_is_on_the_card():
    assert set(FULL) == set(FACTS)
    card = render_model_card(FULL)
    for text in (
        "license: apache-2.0",
        "# mardini-test",
        "A model for tests.",
        "| planner | 1,000 |",
        "| together | 1,234 |",
    ):
        assert text in card
    for text in (
        "Squares that move.",
        "| joint | 10 |",
        "python -m a\npython -m b",
        "| ours | 0.500 |",
        "32 windows.",
    ):
        assert text in card
    for text in (
        "- Small.\n- Square.",
        "Also cite the squares.",
        "@article{liu2024mardini,",
        'from_pretrained("checkpoints/',
    ):
        assert text in card
    assert "[[" not in card and "{{" not in card


@pytest.mark.parametrize("fact, heading", [("data", "## Data"), ("metrics", "## Scores"), ("limits", "## Limits"),
                                           ("stages", "## Training"), ("parameters", "## Parameters"),
                                           ("license", "license:"), ("command", "## Command")])  # fmt: skip
def test_an_unknown_fact_leaves_out_its_section(fact, heading):
    assert heading in render_model_card(FULL)
    without = render_model_card({key: value for key, value in FULL.items() if key != fact})
    assert heading not in without
    assert without == render_model_card({**FULL, fact: None})


def test_a_card_of_the_needed_facts_alone_claims_nothing_else():
    card = render_model_card({"name": "x", "num_frames": 5})
    assert [line for line in card.splitlines() if line.startswith("## ")] == ["## Use", "## Citation"]
    assert 'from_pretrained("x")' in card and "num_frames=5" in card


def test_unknown_and_missing_facts_are_refused():
    with pytest.raises(ValueError, match="no place for colour.*limits"):
        render_model_card({**FULL, "colour": "blue"})
    with pytest.raises(ValueError, match="needs num_frames"):
        render_model_card({"name": "x"})


def test_parameters_are_counted_from_the_files(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MarDiniPipeline", "planner": ["a", "b"]}))
    (tmp_path / "planner").mkdir()
    tensors = {"weight": torch.zeros(3, 4), "bias": torch.zeros(4)}
    save_file(tensors, tmp_path / "planner" / "diffusion_pytorch_model.safetensors")
    assert read_facts(tmp_path) == {"parameters": {"planner": 16}}
    path = write_model_card(tmp_path, {"num_frames": 9})
    assert (
        path == tmp_path / "README.md"
        and "| planner | 16 |" in path.read_text()
        and f"# {tmp_path.name}" in path.read_text()
    )


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model_index.json"):
        read_facts(tmp_path)


def test_tables_leave_empty_what_a_row_does_not_have():
    assert markdown_table([{"a": 1}, {"b": "x|y"}]).splitlines()[2:] == ["| 1 |  |", "|  | x\\|y |"]
