"""Sampling held-out windows from latents: the pipeline's own sampling, with the run's models, and nothing else changed."""

import pytest
import torch
from accelerate import Accelerator

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.test_train_mardini import make_config, make_run
from training.monitoring.heldout_sampler import HeldoutSampler, tasks


GIVEN = {"interpolation": [0, 3], "image-to-video": [0]}


def make_heldout_sampler(run, steps=2) -> HeldoutSampler:
    """With weights that are not those of a start, which predict zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in run.models.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return HeldoutSampler(
        run.vae, run.planner, run.head, run.transformer, run.scheduler, 2, steps, 0, Accelerator(cpu=True)
    )


def make_windows(windows=3, frames=4):
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(windows, frames, 16, 4, 4, generator=generator),
        torch.randn(windows, frames, 16, 2, 2, generator=generator),
    )


@pytest.fixture
def sampler(tmp_path):
    return make_heldout_sampler(make_run(tmp_path))


def joint():
    return make_config().stages[2]


@pytest.mark.parametrize("task", GIVEN)
def test_sampling_is_what_the_pipeline_does_with_the_frames(sampler, task):
    given, pipe = GIVEN[task], sampler.pipe
    video = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    latents, low = pipe.encode_frames(2 * video - 1), pipe.encode_low_frames(2 * video - 1)
    noises = []
    denoise = pipe.denoise
    pipe.denoise = lambda noise, *rest: noises.append(noise) or denoise(noise, *rest)
    sampled = sampler.sample(latents, low, given, [5], joint())
    expected = pipe(
        video=video[:, given], frame_indices=given, num_frames=4, num_inference_steps=2, latents=noises[0], output_type="latent"
    ).frames  # fmt: skip
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sampled[:, 1], noises[0][:, 1], atol=0.1)


def test_a_window_is_sampled_alike_in_any_company(sampler):
    latents, low = make_windows()
    together = sampler.sample(latents, low, [0, 3], range(3), joint())
    torch.testing.assert_close(sampler.sample(latents[2:], low[2:], [0, 3], [2], joint()), together[2:])
    assert torch.equal(together[:, [0, 3]], latents[:, [0, 3]])
    assert not torch.allclose(
        sampler.sample(latents[2:], low[2:], [0, 3], [0], joint()), together[2:]
    )  # another noise


def test_masked_frames_are_not_read(sampler):
    latents, low = make_windows()
    sampled = sampler.sample(latents, low, [0], range(3), joint())
    latents[:, 1:], low[:, 1:] = 7.0, 7.0
    assert torch.equal(sampler.sample(latents, low, [0], range(3), joint()), sampled)


def test_a_transformer_in_training_alone_is_led_by_no_planner(sampler):
    latents, low = make_windows()
    stages = make_config().stages
    alone, both = (sampler.sample(latents, low, [0], range(3), stage) for stage in stages[1:])
    for parameter in sampler.pipe.planner.parameters():
        parameter.data.mul_(2)
    assert torch.equal(sampler.sample(latents, low, [0], range(3), stages[1]), alone)
    assert not torch.allclose(sampler.sample(latents, low, [0], range(3), stages[2]), both)


def test_the_planner_reconstructs_the_frames_that_are_not_given(sampler):
    _, low = make_windows()
    filled = sampler.reconstruct(low, [0, 3])
    assert torch.equal(filled[:, [0, 3]], low[:, [0, 3]]) and not torch.equal(filled[:, 1], low[:, 1])
    low[:, 1] = 7.0
    assert torch.equal(sampler.reconstruct(low, [0, 3])[:, 1], filled[:, 1])


def test_sampling_leaves_generators_and_scheduler_alone(tmp_path):
    run = make_run(tmp_path)
    sampler, state = make_heldout_sampler(run), torch.get_rng_state()
    timesteps = run.scheduler.timesteps.clone()
    frames = sampler.decode(sampler.sample(*make_windows(), [0], range(3), joint()))
    assert frames.shape == (3, 4, 3, 32, 32) and frames.min() >= 0 and frames.max() <= 1
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(run.scheduler.timesteps, timesteps)


def test_frames_are_what_the_autoencoder_decodes(sampler):
    latents, _ = make_windows(windows=1)
    frames = AutoencoderPatchBasis.from_config(sampler.pipe.vae.config)
    frames.load_state_dict(sampler.pipe.vae.state_dict())
    expected = frames.decode(latents[0] / frames.config.scaling_factor + frames.config.shift_factor).sample
    torch.testing.assert_close(sampler.decode(latents)[0], (expected / 2 + 0.5).clamp(0, 1))


def test_tasks_that_leave_nothing_to_sample_are_none():
    assert tasks(4) == GIVEN
    assert list(tasks(2)) == ["image-to-video"]
