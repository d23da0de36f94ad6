"""Odd values of every argument: each is refused with the argument's name before any model runs, or means what it
says."""

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler, KDPM2DiscreteScheduler

from diffusers_mardini import MarDiniBlocks, MarDiniPipeline
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


NAN, INF = float("nan"), float("inf")
NO_NUMBERS = [None, "3", 2.0, True, False, NAN, INF, -1, [], {}, np.float64(3), np.bool_(True), torch.tensor(2.5)]
DEFAULT_NONE = [value for value in NO_NUMBERS if value is not None]  # `None` stands for the checkpoint's own
WHOLE = {
    "num_frames": DEFAULT_NONE + [0, 1],
    "num_inference_steps": NO_NUMBERS + [0, 10**9],
    "num_videos_per_prompt": NO_NUMBERS + [0],
    "decode_chunk_size": NO_NUMBERS + [0],
    "height": DEFAULT_NONE + [0, 33],
    "width": DEFAULT_NONE + [0, 33],
}
OTHER = {
    "guidance_scale": ["2", True, NAN, INF, -INF, [], [2.0], {}, 1j, np.bool_(True)],
    "eta": [None, "0.5", True, NAN, -0.1, 1.1, [], {}],
    "timesteps": [
        "999",
        5,
        [],
        [NAN],
        [None],
        ["9"],
        [True],
        [9.5],
        [1, 5],
        [5, 5],
        [-1],
        [1000],
        {5, 3},
        [[5, 3]],
        [INF],
    ],
    "generator": ["0", 0, True, [0], [], {}, [seeded(), None, 3]],
    "latents": ["x", [], 0, torch.zeros(3), torch.zeros(1, 4, 16, 4, 4, dtype=torch.int64)],
    "output_type": [None, "", "PIL", 1, [], True],
    "attention_kwargs": [
        "x",
        1,
        [],
        [("scale", 1)],
        {"scale": None},
        {"scale": "0.5"},
        {"scale": NAN},
        {"scale": INF},
        {"scale": True},
        {"scale": [1.0]},
        {"scales": 1.0},
        {"scale": 1.0, "x": 0},
    ],
    "callback_on_step_end": ["print", 3, [], {}],
    "callback_on_step_end_tensor_inputs": [3, True, "latent", ["latent"], [3], [None], ["latents", "x"]],
    "use_window_state": [None, "no", 0, 1, []],
}
SLOW_MOTION = {
    "factor": NO_NUMBERS + [0, 1],
    "window": DEFAULT_NONE + [0, 1, 2],
    "window_batch_size": NO_NUMBERS + [0],
    "decode_chunk_size": NO_NUMBERS + [0],
}
EXTEND = {
    "num_new_frames": NO_NUMBERS + [0],
    "window": DEFAULT_NONE + [0, 1],
    "overlap": DEFAULT_NONE + [0, 9, 10**9],
    "decode_chunk_size": NO_NUMBERS + [0],
}
PLACES = [
    "01", 3, 1.5, True, [], [0, 0], [0, -1], [0, 1.0], [0, True], [0, "1"], [0, None], [NAN, 1], {0, 1}, {0: 1, 1: 2},
    b"01", [0, 10**9], [[0, 1]], np.array([0.0, 1.0]),
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def counter(pipe):
    return CallCounter(pipe)


def assert_refused(call, name: str, value, counter: CallCounter, **kwargs) -> None:
    before = dict(counter.counts)
    with pytest.raises(ValueError, match=rf"`{name}`|size .* not divisible|`steps`|cannot take") as error:
        call(**{**kwargs, name: value})
    assert counter.counts == before, f"a model ran before {error.value}"


@pytest.mark.parametrize("name", [*WHOLE, *OTHER])
def test_values_of_the_pipeline_that_cannot_be_used_are_named(pipe, counter, name):
    for value in {**WHOLE, **OTHER}[name]:
        kwargs = {"image": clip(1)[0], "num_frames": 4, "num_inference_steps": 2}
        assert_refused(pipe, name, value, counter, **kwargs)


@pytest.mark.parametrize("name", [*WHOLE, *OTHER])
def test_the_blocks_refuse_the_same_values(pipe, name):
    modular = MarDiniBlocks().init_pipeline()
    modular.update_components(**pipe.components)
    modular.update_components(planner_downscale=2)
    counter = CallCounter(pipe)
    for value in {**WHOLE, **OTHER}[name]:
        if value is None:
            continue  # an input that is not given: it has its default
        kwargs = {"image": clip(1)[0], "num_frames": 4, "num_inference_steps": 2, "output": "videos"}
        with pytest.raises(ValueError):
            modular(**{**kwargs, name: value})
        assert sum(counter.counts.values()) == 0, value


@pytest.mark.parametrize("name", SLOW_MOTION)
def test_values_of_slow_motion_that_cannot_be_used_are_named(pipe, counter, name):
    for value in SLOW_MOTION[name]:
        assert_refused(pipe.slow_motion, name, value, counter, video=clip(2), factor=2, num_inference_steps=1)


@pytest.mark.parametrize("name", EXTEND)
def test_values_of_extend_that_cannot_be_used_are_named(pipe, counter, name):
    for value in EXTEND[name]:
        assert_refused(pipe.extend, name, value, counter, video=clip(2), num_new_frames=2, num_inference_steps=1)


@pytest.mark.parametrize("name", ["num_inference_steps", *(name for name in OTHER if name != "latents")])
def test_long_videos_refuse_what_one_window_refuses(pipe, counter, name):
    for value in {**WHOLE, **OTHER}[name]:
        assert_refused(pipe.slow_motion, name, value, counter, video=clip(2), factor=2, num_inference_steps=1)
        assert_refused(pipe.extend, name, value, counter, video=clip(2), num_new_frames=2, num_inference_steps=1)


@pytest.mark.parametrize("value", PLACES, ids=repr)
def test_places_that_cannot_be_used_are_named(pipe, counter, value):
    assert_refused(pipe, "frame_indices", value, counter, video=clip(2), num_frames=5, num_inference_steps=1)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_frames": np.int64(4)},
        {"num_inference_steps": np.int32(2)},
        {"num_videos_per_prompt": np.int64(1)},
        {"decode_chunk_size": np.int64(16)},
        {"decode_chunk_size": 10**9},
        {"height": np.int64(32), "width": torch.tensor(32)},
        {"guidance_scale": np.float32(2.5)},
        {"eta": np.float64(0.0)},
        {"eta": 0},
        {"timesteps": np.array([999, 499])},
        {"timesteps": (999, 499)},
        {"timesteps": torch.tensor([999, 499])},
        {"timesteps": [999.0, 499.0]},
        {"attention_kwargs": {}},
        {"attention_kwargs": {"scale": np.float32(1)}},
        {
            "callback_on_step_end_tensor_inputs": "latents",
            "callback_on_step_end": lambda pipe, step, time, tensors: tensors,
        },
        {"callback_on_step_end_tensor_inputs": ()},
        {"use_window_state": np.bool_(True)},
    ],
    ids=lambda given: ", ".join(given),
)
def test_values_of_other_kinds_that_say_the_same_mean_the_same(pipe, kwargs):
    common = {"image": clip(1)[0], "num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}
    plain = pipe(**common, generator=seeded()).frames
    assert torch.equal(pipe(**{**common, **kwargs}, generator=seeded()).frames, plain)


@pytest.mark.parametrize(
    "places",
    [(0, 4), range(0, 5, 4), np.array([0, 4]), torch.tensor([0, 4]), iter([0, 4])],
    ids=lambda places: type(places).__name__,
)
def test_places_may_come_in_every_ordered_form(pipe, places):
    kwargs = {"video": clip(2), "num_frames": 5, "num_inference_steps": 1, "output_type": "latent"}
    plain = pipe(**kwargs, frame_indices=[0, 4], generator=seeded()).frames
    assert torch.equal(pipe(**kwargs, frame_indices=places, generator=seeded()).frames, plain)


def test_guidance_is_off_before_the_first_call_and_follows_it_afterwards():
    pipe = tiny_pipeline()
    assert pipe.guidance_scale is None and pipe.do_classifier_free_guidance is False
    for scale in (2.0, 1.0, 0.0):
        pipe(image=clip(1)[0], num_frames=3, num_inference_steps=1, guidance_scale=scale)
        assert pipe.do_classifier_free_guidance is (scale != 1.0)


def test_the_number_of_timesteps_is_that_of_evaluations_for_every_order(pipe):
    components = {**pipe.components}
    for kind, settings in (
        (HeunDiscreteScheduler, {"timestep_spacing": "leading"}),
        (KDPM2DiscreteScheduler, {}),
        (None, {}),
    ):
        if kind is not None:
            components["scheduler"] = kind.from_config(tiny_pipeline().scheduler.config, **settings)
        else:
            components["scheduler"] = tiny_pipeline().scheduler
        one = MarDiniPipeline(**components, planner_downscale=2)
        one.set_progress_bar_config(disable=True)
        counter, steps = CallCounter(one), []
        one(
            image=clip(1)[0], num_frames=3, num_inference_steps=8, guidance_scale=1.0, output_type="latent",
            callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(step),
        )  # fmt: skip
        assert one.num_timesteps == len(steps) == counter.counts["transformer"] == (15 if kind else 8)
