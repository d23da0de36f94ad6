"""An extension may be led by frames far back, and may go on by keyframes first."""

import pytest
import torch

from diffusers_mardini.pipelines.leading_frames import LeadingFrames
from pipelines_tests.pipelines.test_conditions import told_pipeline
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


FEW = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize(
    "overlap, anchors, num_frames, leading",
    [
        (4, 0, 100, [96, 97, 98, 99]),
        (4, 1, 100, [0, 97, 98, 99]),
        (4, 2, 100, [0, 96, 98, 99]),
        (6, 4, 100, [0, 84, 92, 96, 98, 99]),
        (4, 2, 5, [0, 1, 3, 4]),
        (4, 2, 4, [0, 1, 2, 3]),
        (4, 3, 6, [0, 2, 4, 5]),
        (4, 2, 1, [0]),
    ],
)
def test_anchors_are_the_first_frame_and_frames_ever_further_apart(overlap, anchors, num_frames, leading):
    frames = LeadingFrames(overlap, anchors)
    kept = frames.kept(num_frames)
    assert [kept[i] for i in frames.leading(len(kept))] == leading
    step_by_step = [0]
    for number in range(1, num_frames):  # frames that are kept one after the other suffice
        step_by_step = [[*step_by_step, number][i] for i in frames.kept(len(step_by_step) + 1)]
    assert step_by_step == kept


def led_by(pipe):
    """Return the references of the windows that are sampled from now on."""
    seen, inner = [], pipe.denoise

    def denoise(noise, references, given_indices, *args, **kwargs):
        seen.append((references, list(given_indices), noise.shape[1]))
        return inner(noise, references, given_indices, *args, **kwargs)

    pipe.denoise = denoise
    return seen


def test_windows_are_led_by_the_anchors_and_the_last_frames(pipe):
    seen = led_by(pipe)
    frames = pipe.extend(clip(3), 12, window=7, overlap=4, anchors=2, generator=seeded(), **FEW).frames
    made = [3, 7, 10, 13]
    for count, (references, given, length) in zip(made, seen, strict=True):
        frame_leads = [0, count - 4, count - 2, count - 1] if count > 3 else [0, 1, 2]
        torch.testing.assert_close(references, frames[:, frame_leads])
        assert given == list(range(len(frame_leads))) and length == 7
    plain = pipe.extend(clip(3), 12, window=7, overlap=4, generator=seeded(), **FEW).frames
    assert torch.equal(plain[:, :7], frames[:, :7]) and not torch.allclose(plain[:, 7:], frames[:, 7:])


def test_an_anchor_of_the_clip_stays_without_noise(pipe):
    asked, inner = [], pipe.denoise

    def denoise(*args):
        asked.append(args[-1])
        return inner(*args)

    pipe.denoise = denoise
    rollout = pipe.rollout(clip(4), window=7, overlap=4, anchors=1, generated_noise=0.1, generator=seeded(), **FEW)
    for _ in range(4):
        rollout.step()
    assert asked[0] is None and all(level.tolist() == [0, 100, 100, 100] for level in asked[1:])


def test_memory_of_anchors_does_not_grow(pipe):
    rollout = pipe.rollout(clip(3), window=6, overlap=4, anchors=3, generator=seeded(), **FEW)
    counts = []
    for _ in range(5):
        rollout.step()
        counts.append((rollout._latents.shape[1], rollout.num_kept_frames))
    assert counts[-1] == counts[-2] == (1 + 4, 4)


@pytest.mark.parametrize("interval", [2, 3])
def test_keyframes_are_led_by_keyframes_and_the_frames_between_by_those_beside(pipe, interval):
    seen = led_by(pipe)
    new = 2 * (5 - 2) * interval
    frames = pipe.extend(
        clip(4), new, window=5, overlap=2, keyframe_interval=interval, generator=seeded(), **FEW
    ).frames
    assert frames.shape[1] == 4 + new
    keyframes = list(range(3 % interval, 4 + new, interval))
    first = [i for i in keyframes if i < 4][-2:]
    torch.testing.assert_close(seen[0][0], frames[:, first])
    number = next(i for i, (_, given, _) in enumerate(seen) if i and given == [0, 1])
    torch.testing.assert_close(seen[number][0], frames[:, [3 + 2 * interval, 3 + 3 * interval]])
    between = [references for references, given, _ in seen[1:number]]
    torch.testing.assert_close(between[0][:, 0], frames[:, 3])
    torch.testing.assert_close(between[-1][:, -1], frames[:, 3 + 3 * interval])


@pytest.mark.parametrize(
    "settings", [{}, {"anchors": 1}, {"anchors": 2}, {"keyframe_interval": 2}, {"keyframe_interval": 3, "anchors": 1}]
)
@pytest.mark.parametrize("given", [1, 5, 12])
def test_streams_steps_and_extensions_agree(pipe, settings, given):
    arguments = {"window": 6, "overlap": 3, "decode_chunk_size": 4, **settings, **FEW}
    whole = pipe.extend(clip(given), 20, generator=seeded(), **arguments).frames
    stream = pipe.extend(iter(clip(given)), 20, generator=seeded(), stream=True, **arguments)
    torch.testing.assert_close(torch.stack(list(stream))[None], whole)
    rollout, steps = pipe.rollout(clip(given), generator=seeded(), **arguments), []
    while sum(step.shape[1] for step in steps) < 20:
        rollout.restore({name: value.clone() for name, value in rollout.state().items()})
        steps.append(rollout.step().frames)
    torch.testing.assert_close(torch.cat(steps, dim=1)[:, :20], whole[:, given:])


def test_conditions_of_keyframes_are_those_of_their_intervals():
    pipe = told_pipeline()
    planned, plan = [], pipe.plan

    def recorded(low_references, given, length, kwargs, conditions, *args):
        planned.append((given, conditions["action"]))
        return plan(low_references, given, length, kwargs, conditions, *args)

    pipe.plan = recorded
    actions = torch.linspace(0, 1, 2 * (4 + 6)).view(4 + 6, 2)
    pipe.extend(
        clip(4), 6, window=5, overlap=2, keyframe_interval=2, conditions={"action": actions}, generator=seeded(), **FEW
    )
    pairs = actions[2:].view(4, 2, 2).mean(dim=1)
    torch.testing.assert_close(planned[0][1][0, 1:], pairs)
    torch.testing.assert_close(planned[1][1][0], actions[3:8])  # that of the last given frame is its own


def test_the_planner_sees_the_last_given_frame_itself_between_keyframes(pipe):
    """And not what the autoencoder made of it."""
    planned, plan = [], pipe.plan

    def recorded(low_references, *args):
        planned.append(low_references)
        return plan(low_references, *args)

    pipe.plan = recorded
    frames = clip(4)
    pipe.extend(frames, 4, window=5, overlap=2, keyframe_interval=2, generator=seeded(), **FEW)
    pixels = pipe.video_processor.preprocess_video(frames).transpose(1, 2)
    own = pipe.encode_low_frames(pixels[:, -1:].to(planned[1].device), 4)
    torch.testing.assert_close(planned[1][:, :1], own)


@pytest.mark.parametrize("interval, failing", [(1, 1), (2, 1), (2, 3)])
def test_a_step_that_fails_leaves_the_rollout_where_it_was(pipe, interval, failing):
    calls = []

    def fail(pipeline, step, timestep, tensors):
        calls.append(step)
        if len(calls) == failing:  # of 2 steps: in the first window, or in the first one between keyframes
            raise RuntimeError("the callback fails")
        return {}

    arguments = {"window": 5, "overlap": 2, "keyframe_interval": interval, **FEW}
    rollout = pipe.rollout(clip(4), generator=seeded(), callback_on_step_end=fail, **arguments)
    before = rollout.state()
    with pytest.raises(RuntimeError, match="the callback fails"):
        rollout.step()
    after = rollout.state()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert rollout.step().frames.shape[1] == rollout.most_new_frames


def test_conditions_of_anchors_are_those_of_an_interval_as_long_as_the_others():
    pipe = told_pipeline()
    rollout = pipe.rollout(clip(3), window=6, overlap=3, anchors=1, keyframe_interval=2, generator=seeded(), **FEW)
    actions, rates = torch.rand(1, 41, 2), torch.full((1, 41, 1), 0.04)
    places = rollout.kept_places(41)
    told = rollout.conditions_of_kept({"action": actions, "rate": rates}, places)
    assert places[0] == 0 and places[1] > 30
    torch.testing.assert_close(told["rate"][0, 1:, 0], torch.full((len(places) - 1,), 0.08))
    torch.testing.assert_close(told["action"][0, 1], actions[0, places[1] - 1 : places[1] + 1].mean(dim=0))
    torch.testing.assert_close(rollout.conditions_of_kept({"rate": rates}, [40])["rate"], torch.full((1, 1, 1), 0.08))


def test_an_interrupted_hierarchy_leaves_the_rollout_where_it_was(pipe):
    calls = []

    def stop(pipeline, step, timestep, tensors):
        calls.append(step)
        pipeline._interrupt = len(calls) == 3  # in the first window between keyframes

    rollout = pipe.rollout(
        clip(4), window=5, overlap=2, keyframe_interval=2, generator=seeded(), callback_on_step_end=stop, **FEW
    )
    before = rollout.state()
    assert rollout.step().frames.shape[1] == 6
    assert all(torch.equal(value, before[name]) for name, value in rollout.state().items())
    assert rollout.step().frames.shape[1] == 6 and not torch.equal(rollout.state()["latents"], before["latents"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"anchors": 2}, "`anchors` is 2 and `overlap` 2, so that no window would begin at the last frame; lower"),
        ({"anchors": -1}, "`anchors` is -1; give a whole number of at least 0"),
        ({"keyframe_interval": 0}, "`keyframe_interval` is 0; give a whole number of at least 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(pipe, arguments, message):
    for method in (pipe.rollout, lambda *args, **kwargs: pipe.extend(*args, num_new_frames=3, **kwargs)):
        with pytest.raises(ValueError, match=message):
            method(clip(3), window=5, overlap=2, **arguments)


def test_a_step_of_keyframes_has_whole_intervals(pipe):
    rollout = pipe.rollout(clip(3), window=5, overlap=2, keyframe_interval=2, **FEW)
    assert rollout.most_new_frames == 6 and rollout.step(2).frames.shape[1] == 2
    with pytest.raises(ValueError, match="`num_frames` is 3, but this rollout goes on by keyframes that lie 2 apart"):
        rollout.step(3)
