"""The work behind the tabs gives what the pipeline gives, reports every step, and keeps within the limits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mardini import MarDiniScheduler
from diffusers_mardini.app.jobs import Ended, Job
from diffusers_mardini.app.limits import Limits
from diffusers_mardini.app.sampling import (
    Sampling,
    at_rate,
    clean_estimate,
    cross_fade,
    fill,
    fitted,
    lengthen,
    output_size,
)
from pipelines_tests.app.worlds import pictures, plain_pipeline
from pipelines_tests.tiny_pipeline import SIZE, seeded, tiny_pipeline


FEW = Sampling(steps=4)


@pytest.fixture(scope="module")
def pipe():
    return plain_pipeline()


def filled(pipe, given, num_frames=9, sampling=FEW, job=None):
    reports = []
    frames = fill(pipe, given, num_frames, sampling, Limits(), job or Job(60), reports.append)
    return frames, reports


def test_filling_in_is_a_call_of_the_pipeline(pipe):
    first, other = pictures(2)
    frames, _ = filled(pipe, {6: other, 0: first}, sampling=Sampling(4, 1.5, seed=3))
    expected = pipe(
        video=fitted([first, other], (SIZE, SIZE)), frame_indices=[0, 6], num_frames=9, num_inference_steps=4,
        guidance_scale=1.5, generator=seeded(3),
    ).frames[0]  # fmt: skip
    assert [np.asarray(frame).tolist() for frame in frames] == [np.asarray(frame).tolist() for frame in expected]


def test_every_step_is_reported_with_a_preview_of_the_whole_window(pipe):
    frames, reports = filled(pipe, {0: pictures(1)[0]}, sampling=Sampling(steps=6))
    assert [(report.done, report.total) for report in reports] == [(i, 6) for i in range(1, 7)]
    previews = [report.preview for report in reports if report.preview is not None]
    assert len(previews) == 4 and all(len(preview) == 9 for preview in previews)  # not of the first and the last step
    assert np.array_equal(np.asarray(previews[0][0]), np.asarray(frames[0]))  # the given frame is itself


def test_the_estimate_between_two_steps_is_that_of_ddim():
    scheduler = MarDiniScheduler()
    scheduler.set_timesteps(5)
    latents = torch.randn(1, 3, 4, 2, 2, generator=seeded())
    given = latents[:, :1]
    for i, t in enumerate(scheduler.timesteps[:-1]):
        step = scheduler.step(torch.randn(latents.shape, generator=seeded(i)), t, latents)
        after = torch.cat([given, step.prev_sample[:, 1:]], dim=1)
        estimate = clean_estimate(SimpleNamespace(scheduler=scheduler), i, latents, after)
        torch.testing.assert_close(estimate[:, 1:], step.pred_original_sample[:, 1:], atol=1e-4, rtol=1e-4)
        assert torch.equal(estimate[:, :1], given)
        latents = after


def test_cancelled_work_ends_at_the_next_step_and_the_pipeline_goes_on(pipe):
    job, reports = Job(60), []

    def report(progress):
        reports.append(progress)
        job.cancel()

    with pytest.raises(Ended, match="Cancelled"):
        fill(pipe, {0: pictures(1)[0]}, 9, Sampling(steps=20), Limits(), job, report)
    assert len(reports) == 1
    assert len(filled(pipe, {0: pictures(1)[0]})[0]) == 9


@pytest.mark.parametrize(
    "given, num_frames, steps, message",
    [
        ({}, 9, 4, "nothing is given"),
        ({0: 0, 1: 1}, 2, 4, "all frames are given"),
        ({0: 0}, 90, 4, "the window has 90 frames; choose 2 to 33"),
        ({0: 0}, 9, 1000, "the number of steps is 1000; give 1 to 100"),
    ],
)
def test_what_cannot_be_filled_in_is_said(pipe, given, num_frames, steps, message):
    given = {place: pictures(2)[i] for place, i in given.items()}
    with pytest.raises(ValueError, match=message):
        filled(pipe, given, num_frames, Sampling(steps))


def longer(pipe, task, amount, clip=None, rate=10.0, limits=None):
    reports, job = [], Job(60)
    clip, limits = clip or pictures(3), limits or Limits()
    made = lengthen(pipe, clip, rate, task, amount, Sampling(2), limits, job, reports.append)
    return *made, reports


def test_slow_motion_keeps_the_rate_and_counts_all_windows(pipe):
    frames, fps, reports = longer(pipe, "slow", 8)
    assert len(frames) == 17 and fps == 10
    assert [report.done for report in reports] == list(range(1, reports[-1].total + 1)) and reports[-1].total > 2
    assert "progress_bar" not in vars(pipe)


def test_extension_takes_frames_as_far_apart_as_in_training(pipe):
    frames, fps, _ = longer(pipe, "extend", 3, pictures(5), rate=20.0)
    assert len(frames) == 3 + 3 and fps == 10


def test_a_slow_clip_is_extended_at_its_own_rate(pipe):
    frames, fps, _ = longer(pipe, "extend", 3, pictures(5), rate=4.0)
    assert len(frames) == 5 + 3 and fps == 4


def test_extension_takes_the_anchors_that_were_measured_for_the_checkpoint():
    pipe, clip = plain_pipeline(), pictures(6)
    without, _, _ = longer(pipe, "extend", 9, clip)
    pipe.register_to_config(anchors=1)
    frames, _, _ = longer(pipe, "extend", 9, clip)
    wanted = pipe.extend(
        fitted(clip, output_size(pipe, clip[0], Limits())),
        num_new_frames=9,
        anchors=1,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    ).frames[0]
    assert [np.asarray(a).tobytes() for a in frames] == [np.asarray(a).tobytes() for a in wanted]
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(frames, without))


def test_another_rate_is_by_time(pipe):
    clip = pictures(5)
    frames, fps, reports = longer(pipe, "retime", 25, clip, rate=10.0)
    assert len(frames) == 11 and fps == 25 and reports[-1].done == reports[-1].total
    arguments = {"fps": 25, "source_fps": 10, "num_inference_steps": 2, "generator": seeded(0)}
    expected = pipe.retime(fitted(clip, (SIZE, SIZE)), **arguments).frames[0]
    assert [np.asarray(frame).tolist() for frame in frames] == [np.asarray(frame).tolist() for frame in expected]


def test_long_results_are_refused_before_sampling(pipe):
    with pytest.raises(ValueError, match="the result would have 17 frames; this page makes at most 16"):
        longer(pipe, "slow", 8, limits=Limits(made_frames=16))


def test_frames_of_a_clip_are_taken_at_another_rate():
    assert at_rate(list(range(9)), 25, 12.5) == [0, 2, 4, 6, 8]
    assert at_rate(list(range(7)), 30, 12) == [0, 2, 5]
    assert at_rate(list(range(3)), None, 12) == at_rate(list(range(3)), 8, 12) == [0, 1, 2]


def test_the_size_is_that_of_the_training_or_fits_the_limits(pipe):
    wide = Image.new("RGB", (1000, 500))
    assert output_size(pipe, wide, Limits()) == (SIZE, SIZE)
    width, height = output_size(tiny_pipeline(), wide, Limits(sampled_pixels=128 * 128))
    assert width * height <= 128 * 128 and width % 16 == height % 16 == 0 and width > 1.5 * height


def test_a_cross_fade_keeps_given_frames_and_holds_the_ends():
    dark, light = Image.new("RGB", (2, 2), (0, 0, 0)), Image.new("RGB", (2, 2), (200, 200, 200))
    assert [frame.getpixel((0, 0))[0] for frame in cross_fade({1: dark, 5: light}, 7)] == [
        0,
        0,
        50,
        100,
        150,
        200,
        200,
    ]
    assert [frame.getpixel((0, 0))[0] for frame in cross_fade({0: light}, 3)] == [200] * 3
