"""The scheduler is DDIM for velocities: held against `DDIMScheduler`, an oracle and its own promises."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_mardini.schedulers import MarDiniScheduler


CLIP_SHAPE = (2, 3, 4, 8, 8)  # (batch, frames, channels, height, width)


def clip_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CLIP_SHAPE, generator=generator), torch.randn(CLIP_SHAPE, generator=generator)


def ddim_like(scheduler: MarDiniScheduler) -> DDIMScheduler:
    return DDIMScheduler.from_config(scheduler.config)


def run_both(scheduler: MarDiniScheduler, count: int, **step_kwargs) -> tuple[list, list]:
    """Drives our scheduler and DDIM with the same made-up model; returns (previous, clean) of each step of both."""
    trails = []
    for sampler in (scheduler, ddim_like(scheduler)):
        kwargs = dict(step_kwargs)
        if "seed" in kwargs:
            kwargs["generator"] = torch.Generator().manual_seed(kwargs.pop("seed"))
        sampler.set_timesteps(count)
        _, sample = clip_and_noise()
        trail = []
        for t in sampler.timesteps:
            velocity = torch.sin(sample * 3) + t / 1000
            sample, clean = sampler.step(velocity, t, sample, return_dict=False, **kwargs)
            trail += [sample, clean]
        trails.append(trail)
    return trails[0], trails[1]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "linspace"},
        {"rescale_betas_zero_snr": False, "beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"set_alpha_to_one": False},
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"thresholding": True, "sample_max_value": 2.0},
        {"num_train_timesteps": 500},
        {"trained_betas": np.linspace(1e-4, 2e-2, 1000)},
    ],
    ids=lambda config: "-".join(config) or "defaults",
)
@pytest.mark.parametrize("count", [1, 7, 25])
def test_every_step_equals_ddim(config, count):
    ours, theirs = run_both(MarDiniScheduler(**config), count)
    assert len(ours) == 2 * count
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_noisy_step_equals_ddim(eta):
    ours, theirs = run_both(MarDiniScheduler(), 10, eta=eta, seed=3)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_full_noise_from_the_noisiest_level_stays_finite():
    """DDIM takes the root of a number just below 0 here, for 70 of these step counts."""
    scheduler = MarDiniScheduler()
    for count in range(1, 200):
        scheduler.set_timesteps(count)
        assert (
            scheduler.step(torch.ones(2), 999, torch.ones(2), eta=1.0, variance_noise=torch.ones(2))[0]
            .isfinite()
            .all()
        )


def test_given_variance_noise_equals_ddim():
    ours, theirs = run_both(MarDiniScheduler(), 5, eta=1.0, variance_noise=torch.ones(CLIP_SHAPE))
    torch.testing.assert_close(ours[-1], theirs[-1])
    torch.testing.assert_close(ours[-2], theirs[-2])


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
def test_noise_levels_equal_ddim(schedule):
    ours = MarDiniScheduler(beta_schedule=schedule)
    theirs = DDIMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=True)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_the_noisiest_level_holds_no_signal():
    scheduler = MarDiniScheduler()
    assert scheduler.alphas_cumprod[-1] == 0
    clip, noise = clip_and_noise()
    assert torch.equal(scheduler.add_noise(clip, noise, torch.tensor([999, 999])), noise)


def test_sampling_starts_at_the_noisiest_level_and_has_the_asked_number_of_steps():
    scheduler = MarDiniScheduler()
    for count in range(1, 1001):  # among them 61, 103, 121, ... for which DDIM's list has one level too many, -1
        scheduler.set_timesteps(count)
        assert len(scheduler.timesteps) == count
        assert scheduler.timesteps[0] == 999
        assert scheduler.timesteps[-1] >= 0


@pytest.mark.parametrize("count", [1, 2, 25, 1000])
def test_an_oracle_velocity_recovers_the_clip(count):
    scheduler = MarDiniScheduler()
    clip, noise = clip_and_noise()
    scheduler.set_timesteps(count)
    sample = noise
    for t in scheduler.timesteps:
        velocity = scheduler.get_velocity(clip, noise, t[None])
        step = scheduler.step(velocity, t, sample)
        torch.testing.assert_close(step.pred_original_sample, clip, rtol=1e-4, atol=1e-4)
        sample = step.prev_sample
    torch.testing.assert_close(sample, clip, rtol=1e-4, atol=1e-4)


def test_the_clean_clip_comes_from_pure_noise_without_division():
    scheduler = MarDiniScheduler()
    scheduler.set_timesteps(25)
    clip, noise = clip_and_noise()
    step = scheduler.step(-clip, 999, noise)  # at alpha = 0 the velocity is -clip
    assert torch.equal(step.pred_original_sample, clip)
    assert step.prev_sample.isfinite().all()


def test_clip_noise_and_velocity_hang_together_at_every_level():
    scheduler = MarDiniScheduler()
    clip, noise = clip_and_noise()
    for t in (0, 1, 500, 998, 999):
        timesteps = torch.tensor([t])
        noisy, velocity = scheduler.add_noise(clip, noise, timesteps), scheduler.get_velocity(clip, noise, timesteps)
        alpha = scheduler.alphas_cumprod[t].sqrt()
        sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()
        torch.testing.assert_close(alpha * noisy - sigma * velocity, clip, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sigma * noisy + alpha * velocity, noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["add_noise", "get_velocity"])
def test_one_timestep_per_sample_equals_ddim(name):
    scheduler = MarDiniScheduler()
    clip, noise = clip_and_noise()
    timesteps = torch.tensor([10, 900])
    expected = getattr(ddim_like(scheduler), name)(clip, noise, timesteps)
    torch.testing.assert_close(getattr(scheduler, name)(clip, noise, timesteps), expected)


@pytest.mark.parametrize("name", ["add_noise", "get_velocity"])
def test_one_timestep_per_frame_treats_each_frame_by_itself(name):
    scheduler = MarDiniScheduler()
    clip, noise = clip_and_noise()
    timesteps = torch.tensor([[0, 10, 999], [500, 3, 7]])
    together = getattr(scheduler, name)(clip, noise, timesteps)
    for row in range(2):
        for frame in range(3):
            alone = getattr(scheduler, name)(clip[row, frame], noise[row, frame], timesteps[row, frame])
            torch.testing.assert_close(together[row, frame], alone)


def test_half_precision_noising_keeps_its_precision():
    scheduler = MarDiniScheduler()
    clip, noise = (x.to(torch.bfloat16) for x in clip_and_noise())
    noisy = scheduler.add_noise(torch.zeros_like(clip), torch.ones_like(noise), torch.tensor([1, 1]))
    assert noisy.dtype == torch.bfloat16
    sigma = (1 - scheduler.alphas_cumprod[1]).sqrt()
    torch.testing.assert_close(noisy.float().mean(), sigma, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    "timesteps",
    [torch.tensor([0.5, 1.0]), torch.tensor([1, 2, 3]), torch.ones(2, 2).long(), torch.ones(2, 3, 4, 8, 8, 1).long()],
    ids=["floats", "batch", "frames", "axes"],
)
def test_timesteps_that_do_not_fit_the_samples_are_refused(timesteps):
    clip, noise = clip_and_noise()
    with pytest.raises(ValueError, match="`timesteps`"):
        MarDiniScheduler().add_noise(clip, noise, timesteps)


def test_custom_timesteps_are_walked_one_by_one():
    scheduler = MarDiniScheduler()
    scheduler.set_timesteps(timesteps=[999, 700, 20])
    assert scheduler.timesteps.tolist() == [999, 700, 20]
    assert scheduler.num_inference_steps == 3
    clip, noise = clip_and_noise()
    sample = noise
    for t, after in zip(scheduler.timesteps, [700, 20, None]):
        sample = scheduler.step(scheduler.get_velocity(clip, noise, t[None]), t, sample).prev_sample
        expected = clip if after is None else scheduler.add_noise(clip, noise, torch.tensor([after]))
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)


def test_custom_timesteps_equal_to_the_spaced_ones_change_nothing():
    spaced, custom = MarDiniScheduler(), MarDiniScheduler()
    spaced.set_timesteps(25)
    custom.set_timesteps(timesteps=spaced.timesteps)
    clip, noise = clip_and_noise()
    for t in spaced.timesteps:
        a, b = spaced.step(clip, t, noise).prev_sample, custom.step(clip, t, noise).prev_sample
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "exactly one"),
        ({"num_inference_steps": 5, "timesteps": [9, 1]}, "exactly one"),
        ({"num_inference_steps": 0}, "from 1 to"),
        ({"num_inference_steps": 1001}, "from 1 to"),
        ({"timesteps": []}, "empty"),
        ({"timesteps": [5, 5]}, "fall strictly"),
        ({"timesteps": [5, 50]}, "fall strictly"),
        ({"timesteps": [1000, 5]}, "from 0 to 999"),
        ({"timesteps": [5, -1]}, "from 0 to 999"),
        ({"timesteps": [5.5, 1]}, "whole numbers"),
    ],
    ids=str,
)
def test_bad_timesteps_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MarDiniScheduler().set_timesteps(**kwargs)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"prediction_type": "epsilon"}, "v_prediction"),
        ({"beta_schedule": "cubic"}, "squaredcos_cap_v2"),
        ({"timestep_spacing": "odd"}, "trailing"),
    ],
    ids=str,
)
def test_bad_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MarDiniScheduler(**config)


def test_steps_out_of_order_are_refused():
    clip, noise = clip_and_noise()
    scheduler = MarDiniScheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(clip, 999, noise)
    scheduler.set_timesteps(timesteps=[999, 5])
    with pytest.raises(ValueError, match="one timestep for the whole sample"):
        scheduler.step(clip, torch.tensor([999, 5]), noise)
    with pytest.raises(ValueError, match="not one of the custom timesteps"):
        scheduler.step(clip, 998, noise)
    with pytest.raises(ValueError, match="at most one"):
        scheduler.step(clip, 999, noise, eta=1.0, generator=torch.Generator(), variance_noise=noise)
    scheduler.set_begin_index(0)
    scheduler.step(clip, 999, noise)
    scheduler.step(clip, 5, noise)
    with pytest.raises(ValueError, match="all 2 steps were taken"):
        scheduler.step(clip, 5, noise)


def test_the_step_index_counts_the_steps():
    scheduler = MarDiniScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.step_index is None and scheduler.begin_index is None
    clip, noise = clip_and_noise()
    for i, t in enumerate(scheduler.timesteps):
        scheduler.step(clip, t, noise)
        assert scheduler.step_index == i + 1


def test_a_begin_index_makes_the_timestep_argument_unread():
    plain, counted = MarDiniScheduler(), MarDiniScheduler()
    clip, noise = clip_and_noise()
    plain.set_timesteps(8)
    counted.set_timesteps(8)
    counted.set_begin_index(2)
    unreadable = torch.tensor(0, device="meta")  # stands for a GPU tensor: reading its value would wait for the GPU
    for t in plain.timesteps[2:]:
        expected = plain.step(clip, t, noise).prev_sample
        assert torch.equal(counted.step(clip, unreadable, noise).prev_sample, expected)


def test_the_output_is_a_tuple_when_asked():
    scheduler = MarDiniScheduler()
    scheduler.set_timesteps(2)
    clip, noise = clip_and_noise()
    named = scheduler.step(clip, 999, noise)
    assert torch.equal(scheduler.step(clip, 999, noise, return_dict=False)[0], named.prev_sample)
    assert torch.equal(scheduler.step(clip, 999, noise, return_dict=False)[1], named.pred_original_sample)
    assert scheduler.scale_model_input(clip, 999) is clip
    assert scheduler.init_noise_sigma == 1 and scheduler.order == 1 and len(scheduler) == 1000


@pytest.mark.parametrize(
    "other_class", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler]
)
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved"])
def test_swapping_schedulers_keeps_the_process_both_ways(tmp_path, other_class, saved):
    ours = MarDiniScheduler()
    if saved:
        ours.save_pretrained(tmp_path)
        other = other_class.from_pretrained(tmp_path)
    else:
        other = other_class.from_config(ours.config)
    shared = ("beta_schedule", "prediction_type", "timestep_spacing", "rescale_betas_zero_snr", "num_train_timesteps")
    for key in shared:
        assert other.config[key] == ours.config[key], key
    if saved:
        other.save_pretrained(tmp_path / "other")
        back = MarDiniScheduler.from_pretrained(tmp_path / "other")
    else:
        back = MarDiniScheduler.from_config(other.config)
    for key, value in ours.config.items():
        if not key.startswith("_"):
            assert back.config[key] == value, key


def test_only_the_keys_of_the_process_are_kept_from_a_default_configuration():
    dropped = MarDiniScheduler().config["_use_default_values"]
    assert {"prediction_type", "beta_schedule", "rescale_betas_zero_snr", "timestep_spacing"}.isdisjoint(dropped)
    assert "thresholding" in dropped


def test_a_saved_scheduler_comes_back_with_the_same_configuration(tmp_path):
    ours = MarDiniScheduler(num_train_timesteps=500, timestep_spacing="leading")
    ours.save_pretrained(tmp_path)
    back = MarDiniScheduler.from_pretrained(tmp_path)
    assert "_use_default_values" not in back.config
    assert {k: v for k, v in ours.config.items() if k != "_use_default_values"} == dict(back.config)
    assert torch.equal(ours.alphas_cumprod, back.alphas_cumprod)


def test_diffusers_lists_the_schedulers_that_may_take_its_place():
    assert {DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler} <= set(MarDiniScheduler().compatibles)


def known_velocity(sample: torch.Tensor, timestep: int) -> torch.Tensor:
    """Of clips whose values are drawn from three narrow normal distributions."""
    means, weights, deviation = torch.tensor([-1.2, 0.3, 1.5]), torch.tensor([0.3, 0.4, 0.3]), 0.25
    alpha_prod = MarDiniScheduler().alphas_cumprod[timestep].double()
    alpha, sigma = alpha_prod**0.5, (1 - alpha_prod) ** 0.5
    away = sample.double()[..., None] - alpha * means
    variance = alpha**2 * deviation**2 + sigma**2
    shares = (weights.log() - away**2 / (2 * variance)).softmax(dim=-1)
    clean = (shares * (means + alpha * deviation**2 / variance * away)).sum(dim=-1)
    noise = (sample - alpha * clean) / sigma
    return (alpha * noise - sigma * clean).to(sample.dtype)


def sample_known(scheduler, count: int) -> torch.Tensor:
    scheduler.set_timesteps(count)
    scheduler.set_begin_index(0)
    noise = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        velocity = known_velocity(scheduler.scale_model_input(noise, timestep), int(timestep))
        noise = scheduler.step(velocity, timestep, noise, return_dict=False)[0]
    return noise


@cache
def sample_known_finely() -> torch.Tensor:
    return sample_known(MarDiniScheduler(), 500)


def solver_error(scheduler, count: int) -> float:
    """Root mean square distance to 500 steps of DDIM; the velocity is exact, so that the error is the solver's."""
    return (sample_known(scheduler, count) - sample_known_finely()).square().mean().sqrt().item()


@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_ten_steps_of_a_solver_of_second_order_are_as_exact_as_25_of_ddim(solver):
    """docs/performance.md, "Few steps": by one line, with nothing set."""
    config = MarDiniScheduler().config
    assert solver_error(solver.from_config(config), 10) < solver_error(MarDiniScheduler(), 25) < 0.06
    assert solver_error(solver.from_config(config), 5) < 0.6 * solver_error(MarDiniScheduler(), 5)


def test_euler_is_ddim():
    euler = EulerDiscreteScheduler.from_config(MarDiniScheduler().config)
    assert solver_error(euler, 10) == pytest.approx(solver_error(MarDiniScheduler(), 10), rel=0.01)


def test_heun_has_to_start_below_pure_noise():
    """Its second evaluation is weighed with the step's length in sigma, which is 20,000 from where there is no
    signal."""
    config = MarDiniScheduler().config
    assert solver_error(HeunDiscreteScheduler.from_config(config), 10) > 1
    assert solver_error(HeunDiscreteScheduler.from_config(config, timestep_spacing="leading"), 10) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_levels_do_not_follow_the_default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        scheduler = MarDiniScheduler()
    finally:
        torch.set_default_dtype(before)
    assert scheduler.alphas_cumprod.dtype == scheduler.final_alpha_cumprod.dtype == torch.float32
    assert torch.equal(scheduler.alphas_cumprod, MarDiniScheduler().alphas_cumprod)


def test_a_scheduler_is_made_on_the_meta_device():
    with torch.device("meta"):
        MarDiniScheduler()


def test_the_configuration_of_another_scheduler_means_what_it_meant_there():
    theirs = DDIMScheduler(prediction_type="v_prediction")
    ours = MarDiniScheduler.from_config(theirs.config)
    same = ("beta_schedule", "timestep_spacing", "rescale_betas_zero_snr", "clip_sample", "prediction_type")
    assert [ours.config[key] for key in same] == [theirs.config[key] for key in same]
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    with pytest.raises(ValueError, match="`prediction_type` is 'epsilon', but MarDini predicts velocities"):
        MarDiniScheduler.from_config(DDIMScheduler().config)
    assert MarDiniScheduler.from_config(theirs.config, beta_schedule="squaredcos_cap_v2").config.clip_sample
