"""Folders of clips: read in order, cropped as the benchmark crops, and nothing left out in silence."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import write_video
from training.data.clips import View, find_clips, fit, load_clip


def write_clip(path: Path, num_frames: int = 4, height: int = 16, width: int = 32) -> Path:
    frames = np.random.default_rng(0).integers(0, 255, (num_frames, height, width, 3), dtype=np.uint8)
    return write_video(path, frames, fps=10)


def test_square_takes_the_centre_and_keeps_its_pixels():
    frames = np.random.default_rng(0).integers(0, 255, (2, 8, 14, 3), dtype=np.uint8)
    cropped = fit(frames, 8, 8)
    assert cropped.dtype == torch.uint8 and cropped.shape == (2, 3, 8, 8)
    assert np.array_equal(cropped.permute(0, 2, 3, 1).numpy(), frames[:, :, 3:11])


@pytest.mark.parametrize("upright", [False, True])
def test_a_view_lies_where_it_is_said_along_the_longer_side(upright):
    frames = np.random.default_rng(0).integers(0, 255, (2, 8, 16, 3), dtype=np.uint8)
    given = frames.transpose(0, 2, 1, 3) if upright else frames
    for crop, left in ((0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)):
        expected = torch.from_numpy(frames[:, :, left : left + 8]).permute(0, 3, 1, 2)
        expected = expected.transpose(2, 3) if upright else expected
        assert torch.equal(View(crop).of(given, 8, 8), expected)
        assert torch.equal(View(crop, flip=True).of(given, 8, 8), expected.flip(-1))
    assert str(View()) == "" and str(View(0.25, flip=True)) == ", cropped at 0.25, mirrored"


def test_square_resizes_without_aliasing():
    stripes = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 255
    assert fit(stripes, 8, 8).float().sub(127.5).abs().max() < 40  # aliased stripes would be 0 or 255


def test_clips_are_found_in_natural_order_with_and_without_metadata(tmp_path):
    for name in ("c10.mp4", "c2.mp4"):
        write_clip(tmp_path / name)
    assert [clip.name for clip in find_clips(tmp_path)] == ["c2.mp4", "c10.mp4"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "c10.mp4"}) + "\n\n")
    skipped = {}
    assert [clip.name for clip in find_clips(tmp_path, skipped)] == ["c10.mp4"]
    assert list(skipped) == ["c2.mp4"]


def test_unreadable_clips_are_returned_by_name_and_reason(tmp_path):
    write_clip(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_text("no video")
    skipped = {}
    (clip,) = find_clips(tmp_path, skipped)
    frames, fps = load_clip(clip, size=8)
    assert clip.name == "good.mp4" and fps == 10.0 and frames.shape == (4, 3, 8, 8)
    assert list(skipped) == ["bad.mp4"] and "cannot be decoded" in skipped["bad.mp4"]


def test_a_clip_named_in_metadata_but_missing_is_reported(tmp_path):
    write_clip(tmp_path / "here.mp4")
    lines = [json.dumps({"file_name": name}) for name in ("here.mp4", "gone.mp4")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    skipped = {}
    find_clips(tmp_path, skipped)
    assert list(skipped) == ["gone.mp4"]


def test_sources_without_clips_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no source of clips"):
        find_clips(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no clips"):
        find_clips(tmp_path)
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"none of the 1 clips .* can be read \(bad.mp4: "):
        find_clips(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("{not json")
    with pytest.raises(ValueError, match="line 1"):
        find_clips(tmp_path)


def test_real_laps_load():
    root = Path(os.environ.get("MARDINI_DATA", Path(__file__).parents[3] / "../shared/data"))
    folder = root / "rc_racing" / "val"
    if not folder.is_dir():
        pytest.skip("no footage of real laps beside the checkout")
    frames, fps = load_clip(find_clips(folder)[0], size=64)
    assert frames.shape == (64, 3, 64, 64) and fps == 20
