"""Drives inside a model and in the simulator, by a driver who sees only the frames."""

import json

import pytest
import torch

from diffusers_mardini.video_io import read_video
from pipelines_tests.tiny_pipeline import SIZE, clip
from pipelines_tests.training.evaluation.test_counterfactuals import driven_pipeline
from training import drives
from training.data.recipes.car_racing import make_env
from training.data.recipes.car_racing_futures import Pace, drive_on
from training.evaluation.drives import (
    Chauffeur,
    Held,
    as_picture,
    curves_of,
    drive_inside,
    ground_speed,
    loses_road,
    road_in_sight,
)


GREY, GREEN = 0.4, torch.tensor([0.4, 0.8, 0.4])[:, None, None]


def road_frame(column: int, shift: int = 0) -> torch.Tensor:
    """Draw a road of 12 pixels from the car to `column` at the top, on grass with patches that lie `shift` pixels lower."""
    frame = GREEN.expand(3, 64, 64).clone()
    frame[1, [(row + shift) % 64 for row in (2, 7, 19, 26, 40, 51)], :20] = 0.95
    for row in range(64):
        middle = round(32 + (column - 32) * max(0, 53 - row) / 53)
        frame[:, row, max(0, middle - 6) : middle + 6] = GREY
    return frame


def test_the_driver_steers_to_the_road_and_holds_the_speed():
    def act(column, shift):
        return Chauffeur().act(road_frame(column), road_frame(column, shift))

    left, straight, right = (act(column, 2)[0] for column in (10, 32, 54))
    assert left < -0.05 < straight < 0.05 < right
    slow, fast = act(32, 1), act(32, 7)
    assert slow[1] > 0 == slow[2] and fast[1] == 0 < fast[2]


def test_the_ground_moves_down_as_fast_as_it_is_driven_over():
    assert ground_speed(road_frame(32), road_frame(32, 3)) == pytest.approx(3, abs=0.5)
    large = [torch.nn.functional.interpolate(f[None], scale_factor=2)[0] for f in (road_frame(32), road_frame(32, 3))]
    assert ground_speed(*large) == pytest.approx(3, abs=0.5)  # as of a frame 64 pixels high


def test_road_is_seen_where_it_is():
    grass = GREEN.expand(1, 3, 64, 64) * 255
    road = torch.stack([road_frame(32), road_frame(10)]) * 255
    assert road_in_sight(grass.to(torch.uint8)) == 0 and road_in_sight(road.to(torch.uint8)) == 1
    assert as_picture(road_frame(32)).shape == (96, 96, 3) and not as_picture(road_frame(32))[84:].any()


def test_a_driver_who_sees_no_road_for_a_while_has_lost_it():
    grass, road = ((frame * 255).to(torch.uint8) for frame in (GREEN.expand(3, 64, 64), road_frame(32)))
    assert loses_road(torch.stack([road, *[grass] * 3, road]), 3)
    assert not loses_road(torch.stack([grass, grass, road, grass, grass]), 3)


def test_curves_begin_with_the_step_from_the_given_frames():
    frames = (torch.rand(2, 5, 3, 16, 16) * 255).to(torch.uint8)
    curves = curves_of(frames[:, :2], frames[:, 2:])
    assert curves.motion.shape == curves.sharpness.shape == (2, 3) and curves.colours.shape == (2, 3, 6)
    expected = (frames[:, 2].float() - frames[:, 1].float()).abs().mean(dim=(1, 2, 3)) / 255
    torch.testing.assert_close(curves.motion[:, 0], expected)
    assert torch.equal(curves.kept[3], frames[:, 4])


@pytest.fixture
def told(monkeypatch):
    """A pipeline, and the frames and actions that its rollouts are asked for."""
    pipe, seen = driven_pipeline(), []
    begin = type(pipe).rollout

    def watched(self, *args, **kwargs):
        rollout = begin(self, *args, **kwargs)
        step = rollout.step
        rollout.step = lambda count, conditions: (seen.append((count, conditions["action"])), step(count, conditions))[
            1
        ]
        return rollout

    monkeypatch.setattr(type(pipe), "rollout", watched)
    return pipe, seen


ARGUMENTS = {"fps": 12.5, "each": 2, "window": 5, "overlap": 2, "num_inference_steps": 1}


def test_a_drive_inside_a_model_is_told_what_the_driver_does(told, monkeypatch):
    pipe, seen = told
    actions = iter([(0.1, 0.2, 0.0), (-0.5, 0.0, 0.0)] * 10)
    monkeypatch.setattr(Chauffeur, "act", lambda self, before, newest: next(actions))
    frames = drive_inside(pipe, clip(2, 2), torch.zeros(2, 2, 3), 5, seeds=[3, 4], **ARGUMENTS)
    assert frames.shape == (2, 5, 3, SIZE, SIZE) and frames.dtype == torch.uint8
    assert [count for count, _ in seen] == [2, 2, 2]
    torch.testing.assert_close(seen[0][1], torch.tensor([[[0.1, 0.2, 0.0]] * 2, [[-0.5, 0.0, 0.0]] * 2]))


def test_other_drivers_hold_what_they_hold(told):
    pipe, seen = told
    held = [(-0.35, 0.2, 0.0), (0.35, 0.2, 0.0)]
    drive_inside(
        pipe, clip(2, 2), torch.zeros(2, 2, 3), 3, seeds=[3, 3], drivers=[Held(one) for one in held], **ARGUMENTS
    )
    for _, action in seen:
        torch.testing.assert_close(action, torch.tensor(held)[:, None].expand(-1, 2, -1))


def test_the_driver_keeps_to_the_simulators_road():
    pytest.importorskip("gymnasium.envs.box2d")
    driver, pace = Chauffeur(), Pace(3, 40, 12.5, 64)
    found = drive_on(make_env(), 400_000, pace, lambda *two: driver.act(*(one.float() / 255 for one in two)), 4)
    assert found["given"].shape == (3, 3, 64, 64) and found["frames"].shape == (40, 3, 64, 64)
    assert found["given_actions"].shape == (3, 3)
    assert road_in_sight(found["frames"][-10:]) > 0.3
    assert not torch.equal(found["frames"][-1], found["frames"][-5])


def test_the_program_compares_drives_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium.envs.box2d")
    monkeypatch.setattr(drives, "SPANS", ((0, 0.48), (0.64, 0.96)))
    driven_pipeline().save_pretrained(tmp_path / "mine/pipeline")
    few = ["--drives", "2", "--seconds", "0.96", "--given", "2", "--window", "5", "--each", "2", "--batch-size", "1"]
    few += ["--steps", "1", "--size", str(SIZE), "--device", "cpu", "--dtype", "float32", "-o", str(tmp_path / "out")]
    drives.main([str(tmp_path / "mine/pipeline"), *few])
    folder = tmp_path / "out/mine"
    result = json.loads((folder / "drives.json").read_text())
    assert [(row["arm"], row["first"], row["last"]) for row in result["rows"]] == [
        ("simulator", 1, 6),
        ("simulator", 9, 12),
        ("inside the model", 1, 6),
        ("inside the model", 9, 12),
    ]
    assert len(result["tracks"]) == 2 and result["tracks"][0] >= 400_000
    assert all(0 <= row["road"] <= 1 and row["motion"] > 0 for row in result["rows"])
    assert "| inside the model | 0 to 0 |" in (folder / "drives.md").read_text()
    assert (folder / "drives.png").is_file() and len(read_video(folder / "drive.mp4")[0]) == 2 + 12
    monkeypatch.setattr(drives, "make_env", None)  # all is kept
    monkeypatch.setattr(drives, "drive_inside", None)
    drives.main([str(tmp_path / "mine/pipeline"), *few])
    monkeypatch.setattr(drives, "loses_road", lambda frames, within: True)
    monkeypatch.setattr(drives, "MOST_TRIES", 1)
    with pytest.raises(SystemExit, match="on 0 of 2 tracks, and 2 drives were asked for; lower --each"):
        drives.main([str(tmp_path / "mine/pipeline"), *few])
    with pytest.raises(SystemExit, match="--seconds is 0.1; give at least 0.48"):
        drives.main([str(tmp_path / "mine/pipeline"), *few, "--seconds", "0.1"])
