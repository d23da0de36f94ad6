"""Conditions of streams: rows of the frames of the result, for windows whose frames lie anywhere between them."""

import pytest
import torch

from diffusers_mardini.models.conditions import Condition
from diffusers_mardini.pipelines.conditions import conditions_at, conditions_of_window
from diffusers_mardini.pipelines.window_plans import Window
from pipelines_tests.pipelines.test_conditions import told_pipeline
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded


KNOWN = {"action": Condition("action", 1), "rate": Condition("rate", 1, interval="sum")}
FEW = {"num_inference_steps": 2, "output_type": "latent"}


def rows(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_frames_between_weigh_the_rows_by_their_share_of_the_interval():
    told = {"action": rows([0, 10, 20, 30]), "rate": rows([0.04] * 4)}
    window = Window([7, 8, 9, 10], [0, 3], numbers=(0.5, 1.0, 2.25, 3.0))
    cut = conditions_of_window(told, KNOWN, window)
    # 0 to 0.5 and 0.5 to 1: row 1; 1 to 2.25: all of row 2 and a quarter of row 3.
    torch.testing.assert_close(cut["action"].flatten(), torch.tensor([10, 10, (20 + 0.25 * 30) / 1.25, 30]))
    torch.testing.assert_close(cut["rate"].flatten(), 0.04 * torch.tensor([0.5, 0.5, 1.25, 0.75]))


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (2, 4, 6, 8), (1, 2, 4, 9), (0, 3, 4, 5)])
def test_at_whole_frames_they_are_those_of_the_other_methods(numbers):
    values = torch.rand(1, 10, 1, generator=seeded())
    values[:, 4:6] = torch.nan
    told = {"action": values, "rate": values}
    between = conditions_of_window(told, KNOWN, Window([0, 1, 2, 3], [0, 3], numbers=tuple(map(float, numbers))))
    for name, expected in conditions_at(told, KNOWN, list(numbers)).items():
        torch.testing.assert_close(between[name], expected, equal_nan=True)


@pytest.mark.parametrize("given", [2, 5])
def test_a_stream_of_slow_motion_has_the_frames_of_the_whole_call(given):
    pipe = told_pipeline()
    conditions = {"action": torch.rand((given - 1) * 3 + 1, 2, generator=seeded())}
    arguments = {"factor": 3, "window": 9, "conditions": conditions, **FEW}
    whole = pipe.slow_motion(clip(given), generator=seeded(), **arguments).frames[0]
    for video in (clip(given), iter(clip(given))):
        stream = pipe.slow_motion(video, generator=seeded(), stream=True, **arguments)
        assert torch.equal(torch.stack(list(stream)), whole)
    plain = pipe.slow_motion(clip(given), 3, window=9, generator=seeded(), **FEW).frames[0]
    assert not torch.allclose(plain, whole, atol=1e-2)


def test_a_new_rate_tells_windows_what_holds_at_their_times():
    """From 4 to 10 frames a second: a window of one gap has frames at 0, 0.1, 0.2 and 0.25 s."""
    pipe = told_pipeline()
    counter = CallCounter(pipe)
    actions = torch.linspace(0, 1, 12).view(6, 2)
    arguments = {"fps": 10, "source_fps": 4, "window": 4, "conditions": {"action": actions}, **FEW}
    whole = pipe.retime(clip(3), generator=seeded(), **arguments).frames
    told = [kwargs["conditions"]["action"][0] for _, kwargs, _ in counter.inputs["planner"]]
    assert len(told) == 2 and whole.shape[1] == 6
    last = torch.stack([actions[3], actions[4], actions[5]])  # 0.25 to 0.3, to 0.4, to 0.5 s
    torch.testing.assert_close(told[1][1:], last)
    stream = pipe.retime(iter(clip(3)), generator=seeded(), stream=True, **arguments)
    assert torch.equal(torch.stack(list(stream))[None], whole)


def test_a_stream_that_outgrows_its_rows_says_so():
    pipe = told_pipeline()
    for stream in (
        pipe.slow_motion(iter(clip(5)), 2, window=5, stream=True, conditions={"rate": [1] * 6}, **FEW),
        pipe.retime(iter(clip(5)), 20, 10, window=5, stream=True, conditions={"rate": [1] * 6}, **FEW),
    ):
        with pytest.raises(
            ValueError, match="`conditions` has 6 rows, but the result goes on to frame 8, counted from"
        ):
            list(stream)
    with pytest.raises(ValueError, match=r"has shape \(6, 1\); give \(9, 1\), a row for each frame"):
        pipe.slow_motion(clip(5), 2, window=5, stream=True, conditions={"rate": [1] * 6}, **FEW)
    with pytest.raises(ValueError, match="has speed, but this pipeline takes action"):
        pipe.retime(clip(5), 20, 10, conditions={"speed": [1]}, **FEW)
