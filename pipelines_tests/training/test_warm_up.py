"""A warm-up that is longer than what it warms up for is told, in one line, before and after."""

import pytest

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.test_train_mardini import clips_folder, make_config
from training.engine.feasibility import find_notes, warmup_notes
from training.train_autoencoder import AutoencoderTrainingConfig
from training.train_autoencoder import run as train_autoencoder
from training.train_mardini import train


def with_stage(**fields):
    """The tiny run's first stage, changed."""
    config = make_config(trackers=[])
    return type(config).model_validate(
        {**config.model_dump(), "stages": [{**config.stages[0].model_dump(), **fields}]}
    )


def test_a_warm_up_longer_than_its_stage_is_one_line_of_the_plan():
    config = with_stage(steps=4, warmup_steps=1000)
    (line,) = warmup_notes(config)
    assert line.startswith("stage 'planner' ends after 4 steps, within its warm-up of 1000") and "0.4% of it" in line
    assert line in find_notes(config)
    assert "only at its end" in warmup_notes(with_stage(steps=4, warmup_steps=4))[0]
    assert not warmup_notes(with_stage(steps=4, warmup_steps=3))
    by_clips = with_stage(steps=None, clips=100, batch_size=4, warmup_steps=30).for_processes(1)
    assert "ends after 25 steps" in warmup_notes(by_clips)[0]


@pytest.mark.parametrize("warmup_steps, told", [(1000, 2), (0, 0)])
def test_the_trainer_tells_it_at_its_start_and_at_its_end(tmp_path, monkeypatch, capsys, warmup_steps, told):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AutoencoderPatchBasis(block_out_channels=(8,) * 4).save_pretrained(tmp_path / "vae")
    config = with_stage(steps=1, warmup_steps=warmup_steps).model_copy(update={"vae": str(tmp_path / "vae")})
    train(config, runs=tmp_path / "runs")
    lines = [line for line in capsys.readouterr().out.splitlines() if "warm-up" in line]
    assert len(lines) == told and all(line.startswith("note: stage 'planner' ends after 1 steps") for line in lines)


def test_the_autoencoders_trainer_tells_it_too(tmp_path, capsys):
    for steps, told in ((1, 1), (0, 0)):
        config = AutoencoderTrainingConfig(
            clips=clips_folder(), held_out=clips_folder(), output=tmp_path / "vae", manifests=clips_folder().parent / "manifests", size=16, latent_channels=4,
            width=8,
            decoder_blocks=1, batch_size=4, basis_frames=24, warmup_steps=5, steps=steps,
        )  # fmt: skip
        train_autoencoder(config)
        assert capsys.readouterr().out.count("within its warm-up of 5") == told
