"""Test the hours that a run needs beside its steps: encoding by area, evaluations, start-up."""

from types import SimpleNamespace

import pytest

from training import overheads
from training.overheads import WindowTimes, encoding_seconds, evaluations, start_up_seconds


def _config(planner_downscale: int) -> SimpleNamespace:
    return SimpleNamespace(data=SimpleNamespace(planner_downscale=planner_downscale))


def test_a_size_that_was_timed_costs_its_reading_and_both_encodings():
    times = {(64, 64): WindowTimes(0, 0, encode=0.02, decode=0)}
    seconds = encoding_seconds(_config(2), {(64, 64): 100}, times, read=0.01)
    assert seconds == pytest.approx(100 * (0.01 + 0.02 * 1.25))


def test_a_size_that_was_not_timed_grows_with_the_area_from_the_nearest_one():
    times = {(32, 32): WindowTimes(0, 0, encode=7.0, decode=0), (64, 64): WindowTimes(0, 0, encode=0.02, decode=0)}
    seconds = encoding_seconds(_config(1), {(64, 128): 10}, times, read=0.0)
    assert seconds == pytest.approx(10 * 2 * 0.04)


def test_every_size_counts_and_without_times_nothing_does():
    times = {(64, 64): WindowTimes(0, 0, encode=0.02, decode=0)}
    alone = [encoding_seconds(_config(2), {size: 10}, times, 0.0) for size in ((64, 64), (128, 64))]
    assert encoding_seconds(_config(2), {(64, 64): 10, (128, 64): 10}, times, 0.0) == pytest.approx(sum(alone))
    assert encoding_seconds(_config(2), {(64, 64): 10}, {}, read=0.01) == 0.0


@pytest.mark.parametrize(
    "first, steps, every, expected",
    [(0, 10, 5, 2), (0, 11, 5, 3), (3, 2, 5, 1), (3, 1, 5, 1), (10, 4, 5, 1), (0, 4, 5, 1)],
)
def test_evaluations_are_those_of_a_stage_and_its_last_step(first, steps, every, expected):
    assert evaluations(first, steps, every) == expected


def test_start_up_is_a_multiple_of_what_importing_took(monkeypatch):
    monkeypatch.setattr(overheads, "_IMPORTED", 3.0)
    short = start_up_seconds()
    monkeypatch.setattr(overheads, "_IMPORTED", 6.0)
    assert 0 < short and start_up_seconds() == pytest.approx(2 * short)
