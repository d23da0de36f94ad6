"""The pipeline at work on windows: in any batch, with any scheduler, with another plan."""

import pytest
import torch
from peft import LoraConfig

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.schedulers.named import scheduler_named
from pipelines_tests.tiny_pipeline import CallCounter, clip, tiny_pipeline
from training.evaluation.altered_signals import DROPPED, OTHER, SignalContext, batch_of_others, noisy, tokens_dropped
from training.evaluation.sampling import (
    batches,
    generate,
    reconstruct,
    sample_batch,
    scheduler_replaced,
    signals_altered,
    weights_digest,
)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def windows():
    return clip(5, 4)


def test_a_window_is_sampled_the_same_in_any_batch(pipe, windows):
    together = generate(pipe, windows, [0, 4], steps=2, batch_size=4)
    apart = generate(pipe, windows, [0, 4], steps=2, batch_size=2)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)
    torch.testing.assert_close(together[:, [0, 4]], windows[:, [0, 4]])
    other_seed = generate(pipe, windows, [0, 4], steps=2, seed=1)
    assert (together[:, 1:4] - other_seed[:, 1:4]).abs().max() > 0.01


def test_sampling_does_not_see_the_frames_that_are_not_given(pipe, windows):
    spoiled = windows.clone()
    spoiled[:, [1, 2, 3]] = 0.5
    torch.testing.assert_close(generate(pipe, windows, [0, 4], steps=1), generate(pipe, spoiled, [0, 4], steps=1))


def test_no_batch_has_a_single_window_unless_there_is_only_one():
    assert batches(9, 8) == [(0, 5), (5, 9)]
    assert batches(3, 2) == [(0, 2), (2, 3)] and batches(1, 8) == [(0, 1)] and batches(2, 1) == [(0, 1), (1, 2)]
    for count in range(2, 40):
        assert all(last - first <= 3 for first, last in batches(count, 3))
        assert all(2 <= last - first <= 3 for first, last in batches(count, 2, least=2))
    with pytest.raises(ValueError, match="batches of 0 windows"):
        batches(3, 0)
    with pytest.raises(ValueError, match="1 windows; batches of at least 2"):
        batches(1, 8, least=2)


def test_the_plan_of_another_window_is_there_however_small_the_batch(pipe, windows):
    generate(pipe, windows, [0, 4], steps=1, batch_size=1, alteration=OTHER)


@pytest.mark.parametrize("batch_size", (1, 3, 8))
@pytest.mark.parametrize("per_clip", ([2, 2, 2], [3, 1, 2], [1, 1, 1, 1, 1], [2, 2, 1, 2, 1, 2, 2]))
def test_the_plan_of_another_window_is_another_clips(per_clip, batch_size):
    clips = [f"{number}.mp4" for number, count in enumerate(per_clip) for _ in range(count)]
    for first, last in batches(len(clips), batch_size, batch_of_others(clips)):
        window = torch.arange(first, last)
        context = SignalContext(torch.zeros(1), [0], [])
        other = OTHER.apply(window[:, None, None, None, None], context).flatten()
        assert all(clips[a] != clips[b] for a, b in zip(window, other))


def test_the_plan_of_another_clip_is_refused_where_windows_do_not_suffice():
    with pytest.raises(ValueError, match="at least 4 windows where a clip has 2; there are 3: add clips"):
        batch_of_others(["a.mp4", "a.mp4", "b.mp4"])


def test_dropped_planning_is_the_transformers_own_unconditional_branch(pipe):
    mask = torch.tensor([[True, False, False, False, True]]).expand(2, -1)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 16, 4, 4, generator=generator)
    low = torch.randn(2, 5, 16, 2, 2, generator=generator)
    context = SignalContext(pipe.transformer.unconditional_planning_signal, [0, 4], [])
    with torch.no_grad():
        own = pipe.planner(low, mask)[0]
        with signals_altered(pipe, DROPPED, context):
            none = pipe.planner(low, mask, return_dict=False)[0]
        with signals_altered(pipe, OTHER, context):
            other = pipe.planner(low, mask).planning_signals
        timestep = torch.tensor(500)
        replaced = pipe.transformer(latents, timestep, none, mask)[0]
        torch.testing.assert_close(replaced, pipe.transformer(latents, timestep, None, mask)[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other, own[[1, 0]])
        torch.testing.assert_close(pipe.planner(low, mask)[0], own)  # nothing is left behind
        assert (replaced - pipe.transformer(latents, timestep, own, mask)[0]).abs().max() > 1e-3


def test_the_plan_of_another_window_needs_another_window(pipe, windows):
    with pytest.raises(ValueError, match="at least 2 windows"):
        sample_batch(pipe, windows[:1], [0, 4], steps=1, alteration=OTHER)


# Weights are random, and the plan hardly differs from token to token: so much noise.
@pytest.mark.parametrize("change", [noisy(1000.0), tokens_dropped(0.5)])
def test_what_is_drawn_to_change_a_plan_depends_on_window_and_seed_alone(windows, change):
    def plans(seed: int, batch_size: int) -> torch.Tensor:
        pipe = tiny_pipeline()
        counter = CallCounter(pipe)
        generate(pipe, windows, [0, 4], steps=1, seed=seed, batch_size=batch_size, alteration=change)
        return torch.cat([kwargs["planning_signals"] for _, kwargs, _ in counter.inputs["window_state"]])

    together, apart, other_seed = plans(0, 4), plans(0, 2), plans(1, 4)
    torch.testing.assert_close(together, apart, atol=0.01, rtol=0)
    assert (together - other_seed).abs().max() > 0.1


def test_another_scheduler_samples_the_same_model_and_is_put_back(pipe, windows):
    own, scheduler = pipe.scheduler, scheduler_named(pipe.scheduler, "UniPCMultistepScheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == own.config.beta_schedule
    before = sample_batch(pipe, windows, [0, 4], steps=3)
    with scheduler_replaced(pipe, scheduler):
        other = sample_batch(pipe, windows, [0, 4], steps=3)
    assert pipe.scheduler is own
    assert (other[:, 1:4] - before[:, 1:4]).abs().max() > 1e-3
    torch.testing.assert_close(sample_batch(pipe, windows, [0, 4], steps=3), before)


@pytest.mark.parametrize("name", ["DDIM", "FlowMatchEulerDiscreteScheduler", "MarDiniPipeline"])
def test_a_scheduler_that_cannot_take_over_is_refused_with_those_that_can(pipe, name):
    with pytest.raises(ValueError, match=f"{name}.*DDIMScheduler"):
        scheduler_named(pipe.scheduler, name)


def test_guidance_runs_the_transformer_twice(windows):
    pipe = tiny_pipeline()
    counter = CallCounter(pipe)
    sample_batch(pipe, windows[:1], [0, 4], steps=2)
    sample_batch(pipe, windows[:1], [0, 4], steps=2, guidance_scale=2.0)
    rows = [
        args[0].shape[0] if args else kwargs["hidden_states"].shape[0]
        for args, kwargs, _ in counter.inputs["transformer"]
    ]
    assert sum(rows) == 2 * 1 + 2 * 2


def test_the_autoencoder_alone_returns_windows_in_range(pipe, windows):
    rebuilt = reconstruct(pipe, windows, [0, 4])
    assert rebuilt.shape == windows.shape and rebuilt.min() >= 0 and rebuilt.max() <= 1
    assert torch.equal(rebuilt[:, [0, 4]], windows[:, [0, 4]])  # as in every other row
    assert (rebuilt[:, 1:4] != windows[:, 1:4]).any((0, 2, 3, 4)).all()


def test_the_digest_of_a_checkpoint_changes_with_one_weight(tmp_path):
    pipe = tiny_pipeline()
    before = weights_digest(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    for place in (tmp_path / "saved", str(tmp_path / "saved")):  # wherever it was loaded from
        assert weights_digest(MarDiniPipeline.from_pretrained(place)) == before
    pipe.register_to_config(num_inference_steps=10, solver="UniPCMultistepScheduler", anchors=1)
    assert before == weights_digest(pipe)  # how it is sampled best changes no frame
    assert before == weights_digest(tiny_pipeline()) and before != weights_digest(tiny_pipeline(planner_downscale=4))
    with torch.no_grad():
        next(pipe.planner.parameters()).flatten()[0] += 1e-3
    assert weights_digest(pipe) != before


def test_weights_are_told_apart_by_an_adapters_alpha():
    def adapted(alpha: float) -> str:
        pipe = tiny_pipeline()
        pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=alpha, target_modules=["to_v"]), adapter_name="new")
        for name, parameter in pipe.transformer.named_parameters():
            if "lora_A" in name:
                torch.nn.init.ones_(parameter)  # else drawn anew
        return weights_digest(pipe)

    assert adapted(2) == adapted(2) != adapted(4)
