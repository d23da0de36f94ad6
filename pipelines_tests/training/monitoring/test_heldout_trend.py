import math
import random

import pytest

from training.monitoring.heldout_trend import is_flat, mean_loss, trend


def test_a_stage_is_judged_by_the_mean_over_patterns_of_its_own_loss():
    heldout = {
        "planner": 9.0, "planner/task/interpolation": 1.0, "planner/masked/3": 3.0, "diffusion/0.6": 9.0,
        "diffusion/task/interpolation": 0.5, "diffusion/masked/3": 0.7, "diffusion_unplanned/0.95": 9.0,
        "quality/mid_ssim": 9.0,
    }  # fmt: skip
    assert mean_loss(heldout, "planner") == 2.0
    assert mean_loss(heldout, "joint") == mean_loss(heldout, "transformer") == pytest.approx(0.6)
    assert mean_loss({"planner": 1.0}, "joint") is None
    assert math.isnan(mean_loss({"planner/masked/3": "nan"}, "planner"))


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_flat_and_a_fall_through_noise_is_falling(seed):
    noise = [random.Random(seed).gauss(0, 0.002) for _ in range(6)]
    assert trend([1 - 0.02 * place + each for place, each in enumerate(noise)]) == "falling"
    assert trend([1 + 0.02 * place + each for place, each in enumerate(noise)]) == "rising"
    assert trend([1 - 1e-5 * place for place in range(6)]) == "flat"  # exact, but hardly a change
    assert trend([1.0, 0.9, 1.0, 0.9, 1.0, 0.9]) == "flat"


def test_few_values_have_no_trend():
    assert trend([3.0, 2.0, 1.0]) == trend([1.0, math.nan, 1.0, 1.0]) == ""


def test_a_stage_is_flat_after_measurements_without_a_new_best_beyond_noise():
    assert not is_flat([1.0] * 4, 4) and is_flat([1.0] * 5, 4)
    assert not is_flat([2.0] + [1.0] * 4, 4) and is_flat([2.0] + [1.0] * 5, 4)
    assert is_flat([1.0, 2.0, 3.0, 4.0, 5.0], 4)  # rising is not falling
    falling = [0.97**number for number in range(12)]
    assert not any(is_flat(falling[: number + 1], 4) for number in range(12))
    noisy = [0.5 + random.Random(1).gauss(0, 0.01) for _ in range(8)]
    assert is_flat([0.5 + 0.004 * (-1) ** number for number in range(8)], 4) and is_flat(noisy, 4)
