"""CarRacing clips: drivers that drive, equal for equal seeds, and their actions beside the clip."""

import csv
import json
import math

import numpy as np
import pytest

from training.data.recipes import car_racing
from training.data.recipes.car_racing import ACTION_NAMES, PALETTES, record
from training.data.recipes.car_racing_drivers import Driver, Event, Road, VariedDriver, heading_error
from training.data.recipes.car_racing_pixel_driver import PixelDriver, PixelHands


class Hull:
    """A car as drivers see it."""

    def __init__(self, position=(0.0, 0.0), velocity=(0.0, 30.0), angle=0.0):
        self.position, self.linearVelocity, self.angle = position, velocity, angle


def straight_road() -> Road:
    """A closed track whose first 100 tiles lie on the y axis, 3.5 apart."""
    return Road([(0, 0, 0.0, 3.5 * i) for i in range(100)] + [(0, 0, 50.0, 3.5 * i) for i in range(100, 0, -1)], 0)


@pytest.mark.parametrize("kind", [Driver, VariedDriver, PixelDriver])
def test_drivers_vary_by_seed_and_repeat_for_one(kind):
    drivers = [kind.draw(np.random.default_rng(seed)) for seed in range(20)]
    assert len({driver.start for driver in drivers}) > 15
    assert drivers[3] == kind.draw(np.random.default_rng(3))


def test_varied_drivers_follow_swerve_and_leave_the_road_in_equal_shares():
    drivers = [VariedDriver.draw(np.random.default_rng(seed)) for seed in range(600)]
    follows = sum(not driver.events for driver in drivers)
    wild = sum(max((e.last - e.first for e in driver.events), default=0) > 60 for driver in drivers)
    assert 150 < follows < 250 and 150 < wild < 250
    assert 60 < sum(driver.standing for driver in drivers) < 140
    assert min(driver.speed for driver in drivers) < 20 and max(driver.speed for driver in drivers) > 70


def test_an_event_holds_the_wheel_and_then_the_road_is_followed_again():
    driver = VariedDriver(20, 1.0, 40, 10, 0, 0, 0, events=(Event(70, 80, -0.7, 0.2, 0.0),))
    hands = driver.at_wheel(straight_road(), np.random.default_rng(0))
    assert hands.act(Hull(), 75) == (-0.7, 0.2, 0.0)
    steer, gas, brake = hands.act(Hull(position=(3.0, 0.0)), 80)
    assert steer < 0 and gas > 0 and brake == 0  # to the left, back to the middle


def test_a_varied_driver_far_from_the_road_turns_back_and_a_careful_one_gives_up():
    lost = Hull(position=(20.0, 40.0), angle=-math.pi / 2)  # on the grass to the right, looking away from the road
    varied = VariedDriver(20, 1.0, 40, 10, 0, 0, 0).at_wheel(straight_road(), np.random.default_rng(0))
    assert varied.act(lost, 100)[0] == -1.0
    assert Driver(20, 1.0, 40, 10, 0, 0, 0).at_wheel(straight_road(), np.random.default_rng(0)).act(lost, 100) is None


@pytest.mark.parametrize(("column", "sign"), [(20, -1), (76, 1), (48, 0)])
def test_the_pixel_driver_steers_at_the_grey_in_the_picture(column, sign):
    hands = PixelHands(PixelDriver(0, 1.0, 0.1, 50, 25, 4))
    hands.picture = np.full((96, 96, 3), (102, 204, 102), np.uint8)
    hands.picture[:70, column - 6 : column + 6] = 102
    steer, _, _ = hands.act(Hull(), 100)
    assert np.sign(round(steer, 1)) == sign


def test_the_pixel_driver_gives_up_where_it_sees_no_road():
    hands = PixelHands(PixelDriver(0, 1.0, 0.1, 50, 25, 4))
    hands.picture = np.full((96, 96, 3), (102, 204, 102), np.uint8)
    assert [hands.act(Hull(), 100 + step) is None for step in range(27)] == [False] * 25 + [True] * 2


def test_actions_lie_beside_the_clip_as_means_over_the_interval_that_leads_to_a_frame(tmp_path, monkeypatch):
    pytest.importorskip("Box2D", reason="needs the extra `sim`")
    monkeypatch.setattr(car_racing, "WARM_UP_STEPS", 20)
    done = []
    act = car_racing.Driver.at_wheel

    def recorded(driver, road, rng):
        hands = act(driver, road, rng)
        real = hands.act
        hands.act = lambda hull, step: done.append(real(hull, step)) or done[-1]
        return hands

    monkeypatch.setattr(car_racing.Driver, "at_wheel", recorded)
    record(tmp_path, clips=1, first_seed=7, num_frames=4, workers=1)
    with open(tmp_path / "carracing_000007.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ACTION_NAMES and len(rows) == 4
    steering = [float(row["steering"]) for row in rows]
    # Frame k shows what step 20 + 2 k led to; its interval holds that step and the one before.
    assert steering == pytest.approx([np.mean([done[19 + 2 * k][0], done[20 + 2 * k][0]]) for k in range(4)], abs=1e-3)


def test_heading_is_measured_as_the_simulator_does():
    assert heading_error(np.array([0.0, 1.0]), 0.0) == pytest.approx(0)  # straight ahead
    assert heading_error(np.array([-1.0, 0.0]), 0.0) == pytest.approx(math.pi / 2)  # to the left is positive
    assert heading_error(np.array([0.0, 1.0]), 2 * math.pi + 0.1) == pytest.approx(-0.1)


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
    (row,) = record(tmp_path / "finer", clips=1, first_seed=7, num_frames=7, workers=1, fps=50)
    assert row["fps"] == 50 and np.array_equal(written[2][::2], written[0])  # the same course
    assert (written[2][1] != written[2][0]).any()


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
    monkeypatch.setattr(car_racing, "make_env", lambda palette: object())
    monkeypatch.setattr(car_racing, "_ENV", None)
    monkeypatch.setattr(car_racing, "_attempt", lambda *_: None)
    assert record(tmp_path, clips=2, first_seed=0, num_frames=4, workers=1) == []
    printed = capsys.readouterr().out
    assert "left out carracing_000001.mp4: seed 1: none of 12 drivers" in printed and "(2 left out)" in printed
