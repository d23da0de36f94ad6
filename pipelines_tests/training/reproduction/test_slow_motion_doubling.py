"""Nine frames slowed down more and more."""

import pytest
import torch

from diffusers_mardini.video_io import write_video
from pipelines_tests.tiny_pipeline import tiny_pipeline
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.methods import BASELINE, CEILING, OURS
from training.reproduction import slow_motion_doubling
from training.reproduction.slow_motion_doubling import finer_frames, panels, references, scores_of, table


def truth():
    """Two clips whose frames get brighter evenly, 4 frames apart: every place between has its true frame."""
    steps = torch.linspace(0, 1, 33)[None, :, None, None, None]
    return (steps * torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).expand(2, 33, 3, 16, 16)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_true_frames_have_the_best_scores_at_any_pace(factor):
    scores = scores_of(truth()[:, :: 4 // factor], truth(), factor, None)
    torch.testing.assert_close(scores["ssim"], torch.ones(2))
    torch.testing.assert_close(scores["motion"], scores["true_motion"])


def test_the_true_frames_have_the_usual_colours():
    clips = torch.rand(8, 33, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * torch.rand(8, 1, 1, 1, 1)
    scores = scores_of(clips, clips, 4, None)
    assert (scores["colours"].sum() / scores["true_colours"].sum()).item() == pytest.approx(1, abs=0.05)


def finer_truth():
    """The same clips at twice the rate."""
    between = (truth()[:, :-1] + truth()[:, 1:]) / 2
    return torch.cat([torch.stack([truth()[:, :-1], between], dim=2).flatten(1, 2), truth()[:, -1:]], dim=1)


def test_beyond_the_clips_own_frames_only_a_recording_at_twice_the_rate_knows_frames_and_motion():
    scores = scores_of(finer_truth(), truth(), 8, None)
    assert scores["ssim"].isnan().all() and scores["true_motion"].isnan().all() and "lpips" not in scores
    scores = scores_of(finer_truth(), finer_truth(), 8, None)
    torch.testing.assert_close(scores["ssim"], torch.ones(2))
    torch.testing.assert_close(scores["motion"], scores["true_motion"])


def test_the_recording_at_twice_the_rate_must_be_of_the_same_clips(tmp_path):
    late = torch.cat([finer_truth()[:, 1:], finer_truth()[:, -1:]], dim=1)  # by half a frame
    for name, frames in {"clips": truth(), "finer": finer_truth(), "late": late}.items():
        (tmp_path / name).mkdir()
        for i in range(2):
            plain = frames[i].mean(dim=(2, 3), keepdim=True).expand_as(frames[i])  # which a codec keeps
            picture = (plain * 255).round().byte().permute(0, 2, 3, 1).numpy()
            write_video(tmp_path / name / f"{i}.mp4", picture, 10, crf=1)
    windows = load_windows(tmp_path / "clips", 16, 33, stride=1, per_clip=1)
    found = finer_frames(tmp_path / "finer", windows, 16)
    assert found.shape == (2, 65, 3, 16, 16)
    torch.testing.assert_close(found.mean(dim=(3, 4)), finer_truth().mean(dim=(3, 4)), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="every second frame is not the clips' own; record both alike"):
        finer_frames(tmp_path / "late", windows, 16)


def test_a_factor_is_judged_by_the_frames_that_it_adds():
    worse = truth().clone()
    worse[:, 1::2] = 0.5  # those that lie between the ones of half the factor
    whole, half = scores_of(worse, truth(), 4, None), scores_of(worse[:, ::2], truth(), 2, None)
    assert (whole["ssim"] < 0.9).all()
    torch.testing.assert_close(half["ssim"], torch.ones(2))


def test_a_cross_fade_and_the_autoencoder_stand_beside_it():
    pipe = tiny_pipeline()
    made = references(pipe, truth(), 2)
    torch.testing.assert_close(made[BASELINE], truth()[:, ::2])  # these clips get brighter evenly
    assert made[CEILING].shape == (2, 17, 3, 16, 16) and not torch.allclose(made[CEILING][:, 1], truth()[:, 2])
    beyond = references(pipe, truth(), 8)
    assert set(beyond) == {BASELINE} and beyond[BASELINE].shape == (2, 65, 3, 16, 16)
    torch.testing.assert_close(beyond[BASELINE][:, ::2], truth())


def test_the_table_has_a_row_for_each_factor():
    rows = [
        {"method": "17 frames", "kind": OURS, "factor": 2, "ssim": 0.9, "motion": 1.0, "intervals": {"ssim": (0.8, 1.0), "motion": (0.5, 1.5)}}
    ]  # fmt: skip
    assert table(rows).endswith("| 17 frames | 2 | ours | 0.900 [0.800, 1.000] | 1.00 [0.50, 1.50] |")
    nothing = {"ssim": float("nan"), "motion": 1.0, "intervals": {"ssim": (0, 0), "motion": (1, 1)}}
    beyond = [*rows, {"method": "65 frames", "kind": OURS, "factor": 8, **nothing}]
    assert table(beyond).endswith("| 65 frames | 8 | ours | no true frame | 1.00 [1.00, 1.00] |")
    assert [point.x for point in panels(beyond)[0].curves["ours"]] == [17]


def test_other_factors_than_powers_of_two_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"--factors \[3\] and --apart 32: give powers of two"):
        slow_motion_doubling.main(["checkpoint", "clips", "-o", str(tmp_path), "--factors", "3"])
