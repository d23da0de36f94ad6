"""Scores of sampled held-out windows beside the held-out losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines_tests.training.monitoring.test_heldout_sampler import make_heldout_sampler
from pipelines_tests.training.test_train_mardini import clips_folder, make_config, make_run, records
from training.data.buckets import heldout_window_request
from training.evaluation.metrics import score_windows, summarize
from training.monitoring.heldout_scores import SCORES, heldout_scores
from training.monitoring.heldout_windows import heldout_windows


ROOT = Path(__file__).resolve().parents[3]


def windows_of(run, stage, count):
    return heldout_windows(run.validation_data, heldout_window_request(run.config, stage), count, run.config.seed)


def test_scores_stand_beside_the_heldout_losses_of_stages_that_can_sample(tmp_path):
    make_run(tmp_path, make_config(quality_windows=2, sample_steps=2)).train()
    heldout = {r["stage"]: r["heldout"] for r in records(tmp_path) if "heldout" in r}
    for stage in ("transformer", "joint"):
        scores = [heldout[stage][f"quality/{name}"] for name in SCORES]
        assert all(isinstance(score, float) for score in scores) and heldout[stage]["quality/mid_ssim"] < 1
    assert not any(name.startswith("quality") for name in heldout["planner"])


def test_scores_are_those_of_the_sampled_windows(tmp_path):
    run = make_run(tmp_path)
    sampler, stage = make_heldout_sampler(run), run.config.stages[2]
    windows = windows_of(run, stage, 3)
    sampled = sampler.sample(windows.latents, windows.planner_latents, [0, 3], range(3), stage)
    expected = summarize(score_windows(sampler.decode(sampled), sampler.decode(windows.latents), [0, 3]))
    scores = heldout_scores(sampler, windows, stage)
    assert scores == {f"quality/{name}": pytest.approx(expected[name], abs=2e-5) for name in SCORES}


def test_windows_without_a_frame_in_between_have_no_scores(tmp_path):
    run = make_run(tmp_path)
    stage = run.config.stages[2].model_copy(update={"num_frames": 2})
    assert heldout_scores(make_heldout_sampler(run), windows_of(run, stage, 3), stage) == {}


def test_heldout_windows_are_spread_over_all_clips_and_named(tmp_path):
    run = make_run(tmp_path)
    windows = windows_of(run, run.config.stages[0], 3)
    assert windows.latents.shape == (3, 4, 16, 4, 4) and windows.planner_latents.shape == (3, 4, 16, 2, 2)
    assert windows.captions[0] == "0.mp4 from frame 0 to 3" and windows.captions[2] == "2.mp4 from frame 8 to 11"
    assert windows.fps == 20.0


PROGRAM = """
import json, sys, torch
from pathlib import Path
from accelerate import Accelerator
from pipelines_tests.training.monitoring.test_heldout_sampler import make_heldout_sampler
from pipelines_tests.training.monitoring.test_heldout_scores import windows_of
from pipelines_tests.training.test_train_mardini import data_fields, make_config, make_run
from training.monitoring.heldout_scores import heldout_scores
torch.set_num_threads(1)
run = make_run(Path(sys.argv[1]), make_config(data=data_fields(Path(sys.argv[2]))))
stage = run.config.stages[2]
scores = heldout_scores(make_heldout_sampler(run), windows_of(run, stage, 3), stage)
if run.accelerator.is_main_process:
    print(json.dumps([run.accelerator.num_processes, scores]))
"""


@pytest.mark.slow
def test_two_processes_that_share_three_windows_find_the_scores_of_one(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(*launcher):
        result = subprocess.run(
            [sys.executable, *launcher, str(tmp_path / "program.py"), str(tmp_path / "run"), str(clips_folder())], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}, timeout=600,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    one, two = run(), run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert (one[0], two[0]) == (1, 2)
    assert one[1] == pytest.approx(two[1], abs=1e-4) and torch.isfinite(torch.tensor(one[1]["quality/mid_psnr"]))
