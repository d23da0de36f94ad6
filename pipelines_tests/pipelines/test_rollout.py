"""A rollout goes on frame by frame: the frames of `extend`, nothing encoded twice, memory that does not grow."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, UniPCMultistepScheduler

from diffusers_mardini import MarDiniRollout
from diffusers_mardini.latents import decode_latents
from diffusers_mardini.pipelines.conditions import conditions_at, read_conditions
from diffusers_mardini.pipelines.sampling_options import SamplingOptions
from pipelines_tests.pipelines.test_conditions import told_pipeline
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


FEW = {"num_inference_steps": 2}


@pytest.fixture
def pipe():
    return tiny_pipeline()


@torch.no_grad()
def extended_by_hand(pipe, video, num_new, window, overlap, generator, guidance_scale=None, eta=0.0, conditions=None):
    """Return the latents of `extend`, each window from the latents of the whole video: a plain form to compare with."""
    pixels = video if video.ndim == 5 else video[None]
    videos, made = pixels.shape[:2]
    conditions = read_conditions(conditions, pipe.conditions, videos, made + num_new, made)
    options = SamplingOptions(2, None, guidance_scale, eta, generator, callback_on_step_end_tensor_inputs=())
    latents = pipe.encode_frames(pixels * 2 - 1)
    low_latents = pipe.encode_low_frames(pixels * 2 - 1)
    num_frames = made + num_new
    while made < num_frames:
        places = list(range(max(0, made - overlap), max(0, made - overlap) + window))
        given = [i for i, place in enumerate(places) if place < made]
        values = conditions_at(conditions, pipe.conditions, places)
        signals = pipe.plan(low_latents[:, places[: len(given)]], given, window, None, values)
        noise = pipe.prepare_latents((videos, window, *latents.shape[2:]), generator)
        sampled = pipe.denoise(noise, latents[:, places[: len(given)]], given, signals, options, None, values)
        latents = torch.cat([latents, sampled[:, len(given) :]], dim=1)
        made = latents.shape[1]
        missing = latents[:, low_latents.shape[1] :][:, -overlap:]
        seen = pipe.encode_low_frames(decode_latents(pipe.vae, missing).clamp(-1, 1))
        skipped = low_latents.new_zeros(videos, made - low_latents.shape[1] - seen.shape[1], *low_latents.shape[2:])
        low_latents = torch.cat([low_latents, skipped, seen], dim=1)
    return latents[:, :num_frames]


@pytest.mark.parametrize("vae", ["patch_basis", "kl"])
@pytest.mark.parametrize(
    "given, new, window, overlap, batch",
    [(1, 3, 2, 1, ()), (3, 10, 5, 2, ()), (9, 7, 9, 8, ()), (2, 12, 9, 4, ()), (3, 9, 6, 5, (2,)), (5, 6, 5, 2, (3,))],
)
def test_extension_is_that_of_windows_over_the_whole_video_bit_for_bit(vae, given, new, window, overlap, batch):
    pipe = tiny_pipeline(vae)
    video = clip(given, *batch)
    for guidance_scale, eta in ((None, 0.0), (1.0, 0.5)):
        generators = [[seeded(i) for i in range(batch[0])] if batch else seeded(4) for _ in range(2)]
        by_hand = extended_by_hand(pipe, video, new, window, overlap, generators[0], guidance_scale, eta)
        made = pipe.extend(
            video, new, window, overlap, generator=generators[1], guidance_scale=guidance_scale, eta=eta,
            output_type="latent", **FEW,
        ).frames  # fmt: skip
        assert torch.equal(made, by_hand)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("of_given_frames", [True, False])
def test_extension_with_conditions_is_the_same_bit_for_bit(batch, of_given_frames):
    pipe = told_pipeline()
    rows = 3 + 7 if of_given_frames else 7
    actions = torch.rand(batch, rows, 2, generator=seeded())
    actions[:, 2:4] = torch.nan
    for conditions in ({"action": actions}, {"rate": np.ones(rows), "action": actions[0]}, {}):
        by_hand = extended_by_hand(pipe, clip(3, batch), 7, 5, 2, seeded(1), conditions=conditions)
        made = pipe.extend(
            clip(3, batch), 7, 5, 2, generator=seeded(1), conditions=conditions, output_type="latent", **FEW
        ).frames
        assert torch.equal(made, by_hand)


@pytest.mark.parametrize("batch", [1, 2])
def test_steps_of_whole_windows_make_the_frames_of_an_extension(batch):
    pipe, video = told_pipeline(), clip(4, batch)
    actions = torch.rand(batch, 4 + 9, 2, generator=seeded())
    expected = pipe.extend(
        video, 9, window=6, overlap=3, generator=seeded(1), conditions={"action": actions}, output_type="pt", **FEW
    ).frames
    for output_type in ("latent", "pt"):
        rollout = pipe.rollout(
            video, window=6, overlap=3, generator=seeded(1), conditions={"action": actions[:, :4]},
            output_type=output_type, **FEW,
        )  # fmt: skip
        steps = [rollout.step(3, {"action": actions[:, i : i + 3]}).frames for i in (4, 7, 10)]
        made = torch.cat(steps, dim=1)
        made = pipe.decode(made, "pt") if output_type == "latent" else made
        torch.testing.assert_close(made, expected[:, 4:], rtol=1e-5, atol=1e-5)


def test_a_rollout_takes_every_output_type_and_size(pipe):
    forms = {}
    for output_type in ("pil", "np", "pt"):
        rollout = pipe.rollout(
            clip(2, 2), window=5, overlap=2, height=48, width=48, output_type=output_type, generator=seeded(), **FEW
        )
        forms[output_type] = [rollout.step().frames, rollout.step(1).frames]
    assert [len(video) for video in forms["pil"][0]] == [3, 3] and forms["pil"][1][1][0].size == (48, 48)
    assert forms["np"][0].shape == (2, 3, 48, 48, 3) and forms["pt"][1].shape == (2, 1, 3, 48, 48)
    np.testing.assert_array_equal(forms["np"][1], forms["pt"][1].permute(0, 1, 3, 4, 2).numpy())


def test_nothing_is_encoded_twice_and_only_new_frames_are_decoded(pipe):
    encoded, decoded = [], []
    rollout = pipe.rollout(clip(6), window=6, overlap=4, output_type="np", generator=seeded(), **FEW)
    pipe.vae.to_latents.register_forward_hook(lambda module, args, output: encoded.append(len(output)))
    pipe.vae.from_latents.register_forward_hook(lambda module, args, output: decoded.append(len(output)))
    for num_frames in (2, 1, 2):
        rollout.step(num_frames)
    assert decoded == [2, 1, 2]
    assert encoded == [2, 1, 2]  # made smaller, for the planner


def kept_tensors(rollout: MarDiniRollout) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
    return own | {f"condition {name}": value for name, value in rollout._conditions.items()}


@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_what_is_kept_does_not_grow_in_fifty_steps(output_type):
    pipe, sizes = told_pipeline(), []
    rollout = pipe.rollout(
        clip(3), window=5, overlap=3, num_inference_steps=1, guidance_scale=1.0, output_type=output_type
    )
    for _ in range(50):
        rollout.step(2, {"action": torch.rand(2, 2), "rate": [1, 1]})
        sizes.append({k: (v.shape, v.untyped_storage().nbytes()) for k, v in kept_tensors(rollout).items()})
    assert len(sizes[0]) == 4 and all(size == sizes[1] for size in sizes[1:])


def test_a_short_clip_fills_its_window_first(pipe):
    rollout = pipe.rollout(clip(1), window=6, overlap=4, output_type="np", **FEW)
    counts = []
    for num_frames in (2, None, None):
        counts.append((rollout.num_kept_frames, rollout.most_new_frames, rollout.step(num_frames).frames.shape[1]))
    assert counts == [(1, 5, 2), (3, 3, 3), (4, 2, 2)]


def test_frames_keep_their_conditions_for_as_long_as_they_lead_a_window():
    pipe = told_pipeline()
    rollout = pipe.rollout(clip(3), window=5, overlap=3, conditions={"rate": [1, 2, 3]}, generator=seeded(), **FEW)
    counter = CallCounter(pipe)
    rollout.step(2, {"action": [[0.5, 0.5], [-0.5, 0.5]]})
    rollout.step(2)
    rollout.step(1, {"rate": [4]})
    rollout.step(2)
    seen = [kwargs.get("conditions", {}) for _, kwargs, _ in counter.inputs["planner"]]
    steering = [one["action"][0, :, 0].tolist() for one in seen[:3]]
    nan = float("nan")
    np.testing.assert_equal(steering, [[nan, nan, nan, 0.5, -0.5], [nan, 0.5, -0.5, nan, nan], [-0.5, nan, nan, nan]])
    rates = [one["rate"][0, :, 0].tolist() for one in (seen[0], seen[1], seen[2], seen[3])]
    expected = [[1, 2, 3, nan, nan], [3, nan, nan, nan, nan], [nan, nan, nan, 4], [nan, nan, 4, nan, nan]]
    np.testing.assert_equal(rates, expected)
    assert "action" not in seen[3]  # absent in the whole window


def test_a_reset_begins_again_without_new_checks_of_the_sampler(pipe):
    kwargs = {"window": 5, "overlap": 2, "output_type": "pt", **FEW}
    other = clip(4, seed=3)
    rollout = pipe.rollout(clip(3), generator=seeded(1), **kwargs)
    rollout.step()
    rollout.options.generator.manual_seed(1)
    rollout.reset(other)
    expected = pipe.rollout(other, generator=seeded(1), **kwargs).step().frames
    assert torch.equal(rollout.step().frames, expected)
    rollout.options.generator.manual_seed(1)
    rollout.reset(other.expand(2, -1, -1, -1, -1))  # the size of a batch may change
    assert rollout.step().frames.shape[:2] == (2, 3)


def test_what_leads_a_window_is_the_end_of_the_clip(pipe):
    kwargs = {"window": 5, "overlap": 2, "output_type": "pt", **FEW}
    video = clip(7)
    long, short = (pipe.rollout(one, generator=seeded(), **kwargs).step().frames for one in (video, video[-2:]))
    assert torch.equal(long, short)


def test_an_interrupted_step_leaves_the_rollout_where_it_was(pipe):
    stopping = []

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = bool(stopping)

    kwargs = {"window": 5, "overlap": 2, "output_type": "pt", "callback_on_step_end": stop, **FEW}
    rollout = pipe.rollout(clip(2), generator=seeded(), **kwargs)
    rollout.step()
    before = {name: value.clone() for name, value in kept_tensors(rollout).items()}
    stopping.append(True)
    assert rollout.step().frames.shape[1] == 3
    assert all(torch.equal(value, before[name]) for name, value in kept_tensors(rollout).items())
    stopping.clear()
    assert rollout.step().frames.shape[1] == 3


def test_callbacks_generators_and_guidance_are_those_of_a_call(pipe):
    steps = []

    def watch(pipeline, step, timestep, tensors):
        steps.append((step, sorted(tensors)))

    kwargs = {"output_type": "pt", "num_inference_steps": 3}
    rollout = pipe.rollout(
        clip(2, 2), window=5, overlap=2, generator=[seeded(1), seeded(2)], callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=["latents", "planning_signals"], **kwargs,
    )  # fmt: skip
    frames = rollout.step().frames
    assert steps == [(i, ["latents", "planning_signals"]) for i in range(3)] and pipe.guidance_scale == 2.5
    expected = pipe(video=clip(2, 2), num_frames=5, generator=[seeded(1), seeded(2)], **kwargs).frames[:, 2:]
    torch.testing.assert_close(frames, expected, rtol=1e-4, atol=1e-4)


def test_a_scheduler_that_is_put_in_later_is_checked(pipe):
    rollout = pipe.rollout(clip(2), window=5, **FEW)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    rollout.step()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon")
    with pytest.raises(ValueError, match="prediction_type='epsilon', but MarDini predicts velocities"):
        rollout.step()


AS_IT_IS = r"It is action: 2 channels \(steering -1 to 1, gas 0 to 1\), in shares"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_frames": 4}, "`num_frames` is 4, but a window of 5 frames led by 2 has place for 3; give 3 or fewer"),
        ({"num_frames": 0}, "`num_frames` is 0; give a whole number of at least 1"),
        ({"conditions": {"action": torch.zeros(2, 2)}}, rf"shape \(2, 2\); give \(3, 2\), a row for each.*{AS_IT_IS}"),
        ({"conditions": {"action": torch.full((3, 2), 2.0)}}, f"is 2 for steering in frame 0.*{AS_IT_IS}"),
        ({"conditions": {"speed": [1, 2, 3]}}, "has speed, but this pipeline takes action: 2 channels"),
    ],
)
def test_a_step_that_cannot_be_made_says_why_and_changes_nothing(arguments, message):
    pipe = told_pipeline()
    rollout = pipe.rollout(clip(2), window=5, overlap=2, **FEW)
    before, counter = kept_tensors(rollout), CallCounter(pipe)
    with pytest.raises(ValueError, match=message):
        rollout.step(**arguments)
    after = kept_tensors(rollout)
    assert sum(counter.counts.values()) == 0 and all(after[name] is value for name, value in before.items())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"overlap": 5}, "`overlap` is 5 and `window` 5, so that a window adds no frame"),
        ({"window": 1}, "`window` is 1; give a whole number of at least 2"),
        ({"output_type": "gif"}, "`output_type` is 'gif'; choose one of"),
        ({"generator": [seeded()] * 3}, "`generator` is a list of 3, but 1 videos"),
        ({"video": None}, "`video` is missing; give a clip of at least 1 frames"),
        ({"conditions": {"action": torch.zeros(3, 2)}}, rf"has shape \(3, 2\); give \(2, 2\), a row.*{AS_IT_IS}"),
    ],
)
def test_a_rollout_that_cannot_begin_says_why_before_any_model_runs(arguments, message):
    pipe = told_pipeline()
    counter = CallCounter(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.rollout(**{"video": clip(2), "window": 5, "overlap": 2, **arguments})
    assert sum(counter.counts.values()) == 0


def test_a_rollout_waits_for_no_other_call_of_its_pipeline(pipe):
    refused = []

    def call_again(pipeline, step, timestep, tensors):
        for call in (rollout.step, lambda: rollout.reset(clip(2)), lambda: pipe(image=clip(1)[0])):
            with pytest.raises(ValueError, match="is at work already") as error:
                call()
            refused.append(error)

    rollout = pipe.rollout(clip(2), window=5, num_inference_steps=1, callback_on_step_end=call_again)
    rollout.step()
    assert len(refused) == 3


@pytest.mark.parametrize("use_window_state", [True, False])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_frames_of_its_own_lead_a_window_with_noise_that_the_transformer_is_told(
    pipe, use_window_state, guidance_scale
):
    asked, seen, planned = [], [], []
    inner, plan = pipe.denoise, pipe.plan

    def denoise(noise, references, given_indices, *args):
        seen.append(references)
        asked.append(args[-1])
        return inner(noise, references, given_indices, *args)

    def recorded_plan(low_references, *args):
        planned.append(low_references)
        return plan(low_references, *args)

    pipe.denoise, pipe.plan = denoise, recorded_plan
    kept = {"output_type": "latent", "guidance_scale": guidance_scale, "use_window_state": use_window_state, **FEW}
    rollout = pipe.rollout(clip(3), 7, 4, generator=seeded(0), generated_noise=0.1, **kept)
    first, second = rollout.step(2).frames, rollout.step(3).frames
    assert asked[0] is None and asked[1].tolist() == [0, 0, 100, 100]
    assert torch.equal(seen[1][:, :2], seen[0][:, 1:]) and not torch.allclose(seen[1][:, 2:], first)
    alpha = float(pipe.scheduler.alphas_cumprod[100]) ** 0.5
    noise = (seen[1][:, 2:] - alpha * first) / (1 - alpha**2) ** 0.5
    assert 0.6 < noise.std() < 1.4 and not torch.allclose(planned[1][:, 2:], planned[0][:, :2])
    assert rollout.step(3).frames.shape[1] == 3 and asked[2].tolist() == [100] * 4
    assert torch.equal(rollout._latents[:, 0], second[:, -1])  # kept without the noise
    plain = pipe.rollout(clip(3), 7, 4, generator=seeded(0), **kept)
    assert torch.equal(plain.step(2).frames, first) and not torch.allclose(plain.step(3).frames, second)
    with pytest.raises(ValueError, match="`generated_noise` is 1.0; give a share"):
        pipe.rollout(clip(3), 7, 4, generated_noise=1.0, **kept)


def test_generated_frames_may_be_taken_for_nothing_but_noise(pipe):
    rollout = pipe.rollout(clip(2), window=4, overlap=2, generated_noise=0.9999, output_type="pt", **FEW)
    assert all(rollout.step().frames.isfinite().all() for _ in range(3))


def euler(pipe):
    """Return a scheduler whose first level depends on the number of steps."""
    return EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")


def test_calls_with_other_steps_between_change_nothing(pipe):
    pipe.scheduler = euler(pipe)
    arguments = {"window": 5, "overlap": 2, "num_inference_steps": 4, "output_type": "latent"}
    alone = pipe.rollout(clip(3), generator=seeded(), **arguments)
    expected = [alone.step().frames for _ in range(2)]
    between = pipe.rollout(clip(3), generator=seeded(), **arguments)
    for frames in expected:
        pipe(image=clip(1)[0], num_frames=3, num_inference_steps=9, generator=seeded(1), output_type="latent")
        torch.testing.assert_close(between.step().frames, frames)


def test_a_scheduler_that_is_put_in_later_begins_at_its_own_level(pipe):
    arguments = {"window": 5, "overlap": 2, "num_inference_steps": 4, "output_type": "latent"}
    rollout = pipe.rollout(clip(3), generator=seeded(), **arguments)
    pipe.scheduler = euler(pipe)
    swapped = rollout.step().frames
    torch.testing.assert_close(swapped, pipe.rollout(clip(3), generator=seeded(), **arguments).step().frames)
