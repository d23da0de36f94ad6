"""`fill`, `loop` and `views`: the plans, and what comes out."""

import pytest
import torch
from hypothesis import given as holds_for
from hypothesis import settings
from hypothesis import strategies as st

from diffusers_mardini.pipelines.keyframes import fill_windows
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


STEPS = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@settings(deadline=None, max_examples=300)
@holds_for(st.data())
def test_every_frame_is_made_once_from_frames_known_by_then(data):
    num_frames, window = data.draw(st.integers(2, 80)), data.draw(st.integers(3, 12))
    given = data.draw(st.sets(st.integers(0, num_frames - 1), min_size=1, max_size=min(6, num_frames - 1)))
    known = set(given)
    for one in fill_windows(sorted(given), num_frames, window):
        assert len(one.places) <= window and one.places == sorted(set(one.places))
        assert one.given_indices and {one.places[i] for i in one.given_indices} <= known
        assert one.new_places and known.isdisjoint(one.new_places)
        known |= set(one.new_places)
    assert known == set(range(num_frames))


@pytest.mark.parametrize(
    "given, num_frames, expected",
    [
        ([0, 5, 8], 9, [(0, 8, [0, 5, 8])]),  # one window holds it
        ([8], 9, [(0, 8, [8])]),
        ([4], 9, [(0, 8, [4])]),
        ([0, 3, 6, 9, 12], 13, [(0, 6, [0, 3, 6]), (6, 12, [0, 3, 6])]),  # neighbouring gaps share one
    ],
)
def test_windows_are_as_few_as_fit(given, num_frames, expected):
    windows = [(one.places[0], one.places[-1], one.given_indices) for one in fill_windows(given, num_frames, 9)]
    assert windows[: len(expected)] == expected


def test_far_frames_come_first_and_known_neighbours_fill_a_window_up():
    windows = list(fill_windows([0, 16], 17, 9))
    assert windows[0].places == list(range(0, 17, 2)) and windows[0].given_indices == [0, 8]
    assert [one.places for one in windows[1:]] == [list(range(9)), list(range(8, 17))]
    # 8 unequal steps leave three gaps; known frames around them fill the windows up.
    (_, near, far) = fill_windows([0, 11], 12, 9)
    assert near.places == list(range(9)) and near.new_places == [2, 5]
    assert far.places == list(range(6, 12)) and far.new_places == [9]


def test_ends_without_a_given_frame_follow_their_neighbours():
    windows = [(one.places[0], one.places[-1], one.given_indices) for one in fill_windows([10], 21, 9)]
    assert windows == [(10, 18, [0]), (12, 20, [0, 1, 2, 3, 4, 5, 6]), (5, 13, [5, 6, 7, 8]), (0, 8, [5, 6, 7, 8])]


def test_a_video_within_a_window_is_that_of_a_call(pipe):
    frames, places = clip(3), [1, 4, 7]
    filled = pipe.fill(dict(zip(places, frames)), 8, window=9, generator=seeded(3), **STEPS).frames
    called = pipe(video=frames, frame_indices=places, num_frames=8, generator=seeded(3), **STEPS).frames
    assert torch.equal(filled, called)


def test_a_batch_gives_lists_and_the_order_of_places_does_not_matter(pipe):
    frames = clip(2, 2)
    batch = {9: [frames[0, 1], frames[1, 1]], 0: [frames[0, 0], frames[1, 0]]}
    made = pipe.fill(batch, window=4, generator=[seeded(1), seeded(2)], **STEPS).frames
    alone = pipe.fill({0: frames[1, 0], 9: frames[1, 1]}, window=4, generator=seeded(2), **STEPS).frames
    assert made.shape == (2, 10, 3, 32, 32)
    torch.testing.assert_close(made[1:], alone, atol=1e-4, rtol=0)


def test_windows_of_one_batch_make_the_same_video(pipe):
    frames = dict(zip((0, 8, 16), clip(3)))
    one, four = (
        pipe.fill(frames, window=5, window_batch_size=most, generator=seeded(), **STEPS).frames for most in (1, 4)
    )
    torch.testing.assert_close(one, four, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "frames, options, message",
    [
        ({}, {}, "`frames` must map places to pictures"),
        ([clip(1)[0]], {}, "got list"),
        ({0: clip(1)[0]}, {}, "`num_frames` is 1"),
        ({0: clip(1)[0], 1: clip(1)[0]}, {}, "nothing is left to generate"),
        ({-1: clip(1)[0]}, {}, "`frames` is -1"),
        ({"a": clip(1)[0]}, {}, "`frames` is 'a'"),
        ({0: clip(1)[0], 9: clip(1)[0]}, {"num_frames": 5}, "reaches place 9"),
        ({0: [clip(1)[0]] * 2, 4: clip(1)[0]}, {}, r"have \[1, 2\] pictures"),
        ({0: clip(1)[0], 4: clip(1, size=48)[0]}, {}, "differ in size"),
        ({0: clip(1)[0], 4: clip(1)[0]}, {"window": 2}, "`window` is 2"),
        ({0: clip(1)[0], 4: clip(1)[0]}, {"blend": 1}, "pass `paste_given=True` too"),
        ({0: clip(1)[0], 10**13: clip(1)[0]}, {}, "ask for fewer frames"),
    ],
)
def test_what_cannot_be_filled_is_refused_in_a_sentence(pipe, frames, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.fill(frames, **options)


def test_a_loop_is_given_both_ends_and_adds_what_lies_between(pipe):
    video = clip(5)
    whole = pipe.loop(video, window=9, generator=seeded(1), **STEPS).frames
    new = pipe.loop(video, window=9, generator=seeded(1), new_frames_only=True, **STEPS).frames
    assert whole.shape[1] == 5 + 5 and torch.equal(whole[:, 5:], new)
    # The same as filling the gap between the last two frames and the first two.
    frames = {0: video[3], 1: video[4], 7: video[0], 8: video[1]}
    assert torch.equal(new, pipe.fill(frames, window=9, generator=seeded(1), **STEPS).frames[:, 2:7])


@pytest.mark.parametrize("num_given, num_new, overlap", [(1, 3, 2), (2, 9, 2), (7, 20, 1)])
def test_loops_of_any_length(pipe, num_given, num_new, overlap):
    made = pipe.loop(clip(num_given), num_new, window=5, overlap=overlap, paste_given=True, **STEPS).frames
    assert made.shape[1] == num_given + num_new
    torch.testing.assert_close(made[0, :num_given], clip(num_given))


def test_views_are_an_interpolation_of_any_length(pipe):
    first, last = clip(2)
    made = pipe.views(first, last, 9, generator=seeded(), **STEPS).frames
    assert torch.equal(made, pipe(image=first, last_image=last, num_frames=9, generator=seeded(), **STEPS).frames)
    assert pipe.views(first, last, 12, window=5, **STEPS).frames.shape[1] == 12
    with pytest.raises(ValueError, match="`last_image` is missing"):
        pipe.views(first, None)


def test_a_loop_of_a_short_clip_gets_as_many_new_frames_as_a_window_leaves(pipe):
    made = pipe.loop(clip(2), window=9, overlap=4, new_frames_only=True, **STEPS).frames
    assert made.shape[1] == 9 - 2 * 2
