"""Rollouts that obey their action, that obey none, and how the view turns."""

import json
import math

import numpy as np
import pytest
import torch

from pipelines_tests.tiny_pipeline import SIZE, clip, tiny_pipeline
from training import counterfactuals
from training.data.recipes.car_racing import ACTION_NAMES, make_env
from training.data.recipes.car_racing_futures import HELD, Pace, futures_of
from training.evaluation.counterfactuals import (
    action_condition,
    correlation,
    dissimilarity,
    distances,
    mean_squared_error,
    obedience,
    obeyed,
    sample_futures,
    turns_of,
)


STATES, FRAMES = 30, 8


@pytest.fixture(scope="module")
def futures() -> torch.Tensor:
    """Three futures of each state, which part slowly from the same frame."""
    start, ends = torch.rand(STATES, 1, 1, 3, 16, 16), torch.rand(STATES, 3, 1, 3, 16, 16)
    return torch.lerp(start, ends, torch.linspace(0.1, 1, FRAMES).view(1, 1, -1, 1, 1, 1))


def shares(rollouts, futures, horizons=(4, 8)) -> list[float]:
    found = {"MSE": distances(rollouts, futures, mean_squared_error)}
    return [row["obeyed"] for row in obedience(found, rollouts, horizons, list(HELD))]


def test_a_perfect_model_obeys_always(futures):
    assert shares(futures, futures) == [1.0, 1.0]
    few = futures[:4]
    assert obeyed(distances(few, few, dissimilarity), few, 8).all()


def test_a_blind_model_obeys_by_chance(futures):
    torch.manual_seed(0)
    blind = futures[:, 1:2] + 0.01 * torch.randn(STATES, 3, *futures.shape[2:])
    assert all(0.2 < share < 0.45 for share in shares(blind, futures))


def test_equal_rollouts_obey_nothing_and_swapped_ones_neither(futures):
    assert shares(futures[:, 1:2].expand_as(futures), futures) == [0.0, 0.0]
    assert shares(futures.roll(1, dims=1), futures) == [0.0, 0.0]


def test_shares_are_reported_by_action_and_horizon_with_intervals(futures):
    rollouts = futures.clone()
    rollouts[:, 0, 4:] = futures[:, 2, 4:] + 0.001  # left turns right after four frames
    found = {"MSE": distances(rollouts, futures, mean_squared_error)}
    early, late = obedience(found, rollouts, (4, 8), list(HELD))
    assert early["obeyed"] == 1 and late["frames"] == 8 and late["distance"] == "MSE"
    assert late["by_action"]["left"] < 0.1 and late["by_action"]["right"] == 1
    assert late["interval"][0] <= late["obeyed"] <= late["interval"][1] < 1


def turned(picture: np.ndarray, degrees: float, shift: float) -> np.ndarray:
    import cv2

    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((0.5 * width, 0.8 * height), degrees, 1)
    matrix[1, 2] += shift
    return cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def test_turns_are_measured_from_pictures():
    import cv2

    noise = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
    picture = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    # A car that turns to the left sees the world turn to the right.
    angles = [0, -3, 2, -10, 12]
    frames = torch.from_numpy(np.stack([turned(picture, a, 0.5 * i) for i, a in enumerate(np.cumsum(angles))]))
    expected = torch.tensor([math.radians(-a) for a in angles[1:]])
    torch.testing.assert_close(turns_of(frames.permute(0, 3, 1, 2)), expected, rtol=0.1, atol=0.02)


def test_pictures_without_anything_in_them_are_counted_as_not_measured():
    measured = turns_of(torch.zeros(3, 3, 32, 32))
    assert measured.isnan().all()
    facts = correlation(torch.tensor([0.1, math.nan, 0.3, 0.2]), torch.tensor([0.2, 5.0, 0.6, 0.4]))
    assert facts["not_measured"] == 0.25 and facts["correlation"] == pytest.approx(1)
    assert facts["slope"] == pytest.approx(0.5)
    assert math.isnan(correlation(measured, torch.zeros(2))["correlation"])


def driven_pipeline(names=ACTION_NAMES):
    pipe = tiny_pipeline()
    for model in (pipe.planner, pipe.transformer):
        model.add_conditions({"action": len(names), "rate": 1}, {"action": {"names": list(names)}})
        for parameter in model.condition_embedder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return pipe


def test_rollouts_of_a_state_differ_by_their_action_alone():
    pipe, held = driven_pipeline(), torch.tensor(list(HELD.values()))
    arguments = {"fps": 12.5, "window": 5, "num_inference_steps": 1}
    given, actions = clip(2, 2), torch.zeros(2, 2, 3)
    frames = sample_futures(pipe, given, actions, held, 4, seeds=[3, 4], **arguments)
    assert frames.shape == (2, 3, 4, 3, SIZE, SIZE)
    same = sample_futures(pipe, given, actions, held[[1, 1, 1]], 4, seeds=[3, 4], **arguments)
    torch.testing.assert_close(same, frames[:, 1:2].expand_as(frames), rtol=1e-4, atol=1e-4)
    assert (frames[:, 0] - frames[:, 2]).abs().max() > 0.01
    alone = sample_futures(pipe, given[1:], actions[1:], held, 4, seeds=[4], **arguments)
    torch.testing.assert_close(frames[1:], alone, rtol=1e-3, atol=1e-3)


def test_channels_are_found_by_their_names():
    assert action_condition(driven_pipeline(("gas", "steering"))) == "action"
    frames = sample_futures(
        driven_pipeline(("gas", "steering")), clip(2, 1), torch.zeros(1, 2, 3), torch.tensor(list(HELD.values())), 2,
        fps=25, seeds=[0], window=5, num_inference_steps=1,
    )  # fmt: skip
    assert frames.shape[:3] == (1, 3, 2)
    with pytest.raises(ValueError, match="takes no conditions; driving needs one that takes .* steering, gas, brake"):
        action_condition(tiny_pipeline())


def test_a_pace_that_the_simulator_cannot_make_is_refused():
    assert Pace(5, 16, 12.5, 64).steps == 4
    with pytest.raises(ValueError, match="fps is 12, but the simulator makes 50 steps a second"):
        Pace(5, 16, 12, 64).steps  # noqa: B018


def test_futures_part_from_one_state_and_turn_as_they_are_steered():
    pytest.importorskip("gymnasium.envs.box2d")
    pace = Pace(3, 6, 12.5, 64)
    env = make_env()
    found = futures_of(env, 400_000, pace, list(HELD.values()))
    assert found["given"].shape == (3, 3, 64, 64) and found["futures"].shape == (3, 6, 3, 64, 64)
    left, straight, right = found["turns"].sum(dim=1).tolist()
    assert left > 0.3 > abs(straight) and right < -0.3
    again = futures_of(env, 400_000, pace, list(HELD.values()))
    assert all(torch.equal(found[name], again[name]) for name in found)
    measured = torch.stack([turns_of(torch.cat([found["given"][-1:], one]) / 255) for one in found["futures"]])
    assert correlation(measured.flatten(), found["turns"].flatten())["correlation"] > 0.95


def test_the_program_measures_a_checkpoint_and_keeps_the_true_futures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium.envs.box2d")
    driven_pipeline().save_pretrained(tmp_path / "mine/pipeline")
    few = ["--states", "2", "--frames", "4", "--horizons", "2", "4", "16", "--given", "2", "--window", "4"]
    few += ["--steps", "1", "--size", str(SIZE), "--device", "cpu", "--dtype", "float32", "-o", str(tmp_path / "out")]
    counterfactuals.main([str(tmp_path / "mine/pipeline"), *few])
    result = json.loads((tmp_path / "out/mine/counterfactuals.json").read_text())
    assert {row["frames"] for row in result["obedience"]} == {2, 4} and result["chance"] == pytest.approx(1 / 3)
    assert {"1 - SSIM", "MSE"} <= {row["distance"] for row in result["obedience"]}
    assert set(result["turns"]) == {"rollouts", "true frames"}
    assert "| MSE | 4 |" in (tmp_path / "out/mine/counterfactuals.md").read_text()
    assert (tmp_path / "out/mine/counterfactuals.png").is_file()
    # Another checkpoint needs no simulator.
    monkeypatch.setattr(counterfactuals, "make_env", None)
    driven_pipeline().save_pretrained(tmp_path / "other")
    counterfactuals.main([str(tmp_path / "other"), *few])
    assert (tmp_path / "out/other/counterfactuals.json").is_file()
    # Longer ones are sampled anew.
    monkeypatch.undo()
    counterfactuals.main([str(tmp_path / "other"), *few, "--frames", "6"])
    assert json.loads((tmp_path / "out/other/counterfactuals.json").read_text())["frames"] == 6
    with pytest.raises(SystemExit, match="--window is 2 and --given 2, so that a window adds no frame"):
        counterfactuals.main([str(tmp_path / "other"), *few, "--window", "2"])
