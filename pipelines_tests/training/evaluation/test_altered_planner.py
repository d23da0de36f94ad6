"""Planners that know less than they could."""

import pytest
import torch

from pipelines_tests.tiny_pipeline import clip, tiny_pipeline
from training.evaluation.altered_planner import GENERATED, near_frames, planner_at
from training.evaluation.sampling import sample_batch


GIVEN = [0, 4]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def plans(pipe, alteration, windows):
    """Return the last plan that is made while a batch is sampled."""
    seen = []
    handle = pipe.planner.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    sample_batch(pipe, windows, GIVEN, 1, alteration=alteration)
    handle.remove()
    return seen[-1]


def test_attention_that_reaches_all_frames_is_the_planners_own(pipe):
    windows = clip(5, 2)
    torch.testing.assert_close(plans(pipe, near_frames(4), windows), plans(pipe, None, windows), atol=1e-4, rtol=1e-4)


def test_a_frame_hears_of_others_within_its_reach_times_the_layers(pipe):
    windows, other = clip(5, 2), clip(5, 2)
    other[:, 0] = 1 - other[:, 0]
    for reach, hear in ((0, []), (1, [1, 2])):  # two layers
        changed = (plans(pipe, near_frames(reach), windows) - plans(pipe, near_frames(reach), other)).abs()
        assert [i for i in (1, 2, 3) if changed[:, i].amax() > 1e-6] == hear


def test_the_planner_sees_another_resolution_and_gets_its_own_back(pipe):
    windows = clip(5, 2)
    assert plans(pipe, planner_at(4), windows).shape[2:4] == (1, 1)
    assert plans(pipe, planner_at(1), windows).shape[2:4] == (4, 4)
    assert pipe.config.planner_downscale == 2 and plans(pipe, None, windows).shape[2:4] == (2, 2)


def test_a_plan_of_generated_frames_differs_and_the_given_frames_stay(pipe):
    windows = clip(5, 2)
    assert (plans(pipe, GENERATED, windows) - plans(pipe, None, windows)).abs().amax() > 1e-4
    sampled = sample_batch(pipe, windows, GIVEN, 1, alteration=GENERATED)
    torch.testing.assert_close(sampled[:, GIVEN], windows[:, GIVEN])
    assert "plan" not in vars(pipe)


def test_reaches_and_sides_that_are_none_are_refused():
    with pytest.raises(ValueError, match="-1 frames each way"):
        near_frames(-1)
    with pytest.raises(ValueError, match="a side 0 times smaller"):
        planner_at(0)
