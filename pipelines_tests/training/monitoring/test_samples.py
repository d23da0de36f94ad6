"""Pictures of held-out windows while a run trains."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusers_mardini.video_io import read_video
from pipelines_tests.training.monitoring.test_heldout_sampler import make_heldout_sampler
from pipelines_tests.training.monitoring.test_heldout_scores import windows_of
from pipelines_tests.training.test_train_mardini import make_config, make_run, records
from training.engine.checkpoint import list_checkpoints
from training.monitoring.samples import MASKED_GREY, write_samples


def sampled(**fields):
    return make_config(sample_every=3, sample_windows=2, sample_steps=2, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, sampled()).train()
    return folder


def test_pictures_are_drawn_before_the_first_step_in_between_and_at_the_end_of_a_stage(finished):
    drawn = sorted(path.name for path in (finished / "samples").iterdir())
    assert drawn == [
        "00000000-planner",
        "00000003-planner",
        "00000005-transformer",
        "00000006-joint",
        "00000008-joint",
    ]
    reported = [record for record in records(finished) if "samples" in record]
    assert [f"{record['global_step']:08d}-{record['stage']}" for record in reported] == drawn
    for record in reported:
        assert record["samples"].keys() == {"interpolation", "image-to-video"}
        for each in record["samples"].values():
            assert len(each["windows"]) == 2 and each["windows"][0].startswith("0.mp4 from frame 0")
            with Image.open(finished / each["sheet"]) as sheet:
                assert sheet.width > 4 * 128 and sheet.height > 2 * 3 * 128  # frames, and rows of windows
            frames, fps = read_video(finished / each["video"])
            assert len(frames) == 4 and fps == 20


def test_a_run_learns_the_same_with_and_without_pictures(finished, tmp_path):
    make_run(tmp_path, make_config()).train()
    weights = [
        load_file(list_checkpoints(folder / "checkpoints")[-1] / f"{name}.safetensors")
        for name in ("weights", "ema")
        for folder in (finished, tmp_path)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert all(torch.equal(weights[2][key], weights[3][key]) for key in weights[3])


def test_a_run_that_goes_on_writes_the_same_pictures_and_records_each_once(finished, tmp_path):
    make_run(tmp_path, sampled()).train(stop_after="transformer")
    make_run(tmp_path, sampled()).train()
    sheets = sorted(path.relative_to(finished) for path in finished.glob("samples/*/*.png"))
    assert len(sheets) == 10
    for sheet in sheets:
        assert (tmp_path / sheet).read_bytes() == (finished / sheet).read_bytes()
    reported = [[r["samples"] for r in records(folder) if "samples" in r] for folder in (finished, tmp_path)]
    assert reported[0] == reported[1]


def test_records_of_a_run_that_was_killed_before_its_first_checkpoint_are_not_kept_twice(tmp_path):
    make_run(tmp_path, sampled()).train(stop_after="planner")
    for name in ("checkpoints", "stages"):
        (tmp_path / name).rename(tmp_path / f"gone-{name}")
    make_run(tmp_path, sampled()).train(stop_after="planner")
    assert [r["step"] for r in records(tmp_path) if "loss" in r] == [1, 2, 3]
    # Those before the first step, too.
    assert [r["global_step"] for r in records(tmp_path) if "samples" in r] == [0, 3]


def test_pictures_are_made_with_the_averaged_weights_which_are_given_back(tmp_path):
    run = make_run(tmp_path)
    run.train(stop_after="planner")
    trained = {name: parameter.clone() for name, parameter in run.models.named_parameters()}
    averages = {name: average.clone() for name, average in run.ema.tensors.items()}
    with run._averages():
        assert all(torch.equal(p, averages[name]) for name, p in run.models.named_parameters())
        moved = [name for name, p in run.models.named_parameters() if not torch.equal(p, trained[name])]
    assert {name.split(".")[0] for name in moved} == {"planner", "head"}
    assert all(torch.equal(p, trained[name]) for name, p in run.models.named_parameters())


def test_a_run_without_heldout_clips_or_with_0_draws_nothing(tmp_path):
    run = make_run(tmp_path / "none", sampled())
    run.validation_data = None
    run.train(stop_after="planner")
    make_run(tmp_path / "zero", make_config(sample_every=0)).train(stop_after="planner")
    for name in ("none", "zero"):
        assert not (tmp_path / name / "samples").exists()
        assert not any("samples" in record for record in records(tmp_path / name))


def test_the_row_of_given_frames_shows_these_and_paper(tmp_path):
    run = make_run(tmp_path)
    stage = run.config.stages[2]
    reported = write_samples(make_heldout_sampler(run), windows_of(run, stage, 1), stage, 7, tmp_path)
    assert reported["interpolation"]["sheet"] == "samples/00000007-joint/interpolation.png"
    pixels = np.asarray(Image.open(tmp_path / reported["interpolation"]["sheet"]))
    paper = (pixels == round(MASKED_GREY * 255)).all(axis=2)
    # Of the four frames, as large as they are drawn, two are not given.
    assert paper.sum() == pytest.approx(2 * 128 * 128, rel=0.01)
