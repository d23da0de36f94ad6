"""The true frames, displaced: where they come from, and what is told of them."""

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import write_video
from training.evaluation.evaluation_windows import load_windows
from training.reproduction import yardstick
from training.reproduction.yardstick import displaced, moved


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Frame i is grey of value 8 * i."""
    folder = tmp_path_factory.mktemp("clips")
    for name in ("a", "b"):
        frames = np.zeros((24, 32, 32, 3), np.uint8) + (8 * np.arange(24, dtype=np.uint8))[:, None, None, None]
        write_video(folder / f"{name}.mp4", frames, 10)
    return folder


@pytest.mark.parametrize("num_frames, stride, middle", ((9, 2, 8), (5, 3, 6), (3, 1, 1)))
def test_late_and_early_frames_are_the_clips_own(clips, num_frames, stride, middle):
    windows = load_windows(clips, 32, num_frames, stride, per_clip=2)
    found = displaced(clips, windows, 32, stride)
    for name, by in (("one frame of the clip late", 1), ("one frame of the clip early", -1)):
        shown = (found[name].mean(dim=(1, 2, 3)) * 255 / 8).round().int().tolist()
        assert shown == [start + middle + by for start in windows.starts]
    assert all(frames.shape == (len(windows.frames), 3, 32, 32) for frames in found.values())


def test_frames_are_moved_by_as_much_as_is_said():
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(moved(frames), frames)
    torch.testing.assert_close(moved(frames, pixels=3)[..., :13], frames[..., 3:])
    torch.testing.assert_close(moved(frames, degrees=90), frames.rot90(1, (2, 3)))
    assert not torch.equal(moved(frames, pixels=0.5), frames)


def test_the_table_fills_its_block(clips, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- mine: begin -->\n<!-- mine: end -->\nafter\n")
    yardstick.main([str(clips), "--size", "32", "--page", str(page), "--block", "mine"])
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "4 windows of 2 clips" in capsys.readouterr().out
    assert lines[2:4] == ["| the true middle frame | mid SSIM | mid PSNR |", "|---|---|---|"]
    scores = {cells[1].strip(): float(cells[2].split()[0]) for line in lines[4:-2] if (cells := line.split("|"))}
    assert len(scores) == 8 and scores["shifted by 0.25 px"] == scores["turned by 2°"] == 1  # of plain grey
    assert 0 < scores["one frame of the clip late"] < 1
    with pytest.raises(SystemExit, match="no source of clips"):
        yardstick.main([str(tmp_path / "nowhere")])
