"""One window: the four tasks, what is computed how often, and the promises a diffusers pipeline makes."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    KDPM2DiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.latents import decode_latents, downscale_video, encode_video
from pipelines_tests.tiny_pipeline import CHANNELS, CallCounter, clip, seeded, tiny_pipeline


STEPS = 3
FRAMES = 5
TASKS = {
    "image-to-video": ({"image": clip(1)[0]}, [0]),
    "interpolation": ({"image": clip(2)[0], "last_image": clip(2)[1]}, [0, FRAMES - 1]),
    "expansion": ({"video": clip(3)}, [0, 1, 2]),
    "any places": ({"video": clip(2), "frame_indices": [3, 1]}, [1, 3]),
}


@pytest.fixture
def pipe():
    return tiny_pipeline()


def run(pipe, **kwargs):
    defaults = {"num_frames": FRAMES, "num_inference_steps": STEPS, "output_type": "latent", "generator": seeded()}
    if "image" not in kwargs and "video" not in kwargs:
        defaults.update(TASKS["interpolation"][0])
    return pipe(**{**defaults, **kwargs}).frames


def references(pipe, frames: torch.Tensor) -> torch.Tensor:
    return encode_video(pipe.vae, frames[None] * 2 - 1)[0]


@pytest.mark.parametrize("task", TASKS)
def test_given_latents_stay_where_they_were_put_exactly(pipe, task):
    kwargs, places = TASKS[task]
    latents = run(pipe, **kwargs)
    assert latents.shape == (1, FRAMES, CHANNELS, 4, 4)
    given = kwargs["video"] if "video" in kwargs else torch.stack(list(kwargs.values()))
    clean = references(pipe, given)
    if task == "any places":
        clean = clean.flip(0)
    assert torch.equal(latents[0, places], clean)
    generated = [place for place in range(FRAMES) if place not in places]
    assert latents[0, generated].isfinite().all()
    assert (latents[0, generated] - clean[:1]).abs().min() > 0


@pytest.mark.parametrize("task", TASKS)
def test_the_models_are_told_which_frames_are_given(pipe, task):
    kwargs, places = TASKS[task]
    counter = CallCounter(pipe)
    run(pipe, **kwargs)
    expected = torch.tensor([[place in places for place in range(FRAMES)]])
    (_window, mask), planner_kwargs, _ = counter.inputs["planner"][0]
    assert torch.equal(mask, expected)
    assert planner_kwargs["num_masked_frames"] == FRAMES - len(places)
    run(pipe, **kwargs, use_window_state=False)
    states = counter.inputs["window_state"]
    plain = counter.inputs["transformer"][-STEPS:]
    assert len(states) == (2 if pipe.do_classifier_free_guidance else 1)
    for _, transformer_kwargs, _ in states + plain:
        assert torch.equal(transformer_kwargs["reference_mask"], expected)
        assert transformer_kwargs["num_masked_frames"] == FRAMES - len(places)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_planner_is_called_once_whatever_the_steps(pipe, steps):
    counter = CallCounter(pipe)
    run(pipe, num_inference_steps=steps, num_videos_per_prompt=2)
    assert counter.counts["planner"] == 1
    assert counter.inputs["planner"][0][0][0].shape[0] == 1  # one row for both videos
    assert counter.counts["transformer"] == steps


def test_the_planner_sees_the_given_frames_made_smaller(pipe):
    counter = CallCounter(pipe)
    frames = clip(2)
    run(pipe, video=frames)
    window = counter.inputs["planner"][0][0][0]
    assert window.shape == (1, FRAMES, CHANNELS, 2, 2)
    small = encode_video(pipe.vae, downscale_video(frames[None] * 2 - 1, 2))
    torch.testing.assert_close(window[:, :2], small)


def test_frames_are_made_smaller_without_aliasing():
    video = torch.full((1, 2, 3, 16, 16), -1.0)
    video[0, 0, :, :, ::2] = 1  # stripes of one pixel become grey
    video[0, 1, :, 4:12, 4:12] = 1  # a square stays one, with its mean
    stripes, square = downscale_video(video, 2)[0]
    assert stripes.shape == (3, 8, 8) and stripes[..., 1:-1].abs().max() < 0.3
    assert (square[:, 3:5, 3:5] == 1).all() and (square[:, 0] == -1).all()
    assert square.mean().item() == pytest.approx(video[0, 1].mean().item(), abs=1e-3)


@pytest.mark.parametrize(
    "more", [{"num_videos_per_prompt": 2}, {"video": clip(2).expand(2, -1, -1, -1, -1)}], ids=["per prompt", "batch"]
)
def test_one_generator_gives_every_video_noise_of_its_own(pipe, more):
    kwargs = {"video": clip(2), "frame_indices": [0, FRAMES - 1], **more}
    one, other = run(pipe, **kwargs)
    assert torch.equal(one[[0, -1]], other[[0, -1]]) and not torch.allclose(one[1:-1], other[1:-1], atol=1e-1)


def test_the_planning_signals_reach_every_step(pipe):
    counter = CallCounter(pipe)
    run(pipe)
    signals = counter.inputs["planner"][0][2][0]
    ((_, kwargs, state),) = counter.inputs["window_state"]
    assert torch.equal(kwargs["planning_signals"], signals)
    assert len(counter.inputs["transformer"]) == STEPS
    assert all(kwargs["window_state"] is state for _, kwargs, _ in counter.inputs["transformer"])
    run(pipe, use_window_state=False)
    assert len(counter.inputs["transformer"]) == 2 * STEPS
    assert all(
        torch.equal(kwargs["planning_signals"], signals) for _, kwargs, _ in counter.inputs["transformer"][STEPS:]
    )


def test_the_transformer_sees_clean_references_in_the_window_or_its_state(pipe):
    counter = CallCounter(pipe)
    run(pipe, **TASKS["interpolation"][0])
    steps = [args[0].shape[1] for args, _, _ in counter.inputs["transformer"]]
    assert steps == [FRAMES - 2] * STEPS  # masked frames alone
    run(pipe, **TASKS["interpolation"][0], use_window_state=False)
    clean = references(pipe, clip(2))
    for args, _, _ in counter.inputs["window_state"] + counter.inputs["transformer"][STEPS:]:
        assert torch.equal(args[0][0, [0, FRAMES - 1]], clean)


@pytest.mark.parametrize(
    "task, scale", [("image-to-video", 2.5), ("expansion", 2.5), ("interpolation", 1.0), ("any places", 1.0)]
)
def test_guidance_follows_the_task(pipe, task, scale):
    run(pipe, **TASKS[task][0])
    assert pipe.guidance_scale == scale
    default = run(pipe, **TASKS[task][0])
    assert torch.equal(default, run(pipe, **TASKS[task][0], guidance_scale=scale))


def test_guidance_of_one_makes_no_unconditional_call(pipe):
    counter = CallCounter(pipe)
    run(pipe, guidance_scale=1.0)
    assert counter.counts["transformer"] == STEPS
    assert [kwargs["planning_signals"] is None for _, kwargs, _ in counter.inputs["window_state"]] == [False]


def test_guidance_calls_the_transformer_with_and_without_the_planning_signal(pipe):
    counter = CallCounter(pipe)
    run(pipe, guidance_scale=2.0)
    states = {id(state): kwargs["planning_signals"] is None for _, kwargs, state in counter.inputs["window_state"]}
    assert sorted(states.values()) == [False, True]
    unplanned = [states[id(kwargs["window_state"])] for _, kwargs, _ in counter.inputs["transformer"]]
    assert unplanned == [False, True] * STEPS


def test_guidance_moves_the_velocity_away_from_the_unconditional_one(pipe):
    """One step from pure noise: the result is minus the velocity, at zero terminal SNR."""
    counter = CallCounter(pipe)
    latents = run(pipe, guidance_scale=3.0, num_inference_steps=1)
    conditional, unconditional = (outputs[0] for _, _, outputs in counter.inputs["transformer"])
    expected = unconditional + 3.0 * (conditional - unconditional)
    torch.testing.assert_close(latents[:, 1:-1], -expected, rtol=1e-5, atol=1e-5)


def test_guidance_of_zero_ignores_the_planner(pipe):
    before = run(pipe, guidance_scale=0.0)
    for parameter in pipe.planner.parameters():
        parameter.data.add_(0.3)
    torch.testing.assert_close(run(pipe, guidance_scale=0.0), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(pipe, guidance_scale=1.0), before, atol=1e-2)


def test_a_seed_reproduces_and_another_does_not(pipe):
    assert torch.equal(run(pipe, generator=seeded(1)), run(pipe, generator=seeded(1)))
    assert not torch.allclose(run(pipe, generator=seeded(1)), run(pipe, generator=seeded(2)), atol=1e-2)


def test_nothing_is_drawn_from_global_state(pipe):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(pipe)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_of_two_equals_two_singles(pipe):
    videos = clip(2, 2)
    together = run(pipe, video=videos, frame_indices=[0, 4], generator=[seeded(1), seeded(2)])
    for row, seed in enumerate((1, 2)):
        alone = run(pipe, video=videos[row], frame_indices=[0, 4], generator=[seeded(seed)])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_a_list_of_generators_equals_single_ones(pipe):
    assert torch.equal(run(pipe, generator=[seeded(4)]), run(pipe, generator=seeded(4)))


def test_several_videos_per_prompt_lie_beside_each_other(pipe):
    images = clip(2)
    generators = [seeded(i) for i in range(4)]
    many = run(pipe, image=images, num_videos_per_prompt=2, generator=generators)
    assert many.shape[0] == 4
    for row in range(4):
        alone = run(pipe, image=images[row // 2], generator=[seeded(row)])
        torch.testing.assert_close(many[row], alone[0], rtol=1e-4, atol=1e-4)


def test_given_latents_are_the_noise(pipe):
    noise = torch.randn(1, FRAMES, CHANNELS, 4, 4, generator=seeded(3))
    assert torch.equal(run(pipe, latents=noise), run(pipe, generator=seeded(3)))
    assert torch.equal(run(pipe, latents=noise.double()), run(pipe, latents=noise))


def test_what_latents_hold_at_given_frames_is_not_used(pipe):
    noise = torch.randn(1, FRAMES, CHANNELS, 4, 4, generator=seeded(3))
    spoiled = noise.clone()
    spoiled[:, [0, FRAMES - 1]] = torch.nan
    assert torch.equal(run(pipe, latents=noise), run(pipe, latents=spoiled))


def test_output_types_agree(pipe):
    latents = run(pipe)
    expected = (decode_latents(pipe.vae, latents) / 2 + 0.5).clamp(0, 1)
    tensor, array, pictures = (run(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert tensor.shape == (1, FRAMES, 3, 32, 32)
    torch.testing.assert_close(tensor, expected)
    assert array.shape == (1, FRAMES, 32, 32, 3)
    np.testing.assert_allclose(array, tensor.permute(0, 1, 3, 4, 2).numpy(), atol=1e-6)
    assert len(pictures) == 1 and len(pictures[0]) == FRAMES
    assert all(isinstance(frame, PIL.Image.Image) and frame.size == (32, 32) for frame in pictures[0])
    np.testing.assert_allclose(np.asarray(pictures[0][2]) / 255, array[0, 2], atol=1 / 255)


def test_the_output_is_a_tuple_when_asked(pipe):
    kwargs = {"image": clip(1)[0], "num_frames": 3, "num_inference_steps": 1, "output_type": "latent"}
    named = pipe(**kwargs, generator=seeded()).frames
    (unnamed,) = pipe(**kwargs, generator=seeded(), return_dict=False)
    assert torch.equal(named, unnamed)


def test_size_follows_the_request_or_the_pictures(pipe):
    assert run(pipe, image=clip(1, size=48)[0], output_type="pt").shape[-2:] == (48, 48)
    assert run(pipe, image=clip(1)[0], height=48, width=64, output_type="pt").shape[-2:] == (48, 64)


def test_sizes_must_fit_both_models():
    assert tiny_pipeline(planner_downscale=2).size_multiple == 16
    assert tiny_pipeline(planner_downscale=4).size_multiple == 32
    pipe = tiny_pipeline(planner_downscale=1)
    assert pipe.size_multiple == 8
    assert run(pipe, image=clip(1, size=24)[0], output_type="pt").shape[-1] == 24


@pytest.mark.parametrize("vae", ["patch_basis", "kl"])
def test_both_kinds_of_autoencoder_serve(vae):
    pipe = tiny_pipeline(vae)
    frames = run(pipe, output_type="pt")
    assert frames.shape == (1, FRAMES, 3, 32, 32) and frames.isfinite().all()
    whole = run(pipe, output_type="pt")
    pipe.vae.enable_slicing()
    torch.testing.assert_close(run(pipe, output_type="pt"), whole, rtol=1e-4, atol=1e-4)
    pipe.vae.enable_tiling()
    assert run(pipe, output_type="pt", height=64, width=64).isfinite().all()


def test_scale_and_shift_of_the_autoencoder_are_respected():
    pipe = tiny_pipeline("kl")  # scaling_factor 1.5, shift_factor 0.25
    frames = clip(2)
    latents = run(pipe, video=frames)
    posterior = pipe.vae.encode(frames * 2 - 1).latent_dist
    torch.testing.assert_close(latents[0, :2], (posterior.mode() - 0.25) * 1.5, rtol=1e-4, atol=1e-4)
    decoded = pipe.vae.decode(latents[0] / 1.5 + 0.25).sample
    torch.testing.assert_close(
        run(pipe, video=frames, output_type="pt")[0], (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "scheduler_class",
    [
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        KDPM2DiscreteScheduler,
    ],
)
def test_other_schedulers_may_be_swapped_in(pipe, scheduler_class):
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    latents = run(pipe, num_inference_steps=4)
    assert latents.isfinite().all()
    assert torch.equal(latents[0, [0, FRAMES - 1]], references(pipe, clip(2)))
    assert torch.equal(latents, run(pipe, num_inference_steps=4))  # no state is left over


def test_ddim_gives_what_our_scheduler_gives(pipe):
    ours = run(pipe, num_inference_steps=5)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(run(pipe, num_inference_steps=5), ours, rtol=1e-4, atol=1e-4)


def test_a_perfect_transformer_recovers_the_clip_with_every_kind_of_scheduler(pipe):
    """The whole loop with an oracle's velocity: what is scaled, stepped and put together must fit."""
    clean = encode_video(pipe.vae, clip(FRAMES)[None] * 2 - 1)
    made = clean[:, 2:]
    schedulers = [pipe.scheduler] + [
        # Far from zero terminal SNR, where Euler's huge sigmas cost precision.
        kind.from_config(pipe.scheduler.config, rescale_betas_zero_snr=False)
        for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler, KDPM2DiscreteScheduler)
    ]

    def oracle(module, args, kwargs, output):
        if kwargs.get("return_window_state"):
            return output
        noisy, timestep = args[0].double(), int(args[1].flatten()[0].round())
        alpha_prod = pipe.scheduler.alphas_cumprod.double()[timestep]
        noise = (noisy - alpha_prod**0.5 * made) / (1 - alpha_prod) ** 0.5
        return ((alpha_prod**0.5 * noise - (1 - alpha_prod) ** 0.5 * made).float(),)

    pipe.transformer.register_forward_hook(oracle, with_kwargs=True)
    for scheduler in schedulers:
        pipe.scheduler = scheduler
        latents = run(pipe, video=clip(FRAMES)[:2], num_inference_steps=10, guidance_scale=1.0)
        torch.testing.assert_close(latents, clean, rtol=0, atol=0.05)


def test_custom_timesteps_are_visited(pipe):
    counter = CallCounter(pipe)
    run(pipe, timesteps=[999, 600, 10])
    assert [args[1].item() for args, _, _ in counter.inputs["transformer"]] == [999, 600, 10]


def test_eta_draws_from_the_generator(pipe):
    calm, wild = run(pipe), run(pipe, eta=1.0)
    assert wild.isfinite().all()
    assert not torch.allclose(calm, wild, atol=1e-2)
    assert torch.equal(wild, run(pipe, eta=1.0))


@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_the_callbacks_last_latents_are_the_result(pipe, output_type):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"]))
        return tensors

    frames = run(pipe, callback_on_step_end=watch, output_type=output_type)
    assert [step for step, _, _ in seen] == list(range(STEPS))
    assert [t for _, t, _ in seen] == pipe.scheduler.timesteps.tolist()
    last = seen[-1][2]
    assert torch.equal(frames, last if output_type == "latent" else (pipe.decode(last, "pt")))
    clean = references(pipe, clip(2))
    assert all(torch.equal(latents[0, [0, FRAMES - 1]], clean) for _, _, latents in seen)


def test_what_a_callback_returns_replaces_the_latents(pipe):
    def wipe(pipeline, step, timestep, tensors):
        if step == pipeline.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    assert run(pipe, callback_on_step_end=wipe).abs().max() == 0


def test_the_next_step_goes_on_from_the_latents_that_a_callback_returned(pipe):
    counter, marked = CallCounter(pipe), {}

    def mark(pipeline, step, timestep, tensors):
        if step == 0:
            marked["latents"] = tensors["latents"] + 7
            return {"latents": marked["latents"]}
        return {}

    run(pipe, callback_on_step_end=mark, guidance_scale=1.0)
    ((noisy, _), _, _) = counter.inputs["transformer"][1]
    assert torch.equal(noisy, marked["latents"][:, 1 : FRAMES - 1])


def test_a_callback_that_asks_for_no_tensors_gets_none(pipe):
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append(dict(tensors))
        return tensors

    latents = run(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=None)
    assert seen == [{}] * STEPS and torch.equal(latents, run(pipe))


def test_a_callback_may_change_the_planning_signals(pipe):
    def silence(pipeline, step, timestep, tensors):
        return {"planning_signals": torch.zeros_like(tensors["planning_signals"])}

    changed = run(
        pipe, callback_on_step_end=silence, callback_on_step_end_tensor_inputs=["planning_signals"], guidance_scale=1.0
    )
    assert not torch.allclose(changed, run(pipe, guidance_scale=1.0), atol=1e-3)


def test_a_callback_may_change_the_guidance(pipe):
    counter = CallCounter(pipe)

    def switch_off(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 1.0
        return tensors

    run(pipe, guidance_scale=2.0, callback_on_step_end=switch_off)
    assert counter.counts["transformer"] == STEPS + 1


def test_callbacks_of_diffusers_bring_their_own_tensor_inputs(pipe):
    class Collect(PipelineCallback):
        tensor_inputs = ["latents", "planning_signals"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            shapes.append({name: tuple(tensor.shape) for name, tensor in callback_kwargs.items()})
            return callback_kwargs

    shapes = []
    run(pipe, callback_on_step_end=Collect())
    run(pipe, callback_on_step_end=MultiPipelineCallbacks([Collect()]))
    assert len(shapes) == 2 * STEPS
    assert shapes[0] == {"latents": (1, FRAMES, CHANNELS, 4, 4), "planning_signals": (1, FRAMES, 2, 2, 32)}


def test_interrupting_skips_the_remaining_steps(pipe):
    counter = CallCounter(pipe)

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step == 1
        kept.append(tensors["latents"])
        return tensors

    kept = []
    latents = run(pipe, num_inference_steps=6, callback_on_step_end=stop)
    assert counter.counts["transformer"] == 2
    assert torch.equal(latents, kept[-1])
    run(pipe, num_inference_steps=6)
    assert counter.counts["transformer"] == 2 + 6  # the next call starts afresh


def test_properties_tell_where_the_call_is(pipe):
    def look(pipeline, step, timestep, tensors):
        assert pipeline.current_timestep == timestep and pipeline.num_timesteps == STEPS
        assert pipeline.attention_kwargs == {"scale": 1.0} and pipeline.guidance_scale == 2.0
        looked.append(step)
        return tensors

    looked = []
    run(pipe, callback_on_step_end=look, guidance_scale=2.0, attention_kwargs={"scale": 1.0})
    assert looked == [0, 1, 2]
    assert pipe.current_timestep is None
    run(pipe)
    assert pipe.attention_kwargs is None and pipe.guidance_scale == 1.0


@pytest.mark.parametrize(
    "scheduler_class, steps", [(None, 4), (KDPM2DiscreteScheduler, 4), (UniPCMultistepScheduler, 5)]
)
def test_the_progress_bar_counts_steps_to_the_end(pipe, monkeypatch, scheduler_class, steps):
    bars = []
    real = type(pipe).progress_bar

    def watched(self, *args, **kwargs):
        bars.append(real(self, *args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(type(pipe), "progress_bar", watched)
    pipe.set_progress_bar_config(disable=False)
    if scheduler_class is not None:
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    run(pipe, num_inference_steps=steps)
    assert (bars[0].n, bars[0].total) == (steps, steps)


def test_latents_are_float32_in_a_half_precision_pipeline(pipe):
    pipe.to(torch.bfloat16)
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append(tensors["latents"].dtype)
        return tensors

    counter = CallCounter(pipe)
    latents = run(pipe, callback_on_step_end=watch)
    assert latents.dtype == torch.float32 and set(seen) == {torch.float32}
    assert counter.inputs["transformer"][0][0][0].dtype == torch.bfloat16
    frames = run(pipe, output_type="pt")
    assert frames.dtype == torch.float32 and frames.isfinite().all()
    assert len(run(pipe, output_type="pil")[0]) == FRAMES


def test_components_are_offloaded_in_the_order_they_are_used():
    order = MarDiniPipeline.model_cpu_offload_seq.split("->")
    assert order == ["planner", "transformer", "vae"]
    assert set(order) | {"scheduler"} == set(tiny_pipeline().components)


def test_group_offloading_changes_nothing(pipe):
    expected = run(pipe)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )
    torch.testing.assert_close(run(pipe), expected)


def test_gradients_are_not_recorded(pipe):
    assert torch.is_grad_enabled()
    assert not run(pipe).requires_grad


def test_the_example_of_the_docstring_is_filled_in():
    assert "MarDiniPipeline.from_pretrained(" in MarDiniPipeline.__call__.__doc__


def test_parts_pass_from_one_pipeline_to_another(pipe):
    again = MarDiniPipeline.from_pipe(pipe)
    assert again.config.planner_downscale == 2
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), run(pipe))


def test_nothing_is_kept_of_a_window_that_a_callback_broke_off():
    pipe = tiny_pipeline()

    def stop(pipe, step, timestep, tensors):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipe(image=clip(1)[0], num_frames=4, num_inference_steps=3, callback_on_step_end=stop)
    assert pipe._velocities is None and pipe.current_timestep is None
