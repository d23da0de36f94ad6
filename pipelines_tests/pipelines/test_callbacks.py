"""Callbacks may return nothing or tensors; pipeline and blocks refuse values that are not finite."""

import pytest
import torch

from diffusers_mardini import MarDiniBlocks
from pipelines_tests.tiny_pipeline import CHANNELS, CallCounter, clip, seeded, tiny_pipeline


KWARGS = {"image": clip(1)[0], "num_frames": 4, "num_inference_steps": 3}


@pytest.fixture
def pipe():
    return tiny_pipeline()


def latents_of(pipe, **kwargs) -> torch.Tensor:
    return pipe(**{**KWARGS, "output_type": "latent", "generator": seeded(), **kwargs}).frames


def blocks_of(pipe):
    modular = MarDiniBlocks().init_pipeline()
    modular.update_components(**pipe.components)
    modular.update_components(planner_downscale=2)
    modular.set_progress_bar_config(disable=True)
    return modular


@pytest.mark.parametrize(
    "names", [("latents",), ("latents", "planning_signals"), None, "latents", "planning_signals"], ids=str
)
def test_a_callback_that_returns_nothing_changes_nothing(pipe, names):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(set(tensors))

    kwargs = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
    assert torch.equal(latents_of(pipe, **kwargs), latents_of(pipe))
    assert seen == [{names} if isinstance(names, str) else set(names or ())] * 3
    made = blocks_of(pipe)(**KWARGS, **kwargs, output_type="latent", generator=seeded(), output="videos")
    assert torch.equal(made, latents_of(pipe)) and len(seen) == 6
    pipe.extend(clip(2), num_new_frames=2, num_inference_steps=1, **kwargs)
    pipe.slow_motion(clip(2), factor=2, num_inference_steps=1, **kwargs)


@pytest.mark.parametrize(
    "returned, told",
    [
        (torch.zeros(1), "something of type Tensor; return the dictionary"),
        (0, "something of type int"),
        ([], "something of type list"),
        ({"latents": None}, "`latents` as NoneType; return a tensor shaped"),
        ({"latents": torch.zeros(1, 2)}, r"`latents` as \(1, 2\); return a tensor shaped \(1, 4, 16, 4, 4\)"),
        ({"planning_signals": 3}, "`planning_signals` as int"),
    ],
    ids=str,
)
def test_a_callback_that_returns_something_else_is_told_what_to_return(pipe, returned, told):
    with pytest.raises(ValueError, match=f"`callback_on_step_end` returned {told}"):
        latents_of(pipe, callback_on_step_end=lambda *_: returned)
    latents_of(pipe)  # and nothing is left over


def test_a_callback_may_return_the_dictionary_that_it_was_given_or_a_part(pipe):
    assert torch.equal(
        latents_of(pipe, callback_on_step_end=lambda pipe, step, time, tensors: tensors), latents_of(pipe)
    )
    assert torch.equal(latents_of(pipe, callback_on_step_end=lambda *_: {}), latents_of(pipe))


def noise(value: float, place: int) -> torch.Tensor:
    made = torch.randn(1, 4, CHANNELS, 4, 4, generator=seeded())
    made[0, place, 3, 2, 1] = value
    return made


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_noise_that_is_not_finite_is_refused_before_any_model_runs(pipe, value):
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match="`latents` holds values that are not finite"):
        latents_of(pipe, latents=noise(value, place=2))
    with pytest.raises(ValueError, match="`latents` holds values that are not finite"):
        blocks_of(pipe)(**KWARGS, latents=noise(value, place=2), output="videos")
    assert sum(counter.counts.values()) == 0
    # What stands at the given frame is not used.
    assert torch.equal(latents_of(pipe, latents=noise(value, place=0)), latents_of(pipe, latents=noise(0.5, place=0)))


@pytest.mark.parametrize("part", ["vae", "planner", "transformer"])
@pytest.mark.parametrize("output_type", ["pil", "pt", "latent"])
def test_weights_that_are_not_finite_make_an_error_and_no_black_video(pipe, part, output_type):
    for parameter in getattr(pipe, part).parameters():
        parameter.data.fill_(float("nan"))
    told = r"that \w+ computed in torch.float32 hold values that are not finite"
    with pytest.raises(ValueError, match=told):
        pipe(**KWARGS, output_type=output_type)
    with pytest.raises(ValueError, match=told):
        blocks_of(pipe)(**KWARGS, output_type=output_type, output="videos")
    with pytest.raises(ValueError, match=told):
        pipe.extend(clip(2), num_new_frames=2, num_inference_steps=1, output_type=output_type)
    with pytest.raises(ValueError, match=told):
        pipe.slow_motion(clip(2), factor=2, num_inference_steps=1, output_type=output_type)


def test_a_long_video_ends_with_the_first_window_that_is_not_finite(pipe):
    counter = CallCounter(pipe)
    pipe.transformer.proj_out.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="the latents that MarDiniTransformer3DModel computed"):
        pipe.extend(clip(2), num_new_frames=20, window=4, num_inference_steps=1)
    assert counter.counts["planner"] == 1


def test_a_decoder_that_overflows_is_named(pipe):
    pipe.vae.from_latents.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match="the pictures that AutoencoderPatchBasis computed"):
        pipe(**KWARGS)
    assert latents_of(pipe).isfinite().all()
