"""Frames that arrive one by one and leave as they are finished: the same ones as at once, in bounded memory."""

import gc
import re
import weakref
from itertools import islice

import numpy as np
import pytest
import torch

from diffusers_mardini.pipelines.stream_plans import SlowMotionPlan
from diffusers_mardini.pipelines.streams import Strip
from diffusers_mardini.pipelines.window_plans import slow_motion_windows
from pipelines_tests.pipelines.test_one_call import REFUSED
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


STEPS = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def pipe():
    return tiny_pipeline()


def slow(pipe, video, factor=2, window=5, **kwargs):
    return pipe.slow_motion(video, factor, window, generator=seeded(), **{**STEPS, **kwargs})


def extended(pipe, video, num_new_frames, **kwargs):
    return pipe.extend(video, num_new_frames, window=4, overlap=2, generator=seeded(), **{**STEPS, **kwargs})


@pytest.mark.parametrize("num_given, factor, window", [(2, 2, 3), (9, 2, 5), (6, 4, 5), (7, 3, 9)])
@pytest.mark.parametrize("options", [{}, {"window_batch_size": 3}, {"decode_chunk_size": 2}])
def test_streamed_slow_motion_gives_the_frames_of_the_whole_call(pipe, num_given, factor, window, options):
    frames = clip(num_given)
    whole = slow(pipe, frames, factor, window, **options).frames[0]
    streamed = torch.stack(list(slow(pipe, iter(frames), factor, window, stream=True, **options)))
    assert torch.equal(streamed, whole)


@pytest.mark.parametrize("num_given, num_new", [(1, 3), (3, 7), (20, 4)])
@pytest.mark.parametrize("chunk", [2, 16])
def test_a_streamed_extension_gives_the_frames_of_the_whole_call(pipe, num_given, num_new, chunk):
    frames = clip(num_given)
    whole = extended(pipe, frames, num_new, decode_chunk_size=chunk).frames[0]
    streamed = list(extended(pipe, iter(frames), num_new, decode_chunk_size=chunk, stream=True))
    assert torch.equal(torch.stack(streamed), whole)


@pytest.mark.parametrize("factor, window", [(4, 3), (9, 5), (7, 4), (6, 5)])
def test_streamed_windows_are_those_of_the_whole_video_and_come_when_their_frames_are_known(factor, window):
    plan, num_given = SlowMotionPlan(factor, window), 6
    windows, known = [], set()
    for _ in range(num_given):
        arrival = plan.push()
        known.add(arrival.place)
        windows += arrival.windows
    windows += plan.finish()
    for one in windows:
        assert {one.places[i] for i in one.given_indices} <= known
        known |= set(one.new_places)
    assert sorted(map(str, windows)) == sorted(map(str, slow_motion_windows(num_given, factor, window)))


def test_with_several_levels_the_stream_is_a_function_of_the_seed_however_frames_arrive(pipe):
    frames = clip(4)
    options = {"factor": 4, "window": 3, "stream": True}
    first = torch.stack(list(slow(pipe, frames, **options)))
    assert first.shape[0] == 13
    assert torch.equal(torch.stack(list(slow(pipe, (frame for frame in frames), **options))), first)
    assert torch.equal(first[::4], slow(pipe, frames, factor=4, window=3).frames[0][::4])


def test_a_stream_reads_ahead_by_a_chunk_and_keeps_little(pipe, monkeypatch):
    """Hold that two chunks of given frames are in memory at most, and the latents of some gaps, for any length."""
    made, read, kept = [], 0, []
    take = Strip.take

    def watched(strip):
        yield from take(strip)
        kept.append(len(strip._latents))

    monkeypatch.setattr(Strip, "take", watched)

    def camera():
        nonlocal read
        for _ in range(60):
            read += 1
            frame = torch.rand(3, 32, 32)
            made.append(weakref.ref(frame))
            yield frame

    for number, _ in enumerate(slow(pipe, camera(), decode_chunk_size=4, stream=True)):
        gc.collect()
        assert sum(frame() is not None for frame in made) <= 9
        assert read <= number / 2 + 9
    assert number == 118 and max(kept) < 20


def test_an_extension_without_end_goes_on(pipe):
    frames = list(islice(extended(pipe, clip(2), None, stream=True, decode_chunk_size=1), 9))
    assert torch.equal(torch.stack(frames), extended(pipe, clip(2), 7, decode_chunk_size=1).frames[0])


def test_the_pipeline_is_free_between_frames_and_after_the_end(pipe):
    alone = slow(pipe, clip(6)).frames[0]
    stream = slow(pipe, clip(6), stream=True, decode_chunk_size=16)
    first = next(stream)
    other = pipe(image=clip(1)[0], num_frames=4, generator=seeded(), **STEPS).frames
    assert torch.equal(torch.stack([first, *stream]), alone)
    assert torch.equal(pipe(image=clip(1)[0], num_frames=4, generator=seeded(), **STEPS).frames, other)
    stream = slow(pipe, clip(6), stream=True, decode_chunk_size=2)
    next(stream)
    stream.close()
    assert torch.equal(slow(pipe, clip(6)).frames[0], alone)


def test_a_stream_feeds_another_one_of_the_same_pipeline(pipe):
    inner = slow(pipe, clip(3), stream=True)
    outer = pipe.slow_motion(inner, 2, 5, generator=seeded(1), stream=True, **STEPS)
    assert len(list(outer)) == 9


def test_a_call_while_a_window_is_sampled_is_refused_and_the_pipeline_is_free_after_the_error(pipe):
    stream = slow(pipe, clip(4), stream=True, callback_on_step_end=lambda *_: slow(pipe, clip(2)))
    with pytest.raises(ValueError, match=REFUSED):
        list(stream)
    slow(pipe, clip(2))


def test_an_interrupted_stream_ends_with_the_frames_before_that_window(pipe):
    whole = slow(pipe, clip(9)).frames[0]
    calls = 0

    def stop(pipe, step, timestep, tensors):
        nonlocal calls
        calls += 1
        pipe._interrupt = calls == 3  # in the second window of two gaps each

    frames = list(slow(pipe, clip(9), stream=True, callback_on_step_end=stop))
    assert torch.equal(torch.stack(frames), whole[:5])


def test_gradients_are_as_the_caller_left_them(pipe):
    stream = slow(pipe, clip(3), stream=True)
    next(stream)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("output_type, kind", [("pil", "Image"), ("np", "ndarray"), ("latent", "Tensor")])
def test_frames_of_a_stream_have_the_form_asked_for(pipe, output_type, kind):
    whole = slow(pipe, clip(3), output_type=output_type).frames[0]
    streamed = list(slow(pipe, clip(3), output_type=output_type, stream=True))
    assert all(type(frame).__name__ == kind for frame in streamed) and len(streamed) == len(whole)
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(streamed, whole))


def test_nothing_is_sampled_across_a_cut(pipe):
    frames = clip(4)
    made = torch.stack(list(slow(pipe, frames, factor=4, window=5, stream=True, cuts=[2], output_type="latent")))
    assert len(made) == 13
    given = slow(pipe, frames, factor=4, window=5, output_type="latent").frames[0][::4]
    assert torch.equal(made[::4], given)
    assert torch.equal(made[5], given[1])  # one frame of the three is held of the left, two of the right side
    assert all(torch.equal(made[i], given[2]) for i in (6, 7))
    assert not torch.equal(made[1], given[0])


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pipe: slow(pipe, clip(1), stream=True), "gave 1 frames; give at least 2"),
        (lambda pipe: slow(pipe, iter(()), stream=True), "gave 0 frames"),
        (lambda pipe: slow(pipe, clip(2, 2), stream=True), "take one clip, which has 4 axes"),
        (lambda pipe: slow(pipe, "clip.mp4", stream=True), "is of type str"),
        (lambda pipe: slow(pipe, clip(3), stream=True, height=30), "is not divisible"),
        (lambda pipe: slow(pipe, clip(3), stream=True, cuts="3"), "`cuts` is '3'"),
        (lambda pipe: slow(pipe, clip(3), cuts=[1]), "`cuts` needs `stream=True`"),
        (lambda pipe: slow(pipe, clip(3), stream=True, cuts=[1, 3]), "`cuts` holds 3, but `video` has 3 frames"),
        (lambda pipe: pipe.retime(clip(3), 8, 4, cuts=[9]), "`cuts` holds 9, but `video` has 3 frames"),
        (lambda pipe: extended(pipe, clip(3), None), "`num_new_frames` is None"),
        (lambda pipe: extended(pipe, clip(3), 0, stream=True), "`num_new_frames` is 0"),
        (lambda pipe: extended(pipe, clip(3), None, stream=True, conditions={}), "the stream has no end"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(pipe, call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(pipe)


def test_a_frame_of_another_size_or_range_is_refused_when_it_arrives(pipe):
    def camera(last):
        yield from clip(5)
        yield last

    for last, text in ((torch.rand(3, 16, 16), "differ in size"), (torch.rand(3, 32, 32) - 1, "floats below 0")):
        with pytest.raises(ValueError, match=text):
            list(slow(pipe, camera(last), stream=True, decode_chunk_size=2))
    slow(pipe, clip(2))


@pytest.mark.parametrize("method", ["slow_motion", "extend"])
def test_an_interrupted_call_between_two_frames_does_not_end_a_stream(pipe, method):
    def stream():
        if method == "extend":
            return extended(pipe, iter(clip(2)), 6, stream=True, decode_chunk_size=1)
        return slow(pipe, iter(clip(4)), 2, 3, stream=True, decode_chunk_size=1)

    def interrupt(pipe, step, timestep, kwargs):
        pipe._interrupt = True
        return kwargs

    whole = list(stream())
    frames = stream()
    begun = [next(frames)]
    pipe(image=clip(1)[0], num_frames=4, callback_on_step_end=interrupt, generator=seeded(5), **STEPS)
    begun += list(frames)
    assert len(begun) == len(whole) and torch.equal(torch.stack(begun), torch.stack(whole))
    # Its own interruption ends it, also one between two frames.
    frames = stream()
    begun = [next(frames)]
    pipe._interrupt = True
    assert len(begun + list(frames)) < len(whole)


@pytest.mark.parametrize("batch", [[[1, 2], [3, 4]], "array"])
def test_a_stream_takes_one_clip(pipe, batch):
    videos = clip(2, 2) if batch == "array" else [list(one) for one in clip(2, 2)]
    for call in (
        lambda: slow(pipe, videos, stream=True),
        lambda: extended(pipe, videos, 3, stream=True),
        lambda: pipe.retime(videos, 10, source_fps=5, **STEPS),
    ):
        with pytest.raises(ValueError, match="take one clip"):
            call()


@pytest.mark.parametrize("output_type", ["np", "pt", "latent", "pil"])
def test_a_retiming_without_a_frame_is_refused(pipe, output_type):
    with pytest.raises(ValueError, match="no frame was made: `first_frame`"):
        pipe.retime(clip(2), 10, source_fps=5, first_frame=100, num_inference_steps=2, output_type=output_type)
