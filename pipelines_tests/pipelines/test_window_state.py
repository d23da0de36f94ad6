"""Sampling with what is computed once per window against sampling whole windows: the same but for rounding, at every
step."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    KDPM2DiscreteScheduler,
    PyramidAttentionBroadcastConfig,
    UniPCMultistepScheduler,
)
from torch._dynamo.testing import CompileCounter

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.pipelines.sampling_options import SamplingOptions
from pipelines_tests.test_caches import CACHES
from pipelines_tests.tiny_pipeline import CHANNELS, CallCounter, clip, seeded, tiny_pipeline


STEPS = 4
TASKS = {
    "image-to-video": {"image": clip(1)[0]},
    "interpolation": {"image": clip(2)[0], "last_image": clip(2)[1]},
    "expansion": {"video": clip(3)},
    "any places": {"video": clip(2), "frame_indices": [1, 3]},
    "a batch": {"video": clip(2, 2), "frame_indices": [0, 4]},
}


def trajectory(pipe, use_window_state, **kwargs) -> torch.Tensor:
    """Latents after every step, `(steps, videos, frames, channels, h, w)`."""
    latents = []

    def keep(pipeline, step, timestep, tensors):
        latents.append(tensors["latents"].clone())
        return tensors

    arguments = {
        "num_frames": 5,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "generator": seeded(),
    } | kwargs
    pipe(**arguments, callback_on_step_end=keep, use_window_state=use_window_state)
    return torch.stack(latents)


def assert_same_trajectory(pipe, atol=1e-5, **kwargs):
    plain = trajectory(pipe, False, **kwargs)
    torch.testing.assert_close(trajectory(pipe, True, **kwargs), plain, atol=atol, rtol=1e-5)
    assert plain.std() > 0.1 and not torch.allclose(plain[0], plain[-1], atol=1e-2)


@pytest.mark.parametrize("kind", ["temporal", "spatiotemporal"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5, 0.0])
def test_every_step_is_the_same(kind, task, guidance_scale):
    pipe = tiny_pipeline()
    pipe.transformer.set_temporal_attention(kind)
    assert_same_trajectory(pipe, **TASKS[task], guidance_scale=guidance_scale)


@pytest.mark.parametrize("kind", [KDPM2DiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_schedulers_with_memory_or_several_calls_per_step(kind):
    # Far from zero terminal SNR: there, rounding alone is amplified by sigmas of thousands.
    pipe = tiny_pipeline(rescale_betas_zero_snr=False, beta_schedule="linear")
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    assert_same_trajectory(pipe, atol=1e-4, **TASKS["expansion"])


def test_several_videos_from_one_plan():
    noise = torch.randn(4, 5, CHANNELS, 4, 4, generator=seeded())
    assert_same_trajectory(tiny_pipeline(), image=clip(2), num_videos_per_prompt=2, latents=noise)


@pytest.mark.parametrize("name", [name for name in CACHES if name != "FirstBlockCache"])  # that one weighs all frames
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_caches_of_diffusers_save_the_same_on_masked_frames_alone(name, guidance_scale):
    if name == "FasterCache" and guidance_scale != 1.0:
        pytest.skip("set for a model without guidance; the other branch is tested in test_caches.py")
    results = []
    for use_window_state in (False, True):
        pipe = tiny_pipeline()
        pipe.transformer.enable_cache(CACHES[name][0](pipe))
        results.append(
            trajectory(
                pipe, use_window_state, **TASKS["expansion"], num_inference_steps=10, guidance_scale=guidance_scale
            )
        )
        assert pipe.transformer.is_cache_enabled
    # Taylor series extrapolate rounding as well.
    torch.testing.assert_close(*results, atol=2e-3, rtol=2e-3)


def test_faster_cache_takes_the_branches_of_a_state_apart():
    from pipelines_tests.test_caches import faster

    results = []
    for use_window_state in (False, True):
        pipe = tiny_pipeline()
        pipe.transformer.enable_cache(faster(pipe, unconditional_batch_skip_range=2))
        results.append(
            trajectory(pipe, use_window_state, **TASKS["expansion"], num_inference_steps=10, guidance_scale=2.0)
        )
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_plan_that_a_callback_changes_is_read_anew(in_place):
    def fade(pipeline, step, timestep, tensors):
        signals = tensors["planning_signals"]
        tensors["planning_signals"] = signals.mul_(0.5) if in_place else signals * 0.5
        return tensors

    pipe, results = tiny_pipeline(), []
    for use_window_state in (False, True):
        results.append(
            pipe(
                **TASKS["interpolation"], num_frames=5, num_inference_steps=STEPS, output_type="latent", generator=seeded(),
                callback_on_step_end=fade, callback_on_step_end_tensor_inputs=["planning_signals"],
                use_window_state=use_window_state,
            ).frames
        )  # fmt: skip
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_a_changed_plan_reaches_layers_that_a_cache_would_have_skipped():
    """Cross-attention at every 6th step alone: without being told, the cache would go on with the old plan."""

    def silence(pipeline, step, timestep, tensors):
        return {"planning_signals": torch.zeros_like(tensors["planning_signals"])} if step == 2 else {}

    pipe, results = tiny_pipeline(), {}
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=6, current_timestep_callback=lambda: pipe.current_timestep
    )
    pipe.transformer.enable_cache(config)
    for use_window_state in (False, True):
        for callback in (silence, None):
            results[use_window_state, callback] = pipe(
                **TASKS["interpolation"], num_frames=5, num_inference_steps=10, output_type="latent", generator=seeded(),
                callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["planning_signals"],
                use_window_state=use_window_state,
            ).frames  # fmt: skip
    for callback in (silence, None):
        torch.testing.assert_close(results[False, callback], results[True, callback], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(results[False, silence], results[False, None], atol=1e-2)


@pytest.mark.parametrize("inference_mode, states", [(False, 1), (True, STEPS)])
def test_a_plan_that_a_callback_only_reads_is_not_read_anew(inference_mode, states):
    def look(pipeline, step, timestep, tensors):
        assert tensors["planning_signals"].isfinite().all()
        return tensors

    pipe = tiny_pipeline()
    counter = CallCounter(pipe)
    # Inference mode counts no writes to a tensor: there it may have been changed.
    with torch.inference_mode(inference_mode):
        pipe(
            **TASKS["interpolation"], num_frames=5, num_inference_steps=STEPS, output_type="latent",
            callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "planning_signals"],
        )  # fmt: skip
    assert len(counter.inputs["window_state"]) == states


def test_a_plan_that_a_callback_returns_unasked_is_read_anew():
    pipe = tiny_pipeline()

    def silence(pipeline, step, timestep, tensors):
        assert list(tensors) == ["latents"]
        return {"planning_signals": torch.zeros(1, 5, 2, 2, 32)}

    # Without a state the plan is read at every step, whoever changed it.
    whole, state = (
        pipe(
            **TASKS["interpolation"], num_frames=5, num_inference_steps=STEPS, output_type="latent", generator=seeded(),
            callback_on_step_end=silence, use_window_state=use_window_state,
        ).frames
        for use_window_state in (False, True)
    )  # fmt: skip
    torch.testing.assert_close(state, whole, atol=1e-5, rtol=1e-5)


def test_a_callback_that_changes_weights_may_ask_for_new_states():
    def damp(pipeline, step, timestep, tensors):
        if step == 1:
            pipeline.transformer.transformer_blocks[0].temporal_attn.to_v.weight.data.mul_(0.5)
            pipeline.reset_window_states()
        return tensors

    results = []
    for use_window_state in (False, True):
        pipe = tiny_pipeline()
        counter = CallCounter(pipe)
        results.append(
            pipe(
                **TASKS["interpolation"], num_frames=5, num_inference_steps=STEPS, output_type="latent", generator=seeded(),
                callback_on_step_end=damp, use_window_state=use_window_state,
            ).frames
        )  # fmt: skip
        assert counter.counts["window_state"] == 2 * use_window_state
        pipe.reset_window_states()  # after the window: nothing to do
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_long_videos_are_the_same():
    pipe = tiny_pipeline()
    for call, kwargs in ((pipe.slow_motion, {"factor": 8}), (pipe.extend, {"num_new_frames": 6})):
        plain, fast = (
            call(clip(2), window=5, num_inference_steps=3, output_type="latent", generator=seeded(), use_window_state=use, **kwargs)
            for use in (False, True)
        )  # fmt: skip
        torch.testing.assert_close(fast.frames, plain.frames, atol=1e-3, rtol=1e-3)


def test_bfloat16_ends_within_rounding_after_25_steps():
    """Two ways of rounding differ from each other by no more than either does from float32."""
    pipe = tiny_pipeline()
    exact = trajectory(pipe, False, **TASKS["interpolation"], num_inference_steps=25)[-1]
    pipe.to(torch.bfloat16)
    plain, fast = (
        trajectory(pipe, use, **TASKS["interpolation"], num_inference_steps=25)[-1] for use in (False, True)
    )
    rounding = (plain - exact).square().mean().sqrt()
    assert rounding > 0
    assert (fast - plain).square().mean().sqrt() < 1.5 * rounding
    assert (fast - exact).square().mean().sqrt() < 1.5 * rounding


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_offloading_by_groups_loads_what_the_state_needs(kind, tmp_path):
    pipe = tiny_pipeline()
    expected = trajectory(pipe, True, **TASKS["expansion"])
    pipe = tiny_pipeline()
    extra = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    # Through files: what was not loaded is not there.
    pipe.transformer.enable_group_offload(
        torch.device("cpu"), torch.device("cpu"), kind, offload_to_disk_path=str(tmp_path), **extra
    )
    torch.testing.assert_close(trajectory(pipe, True, **TASKS["expansion"]), expected)


@pytest.mark.parametrize("dynamic", [False, None])
def test_compiled_blocks_are_not_compiled_again_over_steps_and_windows(dynamic):
    """With fixed shapes there are two graphs: of the reference frames, and of the masked ones at any timestep."""
    pipe = tiny_pipeline()
    expected = trajectory(pipe, True, **TASKS["interpolation"])
    torch._dynamo.reset()
    counter = CompileCounter()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter, dynamic=dynamic)
    torch.testing.assert_close(trajectory(pipe, True, **TASKS["interpolation"]), expected, atol=1e-5, rtol=1e-5)
    compiled = counter.frame_count
    assert compiled == 2 if dynamic is False else compiled <= 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        trajectory(pipe, True, **TASKS["interpolation"], num_inference_steps=7, generator=seeded(1))
    assert counter.frame_count == compiled


def test_models_without_identity_attention_are_saved_as_such_and_sampled_window_by_window(tmp_path):
    pipe, weights = tiny_pipeline(), {}
    for name in ("planner", "transformer"):
        weights[name] = getattr(pipe, name).state_dict()
        config = {key: value for key, value in getattr(pipe, name).config.items() if not key.startswith("_")}
        model = type(getattr(pipe, name))(**{**config, "identity_attention": False}).eval()
        model.load_state_dict(weights[name])  # the same parameters
        setattr(pipe, name, model)
    pipe.save_pretrained(tmp_path)
    loaded = MarDiniPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    arguments = {
        "video": clip(2),
        "frame_indices": [0, 4],
        "num_frames": 5,
        "num_inference_steps": 2,
        "output_type": "pt",
    }
    frames = [each(**arguments, generator=torch.Generator().manual_seed(0)).frames for each in (pipe, loaded)]
    torch.testing.assert_close(frames[0], frames[1])

    mask = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match="no identity attention"):
        pipe.transformer(torch.zeros(1, 3, 16, 4, 4), 0, None, mask, num_masked_frames=1, return_window_state=True)


@pytest.mark.parametrize("name", ["planner", "transformer"])
@pytest.mark.parametrize("identity", [True, False])
def test_masked_frames_reach_the_state_of_given_ones_only_without_identity_attention(name, identity):
    model = getattr(tiny_pipeline(), name)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    other = type(model)(**{**config, "identity_attention": identity}).eval()
    other.load_state_dict(model.state_dict())
    mask, given = torch.tensor([[True, False, False]]), torch.randn(1, 3, 16, 4, 4, generator=seeded(0))
    states = []
    handle = other.transformer_blocks[-1].register_forward_hook(lambda module, inputs, output: states.append(output))
    for noise in (1.0, 2.0):
        latents = torch.where(mask[:, :, None, None, None], given, noise)
        with torch.no_grad():
            if name == "planner":  # masked frames are [MASK] there: what stands at them is changed in the token
                other.mask_token.fill_(noise)
                other(latents, mask)
            else:
                other(latents, 500, None, mask)
    handle.remove()
    same = torch.allclose(states[0][:, 0], states[1][:, 0], atol=1e-5)
    assert same == identity


@pytest.mark.parametrize("use", [True, False])
def test_a_window_without_planning_signals_is_sampled_with_the_unconditional_one(use):
    pipe = tiny_pipeline()
    noise, references = torch.randn(1, 5, 16, 4, 4, generator=seeded()), torch.ones(1, 1, 16, 4, 4)
    signal = pipe.transformer.unconditional_planning_signal.detach().expand(1, 5, 1, 1, -1)
    options = SamplingOptions(num_inference_steps=2, guidance_scale=1.0, use_window_state=use)
    with torch.no_grad(), pipe.progress_bar(total=4) as bar:
        with_none, with_it = (pipe.denoise(noise, references, [0], given, options, bar) for given in (None, signal))
    torch.testing.assert_close(with_none, with_it)
