"""Bootstrap over clips: how wide, and narrower for pairs."""

import pytest
import torch

from training.evaluation.intervals import Bootstrap


def scores(values, **others) -> dict[str, torch.Tensor]:
    return {"ssim": torch.as_tensor(values, dtype=torch.float32)} | {k: torch.as_tensor(v) for k, v in others.items()}


def test_the_interval_is_as_wide_as_the_standard_error_says():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = Bootstrap([f"{i}.mp4" for i in range(400)]).interval(scores(values), "ssim")
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)


def test_windows_of_one_clip_are_not_taken_for_more_clips():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    names = [f"{i}.mp4" for i in range(50)]
    alone = Bootstrap(names).interval(scores(values), "ssim")
    repeated = Bootstrap(names * 4).interval(scores(values.repeat(4)), "ssim")
    assert repeated == pytest.approx(alone)


def test_a_difference_on_the_same_windows_is_surer_than_two_means():
    generator = torch.Generator().manual_seed(0)
    hardness = torch.randn(60, generator=generator)
    one = scores(hardness + 0.1)
    two = scores(hardness + 0.01 * torch.randn(60, generator=generator))
    bootstrap = Bootstrap([f"{i}.mp4" for i in range(60)])
    low, high = bootstrap.difference(one, two, "ssim")
    assert 0.09 < low < 0.1 < high < 0.11
    apart = [bootstrap.interval(found, "ssim") for found in (one, two)]
    assert apart[0][0] < apart[1][1]  # the intervals of the two overlap


def test_motion_is_a_ratio_of_sums_in_every_resample():
    bootstrap = Bootstrap(["a", "b", "c"])
    found = scores([0.0] * 3, motion=[2.0, 2.0, 0.0], true_motion=[1.0, 1.0, 0.0])
    assert bootstrap.interval(found, "motion") == (2.0, 2.0)  # a still clip does not divide by nothing


def test_the_same_clips_give_the_same_interval():
    values = scores(torch.rand(10, generator=torch.Generator().manual_seed(1)))
    names = [f"{i % 4}" for i in range(10)]
    assert Bootstrap(names).interval(values, "ssim") == Bootstrap(names).interval(values, "ssim")
