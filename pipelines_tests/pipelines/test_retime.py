"""Another rate, by time: which frames are taken, which are sampled, and where they lie."""

import itertools
import re
from fractions import Fraction

import pytest
import torch

from diffusers_mardini.pipelines.stream_inputs import kept_frames
from diffusers_mardini.pipelines.stream_plans import RetimePlan, near_grid
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


STEPS = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def pipe():
    return tiny_pipeline()


def planned(times, fps, window=9, **kwargs):
    """Return windows, places of the given frames, and the places shown, of a whole video."""
    plan = RetimePlan(fps, window)
    windows, given, shown = [], [], []
    for number, time in enumerate(times):
        arrival = plan.push(time, number in kwargs.get("cuts", ()), number in kwargs.get("still", ()))
        windows += arrival.windows
        given.append(arrival.place)
        shown += arrival.shown
    return windows + plan.finish(), given, shown


@pytest.mark.parametrize(
    "source, target", [(24, 60), (30000 / 1001, 24), (12, 50), (60, 24), (25, 25), (10, 7), (24, 23.976)]
)
def test_frames_lie_at_their_exact_times(source, target):
    times = [number / source for number in range(40)]
    windows, given, shown = planned(times, target)
    assert len(shown) == int(times[-1] * target + 1e-6) + 1
    at = dict(zip(given, times)) | {place: number / target for number, place in enumerate(shown) if place not in given}
    for number, place in enumerate(shown):
        assert abs(at[place] - number / target) <= 0.0005  # given frames that are near enough are shown
    for before, after in itertools.pairwise(given):  # places of a grid that are not in demand lie evenly
        grid = after - before
        at |= {p: at[before] + (p - before) / grid / source for p in range(before + 1, after) if p not in at}
    known = set(given)
    for window in windows:
        assert 3 <= len(window.places) <= 9 and known >= {window.places[i] for i in window.given_indices}
        seconds = [at[place] for place in window.places]
        positions = window.positions or range(len(seconds))
        unit = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
        for position, second in zip(positions, seconds):
            assert abs(position * unit - (second - seconds[0])) <= 0.02 * unit
        known |= set(window.new_places)
    assert set(shown) <= known


@pytest.mark.parametrize(
    "parts, grid",
    [
        ([0.5], [0]), ([0.4, 0.8], [None, 0, None, 1]), ([0.25], [0, None, None]), ([0.235], [0, None, None]),
        ([0.03], None), ([0.97], None), ([1 / 3, 0.5], [None, 0, 1, None, None]), ([i / 9 for i in range(1, 9)], None),
    ],
)  # fmt: skip
def test_the_coarsest_grid_near_the_places_is_taken(parts, grid):
    assert near_grid(parts, 8) == grid


def test_a_long_gap_is_made_in_levels():
    windows, given, shown = planned([0, 1, 2], 20, window=5)
    assert len(shown) == 41 and shown == sorted(shown)
    known = set(given)
    for window in windows:
        assert known >= {window.places[i] for i in window.given_indices}
        known |= set(window.new_places)
    assert known == set(range(41))


def test_a_still_gap_and_a_cut_need_no_window():
    windows, given, shown = planned([0, 0.3, 0.6], 20, still=[1], cuts=[2])
    assert not windows and given == [0, 1, 2]
    assert shown == [0] * 6 + [1] * 3 + [2] * 4


def test_held_frames_are_one_and_pauses_stay():
    def kept(frames):
        return [(time, name, still) for time, name, still, _ in kept_frames((*one, False) for one in frames)]

    twos = [(number / 24, number // 2, number % 2 == 1) for number in range(8)]
    assert kept(twos) == [(0, 0, False), (2 / 24, 1, False), (4 / 24, 2, False), (6 / 24, 3, False), (7 / 24, 3, True)]
    pause = [(0, "a", False), (0.1, "b", False), *((0.1 + i / 10, "b", True) for i in range(1, 6)), (0.7, "c", False)]
    assert kept(pause) == [(0, "a", False), (0.1, "b", False), (0.6, "b", True), (0.7, "c", False)]
    backwards = [(0, "a", False), (0.1, "b", False), (0.1, "c", False), (0.05, "d", False), (0.2, "e", False)]
    assert [name for _, name, _ in kept(backwards)] == ["a", "b", "e"]


def test_a_frame_that_is_left_out_leaves_its_cut_to_the_next_one():
    frames = [(0.0, "a", False, False), (0.1, "b", False, False), (0.1, "c", False, True), (0.2, "d", False, False)]
    assert [(name, is_cut) for _, name, _, is_cut in kept_frames(frames)] == [("a", False), ("b", False), ("d", True)]


def test_a_whole_multiple_is_slow_motion(pipe):
    slow = pipe.slow_motion(clip(6), 3, 7, generator=seeded(), **STEPS).frames
    retimed = pipe.retime(clip(6), fps=30, source_fps=10, window=7, generator=seeded(), **STEPS).frames
    assert torch.equal(retimed, slow)


def test_the_same_rate_needs_no_sampling(pipe):
    counter = CallCounter(pipe)
    frames = pipe.retime(clip(5), fps=25, source_fps=25, **STEPS).frames
    assert frames.shape[1] == 5 and counter.counts["transformer"] == counter.counts["planner"] == 0


def test_positions_reach_both_models_and_change_the_frames(pipe):
    counter = CallCounter(pipe)
    times = [0, 0.1, 0.3, 0.4]
    made = pipe.retime(clip(4), fps=25, times=times, generator=seeded(), **STEPS).frames
    assert made.shape[1] == 11
    for name in ("planner", "window_state"):
        placed = [kwargs for _, kwargs, _ in counter.inputs[name] if "frame_positions" in kwargs]
        positions = placed[0]["frame_positions"]
        assert positions[0] == 0 and positions[-1] == len(positions) - 1 and (positions.diff() > 0).all()
    plain = pipe.retime(
        clip(4), fps=25, times=times, generator=seeded(), use_window_state=False, **STEPS
    ).frames  # the other form of the transformer places frames alike
    torch.testing.assert_close(plain, made, atol=1e-4, rtol=1e-4)


def test_a_stream_is_the_same_and_so_are_its_parts(pipe):
    frames, times = clip(9), [float(Fraction(number, 24)) for number in range(9)]
    options = {"fps": 60, "window": 5, **STEPS}
    whole = pipe.retime(frames, times=times, generator=seeded(), **options).frames[0]
    assert len(whole) == 21
    streamed = pipe.retime(iter(frames), times=iter(times), generator=seeded(), stream=True, **options)
    assert torch.equal(torch.stack(list(streamed)), whole)
    generator = seeded()
    first = pipe.retime(frames[:5], times=times[:5], generator=generator, **options).frames[0]
    rest = pipe.retime(
        frames[4:], times=times[4:], generator=generator, origin=0.0, first_frame=len(first), **options
    ).frames[0]
    assert torch.equal(torch.cat([first, rest]), whole)


def test_duplicates_cost_nothing_and_cuts_are_held(pipe):
    counter, frames = CallCounter(pipe), clip(4)
    twice = frames.repeat_interleave(2, dim=0)
    made = pipe.retime(twice, fps=24, source_fps=24, generator=seeded(), window=3, **STEPS).frames[0]
    assert len(made) == 8 and counter.counts["planner"] == 3
    made = pipe.retime(frames, fps=20, source_fps=10, cuts=[1, 2, 3], **STEPS).frames[0]
    assert counter.counts["planner"] == 3 and len(made) == 7
    assert torch.equal(made[1], made[2]) and torch.equal(made[3], made[4])


@pytest.mark.parametrize(
    "options, text",
    [
        ({"fps": 0, "source_fps": 10}, "`fps` is 0"),
        ({"fps": 25}, "give `source_fps`, the rate of `video`, or `times`"),
        ({"fps": 25, "source_fps": 10, "times": [0, 1, 2]}, "not both"),
        ({"fps": 25, "source_fps": float("nan")}, "`source_fps` is nan"),
        ({"fps": 25, "times": [0, 1]}, "`times` has 2 values, but `video` 3 frames"),
        ({"fps": 25, "times": iter([0, 1])}, "`times` has 2 values, but `video` more frames"),
        ({"fps": 25, "times": [0, "x", 2]}, "`times` holds 'x' for frame 1"),
        ({"fps": 25, "source_fps": 10, "window": 2}, "`window` is 2"),
        ({"fps": 25, "source_fps": 10, "first_frame": -1}, "`first_frame` is -1"),
    ],
)
def test_bad_rates_and_times_are_refused(pipe, options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        pipe.retime(clip(3), **options, **STEPS)
