"""Test how much of a plan is said to be left."""

import pytest
import torch

from training.evaluation.altered_signals import DROPPED, OTHER, noisy, pooled
from training.reproduction.degraded_signals import alterations
from training.reproduction.plan_information import FAMILIES, family_of, shared_variance, summary_panels


def signals():
    """`(64 windows, 3 frames, 4 rows, 4 columns, 5 channels)`, the last channel ten times as wide."""
    drawn = torch.randn(64, 3, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    return drawn * torch.tensor([1.0, 1.0, 1.0, 1.0, 10.0])


def test_noise_leaves_its_share_of_the_variance_and_a_line_changes_nothing():
    own = signals()
    assert shared_variance(own, 3 - 2 * own) == pytest.approx(1)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(1)) * own.std(dim=(0, 1, 2, 3))
    assert shared_variance(own, own + 2 * noise) == pytest.approx(1 / 5, abs=0.04)
    assert shared_variance(own, own.roll(32, dims=0)) < 0.05


def test_dropped_tokens_say_nothing_and_the_others_all():
    own = signals()
    dropped = torch.rand(own.shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.75
    assert shared_variance(own, own.masked_fill(dropped[..., None], torch.nan)) == pytest.approx(0.25, abs=0.06)
    assert shared_variance(own, torch.full_like(own, torch.nan)) == 0


def test_what_all_windows_have_in_common_says_nothing():
    place = torch.randn(1, 3, 4, 4, 5, generator=torch.Generator().manual_seed(2))
    own = signals() + 5 * place
    assert shared_variance(own, place.expand_as(own)) == pytest.approx(0, abs=1e-9)
    assert shared_variance(own, own.roll(32, dims=0)) < 0.05 and shared_variance(own, own) == pytest.approx(1)


def test_a_plan_of_other_resolution_is_compared_place_by_place():
    coarse = signals()[:, :, ::2, ::2]
    own = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert shared_variance(own, coarse) == pytest.approx(1)
    finer = own.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert shared_variance(own, finer) == pytest.approx(1)


def test_every_alteration_has_a_curve_of_its_kind():
    altered = alterations([1.0], [0.5], [2], [0, 1], [4])
    assert {family_of(each.suffix) for each in altered} == set(FAMILIES.values())
    left = {noisy(1.0).suffix: 0.5, pooled(2).suffix: 0.7, DROPPED.suffix: 0.0, OTHER.suffix: 0.1}
    differences = {
        "ours" + suffix: {"difference": {"ssim": 0.1}, "intervals": {"ssim": (0.05, 0.2)}} for suffix in left
    }
    (panel,) = summary_panels(left, differences, "ours", ("ssim", "change"))
    (point,) = panel.curves["noise"]
    assert (point.x, point.y, point.low, point.high) == (0.5, -0.1, -0.2, -0.05)
