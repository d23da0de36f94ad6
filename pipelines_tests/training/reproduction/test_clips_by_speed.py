"""Thirds of recorded clips by the speed of their drivers."""

import pytest

from training.reproduction import clips_by_speed
from training.reproduction.clips_by_speed import SEEN, divide, motion_of


def rows(speeds):
    return [{"file_name": f"{i}.mp4", "driver": {"speed": speed}} for i, speed in enumerate(speeds)]


def test_all_kinds_have_equally_many_clips_and_the_mixed_ones_all_speeds():
    found = divide(rows([30, 10, 50, 20, 60, 40, 70, 15, 55, 65]))
    speeds = {kind: [row["driver"]["speed"] for row in each] for kind, each in found.items()}
    assert speeds["slow"] == [10, 15, 20] and speeds["fast"] == [60, 65, 70]
    assert speeds["mixed"] == [15, 40, 60]


def test_motion_is_measured_from_the_slowest_to_the_fastest_clip(monkeypatch, tmp_path):
    looked = []
    monkeypatch.setattr(clips_by_speed, "look_at_clip", lambda path, fps, frames: looked.append(path.name))
    assert motion_of(tmp_path, [{"file_name": f"{i}.mp4", "fps": 25, "num_frames": 64} for i in range(166)]) == {}
    assert len(looked) == SEEN and (looked[0], looked[-1]) == ("0.mp4", "165.mp4")


def test_clips_without_a_driver_are_refused():
    with pytest.raises(ValueError, match="2 clips, of which some may lack a driver's speed"):
        divide(rows([10, 20]))
    with pytest.raises(ValueError, match="record at least 3"):
        divide([{"file_name": "a.mp4"}] * 3)
