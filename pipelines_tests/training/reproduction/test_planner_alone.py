"""A planner that samples by its reconstruction head."""

import json

import pytest
import torch

from diffusers_mardini.latents import decode_latents
from diffusers_mardini.models.embeddings import unpatchify
from pipelines_tests.training.test_train_mardini import clips_folder, make_config, make_run
from training.reproduction.planner_alone import METHOD, PlannerAlone, main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the planner alone at full resolution, and the frames that it sees."""
    folder = tmp_path_factory.mktemp("planner")
    config = make_config()
    stage = next(stage for stage in config.stages if stage.trains == "planner")
    data = config.data.model_copy(update={"planner_downscale": 1})
    run = make_run(folder, config.model_copy(update={"stages": [stage], "data": data, "save_dtype": "float32"}))
    run.train()
    (folder / "config.json").write_text(run.config.model_dump_json())
    return folder, run


def test_it_samples_what_the_averaged_head_says_and_keeps_what_is_given(trained):
    folder, run = trained
    planner = PlannerAlone(folder, torch.device("cpu"), torch.float32)
    windows = torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frames = planner.sample(windows, [0, 4])
    assert frames.shape == windows.shape and 0 <= frames.min() and frames.max() <= 1
    torch.testing.assert_close(frames[:, [0, 4]], windows[:, [0, 4]])

    with run.ema.swapped(), torch.no_grad():
        low = planner.pipe.encode_low_frames(windows * 2 - 1)
        mask = torch.tensor([[True, False, False, False, True]] * 2)
        patches = run.head(run.planner(low, mask).planning_signals)
        latents = unpatchify(patches, run.planner.config.patch_size)
        expected = decode_latents(planner.pipe.vae, latents) / 2 + 0.5
    torch.testing.assert_close(frames[:, 1:4], expected[:, 1:4].clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_one_that_looks_at_a_low_resolution_samples_there_and_is_enlarged(trained):
    planner = PlannerAlone(trained[0], torch.device("cpu"), torch.float32)
    windows = torch.rand(1, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    full = planner.sample(windows, [0, 4])
    planner.pipe.register_to_config(planner_downscale=2)
    low = planner.sample(windows, [0, 4])
    assert low.shape == windows.shape
    # Bilinear: every pixel lies between its neighbours in the small picture, so that there is less detail.
    detail = [(frames[:, 1:4].diff(dim=-1)).abs().mean() for frames in (low, full)]
    assert detail[0] < 0.8 * detail[1]


def test_its_results_are_those_of_an_evaluation(trained, tmp_path):
    folder, _ = trained
    arguments = [str(folder), str(clips_folder()), "--size", "32", "--num-frames", "5", "--stride", "1", "--metrics"]
    main([*arguments, "--dtype", "float32", "--device", "cpu", "-o", str(tmp_path)])
    told = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in told["rows"]][-1] == METHOD and len(told["windows"]) == 6
    assert (tmp_path / "sheet_0.png").is_file()


def test_a_run_that_is_not_a_planners_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no finished pipeline"):
        PlannerAlone(tmp_path, torch.device("cpu"), torch.float32)
    run = make_run(tmp_path, make_config())
    run.train()
    (tmp_path / "config.json").write_text(run.config.model_dump_json())
    with pytest.raises(ValueError, match="trains 'joint'"):
        PlannerAlone(tmp_path, torch.device("cpu"), torch.float32)
