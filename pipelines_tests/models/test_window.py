"""The layout of a window: which frames are reference frames, and where the masked ones lie."""

import torch
from accelerate.utils import send_to_device

from diffusers_mardini.models.window import WindowLayout, frames_at


MASK = torch.tensor([[True, False, False, False, True], [False, True, True, False, False]])


def test_a_layout_finds_the_frames_of_every_row_in_order():
    layout = WindowLayout.from_mask(MASK, 3)
    assert layout.masked_index.tolist() == [1, 2, 3, 5, 8, 9]
    assert layout.reference_index.tolist() == [0, 4, 6, 7]
    assert layout.num_masked_frames == 3


def test_a_layout_of_rows_that_differ_has_a_mask_alone():
    layout = WindowLayout.from_mask(MASK)
    assert layout.masked_index is None and layout.num_masked_frames is None


def test_a_layout_of_given_indices_is_that_of_their_mask():
    layout = WindowLayout.from_given_indices([0, 3], 4, batch_size=2)
    assert layout.reference_mask.tolist() == [[True, False, False, True]] * 2
    assert layout.masked_index.tolist() == [1, 2, 5, 6]


def test_masked_frames_are_taken_out_and_put_back():
    layout = WindowLayout.from_mask(MASK, 3)
    states = torch.arange(20.0).unflatten(0, (2, 5, 2))
    masked = layout.masked_frames(states)
    assert torch.equal(masked, states[~MASK].unflatten(0, (2, 3)))
    replaced = layout.replace_masked_frames(states, -masked)
    assert torch.equal(replaced[~MASK], -states[~MASK]) and torch.equal(replaced[MASK], states[MASK])
    assert torch.equal(frames_at(states, layout.reference_index), states[MASK].unflatten(0, (2, 2)))


def test_a_layout_follows_a_block_to_its_device():
    for count in (3, None):
        moved = send_to_device(WindowLayout.from_mask(MASK, count), "meta")
        assert moved.reference_mask.is_meta and (count is None or moved.masked_index.is_meta)
