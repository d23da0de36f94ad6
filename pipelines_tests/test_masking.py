"""Sec. 2.1 and 4: which frames are kept."""

import pytest
import torch

from diffusers_mardini.masking import (
    interpolation_indices,
    leading_indices,
    num_reference_frames_range,
    random_reference_mask,
    reference_mask_from_indices,
)


def test_tasks_are_patterns_of_kept_frames():
    assert reference_mask_from_indices(interpolation_indices(5), 5).tolist() == [[True, False, False, False, True]]
    assert (
        reference_mask_from_indices(leading_indices(2), 4, batch_size=2).tolist() == [[True, True, False, False]] * 2
    )


@pytest.mark.parametrize("num_frames", [2, 4, 9, 17])
@pytest.mark.parametrize("ratio", [(0.0, 0.0), (0.65, 1.0), (0.06, 0.3), (1.0, 1.0)])
def test_one_frame_is_always_kept_and_one_always_masked(num_frames, ratio):
    least, largest = num_reference_frames_range(num_frames, ratio)
    assert 1 <= least <= largest <= num_frames - 1


def test_figure_4_ratios_give_their_counts():
    assert num_reference_frames_range(17, (0.06, 0.30)) == (1, 5)
    assert num_reference_frames_range(9, (0.35, 1.0)) == (3, 8)


def test_random_masks_keep_as_many_as_asked_at_places_that_differ_and_repeat_by_seed():
    draw = lambda seed: random_reference_mask(64, 9, 3, torch.Generator().manual_seed(seed))  # noqa: E731
    mask = draw(0)
    assert (mask.sum(1) == 3).all()
    assert mask.any(0).all() and len({tuple(row) for row in mask.tolist()}) > 30
    assert torch.equal(mask, draw(0)) and not torch.equal(mask, draw(1))


@pytest.mark.parametrize("kept", [0, 9, 10])
def test_impossible_counts_are_refused(kept):
    with pytest.raises(ValueError, match="at least 1 and at most 8"):
        random_reference_mask(1, 9, kept)


def test_impossible_ratios_are_refused():
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        num_reference_frames_range(9, (0.6, 0.4))
