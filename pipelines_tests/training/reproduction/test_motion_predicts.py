"""Test what is said of the motion of clips as a prediction of scores."""

import json

import pytest
import torch

from training.reproduction.motion_predicts import main, rank_correlation


KINDS = {"slow": 2.0, "fast": 8.0}
CLIPS = [f"{i}.mp4" for i in range(12)]  # the first half is held out as slow, the second as fast; 5 and 6 are of both
MOTION = {clip: 1.0 + i for i, clip in enumerate(CLIPS)}
LISTS = {"slow": CLIPS[:7], "fast": CLIPS[5:]}


def scored(folder, clips, own, flow=0.5):
    """Write what `training.evaluate` writes, as far as it is read: `own` and `flow` by clip, two windows of each."""
    folder.mkdir()
    rows = []
    for name, kind, of in (("DIS optical flow", "baseline", lambda clip: flow), ("ours, 25 steps", "ours", own)):
        scores = [of(clip) + noise for clip in clips for noise in (-0.01, 0.01)]
        rows.append(
            {"method": name, "kind": kind, "mid_ssim": sum(scores) / len(scores), "windows": {"mid_ssim": scores}}
            | {"intervals": {}}
        )
    windows = [{"clip": clip, "start": start} for clip in clips for start in (0, 9)]
    (folder / "results.json").write_text(json.dumps({"rows": rows, "windows": windows, "task": "interpolation"}))
    return folder


@pytest.fixture
def lists(tmp_path):
    path = tmp_path / "motion.json"
    sides = {f"{side}-{kind}": {"0.1": [1.0, of, 9.0]} for side in ("train", "val") for kind, of in KINDS.items()}
    path.write_text(json.dumps({"lists": sides, "clips": MOTION}))
    return path


def test_clips_are_ranked_by_their_motion_and_by_what_models_gain_there(tmp_path, lists, capsys):
    # What the slow model gains falls with the motion of a clip, and what the fast one gains rises.
    slopes, arguments = {"slow": -0.01, "fast": 0.02}, []
    for judged, clips in LISTS.items():
        for trained, slope in slopes.items():
            folders = [
                scored(tmp_path / f"{trained}-{judged}-{i}", clips, lambda clip: 0.8 + slope * MOTION[clip] + i / 100)
                for i in (-1, 1)
            ]
            arguments.append(f"{trained}/{judged}={folders[0]},{folders[1]}")
    page = tmp_path / "page.md"
    page.write_text("<!-- m: begin -->\n<!-- m: end -->\n")
    main([str(lists), *arguments, "--page", str(page), "m"])
    text = page.read_text()
    # Clips 0 to 6 move by 4 in the mean: 0.76 and 0.88; 5 to 11 by 9: 0.71 and 0.98; flow has 0.5.
    assert "| slow | slow | 2.0 | 1.00 | +0.260, +0.000 |" in text
    assert "| fast | slow | 2.0 | 4.00 | +0.380, +0.120 |" in text
    assert "| slow | fast | 8.0 | 0.25 | +0.210, -0.270 |" in text
    assert "rank correlation over 12 clips" in text
    assert "| the gain over optical flow of the model trained on slow | -1.00 [-1.00, -1.00] |" in text
    assert "| the gain over optical flow of the model trained on fast | +1.00 [+1.00, +1.00] |" in text
    assert "| the lead of the model trained on fast over that trained on slow | +1.00 [+1.00, +1.00] |" in text


def test_the_interval_of_a_correlation_holds_none_where_there_is_none():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    value, (low, high) = rank_correlation(one, other)
    assert low < 0 < high and low < value < high and 0.4 < high - low < 0.8
    assert rank_correlation(one, one + 0.2 * other)[1][0] > 0.5


def test_a_kind_without_a_model_of_its_own_and_clips_without_motion_are_refused(tmp_path, lists):
    folder = scored(tmp_path / "a", CLIPS, lambda clip: 0.5)
    with pytest.raises(SystemExit, match="slow/fast has no fast/fast beside it"):
        main([str(lists), f"slow/fast={folder}"])
    with pytest.raises(SystemExit, match="not of the form TRAINED/JUDGED=FOLDER"):
        main([str(lists), "slow=outputs"])
    lists.write_text(json.dumps({**json.loads(lists.read_text()), "clips": {}}))
    with pytest.raises(SystemExit, match="the motion of 0.mp4 is not known; run training.reproduction.clips_by_speed"):
        main([str(lists), f"slow/slow={folder}"])
