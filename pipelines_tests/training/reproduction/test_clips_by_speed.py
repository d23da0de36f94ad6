"""Thirds of recorded clips by the speed of their drivers."""

import json
from types import SimpleNamespace

import pytest

from training.own_clips.reading import DISTANCES
from training.reproduction import clips_by_speed
from training.reproduction.clips_by_speed import divide, main


def rows(speeds):
    return [{"file_name": f"{i}.mp4", "driver": {"speed": speed}} for i, speed in enumerate(speeds)]


def test_all_kinds_have_equally_many_clips_and_the_mixed_ones_all_speeds():
    found = divide(rows([30, 10, 50, 20, 60, 40, 70, 15, 55, 65]))
    speeds = {kind: [row["driver"]["speed"] for row in each] for kind, each in found.items()}
    assert speeds["slow"] == [10, 15, 20] and speeds["fast"] == [60, 65, 70]
    assert speeds["mixed"] == [15, 40, 60]


def test_lists_have_the_motion_of_their_clips_and_held_out_ones_each_their_own(monkeypatch, tmp_path):
    def looked(path, fps, frames):
        return SimpleNamespace(motion=dict.fromkeys(DISTANCES, float(path.stem)))

    monkeypatch.setattr(clips_by_speed, "look_at_clip", looked)
    for side, first in (("train", 0), ("val", 100)):
        (tmp_path / side).mkdir()
        found = [
            {"file_name": f"{first + i}.mp4", "fps": 25, "num_frames": 64, "driver": {"speed": i}} for i in range(9)
        ]
        (tmp_path / side / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    main([str(tmp_path / "train"), str(tmp_path / "val"), "-o", str(tmp_path / "lists")])
    motion = json.loads((tmp_path / "lists" / "motion.json").read_text())
    assert motion["clips"] == {f"{100 + i}.mp4": 100.0 + i for i in range(9)}
    assert motion["lists"]["train-slow"]["0.1"] == pytest.approx([0.2, 1.0, 1.8])
    assert motion["lists"]["val-fast"]["0.1"] == pytest.approx([106.2, 107.0, 107.8])
    assert len((tmp_path / "lists" / "val-mixed.jsonl").read_text().splitlines()) == 3


def test_clips_without_a_driver_are_refused():
    with pytest.raises(ValueError, match="2 clips, of which some may lack a driver's speed"):
        divide(rows([10, 20]))
    with pytest.raises(ValueError, match="record at least 3"):
        divide([{"file_name": "a.mp4"}] * 3)
