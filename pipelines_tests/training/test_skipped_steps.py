"""A step that is not finite is left out and reported; after several the run goes back once."""

import json

import pytest
import torch
from safetensors import safe_open

from pipelines_tests.training.test_train_mardini import (
    data_fields,
    explode,
    make_config,
    make_run,
    records,
    write_clips,
)
from training.engine.checkpoint import list_checkpoints, load_checkpoint
from training.losses import MarDiniTrainingModel


def test_a_step_that_explodes_is_left_out_and_reported(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.setattr(MarDiniTrainingModel, "forward", explode(run, steps={1}))
    run.train()
    assert all(torch.isfinite(p).all() for p in run.models.parameters()) and run.guard.skipped == 1
    assert run.ema.updates == 7  # of 8
    (report,) = (tmp_path / "nonfinite").iterdir()
    told = json.loads(report.read_text())
    assert (told["global_step"], told["stage"], told["step"], told["seed"]) == (2, "planner", 1, 0)
    process = told["processes"][0]
    assert process["loss"]["loss"] == "inf" and process["latents_are_finite"] and len(process["windows"]) == 2
    assert told["grad_norm"] in ("inf", "nan") and "planner.transformer_blocks.0" in told["grad_norm_by_module"]


def test_a_clip_that_is_not_finite_is_named(tmp_path):
    run = make_run(tmp_path, make_config(data=data_fields(write_clips(tmp_path / "clips")), max_skipped_steps=100))
    (shard,) = (tmp_path / "latents").rglob("shard-*.safetensors")
    with safe_open(shard, framework="pt") as file:
        second = [row[0] for row in json.loads(file.metadata()["chunks"])].index(run.train_data.entries[1].sha256)
    with open(shard, "r+b") as file:  # float16's NaN, written over its planner latents
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[f"{second}.planner_latents.mean"]["data_offsets"]
        file.seek(8 + length + begin)
        file.write(b"\x00\x7e" * ((end - begin) // 2))
    run.train()
    reports = [json.loads(path.read_text()) for path in sorted((tmp_path / "nonfinite").iterdir())]
    assert reports and all(any("1.mp4 from frame" in w for w in r["processes"][0]["windows"]) for r in reports)
    assert not any(r["processes"][0]["latents_are_finite"] for r in reports)
    assert all(torch.isfinite(p).all() for p in run.models.parameters())


def test_after_several_in_a_row_the_run_goes_back_once_with_other_draws(tmp_path, monkeypatch):
    config = make_config(max_skipped_steps=2)
    run = make_run(tmp_path, config)
    exploding, drawn = explode(run, steps={6, 7}), {}

    def forward(self, batch):
        if torch.is_grad_enabled():  # not of held-out windows
            drawn.setdefault(run.global_step, []).append(batch)
        return exploding(self, batch)

    monkeypatch.setattr(MarDiniTrainingModel, "forward", forward)
    run.train()
    for step in (6, 7):
        before, after = drawn[step]
        assert not torch.equal(before.noise, after.noise) and not torch.equal(before.timesteps, after.timesteps)
    assert run.attempt == 1 and records(tmp_path)[-1]["global_step"] == 8
    assert sorted(p.name for p in (tmp_path / "nonfinite").iterdir()) == [
        "step-00000007-attempt-0.json", "step-00000008-attempt-0.json",
    ]  # fmt: skip
    assert load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1]).state["attempt"] == 1


def test_when_going_back_does_not_help_the_run_stops_and_its_checkpoint_stays(tmp_path, monkeypatch):
    run = make_run(tmp_path, make_config(max_skipped_steps=2))
    monkeypatch.setattr(MarDiniTrainingModel, "forward", explode(run, steps={6, 7}, attempts=(0, 1)))
    with pytest.raises(RuntimeError, match="again after going back.*lower `learning_rate`"):
        run.train()
    checkpoint = load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert checkpoint.state["global_step"] == 6 and all(torch.isfinite(t).all() for t in checkpoint.weights.values())
