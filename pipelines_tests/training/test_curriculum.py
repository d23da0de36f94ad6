"""What a step draws: windows, masks, noise levels, dropped plans; and how fast it learns."""

import functools

import pytest
import torch

from diffusers_mardini.presets import load_preset
from pipelines_tests.training.test_train_mardini import make_config, make_data, rows
from training.config.schema import StageConfig
from training.curriculum import (
    draw_batch,
    draw_reference_mask,
    draw_reference_timesteps,
    draw_timesteps,
    learning_rate_factor,
)
from training.data.batches import Batch
from training.data.buckets import window_request
from training.engine.models import make_scheduler


def test_a_step_draws_the_same_whenever_it_is_asked_and_other_steps_draw_otherwise():
    stage, data = make_config().stages[2], make_data()

    def draw(**keys):
        draw = rows(**{"seed": 3, "stage": "joint", "step": 5, **keys})
        return draw_batch(stage, window_request(make_config(), stage), data, 1000, draw)

    first, again = draw(), draw()
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) if torch.is_tensor(a) else a == b
        for a, b in zip(vars(first).values(), vars(again).values())
    )
    for other in (draw(step=6), draw(seed=4), draw(stage="task"), draw(attempt=1), draw(first=2, total=4)):
        assert not torch.equal(first.noise, other.noise)


@pytest.mark.parametrize("tasks", [{"random": 1.0}, {"random": 0.0, "leading": 1.0}])
def test_a_global_batch_is_the_same_for_any_number_of_processes(tasks):
    stage = StageConfig(**{**make_config().stages[2].model_dump(), "tasks": tasks, "reference_ratio": (0.25, 0.75)})
    data, sampling = make_data(), window_request(make_config(), stage)
    for step in range(5):
        whole = draw_batch(stage, sampling, data, 1000, rows(step, count=6))
        parts = [draw_batch(stage, sampling, data, 1000, rows(step, count=2, first=i, total=6)) for i in (0, 2, 4)]
        for name, value in vars(whole).items():
            if torch.is_tensor(value):
                assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value), name
        assert {part.num_masked_frames for part in parts} == {whole.num_masked_frames}
        assert sum((part.windows for part in parts), ()) == whole.windows


def test_masks_follow_the_mixture_of_tasks():
    config = make_config().stages[2]

    def masks(**tasks):
        stage = StageConfig(**{**config.model_dump(), "tasks": tasks, "reference_ratio": (0.25, 0.5)})
        return [draw_reference_mask(stage, stage.num_frames, rows(i)) for i in range(20)]

    assert all(mask.tolist() == [[True, False, False, True]] * 2 for mask in masks(random=0, interpolation=1))
    assert {mask[0].tolist().index(False) for mask in masks(random=0, leading=1)} == {1, 2}
    drawn = masks(random=1)
    assert {int(mask[0].sum()) for mask in drawn} == {1, 2}
    assert all(mask[0].sum() == mask[1].sum() for mask in drawn)
    assert any(mask[0].tolist() != mask[1].tolist() for mask in drawn)


def test_timesteps_are_stratified_and_shifted_towards_noise():
    plain = torch.cat([draw_timesteps(1000, 1.0, rows(i, count=10)) for i in range(20)])
    assert all(sorted((plain[i : i + 10] // 100).tolist()) == list(range(10)) for i in range(0, 200, 10))
    shifted = torch.cat([draw_timesteps(1000, 1.5, rows(i, count=10)) for i in range(20)])
    # u to s u / (1 + (s - 1) u); whole timesteps are the u of `plain` rounded down
    low, high = (1.5 * u / (1 + 0.5 * u) for u in (plain / 1000, (plain + 1) / 1000))
    assert ((shifted >= (1000 * low).floor()) & (shifted <= 1000 * high)).all() and shifted.max() <= 999
    assert shifted.float().mean() > plain.float().mean() + 50


def test_a_batch_has_its_stages_noise_levels_and_drops_its_share_of_the_plans():
    config = make_config()
    data, sampling = make_data(), window_request(config, config.stages[2])

    def drawn(**fields) -> Batch:
        stage = config.stages[2].model_copy(update=fields)
        return draw_batch(stage, sampling, data, 1000, rows(count=64))

    for shift in (1.0, 2.0):
        assert torch.equal(drawn(timestep_shift=shift).timesteps, draw_timesteps(1000, shift, rows(count=64)))
    assert not torch.equal(drawn(timestep_shift=1.0).timesteps, drawn(timestep_shift=2.0).timesteps)
    kept = {share: drawn(planning_dropout=share).planning_signals_mask for share in (0.0, 0.3, 0.6, 1.0)}
    assert kept[0.0].all() and not kept[1.0].any()
    for share in (0.3, 0.6):
        assert (~kept[share]).float().mean().item() == pytest.approx(share, abs=0.15)
    assert (kept[0.3] | ~kept[0.6]).all()  # the same draws


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    factor = functools.partial(learning_rate_factor, steps=110, warmup_steps=10, final=0.5)
    assert factor(0) == 0.1 and factor(9) == 1.0 and factor(10) == 1.0
    assert factor(60) == pytest.approx(0.75) and factor(110) == pytest.approx(0.5)


def test_the_scheduler_of_the_run_is_the_presets_with_what_the_run_says():
    preset = load_preset(make_config().preset)["scheduler"]
    scheduler = make_scheduler(make_config(scheduler={"beta_schedule": "linear", "num_train_timesteps": 500}))
    expected = {**preset, "beta_schedule": "linear", "num_train_timesteps": 500}
    assert preset and {key: scheduler.config[key] for key in expected} == expected
    assert len(scheduler.alphas_cumprod) == 500 and scheduler.alphas_cumprod[-1] == 0
    plain = make_scheduler(make_config())
    assert {key: plain.config[key] for key in preset} == preset
    assert not torch.equal(plain.alphas_cumprod[::2], scheduler.alphas_cumprod)


def test_a_batch_moves_all_of_its_tensors():
    config = make_config()
    sampling = window_request(config, config.stages[2])
    batch = draw_batch(config.stages[2], sampling, make_data(), 1000, rows()).to(torch.device("meta"))
    assert isinstance(batch, Batch) and all(
        v.device.type == "meta" for v in vars(batch).values() if torch.is_tensor(v)
    )


def test_half_of_the_windows_have_noised_given_frames_if_the_stage_asks_for_it():
    config = make_config()
    data, sampling = make_data(), window_request(config, config.stages[2])
    plain = draw_batch(config.stages[2], sampling, data, 1000, rows(count=64))
    assert plain.reference_timesteps is None and plain.planner_noise is None
    noised = draw_batch(
        config.stages[2].model_copy(update={"reference_noise": 0.1}), sampling, data, 1000, rows(count=64)
    )
    timesteps = noised.reference_timesteps
    assert timesteps.shape == (64,) and 0 < (timesteps == 0).float().mean() < 1
    assert timesteps.min() == 0 and 50 < timesteps.max() <= 100
    assert noised.planner_noise.shape == noised.planner_latents.shape
    assert torch.equal(noised.latents, plain.latents) and torch.equal(noised.noise, plain.noise)
    shares = torch.cat([draw_reference_timesteps(1000, 0.1, rows(step, count=64)) for step in range(20)])
    assert (shares == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
