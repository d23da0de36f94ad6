"""The autoencoder's training: it improves on the linear basis, normalizes the latents, and saves a whole folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from diffusers_mardini.latents import encode_video
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.video_io import read_video, write_video
from training import train_autoencoder
from training.curriculum import learning_rate_factor
from training.data.clips import find_clips, load_clip
from training.data.manifest_files import default_path, read_manifest
from training.data.sources import open_source
from training.engine.checkpoint import save_checkpoint
from training.stopping import Stopped
from training.train_autoencoder import AutoencoderTrainingConfig, Training, measure, run, spread, to_float


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path) -> AutoencoderTrainingConfig:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        frames = np.full((24, 16, 16, 3), 60, dtype=np.uint8)
        for frame in frames:  # bright squares at random places: more than a linear basis of 4 can hold
            top, left = rng.integers(0, 11, 2)
            frame[top : top + 5, left : left + 5] = rng.integers(120, 255, 3)
        write_video(tmp_path / split / "0.mp4", frames, fps=10, crf=5)
    return AutoencoderTrainingConfig(
        clips=tmp_path / "train",
        held_out=tmp_path / "val",
        output=tmp_path / "vae",
        manifests=tmp_path / "manifests",
        size=16,
        latent_channels=4,
        width=32,
        encoder_blocks=0,
        decoder_blocks=1,
        planner_share=0,
        weight_decay=0,
        latent_noise=0,
        steps=40,
        warmup_steps=5,
        batch_size=12,
        learning_rate=4e-3,
        basis_frames=24,
    )


def test_training_beats_the_bare_basis_and_is_saved_whole(config):
    run(config)
    record = json.loads((config.output / "training.json").read_text())
    frames = load_clip(find_clips(config.clips)[0], config.size)[0]
    vae = AutoencoderPatchBasis.from_pretrained(config.output)
    linear = AutoencoderPatchBasis(latent_channels=4, block_out_channels=(32,) * 4, encoder_blocks=0, decoder_blocks=1)
    linear.fit_basis(to_float(frames))
    assert measure(vae, frames, 2).psnr > measure(linear, frames, 2).psnr + 0.3
    assert record["trained"]["planner_psnr"] > 0 and record["config"]["steps"] == 40
    with torch.no_grad():
        latents = encode_video(vae, to_float(frames)[None])
    assert abs(latents.mean()) < 1e-3 and abs(latents.std() - 1) < 1e-3
    assert sorted(path.name for path in config.output.parent.iterdir()) == ["manifests", "train", "vae", "val"]


@pytest.mark.parametrize(
    ("size", "patch", "planner_downscale", "nearest"),
    [(36, 8, 2, "32x32"), ("32x40", 16, 1, "32x32"), (16, 8, 8, "64x64")],
)
def test_a_size_that_does_not_divide_into_patches_is_refused_before_a_clip_is_read(
    config, size, patch, planner_downscale, nearest
):
    fields = config.model_dump() | {"size": size, "patch": patch, "planner_downscale": planner_downscale}
    with pytest.raises(ValueError, match=f"does not divide into patches of {patch} pixels.*nearest are {nearest}\\b"):
        AutoencoderTrainingConfig.model_validate(fields)


def test_a_second_run_replaces_the_first_and_is_the_same(config):
    config = config.model_copy(update={"steps": 2, "planner_share": 0.25})
    first = run(config).state_dict()
    second = run(config).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not [path for path in config.output.parent.iterdir() if path.name.startswith(".")]


def test_some_frames_are_of_all_clips():
    frames = torch.arange(100)
    assert spread(frames, 4).tolist() == [0, 33, 66, 99]
    assert spread(frames, 60)[[0, -1]].tolist() == [0, 99] and len(spread(frames, 60)) == 60
    assert spread(frames, 500).tolist() == frames.tolist()


def test_zero_steps_keep_the_linear_basis(config):
    vae = run(config.model_copy(update={"steps": 0}))
    assert vae.decoder_residual.conv_out.weight.abs().max() == 0


def test_smaller_patches_make_more_latents_of_the_same_pictures(config):
    vae = run(config.model_copy(update={"steps": 0, "patch": 4}))
    assert vae.spatial_compression_ratio == 4
    coarse = json.loads((config.output / "training.json").read_text())["linear"]["psnr"]
    run(config.model_copy(update={"steps": 0, "patch": 8}))
    assert coarse > json.loads((config.output / "training.json").read_text())["linear"]["psnr"]


def test_measured_quality_is_that_of_the_error():
    class OffBy(AutoencoderPatchBasis):
        def forward(self, sample):
            return type("Output", (), {"sample": sample - 0.2})

    frames = torch.full((2, 3, 16, 16), 200, dtype=torch.uint8)
    quality = measure(OffBy(), frames, 1)
    assert quality.psnr == pytest.approx(20, abs=1e-3) == quality.planner_psnr  # 0.1 of a range of 1
    assert 0 < quality.ssim < 1


def test_a_diverging_run_stops_and_says_why(config, monkeypatch):
    monkeypatch.setattr(train_autoencoder.F, "l1_loss", lambda a, b: (a - b).mean() * float("nan"))
    with pytest.raises(ValueError, match="no longer finite at step 1; lower learning_rate"):
        run(config)
    assert not config.output.exists()


def test_learning_rate_warms_up_and_falls_to_zero(config):
    factors = [learning_rate_factor(step, config.steps, config.warmup_steps) for step in range(41)]
    assert factors[0] == pytest.approx(0.2) and max(factors) == factors[4] == 1
    assert factors[5:] == sorted(factors[5:], reverse=True) and factors[40] == pytest.approx(0)


def test_unknown_keys_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("clips: a\nheld_out: b\noutput: c\nlearning_rat: 1\n")
    with pytest.raises(ValueError, match="there is no such key .did you mean 'learning_rate'"):
        AutoencoderTrainingConfig.from_yaml(path)
    with pytest.raises(ValueError, match="no config at"):
        AutoencoderTrainingConfig.from_yaml(tmp_path / "b.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "training/configs").glob("autoencoder-*.yaml")))
def test_carried_configs_are_valid_and_have_own_outputs(path):
    config = AutoencoderTrainingConfig.from_yaml(path)
    assert config.output == Path("runs") / path.stem
    assert set(yaml.safe_load(path.read_text())) <= set(AutoencoderTrainingConfig.model_fields)


def test_frames_of_the_planners_size_are_trained_too(config):
    run(config.model_copy(update={"planner_share": 0.5}))
    record = json.loads((config.output / "training.json").read_text())
    assert record["trained"]["planner_psnr"] > record["linear"]["planner_psnr"] + 0.3


def folder_of(vae_folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in vae_folder.iterdir() if path.name != "training.json"}


def test_a_training_that_is_killed_again_and_again_gives_the_same_autoencoder(config, tmp_path):
    """Killed by SIGKILL at a checkpoint, wherever it is, until it ends by itself."""
    config = config.model_copy(update={"latent_noise": 0.02, "planner_share": 0.25, "steps": 12})
    run(config)
    expected = folder_of(config.output)
    config = config.model_copy(update={"output": tmp_path / "killed", "checkpoint_seconds": 0})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    program = """
import os, signal, sys
from training import train_autoencoder
kept = train_autoencoder.save_checkpoint
def save_and_die(folder, checkpoint, keep):
    kept(folder, checkpoint, keep)
    if checkpoint.state["global_step"] in (3, 7):
        os.kill(os.getpid(), signal.SIGKILL)
train_autoencoder.save_checkpoint = save_and_die
train_autoencoder.run(train_autoencoder.AutoencoderTrainingConfig.from_yaml("config.yaml"))
"""
    outputs = []
    for _ in range(3):
        result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={
            **os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        }, capture_output=True, text=True)  # fmt: skip
        outputs.append((result.returncode, "going on from step" in result.stdout))
    assert outputs == [(-9, False), (-9, True), (0, True)], result.stderr[-2000:]
    assert folder_of(config.output) == expected and not (tmp_path / "killed-unfinished").exists()


def test_a_training_that_is_asked_to_stop_is_saved_and_goes_on(config):
    expected = run(config).state_dict()
    config = config.model_copy(update={"output": config.output.with_name("stopped"), "max_hours": 1e-9})
    with pytest.raises(Stopped, match="max_hours"):  # while the clips are read
        run(config)
    unfinished = config.output.with_name("stopped-unfinished")
    unfinished.mkdir()
    (unfinished / "stop").touch()
    config = config.model_copy(update={"max_hours": None})
    with pytest.raises(Stopped, match="the file"):
        run(config)
    assert not (unfinished / "stop").exists() and not config.output.exists()
    vae = run(config).state_dict()
    assert all(torch.equal(vae[name], expected[name]) for name in expected) and not unfinished.exists()


def test_other_settings_begin_anew(config, capsys):
    stop = {"checkpoint_seconds": 0, "steps": 6}
    training = Training(AutoencoderPatchBasis(latent_channels=4, block_out_channels=(32,) * 4),
                        torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
                        config)  # fmt: skip
    save_checkpoint(train_autoencoder.unfinished_folder(config), training.checkpoint({"identity": "another"}), 1)
    run(config.model_copy(update=stop))
    assert "other settings or clips; this one begins anew" in capsys.readouterr().out


def test_a_limit_of_minutes_lowers_the_number_of_steps(config, capsys):
    run(config.model_copy(update={"steps": 100_000, "max_minutes": 0.02, "warmup_steps": 0}))
    steps = int(re.search(r"minutes; (\d+) are taken", capsys.readouterr().out)[1])
    assert 0 < steps < 100_000
    run(config.model_copy(update={"max_minutes": 60}))
    assert "are taken" not in capsys.readouterr().out
    limited = AutoencoderPatchBasis.from_pretrained(config.output).state_dict()
    free = run(config).state_dict()
    assert all(torch.equal(free[name], limited[name]) for name in free)  # measuring the speed leaves no trace


def test_no_more_frames_are_read_than_the_memory_is_for(config, capsys):
    run(config.model_copy(update={"memory_gb": 10 * 3 * 16 * 16 / 2**30, "steps": 1, "warmup_steps": 0}))
    assert "10 frames to train on, 24 held out" in capsys.readouterr().out


def test_clips_come_from_any_source(config, capsys):
    for split in ("train", "val"):
        frames = read_video(config.output.parent / split / "0.mp4")[0]
        write_video(config.output.parent / "pictures" / split, frames, fps=10)
    folder = config.output.parent / "pictures"
    fields = {"clips": folder / "train", "held_out": str(folder / "val"), "steps": 0, "picture_fps": 10.0}
    run(config.model_copy(update=fields))
    assert "24 frames to train on, 24 held out" in capsys.readouterr().out


def test_pictures_keep_the_rate_that_is_given_in_the_manifest(config):
    folder = config.output.parent / "pictures"
    for split in ("train", "val"):
        write_video(folder / split / "0", read_video(config.output.parent / split / "0.mp4")[0], fps=10)
    config = config.model_copy(update={"clips": folder / "train", "held_out": folder / "val", "steps": 0})
    with pytest.raises(ValueError, match="do not say how many frames.*`picture_fps` of an autoencoder's training"):
        run(config)
    run(config.model_copy(update={"picture_fps": 10.0}))
    manifest = read_manifest(open_source(config.clips, 10.0), default_path(config.clips, config.manifests))
    assert [entry.fps for entry in manifest.ok] == [10.0]
