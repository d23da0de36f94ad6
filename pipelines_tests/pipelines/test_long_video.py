"""Slow motion and extension: counts, places, and the plans behind them."""

import numpy as np
import pytest
import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.latents import encode_video
from diffusers_mardini.pipelines.window_plans import batch_windows, extension_windows, slow_motion_windows
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


@pytest.fixture
def pipe():
    return tiny_pipeline()


def references(pipe, frames: torch.Tensor) -> torch.Tensor:
    return encode_video(pipe.vae, frames * 2 - 1)


@pytest.mark.parametrize("factor", range(2, 34))
@pytest.mark.parametrize("window", [3, 5, 9, 33])
def test_every_frame_is_made_once_from_frames_known_by_then(factor, window):
    known = set(range(0, 5 * factor, factor))
    for one in slow_motion_windows(5, factor, window):
        assert 3 <= len(one.places) <= window
        assert one.places == sorted(one.places)
        assert {one.places[i] for i in one.given_indices} <= known
        assert one.given_indices[0] == 0 and one.given_indices[-1] == len(one.places) - 1
        assert one.new_places and known.isdisjoint(one.new_places)
        known |= set(one.new_places)
    assert known == set(range(4 * factor + 1))


def test_a_window_holds_as_many_neighbouring_gaps_as_fit():
    """Factor 2 with windows of 9: every other frame of a whole window is known."""
    windows = slow_motion_windows(6, 2, 9)
    assert [one.places for one in windows] == [list(range(9)), [8, 9, 10]]
    assert [one.given_indices for one in windows] == [[0, 2, 4, 6, 8], [0, 2]]


@pytest.mark.parametrize("factor, window", [(4, 5), (8, 9), (16, 5), (32, 33), (6, 4), (64, 9), (10, 9)])
def test_frames_are_evenly_placed_where_the_factor_allows(factor, window):
    for one in slow_motion_windows(2, factor, window):
        distances = {after - before for before, after in zip(one.places, one.places[1:])}
        assert len(distances) == 1


def test_the_papers_slow_motion_is_one_window_between_neighbours():
    """Fig. 11: factor 31 with windows of 32 frames."""
    windows = slow_motion_windows(4, 31, 32)
    assert [one.places for one in windows] == [list(range(i * 31, i * 31 + 32)) for i in range(3)]


def test_coarse_windows_run_before_fine_ones():
    places = [one.places for one in slow_motion_windows(2, 8, 3)]
    assert places == [[0, 4, 8], [0, 2, 4], [4, 6, 8], [0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]


@pytest.mark.parametrize(
    "num_given, num_new, window, overlap", [(1, 1, 2, 1), (3, 10, 5, 2), (9, 7, 9, 8), (2, 20, 9, 4)]
)
def test_extension_windows_join_without_gaps(num_given, num_new, window, overlap):
    known = num_given
    for one in extension_windows(num_given, num_new, window, overlap):
        assert len(one.places) == window
        assert len(one.given_indices) == min(overlap, known)
        assert one.new_places[0] == known and one.places[0] == known - len(one.given_indices)
        known = one.places[-1] + 1
    assert num_given + num_new <= known < num_given + num_new + window


@pytest.mark.parametrize("factor, window, most", [(8, 3, 4), (8, 3, 100), (6, 4, 3), (31, 9, 2)])
def test_windows_of_a_batch_are_alike_and_do_not_wait_for_each_other(factor, window, most):
    windows = slow_motion_windows(5, factor, window)
    batches = batch_windows(windows, most)
    assert [one for batch in batches for one in batch] == windows
    assert max(len(batch) for batch in batches) > 1
    for batch in batches:
        assert len(batch) <= most and len({(len(one.places), tuple(one.given_indices)) for one in batch}) == 1
        made = {place for one in batch for place in one.new_places}
        assert made.isdisjoint(one.places[i] for one in batch for i in one.given_indices)


@pytest.mark.parametrize("num_given, factor, window", [(2, 2, 3), (3, 4, 5), (2, 6, 4), (2, 7, 4), (3, 3, 9)])
def test_slow_motion_makes_the_right_number_and_leaves_given_frames_at_their_places(pipe, num_given, factor, window):
    frames = clip(num_given)
    latents = pipe.slow_motion(
        frames, factor=factor, window=window, num_inference_steps=2, output_type="latent", generator=seeded()
    ).frames
    assert latents.shape[:2] == (1, (num_given - 1) * factor + 1)
    assert torch.equal(latents[:, ::factor], references(pipe, frames[None]))
    assert latents.isfinite().all()
    assert latents.flatten(2).std(dim=-1).min() > 0.01  # no frame was left empty


@pytest.mark.parametrize("num_given, num_new", [(1, 3), (3, 1), (3, 7), (9, 4)])
def test_extension_makes_the_right_number_and_leaves_given_frames_in_front(pipe, num_given, num_new):
    frames = clip(num_given)
    latents = pipe.extend(
        frames, num_new_frames=num_new, window=4, overlap=2, num_inference_steps=2, output_type="latent"
    ).frames
    assert latents.shape[:2] == (1, num_given + num_new)
    assert torch.equal(latents[:, :num_given], references(pipe, frames[None]))
    assert latents.isfinite().all()
    assert latents.flatten(2).std(dim=-1).min() > 0.01


def test_one_window_of_slow_motion_is_an_interpolation(pipe):
    frames = clip(2)
    kwargs = {"num_inference_steps": 3, "output_type": "pt"}
    slow = pipe.slow_motion(frames, factor=4, window=5, generator=seeded(1), **kwargs).frames
    once = pipe(image=frames[0], last_image=frames[1], num_frames=5, generator=seeded(1), **kwargs).frames
    torch.testing.assert_close(slow, once)


def test_one_window_of_extension_is_an_expansion(pipe):
    frames = clip(2)
    kwargs = {"num_inference_steps": 3, "output_type": "pt"}
    longer = pipe.extend(frames, num_new_frames=3, window=5, overlap=2, generator=seeded(1), **kwargs).frames
    once = pipe(video=frames, num_frames=5, generator=seeded(1), **kwargs).frames
    torch.testing.assert_close(longer, once)


def test_later_windows_are_led_by_the_frames_of_earlier_ones(pipe):
    counter = CallCounter(pipe)
    latents = pipe.extend(
        clip(1), num_new_frames=4, window=3, overlap=1, num_inference_steps=1, output_type="latent", guidance_scale=1.0
    ).frames
    inputs = [args[0] for args, _, _ in counter.inputs["window_state"]]
    assert len(inputs) == 2
    assert torch.equal(inputs[1][:, 0], latents[:, 2])
    planner_inputs = [args[0] for args, _, _ in counter.inputs["planner"]]
    decoded = pipe.decode(latents[:, 2:3], "pt") * 2 - 1
    torch.testing.assert_close(planner_inputs[1][:, :1], pipe.encode_low_frames(decoded), rtol=1e-4, atol=1e-4)


def test_guidance_follows_the_task_in_long_videos(pipe):
    pipe.slow_motion(clip(2), factor=2, num_inference_steps=1, output_type="latent")
    assert pipe.guidance_scale == 1.0
    pipe.extend(clip(2), num_new_frames=1, num_inference_steps=1, output_type="latent")
    assert pipe.guidance_scale == 2.5


def test_long_videos_are_reproduced_by_a_seed(pipe):
    kwargs = {"num_inference_steps": 1, "output_type": "latent"}
    for method, amount in ((pipe.slow_motion, {"factor": 2}), (pipe.extend, {"num_new_frames": 3})):
        first, again, other = (
            method(clip(2), window=3, generator=seeded(seed), **amount, **kwargs).frames for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-2)


def test_a_batch_of_long_videos_equals_single_ones(pipe):
    videos = clip(2, 2)
    kwargs = {"factor": 4, "window": 3, "num_inference_steps": 2, "output_type": "latent"}
    together = pipe.slow_motion(videos, generator=[seeded(1), seeded(2)], **kwargs).frames
    for row, seed in enumerate((1, 2)):
        alone = pipe.slow_motion(videos[row], generator=[seeded(seed)], **kwargs).frames
        torch.testing.assert_close(together[row], alone[0], rtol=1e-3, atol=1e-3)


def test_long_videos_take_every_output_type(pipe):
    kwargs = {"video": clip(2), "num_inference_steps": 1, "generator": seeded()}
    assert len(pipe.slow_motion(factor=3, **kwargs).frames[0]) == 4
    assert pipe.slow_motion(factor=3, output_type="np", **kwargs).frames.shape == (1, 4, 32, 32, 3)
    assert pipe.extend(num_new_frames=2, output_type="pt", **kwargs).frames.shape == (1, 4, 3, 32, 32)
    (frames,) = pipe.extend(num_new_frames=2, output_type="pt", return_dict=False, height=48, width=48, **kwargs)
    assert frames.shape == (1, 4, 3, 48, 48)


def test_one_progress_bar_counts_the_steps_of_all_windows(pipe, monkeypatch):
    bars = []
    real = type(pipe).progress_bar

    def watched(self, *args, **kwargs):
        bars.append(real(self, *args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(type(pipe), "progress_bar", watched)
    pipe.set_progress_bar_config(disable=False)
    pipe.slow_motion(clip(2), factor=4, window=3, num_inference_steps=2, output_type="latent")
    assert [(bar.n, bar.total) for bar in bars] == [(6, 6)]


def test_callbacks_are_called_in_every_window(pipe):
    def watch(pipeline, step, timestep, tensors):
        steps.append(step)
        return tensors

    steps = []
    pipe.extend(clip(2), num_new_frames=4, window=4, num_inference_steps=3, callback_on_step_end=watch)
    assert steps == [0, 1, 2, 0, 1, 2]


def test_an_interruption_ends_all_windows(pipe):
    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = len(steps) == 3  # in the second window
        return tensors

    steps, counter = [], CallCounter(pipe)
    frames = pipe.extend(
        clip(2), num_new_frames=8, window=4, num_inference_steps=2, callback_on_step_end=stop, output_type="latent"
    ).frames
    assert counter.counts["planner"] == 2 and steps == [0, 1, 0]
    assert frames.shape[1] == 10 and (frames[:, 6:] == 0).all() and (frames[:, :6] != 0).any((0, 2, 3, 4)).all()


@pytest.mark.parametrize("videos", [1, 2])
def test_slow_motion_in_batches_of_windows_is_that_of_single_windows(pipe, videos):
    counter = CallCounter(pipe)
    kwargs = {"factor": 4, "window": 3, "num_inference_steps": 2, "output_type": "latent"}

    def slow(window_batch_size):
        generator = [seeded(row) for row in range(videos)] if videos > 1 else seeded(1)
        frames = clip(3, videos)
        return pipe.slow_motion(frames, window_batch_size=window_batch_size, generator=generator, **kwargs).frames

    single, single_runs = slow(1), counter.counts["planner"]
    batched = slow(4)
    torch.testing.assert_close(batched, single, rtol=1e-4, atol=1e-4)
    assert (single_runs, counter.counts["planner"] - single_runs) == (6, 2)


def test_a_batch_of_windows_draws_fresh_noise_for_every_row(pipe):
    generators = [seeded(row) for row in range(2)]
    still = clip(1, 2).expand(-1, 3, -1, -1, -1)  # both windows have the same given frames
    for eta in (0.0, 1.0):
        latents = pipe.slow_motion(
            still, factor=2, window=3, window_batch_size=2, eta=eta, generator=generators, num_inference_steps=2,
            output_type="latent",
        ).frames  # fmt: skip
        assert latents.isfinite().all() and not torch.allclose(latents[0, 1], latents[0, 3], atol=1e-2)


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_no_more_frames_than_asked_for_pass_the_autoencoder_at_once(pipe, output_type):
    sizes = []
    pipe.vae.to_latents.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    pipe.vae.from_latents.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    kwargs = {"num_new_frames": 7, "window": 4, "overlap": 3, "num_inference_steps": 1, "output_type": output_type}
    whole = pipe.extend(clip(5, 2), decode_chunk_size=100, generator=seeded(), **kwargs).frames
    assert max(sizes) == 24
    sizes.clear()
    chunked = pipe.extend(clip(5, 2), decode_chunk_size=5, generator=seeded(), **kwargs).frames
    assert max(sizes) == 5
    if output_type == "pil":
        assert [len(video) for video in chunked] == [len(video) for video in whole] == [12, 12]
        chunked, whole = ([[np.asarray(p, float) for p in video] for video in frames] for frames in (chunked, whole))
        np.testing.assert_allclose(chunked, whole, atol=1)
    else:
        assert chunked.shape == whole.shape
        torch.testing.assert_close(torch.as_tensor(chunked), torch.as_tensor(whole), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("argument", ["decode_chunk_size", "window_batch_size"])
def test_a_bound_of_nothing_is_refused(pipe, argument):
    with pytest.raises(ValueError, match=f"`{argument}` is 0; give a whole number of at least 1"):
        pipe.slow_motion(clip(2), factor=2, **{argument: 0})


def test_generated_frames_are_decoded_where_the_autoencoder_is():
    """`meta` stands for the GPU on which planner and transformer are; the autoencoder was left on the CPU."""

    class OnAnother(MarDiniPipeline):
        _execution_device = property(lambda self: torch.device("meta"))

    components = tiny_pipeline().components
    components["planner"].to("meta"), components["transformer"].to("meta")
    pipe = OnAnother(**components, planner_downscale=2)
    pipe.set_progress_bar_config(disable=True)
    asked = []

    def decode(latents, **kwargs):
        asked.append(latents.device.type)
        raise RuntimeError("seen")

    pipe.vae.decode = decode
    # Nothing can be copied from meta tensors, so that the copy itself fails where it is asked for; before, none was.
    with pytest.raises((RuntimeError, NotImplementedError), match="seen|meta tensor"):
        pipe.slow_motion(clip(2), factor=4, window=3, num_inference_steps=2, output_type="latent")
    assert asked in ([], ["cpu"])


@pytest.mark.parametrize(
    "given, new, window, overlap", [(1, 1, 2, 1), (3, 10, 5, 2), (9, 7, 9, 8), (2, 20, 9, 4), (1, 30, 9, 8)]
)
def test_windows_of_an_extension_are_counted_without_being_made(given, new, window, overlap):
    windows = extension_windows(given, new, window, overlap)
    assert len(windows) == sum(1 for _ in windows) == len(batch_windows(windows, 1))
    last = list(windows)[-1]
    assert windows[-1] == last and windows[0].given_indices == list(range(min(given, overlap)))
    assert last.places[-1] + 1 == given + window - min(overlap, given) + (len(windows) - 1) * (window - overlap)
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_windows_are_made_when_they_are_needed():
    """A slip of the finger asks for a billion frames; nothing of that length is planned."""
    assert len(extension_windows(9, 10**9, 9, 4)) == 2 * 10**8
    windows = slow_motion_windows(9, 10**9, 9)
    assert next(iter(windows)).places[1] == 125_000_000
    assert len(next(iter(batch_windows(windows, 4)))) == 4


def test_windows_may_be_walked_through_again_and_again():
    windows = slow_motion_windows(5, 12, 5)
    assert list(windows) == list(windows) and len(windows) == len(list(windows)) and windows[2:4] == list(windows)[2:4]
    assert batch_windows(windows, 3) == batch_windows(list(windows), 3)


@pytest.mark.parametrize(
    "method, amount", [("extend", {"num_new_frames": 10**13}), ("slow_motion", {"factor": 10**13})]
)
@pytest.mark.parametrize("times", [1, 10**9])
def test_more_frames_than_fit_into_memory_are_refused_before_any_model_runs(pipe, method, amount, times):
    counter = CallCounter(pipe)
    ((name, number),) = amount.items()
    with pytest.raises(ValueError, match="frames asked for take .* GiB, which is more than the memory; ask for fewer"):
        getattr(pipe, method)(clip(2), **{name: number * times})
    assert sum(counter.counts.values()) == 0


@pytest.mark.parametrize("factor", [8, 11, 13, 16, 31])
def test_uneven_windows_have_their_frames_at_their_places(factor):
    """Else every other frame would be sampled for another time than the one that it is shown at."""
    uneven = 0
    for one in slow_motion_windows(3, factor, 9):
        last = len(one.places) - 1
        span = one.places[-1] - one.places[0]
        positions = one.positions or tuple(range(last + 1))
        times = [last * (place - one.places[0]) / span for place in one.places]
        assert positions == pytest.approx(times, abs=0.02)
        uneven += one.positions is not None
    assert bool(uneven) == (factor in (11, 13, 31))
