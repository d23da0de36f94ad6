"""CarRacing clips: a driver that drives, the same for the same seed."""

import json
import math

import numpy as np
import pytest

from training.data import car_racing
from training.data.car_racing import PALETTES, Driver, _heading_error, record


def test_drivers_vary_by_seed_and_repeat_for_one():
    drivers = [Driver.draw(np.random.default_rng(seed)) for seed in range(20)]
    assert len({driver.speed for driver in drivers}) > 15
    assert drivers[3] == Driver.draw(np.random.default_rng(3))


def test_heading_is_measured_as_the_simulator_does():
    assert _heading_error(np.array([0.0, 1.0]), 0.0) == pytest.approx(0)  # straight ahead
    assert _heading_error(np.array([-1.0, 0.0]), 0.0) == pytest.approx(math.pi / 2)  # to the left is positive
    assert _heading_error(np.array([0.0, 1.0]), 2 * math.pi + 0.1) == pytest.approx(-0.1)


def test_one_seed_gives_one_clip(tmp_path, monkeypatch):
    pytest.importorskip("Box2D", reason="needs the extra `sim`")
    monkeypatch.setattr(car_racing, "WARM_UP_STEPS", 20)
    written = []  # what is driven is compared before H.264: x264 does not give the same bytes every time
    monkeypatch.setattr(car_racing, "write_video", lambda path, frames, *_, **__: written.append(frames))
    for folder in ("a", "b"):
        record(tmp_path / folder, clips=1, first_seed=7, num_frames=4, workers=1)
    assert written[0].shape == (4, 84, 96, 3) and np.array_equal(*written)
    assert (written[0][0] != written[0][-1]).any()
    assert len({(tmp_path / folder / "metadata.jsonl").read_text() for folder in ("a", "b")}) == 1
    (row,) = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert (row["seed"], row["fps"], row["num_frames"], row["width"], row["height"]) == (7, 25, 4, 96, 84)
    assert row["driver"]["speed"] > 0 and row["license"] and row["source"]
    with pytest.raises(SystemExit, match="already holds"):
        record(tmp_path / "a", clips=1, first_seed=7, num_frames=4, workers=1)


def test_a_palette_changes_the_colours_and_not_the_drive(tmp_path, monkeypatch):
    pytest.importorskip("Box2D", reason="needs the extra `sim`")
    monkeypatch.setattr(car_racing, "WARM_UP_STEPS", 20)
    written = []
    monkeypatch.setattr(car_racing, "write_video", lambda path, frames, *_, **__: written.append(frames))
    for palette in PALETTES:
        monkeypatch.setattr(car_racing, "_ENV", None)
        (row,) = record(tmp_path / palette, clips=1, first_seed=7, num_frames=2, workers=1, palette=palette)
        assert row["palette"] == palette

    def share(frames: np.ndarray, palette: str) -> float:
        """Of the pixels that have the palette's colour of the ground; the simulator's smoothing rounds by a few levels."""
        distance = np.abs(frames.astype(int) - PALETTES[palette]["bg_color"]).max(axis=-1)
        return (distance <= 5).mean()

    for frames, palette in zip(written, PALETTES, strict=True):
        assert share(frames, palette) > 0.3 and all(share(frames, p) < 0.05 for p in PALETTES if p != palette)
    drivers = [json.loads((tmp_path / palette / "metadata.jsonl").read_text())["driver"] for palette in PALETTES]
    assert drivers[0] == drivers[1]


def test_seeds_that_no_driver_masters_are_left_out_aloud(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(car_racing, "_make_env", lambda palette: object())
    monkeypatch.setattr(car_racing, "_ENV", None)
    monkeypatch.setattr(car_racing, "_attempt", lambda *_: None)
    assert record(tmp_path, clips=2, first_seed=0, num_frames=4, workers=1) == []
    printed = capsys.readouterr().out
    assert "left out carracing_000001.mp4: seed 1: none of 12 drivers" in printed and "(2 left out)" in printed
