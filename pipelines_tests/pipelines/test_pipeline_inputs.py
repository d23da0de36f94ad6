"""Every unusable input is refused before any model runs, with what was given, what is accepted and what to do."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffusers_mardini import AutoencoderPatchBasis, MarDiniPipeline
from diffusers_mardini.pipelines.inputs import output_size, read_given_frames, to_pixels
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def picture(size: int = 32) -> torch.Tensor:
    return clip(1, size=size)[0]


def nan_picture() -> torch.Tensor:
    values = picture()
    values[0, 0, 0] = torch.nan
    return values


BAD_CALLS = {
    "nothing": ({}, "no frames were given; pass `image`"),
    "last image alone": ({"last_image": picture()}, "`last_image` without `image`"),
    "image and video": ({"image": picture(), "video": clip(2)}, "both `video` and `image`"),
    "last image and video": ({"last_image": picture(), "video": clip(2)}, "both `video` and `last_image`"),
    "places without video": ({"image": picture(), "frame_indices": [0]}, "`video` is missing"),
    "path": ({"image": "a.png"}, r"type str \(open a file with `PIL.Image.open`\)"),
    "list of paths": ({"video": ["a.png", "b.png"]}, "type str"),
    "number": ({"video": 3}, "of type int; give a list of pictures"),
    "empty list": ({"video": []}, "empty list; give at least one frame"),
    "empty image list": ({"image": []}, "type list"),
    "empty clip": ({"video": [[], []]}, "at least 1"),
    "empty array": ({"video": torch.rand(0, 3, 32, 32)}, "at least 1"),
    "one picture as video": ({"video": picture()}, "has 4 axes"),
    "mixed kinds": ({"video": [picture(), np.zeros((32, 32, 3), np.float32)]}, "mixes Tensor and ndarray"),
    "nested junk": ({"video": [clip(2), 3]}, "type int"),
    "None in a clip": ({"video": [picture(), None]}, "type NoneType"),
    "integers": ({"image": torch.zeros(3, 32, 32, dtype=torch.int64)}, r"array of torch.int64; .* or uint8"),
    "channels last tensor": ({"image": torch.rand(32, 32, 3)}, r"shaped \(32, 32, 3\)"),
    "five channels": ({"image": np.zeros((32, 32, 5), np.float32)}, r"shaped \(32, 32, 5\)"),
    "channels first array": ({"image": np.zeros((3, 32, 32), np.float32)}, r"shaped \(3, 32, 32\)"),
    "numbers that torch has not": ({"image": np.zeros((32, 32), object)}, "an array of object"),
    "values to 255": ({"image": picture() * 255}, r"in \[0, 1\]: use `picture / 255`"),
    "values that overshot": ({"image": picture() - 0.05}, r"down to -0.0.*may be \[-1, 1\].*`picture / 2 \+ 0.5`"),
    "values to 1.01": ({"image": picture() * 1.01 + 0.01}, r"holds values from .* to 1.0\d+; floats"),
    "values from -1.01": ({"image": picture() * 2.02 - 1.01}, r"holds values from -1.0\d+ to"),
    "NaN": ({"image": nan_picture()}, "must be finite"),
    "not divisible": ({"image": picture(40)}, "40x40 .* not divisible by 16.*`height=32, width=32`"),
    "asked size not divisible": ({"image": picture(), "height": 48, "width": 50}, "`height=48, width=48`"),
    "zero height": ({"image": picture(), "height": 0}, "`height` is 0"),
    "different sizes": ({"video": [picture(32), picture(64)]}, "differ in size .*32x32, 64x64.*resize"),
    "last of another size": (
        {"image": picture(32), "last_image": picture(64)},
        "`image` and `last_image` differ in size .*32x32, 64x64",
    ),
    "different lengths": ({"video": [clip(2), clip(3)]}, "have 2, 3 frames"),
    "more firsts than lasts": ({"image": clip(2), "last_image": clip(1)}, "holds 2 and `last_image` 1"),
    "one frame": ({"image": picture(), "num_frames": 1}, "`num_frames` is 1; give a whole number of at least 2"),
    "frames as float": ({"image": picture(), "num_frames": 9.0}, "`num_frames` is 9.0"),
    "frames as bool": ({"image": picture(), "num_frames": True}, "`num_frames` is True"),
    "place out of range": ({"video": clip(2), "frame_indices": [0, 5], "num_frames": 5}, "reaches 5.*ends at 4"),
    "place twice": ({"video": clip(2), "frame_indices": [3, 3]}, "may be named once"),
    "negative place": ({"video": clip(2), "frame_indices": [0, -1]}, "`frame_indices` is -1"),
    "place as float": ({"video": clip(2), "frame_indices": [0, 1.5]}, "`frame_indices` is 1.5"),
    "too few places": ({"video": clip(3), "frame_indices": [0, 4]}, "names 2 places, but `video` has 3 frames"),
    "no places": ({"video": clip(2), "frame_indices": []}, "names 0 places"),
    "place not in a list": ({"video": clip(1), "frame_indices": 0}, "`frame_indices` is 0; give a list"),
    "all frames given": (
        {"video": clip(5), "num_frames": 5},
        "nothing is left to generate; raise `num_frames` above 5",
    ),
    "more than all": ({"video": clip(7), "num_frames": 5}, "7 frames were given for a window of `num_frames=5`"),
    "all places named": ({"video": clip(2), "frame_indices": [1, 0], "num_frames": 2}, "nothing is left"),
    "guidance inf": ({"image": picture(), "guidance_scale": float("inf")}, "`guidance_scale` is inf; give a finite"),
    "guidance NaN": ({"image": picture(), "guidance_scale": float("nan")}, "`guidance_scale` is nan"),
    "guidance text": ({"image": picture(), "guidance_scale": "2"}, "`guidance_scale` is '2'"),
    "eta below 0": ({"image": picture(), "eta": -0.5}, "`eta` is -0.5; give 0 .deterministic. to 1"),
    "eta above 1": ({"image": picture(), "eta": 1.5}, "`eta` is 1.5"),
    "eta None": ({"image": picture(), "eta": None}, "`eta` is None"),
    "one timestep": ({"image": picture(), "timesteps": 500}, "`timesteps` is 500; give a list"),
    "attention_kwargs": (
        {"image": picture(), "attention_kwargs": "x"},
        "`attention_kwargs` is 'x'; give a dictionary",
    ),
    "empty picture": ({"image": torch.zeros(3, 0, 32)}, r"holds an array shaped \(3, 0, 32\)"),
    "eta NaN": ({"image": picture(), "eta": float("nan")}, "`eta` is nan"),
    "zero steps": ({"image": picture(), "num_inference_steps": 0}, "`num_inference_steps` is 0; .*at least 1"),
    "no steps": ({"image": picture(), "num_inference_steps": None}, "`num_inference_steps` is None"),
    "too many steps": ({"image": picture(), "num_inference_steps": 1001}, "has 1000 noise levels; lower it"),
    "no number among timesteps": (
        {"image": picture(), "timesteps": [999, None]},
        r"`timesteps` is \[999, None\]; give a list",
    ),
    "no numbers at all": ({"image": picture(), "timesteps": ["a"]}, r"`timesteps` is \['a'\]; give a list"),
    "an endless timestep": ({"image": picture(), "timesteps": [float("nan")]}, r"`timesteps` is \[nan\]; give a list"),
    "half a timestep": ({"image": picture(), "timesteps": [9.5]}, "must be whole numbers"),
    "a single place of numpy": ({"video": clip(1), "frame_indices": np.int64(0)}, "give a list with one place"),
    "half a place": ({"video": clip(1), "frame_indices": 1.5}, "give a list with one place"),
    "rising timesteps": ({"image": picture(), "timesteps": [1, 5]}, "fall strictly"),
    "a batch of no clips": (
        {"video": np.zeros((0, 4, 32, 32, 3), np.uint8)},
        "a batch of no clips; give at least one",
    ),
    "a batch of no pictures": (
        {"image": torch.zeros(0, 3, 32, 32)},
        r"`image` is an array shaped \(0, 3, 32, 32\), a",
    ),
    "no last pictures": (
        {"image": picture(), "last_image": np.zeros((0, 32, 32, 3))},
        "`last_image` is .* no pictures",
    ),
    "no videos": ({"image": picture(), "num_videos_per_prompt": 0}, "`num_videos_per_prompt` is 0"),
    "generator list": ({"image": picture(), "generator": [seeded(), seeded()]}, "list of 2, but 1 videos are sampled"),
    "generator list of a batch": (
        {"image": clip(2), "num_videos_per_prompt": 2, "generator": [seeded(), seeded()]},
        "list of 2, but 4 videos",
    ),
    "seed": ({"image": picture(), "generator": 7}, "type int; give a `torch.Generator`"),
    "latents shape": (
        {"image": picture(), "num_frames": 5, "latents": torch.zeros(1, 4, 16, 4, 4)},
        r"`latents` is \(1, 4, 16, 4, 4\); give a tensor shaped \(1, 5, 16, 4, 4\)",
    ),
    "latents type": ({"image": picture(), "latents": [1]}, "`latents` is list"),
    "output type": ({"image": picture(), "output_type": "gif"}, "`output_type` is 'gif'; choose one of pil, np, pt"),
    "callback name": (
        {"image": picture(), "callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
        r"names \['prompt_embeds'\]; choose from \['latents', 'planning_signals'\]",
    ),
    "callback": ({"image": picture(), "callback_on_step_end": 3}, "type int; give a function"),
}


@pytest.mark.parametrize("kwargs, message", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_an_unusable_call_is_refused_before_any_model_runs(pipe, kwargs, message):
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match=message):
        pipe(**{"num_inference_steps": 2, **kwargs})
    assert sum(counter.counts.values()) == 0


BAD_SLOW_MOTIONS = {
    "no video": ({"video": None, "factor": 2}, "`video` is missing"),
    "one frame": ({"video": clip(1), "factor": 2}, "has 1 frame; .*give at least 2"),
    "factor 1": ({"video": clip(2), "factor": 1}, "`factor` is 1"),
    "broken factor": ({"video": clip(2), "factor": 2.5}, "`factor` is 2.5"),
    "window 2": ({"video": clip(2), "factor": 2, "window": 2}, "`window` is 2; .*at least 3"),
    "size": ({"video": clip(2, size=40), "factor": 2}, "not divisible by 16"),
    "output type": ({"video": clip(2), "factor": 2, "output_type": "gif"}, "`output_type`"),
    "generators": ({"video": clip(2), "factor": 2, "generator": [seeded(), seeded()]}, "list of 2"),
    "steps": ({"video": clip(2), "factor": 2, "num_inference_steps": 0}, "`num_inference_steps` is 0"),
    "timesteps": ({"video": clip(2), "factor": 2, "timesteps": [3, 9]}, "fall strictly"),
}
BAD_EXTENSIONS = {
    "no video": ({"video": None, "num_new_frames": 2}, "`video` is missing"),
    "nothing new": ({"video": clip(2), "num_new_frames": 0}, "`num_new_frames` is 0"),
    "window 1": ({"video": clip(2), "num_new_frames": 2, "window": 1}, "`window` is 1"),
    "overlap 0": ({"video": clip(2), "num_new_frames": 2, "overlap": 0}, "`overlap` is 0"),
    "overlap fills window": (
        {"video": clip(5), "num_new_frames": 2, "window": 4, "overlap": 4},
        "adds no frame; lower",
    ),
    "guidance": ({"video": clip(2), "num_new_frames": 2, "guidance_scale": float("nan")}, "`guidance_scale`"),
    "path": ({"video": "a.mp4", "num_new_frames": 2}, "type str"),
}


@pytest.mark.parametrize("kwargs, message", BAD_SLOW_MOTIONS.values(), ids=BAD_SLOW_MOTIONS.keys())
def test_an_unusable_slow_motion_is_refused_before_any_model_runs(pipe, kwargs, message):
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.slow_motion(**kwargs)
    assert sum(counter.counts.values()) == 0


@pytest.mark.parametrize("kwargs, message", BAD_EXTENSIONS.values(), ids=BAD_EXTENSIONS.keys())
def test_an_unusable_extension_is_refused_before_any_model_runs(pipe, kwargs, message):
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.extend(**kwargs)
    assert sum(counter.counts.values()) == 0


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler()], ids=["epsilon", "flow"])
def test_a_scheduler_that_does_not_predict_velocities_is_refused(scheduler):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match="MarDini predicts velocities"):
        pipe(image=picture(), num_inference_steps=2)
    assert sum(counter.counts.values()) == 0


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_a_scheduler_without_betas_is_refused(scheduler):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match=f"{scheduler.__name__} of this pipeline has no betas"):
        pipe(image=picture(), num_inference_steps=2)


def test_pictures_are_pictures_where_the_autoencoder_has_three_channels_too():
    pipe = tiny_pipeline()
    pipe.vae = AutoencoderPatchBasis(block_out_channels=(8, 8, 8, 8), latent_channels=3)
    pipe = MarDiniPipeline(**pipe.components)
    array = (clip(1)[0] * 255).round() / 255
    pil = PIL.Image.fromarray((array * 255).byte().permute(1, 2, 0).numpy())
    made = [to_pixels([[picture]], 32, 32, pipe.video_processor) for picture in (array, pil)]
    assert torch.allclose(*made, atol=1e-6) and made[0].min() < 0


def test_timesteps_for_a_scheduler_that_takes_none_are_refused():
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="DDIMScheduler accepts no levels"):
        pipe(image=picture(), timesteps=[999, 3])


def test_the_counter_of_calls_sees_every_model(pipe):
    counter = CallCounter(pipe)
    pipe(image=picture(), num_frames=3, num_inference_steps=1, output_type="pt")
    assert min(counter.counts.values()) > 0


def read(**kwargs):
    arguments = {"image": None, "last_image": None, "video": None, "frame_indices": None, "num_frames": 5}
    return read_given_frames(**{**arguments, "height": None, "width": None, "size_multiple": 16, **kwargs})


def test_each_task_is_found_in_the_arguments():
    assert read(image=picture()).given_indices == [0]
    assert read(image=picture(), last_image=picture()).given_indices == [0, 4]
    assert read(video=clip(3)).given_indices == [0, 1, 2]
    assert read(video=clip(3), frame_indices=[1, 2, 4]).given_indices == [1, 2, 4]


def test_places_in_any_order_are_put_in_order_with_their_frames():
    given = read(video=clip(3), frame_indices=[4, 0, 2])
    assert given.given_indices == [0, 2, 4]
    for frame, place in zip(given.videos[0], [1, 2, 0], strict=True):
        assert torch.equal(frame, clip(3)[place])


def same_clip_in_every_form(frames: torch.Tensor) -> dict[str, object]:
    """`frames` is uint8, (frames, 3, height, width)."""
    arrays = frames.permute(0, 2, 3, 1).numpy()
    pictures = [PIL.Image.fromarray(array) for array in arrays]
    return {
        "PIL list": pictures,
        "PIL tuple": tuple(pictures),
        "list of PIL lists": [pictures],
        "uint8 tensor": frames,
        "uint8 array": arrays,
        "float tensor": frames / 255,
        "float16 tensor": (frames / 255).half(),
        "float array": arrays.astype(np.float32) / 255,
        "list of tensors": list(frames / 255),
        "list of arrays": list(arrays.astype(np.float32) / 255),
        "list of 4D tensors": [frames / 255],
        "5D tensor": frames[None] / 255,
        "5D array": arrays[None].astype(np.float32) / 255,
    }


FORMS = same_clip_in_every_form((clip(3) * 255).round().to(torch.uint8))


@pytest.mark.parametrize("form", FORMS)
def test_a_clip_means_the_same_in_every_form(pipe, form):
    given = read(video=FORMS[form])
    pixels = to_pixels(given.videos, given.height, given.width, pipe.video_processor)
    expected = FORMS["uint8 tensor"][None] / 255 * 2 - 1
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, rtol=0, atol=2e-3 if form == "float16 tensor" else 1e-6)


def test_turned_channels_and_flipped_pictures_are_taken_as_they_are(pipe):
    array = clip(1)[0].permute(1, 2, 0).numpy()
    for turned in (array[..., ::-1], np.flip(array, 1)):
        frames = [
            pipe(image=form, num_frames=2, num_inference_steps=1, output_type="latent", generator=seeded()).frames
            for form in (turned, turned.copy())
        ]
        assert torch.equal(*frames)


def test_generators_may_come_as_a_tuple(pipe):
    kwargs = {
        "num_frames": 3,
        "num_inference_steps": 2,
        "eta": 1.0,
        "num_videos_per_prompt": 2,
        "output_type": "latent",
    }
    frames = [pipe(image=picture(), generator=kind([seeded(1), seeded(2)]), **kwargs).frames for kind in (list, tuple)]
    assert torch.equal(*frames)


def test_batches_of_pictures_and_of_clips_are_taken_apart_in_order():
    firsts, lasts = clip(3), clip(3, seed=1)
    given = read(image=firsts, last_image=list(lasts))
    assert given.batch_size == 3
    assert torch.equal(given.videos[2][0], firsts[2]) and torch.equal(given.videos[2][1], lasts[2])
    given = read(video=clip(2, 4))
    assert given.batch_size == 4 and torch.equal(given.videos[3][1], clip(2, 4)[3, 1])


def test_grey_and_transparent_pictures_become_rgb(pipe):
    for mode in ("L", "RGBA", "P"):
        grey = PIL.Image.new("RGB", (32, 32), (51, 51, 51)).convert(mode)
        pixels = to_pixels([[grey]], 64, 64, pipe.video_processor)
        assert pixels.shape == (1, 1, 3, 64, 64)
        torch.testing.assert_close(pixels, torch.full_like(pixels, 51 / 255 * 2 - 1), rtol=0, atol=0.02)


@pytest.mark.parametrize("as_pil", [False, True])
def test_pictures_are_made_smaller_without_aliasing(pipe, as_pil):
    stripes = torch.zeros(3, 64, 64)
    stripes[:, :, ::2] = 1
    frame = PIL.Image.fromarray((stripes * 255).byte().permute(1, 2, 0).numpy()) if as_pil else stripes
    pixels = to_pixels([[frame]], 16, 16, pipe.video_processor)
    assert pixels[..., 2:-2].abs().max() < 0.1  # grey, not black or white


def test_height_or_width_alone_keeps_the_other_side():
    assert output_size([[picture(32)]], 64, None, 16) == (64, 32)
    assert output_size([[picture(32)]], None, 16, 16) == (32, 16)
