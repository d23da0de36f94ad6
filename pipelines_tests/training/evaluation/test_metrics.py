import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from training.evaluation.baselines import best_match, copy_nearest, cross_fade, flow_warp
from training.evaluation.metrics import MAX_PSNR, generated_indices, middle_index, score_windows, summarize


def moving_squares(batch: int = 2, frames: int = 5, size: int = 32, speed: int = 2) -> torch.Tensor:
    """Textured squares that move to the right by `speed` pixels a frame, on a textured background."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate
    videos = smooth(torch.rand(batch, 3, 8, 8, generator=generator), size=size, mode="bicubic").clamp(0, 1)
    videos = videos[:, None].repeat(1, frames, 1, 1, 1) * 0.3
    square = smooth(torch.rand(batch, 3, 6, 6, generator=generator), size=12, mode="nearest")
    for index in range(frames):
        left = 4 + speed * index
        videos[:, index, :, 10:22, left : left + 12] = 0.3 + 0.7 * square
    return videos


def test_a_perfect_window_has_the_best_scores():
    truth = moving_squares()
    result = summarize(score_windows(truth.clone(), truth, [0, 4]))
    assert result["mid_ssim"] == pytest.approx(1, abs=1e-5) and result["ssim"] == pytest.approx(1, abs=1e-5)
    assert result["mid_psnr"] == MAX_PSNR
    assert result["motion"] == pytest.approx(1) and result["sharpness"] == pytest.approx(1)


def test_scores_are_what_they_say():
    truth = moving_squares()
    frames = truth.clone()
    frames[:, 2] = (frames[:, 2] + 0.1).clamp(0, 1)
    scores = score_windows(frames, truth, [0, 4])
    error = (frames[:, 2] - truth[:, 2]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(scores["mid_psnr"], -10 * error.log10(), atol=1e-3, rtol=0)
    expected = structural_similarity_index_measure(frames[:1, 2], truth[:1, 2], data_range=1.0)
    torch.testing.assert_close(scores["mid_ssim"][0], expected)
    torch.testing.assert_close(scores["psnr"], (scores["mid_psnr"] + 2 * MAX_PSNR) / 3)


def test_each_window_is_scored_by_itself():
    truth = moving_squares(batch=3)
    frames = truth + 0.2 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(1))
    together = score_windows(frames, truth, [0])
    alone = score_windows(frames[1:2], truth[1:2], [0])
    for name, values in alone.items():
        torch.testing.assert_close(together[name][1:2], values)


def test_what_is_sampled_at_given_frames_does_not_count():
    truth = moving_squares()
    frames = truth.clone()
    frames[:, [0, 4]] = 0.5
    assert summarize(score_windows(frames, truth, [0, 4]))["motion"] == pytest.approx(1)


def test_blur_and_standing_still_are_seen():
    truth = moving_squares()
    still = summarize(score_windows(copy_nearest(truth, [0]), truth, [0]))
    assert still["motion"] == 0 and still["sharpness"] == pytest.approx(1, abs=0.1)
    blurred = torch.nn.functional.avg_pool2d(truth.flatten(0, 1), 5, 1, 2).view_as(truth)
    assert summarize(score_windows(blurred, truth, [0]))["sharpness"] < 0.7


def test_a_still_window_does_not_divide_by_nothing():
    truth = moving_squares(batch=2)
    truth[0] = truth[0, :1]
    scores = score_windows(truth, truth, [0, 4])
    assert summarize(scores)["motion"] == pytest.approx(1)


def test_the_middle_frame_is_the_middle_of_the_window_unless_it_is_given():
    assert middle_index(9, [0, 8]) == 4 and middle_index(9, [0]) == 4
    assert middle_index(9, [0, 1, 2, 3, 4]) == 7
    assert generated_indices(5, [0, 3]) == [1, 2, 4]


@pytest.mark.parametrize("given", [[], [0, 1, 2, 3, 4], [0, 5], [-1]])
def test_impossible_given_frames_are_refused(given):
    with pytest.raises(ValueError, match="given frames are"):
        generated_indices(5, given)


def test_windows_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="same"):
        score_windows(torch.zeros(1, 5, 3, 16, 16), torch.zeros(1, 4, 3, 16, 16), [0])


def test_copying_takes_the_nearest_given_frame():
    windows = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(2, 5, 3, 4, 4)
    assert copy_nearest(windows, [0, 4])[0, :, 0, 0, 0].tolist() == [0, 0, 0, 4, 4]
    assert copy_nearest(windows, [1])[0, :, 0, 0, 0].tolist() == [1] * 5


def test_cross_fade_is_linear_between_given_frames_and_still_outside():
    windows = torch.tensor([5.0, 1.0, 7.0, 3.0, 9.0]).view(1, 5, 1, 1, 1).expand(1, 5, 3, 4, 4)
    assert cross_fade(windows, [1, 3])[0, :, 0, 0, 0].tolist() == [1, 1, 2, 3, 3]


def test_evenness_tells_a_jump_from_a_glide():
    windows = moving_squares(speed=1)
    even = summarize(score_windows(cross_fade(windows, [0, 4]), windows, [0, 4]))
    jump = summarize(score_windows(copy_nearest(windows, [0, 4]), windows, [0, 4]))
    assert even["evenness"] == pytest.approx(1, abs=0.02)
    true = score_windows(windows, windows, [0, 4])["true_evenness"].mean().item()
    assert jump["evenness"] == pytest.approx(0.25 / true, rel=1e-3)  # all of it in one of four steps
    still = score_windows(copy_nearest(windows, [0]), windows, [0])
    assert still["evenness"].tolist() == [0, 0]


@pytest.mark.parametrize("method", [copy_nearest, cross_fade, flow_warp])
def test_simple_methods_look_at_the_given_frames_alone(method):
    windows = moving_squares()
    spoiled = windows.clone()
    spoiled[:, [1, 2, 3]] = 0.7
    torch.testing.assert_close(method(windows, [0, 4]), method(spoiled, [0, 4]))
    torch.testing.assert_close(method(windows, [0, 4])[:, [0, 4]], windows[:, [0, 4]])


def test_optical_flow_follows_what_cross_fading_smears():
    truth = moving_squares(speed=1)
    flow = summarize(score_windows(flow_warp(truth, [0, 4]), truth, [0, 4]))
    fade = summarize(score_windows(cross_fade(truth, [0, 4]), truth, [0, 4]))
    assert flow["mid_psnr"] > fade["mid_psnr"] + 1


def test_optical_flow_goes_on_after_the_last_given_frame():
    truth = moving_squares(speed=1)
    flow = score_windows(flow_warp(truth, [0, 1, 2]), truth, [0, 1, 2])
    still = score_windows(copy_nearest(truth, [0, 1, 2]), truth, [0, 1, 2])
    assert flow["mid_psnr"].mean() > still["mid_psnr"].mean() + 3
    torch.testing.assert_close(flow_warp(truth, [0])[:, 4], truth[:, 0])  # one frame tells nothing of motion


def test_the_best_match_is_found_at_any_start_and_stride():
    generator = torch.Generator().manual_seed(0)
    clips = [torch.rand(length, 3, 8, 8, generator=generator) for length in (6, 20, 15)]
    truth = torch.stack([clips[1][3:12:2], clips[2][0:9:2]])
    truth_with_noise = (truth + 0.01).clamp(0, 1)
    found, error = best_match(truth_with_noise, [0, 4], ((clip, 2) for clip in clips))
    torch.testing.assert_close(found[:, 1:4], truth[:, 1:4])
    torch.testing.assert_close(found[:, [0, 4]], truth_with_noise[:, [0, 4]])
    expected = (truth_with_noise - truth)[:, [0, 4]].square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(error, expected, atol=1e-5, rtol=0)


def test_the_best_match_follows_a_pace_that_is_not_whole():
    clip = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    truth = clip[[4, 6, 9, 11, 14]][None]  # 2.5 clip frames apart, from 4; of two as near, the earlier
    found, error = best_match(truth, [0, 4], [(clip, 2.5)])
    torch.testing.assert_close(found, truth)
    assert error.item() < 1e-6


def test_too_short_training_clips_are_refused():
    with pytest.raises(ValueError, match="long enough"):
        best_match(torch.rand(1, 5, 3, 8, 8), [0, 4], [(torch.rand(8, 3, 8, 8), 2)])
