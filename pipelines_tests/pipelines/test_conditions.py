"""Conditions given by users reach both models, window by window, or are refused before any model runs."""

import numpy as np
import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.models.conditions import read_config
from diffusers_mardini.pipelines.conditions import conditions_at
from pipelines_tests.pipelines.test_window_state import TASKS, assert_same_trajectory, trajectory
from pipelines_tests.test_caches import faster
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


CONDITIONS = {"action": 2, "rate": 1}
INFO = {
    "action": {"names": ["steering", "gas"], "range": [[-1, 1], [0, 1]], "unit": "shares"},
    "rate": {"range": [0, 4], "unit": "s", "interval": "sum"},
}
ACTION = torch.linspace(0, 1, 10).reshape(5, 2)


def told_pipeline(parts=("planner", "transformer")) -> MarDiniPipeline:
    pipe = tiny_pipeline()
    for part in parts:
        model = getattr(pipe, part)
        model.add_conditions(CONDITIONS, INFO)
        for parameter in model.condition_embedder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return pipe


def run(pipe, **kwargs) -> torch.Tensor:
    arguments = {"num_frames": 5, "num_inference_steps": 2, "output_type": "latent", "generator": seeded()} | kwargs
    if "video" not in kwargs:
        arguments["video"] = clip(2)
    return pipe(**arguments).frames


def told_planner(counter: CallCounter, name: str) -> list[torch.Tensor]:
    """Return the conditions of each call of the planner."""
    return [kwargs["conditions"][name] for _, kwargs, _ in counter.inputs["planner"]]


@pytest.mark.parametrize("parts", [("planner",), ("transformer",), ("planner", "transformer")])
def test_either_model_may_take_them(parts):
    pipe = told_pipeline(parts)
    assert (
        list(pipe.conditions) == ["action", "rate"] and str(pipe.conditions["rate"]) == "rate: 1 channel, 0 to 4, in s"
    )
    assert not torch.allclose(run(pipe), run(pipe, conditions={"action": ACTION}), atol=1e-2)
    counter = CallCounter(pipe)
    run(pipe, conditions={"action": ACTION})
    told = {
        "planner": "conditions" in counter.inputs["planner"][0][1],
        "transformer": "conditions" in counter.inputs["window_state"][0][1],
    }
    assert told == {part: part in parts for part in told}


FORMS = {
    "list": ACTION.tolist(),
    "float64": ACTION.double(),
    "numpy": ACTION.numpy(),
    "a row for each video": ACTION[None],
    "a tensor that learns": ACTION.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_say_the_same(form):
    pipe = told_pipeline()
    expected = run(pipe, conditions={"action": ACTION, "rate": torch.ones(5, 1)})
    assert torch.equal(run(pipe, conditions={"action": FORMS[form], "rate": [1, 1, 1, 1, 1]}), expected)


def test_nothing_given_none_and_nan_are_absent():
    pipe = told_pipeline()
    expected = run(pipe)
    for conditions in ({}, {"action": None}, {"action": np.full((5, 2), np.nan), "rate": None}):
        assert torch.equal(run(pipe, conditions=conditions), expected)


def test_videos_of_a_batch_are_told_each_for_itself():
    pipe, noise = told_pipeline(), torch.randn(4, 5, 16, 4, 4, generator=seeded())
    both = torch.stack([ACTION, ACTION.flip(0)])
    video = clip(2, 2)
    result = run(pipe, video=video, conditions={"action": both}, num_videos_per_prompt=2, latents=noise)
    for row in range(2):
        alone = run(
            pipe, video=video[row], conditions={"action": both[row]}, num_videos_per_prompt=2,
            latents=noise[2 * row : 2 * row + 2],
        )  # fmt: skip
        torch.testing.assert_close(result[2 * row : 2 * row + 2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["temporal", "spatiotemporal"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_every_step_of_the_fast_path_is_that_of_the_plain_one(kind, task, guidance_scale):
    pipe, conditions = told_pipeline(), {"action": ACTION.clone(), "rate": torch.ones(5, 1)}
    conditions["action"][3] = torch.nan
    pipe.transformer.set_temporal_attention(kind)
    assert_same_trajectory(pipe, **TASKS[task], guidance_scale=guidance_scale, conditions=conditions)


def test_guidance_weighs_plan_and_conditions_together():
    pipe = told_pipeline()
    conditions = {"action": ACTION}
    assert torch.equal(run(pipe, guidance_scale=0.0, conditions=conditions), run(pipe, guidance_scale=0.0))
    counter = CallCounter(pipe)
    run(pipe, guidance_scale=2.0, conditions=conditions)
    (_, told, _), (_, unconditional, _) = counter.inputs["window_state"]
    assert torch.equal(told["conditions"]["action"][0], ACTION)
    assert "conditions" not in unconditional and unconditional["planning_signals"] is None


@pytest.mark.parametrize("use_window_state", [True, False])
def test_branches_in_one_call_are_told_what_they_are_in_two(use_window_state):
    pipe = told_pipeline()
    arguments = {"guidance_scale": 2.0, "conditions": {"action": ACTION}, "use_window_state": use_window_state}
    expected = run(pipe, **arguments)
    never = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-2, -1),
        current_timestep_callback=lambda: pipe.current_timestep,
    )  # fmt: skip
    pipe.transformer.enable_cache(never)
    torch.testing.assert_close(run(pipe, **arguments), expected, rtol=1e-3, atol=1e-3)


def test_faster_cache_takes_conditions_of_the_branches_apart():
    results = []
    for use_window_state in (False, True):
        pipe = told_pipeline()
        pipe.transformer.enable_cache(faster(pipe, unconditional_batch_skip_range=2))
        results.append(
            trajectory(
                pipe, use_window_state, **TASKS["expansion"], num_inference_steps=10, guidance_scale=2.0,
                conditions={"action": ACTION},
            )
        )  # fmt: skip
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_a_saved_pipeline_tells_its_conditions(tmp_path):
    pipe = told_pipeline()
    pipe.save_pretrained(tmp_path)
    loaded = MarDiniPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.conditions == pipe.conditions
    conditions = {"action": ACTION}
    assert torch.equal(run(loaded, conditions=conditions), run(pipe, conditions=conditions))


AS_IT_IS = r"It is action: 2 channels \(steering -1 to 1, gas 0 to 1\), in shares"
ERRORS = {
    "no dictionary": (ACTION, r"is of type Tensor; give a dictionary.*each of the 5 frames"),
    "an unknown name": ({"motion": 1}, r"has motion, but this pipeline takes action: 2 channels \(steer.*; rate: 1"),
    "other channels": ({"action": torch.zeros(5, 3)}, rf"has shape \(5, 3\); give \(5, 2\), a row.*{AS_IT_IS}"),
    "too few frames": ({"action": torch.zeros(4, 2)}, r"has shape \(4, 2\); give \(5, 2\), a row"),
    "another batch": ({"action": torch.zeros(2, 5, 2)}, r"\(2, 5, 2\); give \(5, 2\), .* or \(1, 5, 2\), a table"),
    "a number": ({"rate": 0.1}, r"`conditions\['rate'\]` has shape \(\).*It is rate: 1 channel, 0 to 4, in s"),
    "beyond the range": (
        {"action": [[0, 0], [0, 0], [0, 1.5], [0, 0], [0, 0]]},
        rf"is 1.5 for gas in frame 2; give values within the range that the checkpoint learned, .* {AS_IT_IS}",
    ),
    "below the range": ({"rate": [0, 0, 0, 0, -1]}, "is -1 for channel 0 in frame 4; give values within"),
    "absent in part": ({"action": [[0.0, float("nan")]] * 5}, "is nan for gas in frame 0; give values in all"),
    "endless": ({"action": [[float("inf"), 0.0]] * 5}, "is inf for steering in frame 0; give finite numbers"),
    "words": ({"action": ["left"] * 5}, rf"\(list\) is no array of numbers; give a list of rows.*{AS_IT_IS}"),
    "rows of other lengths": ({"action": [[0, 0], [0]] * 2}, "is no array of numbers"),
    "holes": ({"action": [[0, 0], None, [0, 0], [0, 0], [0, 0]]}, "with NaN where a frame has no values"),
    "complex numbers": ({"action": torch.zeros(5, 2, dtype=torch.complex64)}, "is no array of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_told_is_refused_before_any_model_runs(name):
    pipe = told_pipeline()
    counter = CallCounter(pipe)
    conditions, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        run(pipe, conditions=conditions)
    assert not any(counter.counts.values())


def test_a_pipeline_without_conditions_says_so():
    pipe = tiny_pipeline()
    assert pipe.conditions == {}
    with pytest.raises(ValueError, match="has action, but the models of this pipeline take none; load a checkpoint"):
        run(pipe, conditions={"action": ACTION})
    for method, number in ((pipe.slow_motion, {"factor": 2}), (pipe.extend, {"num_new_frames": 1})):
        with pytest.raises(ValueError, match="the models of this pipeline take none"):
            method(clip(2), **number, conditions={"action": torch.zeros(3, 2)})


def test_models_that_were_not_trained_together_are_found_out():
    pipe = told_pipeline()
    pipe.planner.add_conditions({}, {"rate": {"range": [0, 1]}})
    with pytest.raises(
        ValueError, match="differ in a condition: one takes rate: 1 channel, 0 to 4.*0 to 1; use models"
    ):
        run(pipe, conditions={"action": ACTION})
    pipe = told_pipeline()
    pipe.planner.add_conditions({}, {"action": {"names": ["gas", "steering"]}})
    pipe.transformer.add_conditions({}, {"action": {"names": ["steering", "gas"]}})
    with pytest.raises(ValueError, match="differ in a condition"):
        run(pipe, conditions={"action": ACTION})


def test_the_ends_of_a_range_belong_to_it_also_in_single_precision():
    pipe = told_pipeline()
    for part in (pipe.planner, pipe.transformer):
        part.add_conditions({}, {"rate": {"range": [0.04, 0.16]}})
    run(pipe, conditions={"rate": torch.tensor([0.04, 0.16, 0.04, 0.16, 0.16])})


class TestLongVideos:
    """Return the conditions of the windows of a long video."""

    ARGUMENTS = {"num_inference_steps": 1, "output_type": "latent"}

    def test_windows_of_slow_motion_are_told_the_mean_or_the_sum_of_what_they_skip(self):
        pipe = told_pipeline()
        counter = CallCounter(pipe)
        action = torch.arange(9.0)[:, None].expand(9, 2) / 8
        conditions = {"action": action, "rate": torch.full((9,), 0.1)}
        pipe.slow_motion(clip(2), factor=8, window=5, conditions=conditions, **self.ARGUMENTS, generator=seeded())
        coarse, fine = (told * 8 for told in told_planner(counter, "action")[:2])
        assert coarse[0, :, 1].tolist() == [0, 1.5, 3.5, 5.5, 7.5]  # frames 0, 2, 4, 6, 8
        assert fine[0, :, 1].tolist() == [0, 1, 2, 3, 4]
        coarse, fine = told_planner(counter, "rate")[:2]
        torch.testing.assert_close(coarse[0, :, 0], torch.full((5,), 0.2))
        torch.testing.assert_close(fine[0, :, 0], torch.full((5,), 0.1))

    def test_windows_of_a_batch_are_told_each_for_itself(self):
        pipe = told_pipeline()
        conditions = {"action": torch.rand(2, 9, 2, generator=seeded())}
        results = [
            pipe.slow_motion(
                clip(3, 2), factor=4, window=5, window_batch_size=size, conditions=conditions, **self.ARGUMENTS,
                generator=seeded(),
            ).frames
            for size in (1, 2)
        ]  # fmt: skip
        torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(
            results[0], pipe.slow_motion(clip(3, 2), 4, 5, **self.ARGUMENTS, generator=seeded()).frames, atol=1e-2
        )

    @pytest.mark.parametrize("told", ["all frames", "new frames"])
    def test_windows_of_an_extension_are_told_of_their_places(self, told):
        pipe = told_pipeline()
        counter = CallCounter(pipe)
        action = torch.arange(8.0)[:, None].expand(8, 2) / 8
        conditions = {"action": action if told == "all frames" else action[3:]}
        pipe.extend(
            clip(3), num_new_frames=5, window=5, overlap=2, conditions=conditions, **self.ARGUMENTS, generator=seeded()
        )
        first, second = (told[0, :, 0] * 8 for told in told_planner(counter, "action"))
        if told == "all frames":
            assert first.tolist() == [1, 2, 3, 4, 5]
        else:
            assert first.isnan().tolist() == [True, True, False, False, False] and first[2:].tolist() == [3, 4, 5]
        assert second.tolist() == [4, 5, 6, 7, 7]  # the surplus frame is told what the last one is

    def test_an_extension_says_which_lengths_it_takes(self):
        with pytest.raises(ValueError, match=r"has shape \(6, 2\); give \(8 or 5, 2\), a row for each frame"):
            told_pipeline().extend(clip(3), num_new_frames=5, conditions={"action": torch.zeros(6, 2)})

    def test_one_new_frame_may_be_told_by_itself(self):
        pipe = told_pipeline()
        counter = CallCounter(pipe)
        pipe.extend(clip(1), num_new_frames=1, window=2, conditions={"rate": [2.0]}, **self.ARGUMENTS)
        (told,) = told_planner(counter, "rate")
        assert told[0, 0].isnan().all() and told[0, 1].item() == 2


@pytest.mark.parametrize(
    "places, means, sums",
    [
        ([0, 1, 2], [0, 1, 2], [0, 1, 2]),
        ([3, 4, 5], [3, 4, 5], [3, 4, 5]),
        ([2, 4, 5], [1.5, 3.5, 5], [3, 7, 5]),
        ([0, 3], [0, 2], [0, 6]),
        ([4, 5, 6, 7], [4, 5, 5, 5], [4, 5, 5, 5]),
    ],
)
def test_values_of_an_interval_become_one(places, means, sums):
    known = read_config({"a": 1, "b": 1}, {"b": {"interval": "sum"}})
    values = torch.arange(6.0)[None, :, None]
    cut = conditions_at({"a": values, "b": values}, known, places)
    assert cut["a"][0, :, 0].tolist() == means and cut["b"][0, :, 0].tolist() == sums


def test_absent_frames_of_an_interval_do_not_count():
    values = torch.tensor([0.0, torch.nan, 2.0, torch.nan, torch.nan])[None, :, None]
    cut = conditions_at({"a": values}, read_config({"a": 1}, None), [0, 2, 4])["a"][0, :, 0]
    assert cut[:2].tolist() == [0, 2] and cut[2].isnan()


def test_a_first_frame_that_occurs_twice_keeps_its_values():
    known = read_config({"action": 1, "rate": 1}, {"rate": {"interval": "sum"}})
    values = {"action": torch.arange(5.0).view(1, 5, 1), "rate": torch.full((1, 5, 1), 0.1)}
    told = conditions_at(values, known, [3, 3, 4])
    assert told["action"].flatten().tolist() == [3, 3, 4]
    torch.testing.assert_close(told["rate"].flatten(), torch.full((3,), 0.1))
