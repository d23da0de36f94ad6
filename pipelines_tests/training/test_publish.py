"""A checkpoint out of a finished run: the pipeline, and a card that repeats what was recorded."""

import json

import pytest
import yaml

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.training.test_train_mardini import make_run
from training.evaluate import COLUMNS
from training.publish import publish, stages_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made = make_run(folder)
    made.train()
    (folder / "config.json").write_text(made.config.model_dump_json())
    return folder


def make_sources(folder):
    row = {"method": "ours, 25 steps", **{column: 0.4321 for column in COLUMNS}}
    (folder / "results.json").write_text(json.dumps({"command": "python -m training.evaluate x", "rows": [row]}))
    (folder / "card.yaml").write_text(
        yaml.safe_dump({"num_frames": 4, "data": "Noise.", "metrics_setting": "Two windows."})
    )
    return folder / "card.yaml", folder / "results.json"


def test_the_card_repeats_what_was_recorded(tmp_path, run):
    output = publish(run, *make_sources(tmp_path), tmp_path / "checkpoints" / "tiny")
    card = (output / "README.md").read_text()
    assert "| ours, 25 steps | 0.432 |" in card and "`python -m training.evaluate x`" in card and "Noise." in card
    assert "| planner | planner | 3 | 6 |" in card and "| joint | joint | 3 | 6 |" in card
    MarDiniPipeline.from_pretrained(output)
    publish(run, *make_sources(tmp_path), output)  # again: replaced whole
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]


def test_what_is_not_finished_or_not_ours_is_refused(tmp_path, run):
    sources = make_sources(tmp_path)
    with pytest.raises(ValueError, match="no finished pipeline"):
        publish(tmp_path, *sources, tmp_path / "out")
    (tmp_path / "precious").mkdir()
    with pytest.raises(ValueError, match="is no pipeline"):
        publish(run, *sources, tmp_path / "precious")
    records = (run / "metrics.jsonl").read_text().splitlines()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text((run / "config.json").read_text())
    (copy / "metrics.jsonl").write_text("\n".join(line for line in records if '"joint"' not in line))
    with pytest.raises(ValueError, match="no record of stage 'joint'"):
        stages_of(copy)
