"""Keys become actions by the names of the channels, and actions change the frames."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mardini.app.driving import Drive, action_of, message_of, start_frames, told, why_not
from diffusers_mardini.app.limits import Limits
from diffusers_mardini.models.conditions import Condition
from pipelines_tests.app.worlds import driven_pipeline, pictures, plain_pipeline


CAR = Condition("action", 3, ("steering", "gas", "brake"), "", ((-1, 1), (0, 1), (0, 0.8)))


@pytest.fixture(scope="module")
def pipe():
    return driven_pipeline()


def drive(pipe, **kwargs):
    return Drive(pipe, pictures(4), Limits(recorded_frames=6), steps=1, **kwargs)


def decoded(frame):
    return np.asarray(Image.open(io.BytesIO(frame.jpeg))).astype(int)


@pytest.mark.parametrize(
    "keys, values",
    [
        ((), [0, 0, 0]),
        (("left",), [-1, 0, 0]),
        (("right", "up"), [1, 1, 0]),
        (("left", "right", "down"), [0, 0, 0.8]),
        (("up", "down"), [0, 1, 0.8]),
    ],
)
def test_keys_push_the_channels_of_their_names_to_the_ends_of_their_ranges(keys, values):
    assert action_of(keys, CAR) == values


def test_strength_is_a_share_of_the_range():
    assert action_of(("left", "up"), CAR, 0.25) == [-0.25, 0.25, 0]


def test_order_does_not_matter_but_names_do():
    swapped = Condition("action", 2, ("throttle", "angle"), "", ((-1, 1), (-30, 30)))
    assert action_of(("right", "down"), swapped) == [-1, 30]
    assert action_of(("right", "up"), Condition("action", 2)) == [1, 1]  # without names: steering, gas, brake
    assert action_of(("left",), Condition("action", 1, ("x",), "", ((2, 5),))) == [2]  # rest is the nearest to 0


def test_left_differs_from_right_and_the_same_keys_give_the_same_frames(pipe):
    left, again, right = (
        [decoded(frame) for frame in drive(pipe).step(keys)] for keys in (["left"], ["left"], ["right"])
    )
    assert all(np.array_equal(a, b) for a, b in zip(left, again))
    assert np.abs(left[-1] - right[-1]).mean() > 5


def test_a_drive_goes_on_and_starts_anew(pipe):
    one = drive(pipe)
    numbers = [frame.index for _ in range(3) for frame in one.step(["up"])]
    assert numbers == list(range(1, 13))
    one.restart()
    assert [frame.index for frame in one.step([])] == [1, 2, 3, 4]


def test_windows_of_a_drive_are_as_long_as_those_of_the_training(pipe):
    one, lengths, plan = drive(pipe), [], pipe.plan
    pipe.plan = lambda *args, **kwargs: lengths.append(args[2]) or plan(*args, **kwargs)
    try:
        for _ in range(3):
            one.step(["left"])
    finally:
        del pipe.plan
    assert pipe.trained_window.frames == 9 and lengths == [8, 9, 9]  # four frames are given, and then all are kept


def test_a_checkpoint_that_takes_the_time_between_frames_is_told_that_of_its_training():
    pipe = driven_pipeline()
    for model in (pipe.planner, pipe.transformer):
        model.add_conditions({"rate": 1})
    pipe.register_to_config(fps=12.5)
    one = drive(pipe)
    for _ in range(2):
        assert one._rollout._conditions["rate"].unique().tolist() == pytest.approx([0.08])
        one.step(["left"])
        one.restart()
    assert set(told(pipe, torch.zeros(2, 3), None)) == set(told(driven_pipeline(), torch.zeros(2, 3), 8)) == {"action"}


def test_one_picture_is_enough_to_start(pipe):
    assert len(Drive(pipe, pictures(1), Limits(), steps=1).step([])) == 4


def test_a_recording_holds_the_newest_frames_since_it_began(pipe):
    one = drive(pipe)
    one.step([])
    assert one.take_recording() == []
    one.recording = True
    for _ in range(2):
        one.step(["left"])
    frames = one.take_recording()
    assert len(frames) == 6 and frames[0].size == one.size
    assert not one.recording and one.take_recording() == []


def test_a_checkpoint_without_actions_is_named_with_what_it_takes(pipe):
    assert why_not(pipe, "driven") is None
    assert "still cannot be driven: it was trained without actions (its conditions: none)" in why_not(
        plain_pipeline(), "still"
    )


def test_a_clip_is_started_from_at_the_rate_of_the_training(pipe):
    clip = pictures(9)
    assert start_frames(clip, 20.0, pipe) == clip[::2]
    assert start_frames(clip[:1], None, pipe) == clip[:1]


def test_a_message_holds_its_facts_and_the_picture(pipe):
    frame = drive(pipe).first_frame()
    message = message_of(frame, {"key": 7})
    length = int.from_bytes(message[:4], "little")
    assert message[4 : 4 + length] == b'{"index": 0, "key": 7}' and message[4 + length :] == frame.jpeg
