"""Runs whose weights or losses are no model's any more: they fail, export nothing, and leave good checkpoints
alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, explode, make_config, make_run
from pipelines_tests.training.test_train_mardini_lora import make_adapter_config
from training.engine.checkpoint import list_checkpoints, load_checkpoint
from training.engine.guards import RunFailed, absurd_weights, hopeless_losses
from training.losses import MarDiniTrainingModel
from training.train_autoencoder import AutoencoderTrainingConfig
from training.train_autoencoder import run as train_autoencoder
from training.train_mardini import run_command


def one_stage(**fields):
    """A single stage of the tiny run."""
    config = make_config()
    names = ("learning_rate", "steps", "trains", "planner_loss_weight")
    stage = {**config.stages[2].model_dump(), **{key: fields.pop(key) for key in names if key in fields}}
    return type(config).model_validate({**config.model_dump(), **fields, "stages": [stage]})


def without_validation(**fields):
    return {"data": data_fields(clips_folder(), validation=None), **fields}


@pytest.mark.parametrize("fields", [{"validate_every": 1}, {}, {"checkpoint_every": 1}, {"save_dtype": "bfloat16"}])
@pytest.mark.parametrize("held_out", [True, False])
def test_a_run_whose_weights_are_absurd_fails_and_keeps_nothing(tmp_path, fields, held_out):
    fields = fields if held_out else without_validation(**fields)
    with pytest.raises(RunFailed, match="has blown up after .*Lower `learning_rate`.*there is no checkpoint"):
        make_run(tmp_path, one_stage(learning_rate=1e30, steps=2, **fields)).train()
    assert not (tmp_path / "pipeline").exists() and not (tmp_path / "stages").exists()
    assert not list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("held_out", [True, False])
def test_finite_weights_whose_losses_no_model_has_are_not_exported(tmp_path, held_out):
    config = one_stage(learning_rate=30.0, steps=2, **({} if held_out else without_validation()))
    with pytest.raises(RunFailed, match="losses are not finite or absurdly large"):
        make_run(tmp_path, config).train()
    assert not (tmp_path / "pipeline").exists()


def test_the_last_good_checkpoint_stays_and_is_named(tmp_path):
    config = make_config(keep_checkpoints=1)
    make_run(tmp_path, config).train(stop_after="planner")
    good = list_checkpoints(tmp_path / "checkpoints")
    stages = [*config.stages[:1], config.stages[1].model_copy(update={"learning_rate": 1e30}), config.stages[2]]
    with pytest.raises(
        RunFailed, match=f"the last good checkpoint is {good[0]}, which goes on so with --allow-change"
    ):
        make_run(tmp_path, config.model_copy(update={"stages": stages})).train()
    assert list_checkpoints(tmp_path / "checkpoints") == good
    weights = load_checkpoint(good[0]).weights
    assert not absurd_weights(dict(weights))
    assert not (tmp_path / "stages" / "transformer").exists()
    make_run(tmp_path, config).train(stop_after="transformer")  # it goes on as it was
    assert (tmp_path / "stages" / "transformer").is_dir()


def test_an_adapter_that_has_blown_up_is_not_exported(tmp_path):
    base = make_run(tmp_path / "base").export(tmp_path / "base" / "pipeline")
    config = make_adapter_config(str(base), data=data_fields(clips_folder()))
    stages = [config.stages[0].model_copy(update={"learning_rate": 1e30})]
    with pytest.raises(RunFailed, match="has blown up after"):
        make_run(tmp_path / "run", config.model_copy(update={"stages": stages})).train()
    assert not (tmp_path / "run" / "adapter").exists() and not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_steps_left_out_in_a_row_are_counted_on_after_going_back(tmp_path, monkeypatch):
    run = make_run(
        tmp_path,
        make_config(max_skipped_steps=3, checkpoint_every=3, data=data_fields(clips_folder(), validation=None)),
    )
    # Left out are 5, 6, 7, the checkpoint at 6 among them; after going back the first step is left out again.
    monkeypatch.setattr(MarDiniTrainingModel, "forward", explode(run, steps={4, 5, 6}, attempts=(0, 1)))
    with pytest.raises(RunFailed, match="3 steps in a row were not finite.*again after going back"):
        run.train()
    assert not (tmp_path / "pipeline").exists()


def test_weights_that_the_exported_type_cannot_hold_are_not_exported(tmp_path):
    run = make_run(tmp_path, one_stage(steps=1, save_dtype="float16"))
    with torch.no_grad():
        next(iter(run.ema.tensors.values())).fill_(7e4)  # float16 ends at 65504
    with pytest.raises(
        RunFailed, match=r"weights \(as float16\) are not finite or absurdly large \(planner.*1 in all"
    ):
        run.export(tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


def test_what_is_absurd_is_told_by_name():
    tensors = {
        "a": torch.ones(3),
        "b": torch.tensor([1.0, float("nan")]),
        "c": torch.tensor(-2e6),
        "d": torch.zeros(0),
    }
    assert absurd_weights(tensors) == ["b", "c"] and absurd_weights({}) == []
    latents = [torch.ones(4), 2 * torch.ones(4)]  # zeros predict a velocity with an error of 5 at most
    losses = {"nan": float("nan"), "inf": float("inf"), "large": 501.0, "bad": 499.0}
    assert hopeless_losses(losses, latents, finite_only=False) == ["nan", "inf", "large"]
    assert hopeless_losses(losses, latents, finite_only=True) == ["nan", "inf"]


def test_the_program_ends_with_1_and_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AutoencoderPatchBasis(block_out_channels=(8,) * 4).save_pretrained("vae")
    config = one_stage(learning_rate=1e30, steps=2, vae=str(tmp_path / "vae"), trackers=[])
    Path("run.yaml").write_text(config.model_dump_json())
    with pytest.raises(SystemExit) as ended:
        run_command("", adapter=False, arguments=["run.yaml"])
    assert str(ended.value).startswith("error: the run has blown up after")  # so the exit code is 1
    status = json.loads(Path("runs/test/status.json").read_text())
    assert status["state"] == "failed" and "blown up" in status["reason"] and not Path("runs/test/pipeline").exists()
    assert "**Failed**" in Path("runs/test/report.md").read_text() and not Path("runs/test/lock.json").exists()


@pytest.mark.parametrize("fields", [{"learning_rate": 1e30, "steps": 1}, {"learning_rate": 1e12, "steps": 1}])
def test_an_autoencoder_that_has_blown_up_is_not_saved(tmp_path, fields, capsys):
    config = AutoencoderTrainingConfig(
        clips=clips_folder(), held_out=clips_folder(), output=tmp_path / "vae", manifests=clips_folder().parent / "manifests", size=16, latent_channels=4, width=8,
        decoder_blocks=1, batch_size=4, basis_frames=24, warmup_steps=0, **fields,
    )  # fmt: skip
    with pytest.raises(RunFailed, match="the training has blown up.*Lower learning_rate"):
        train_autoencoder(config)
    assert not list(tmp_path.iterdir())


def test_a_good_checkpoint_is_not_replaced_by_weights_that_are_not_finite(tmp_path):
    run = make_run(tmp_path, make_config(keep_checkpoints=1))
    run.train(stop_after="planner")
    (good,) = list_checkpoints(tmp_path / "checkpoints")
    before = {name: tensor.clone() for name, tensor in load_file(good / "weights.safetensors").items()}
    with torch.no_grad():
        run.transformer.next_token.fill_(float("nan"))
    run.global_step = 4
    with pytest.raises(RunFailed, match="weights are not finite.*they are not saved"):
        run._save(run.config.stages[1], 1, None)
    assert list_checkpoints(tmp_path / "checkpoints") == [good]
    assert all(torch.equal(before[name], tensor) for name, tensor in load_file(good / "weights.safetensors").items())
