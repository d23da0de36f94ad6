"""Frames drawn from clips: evenly, the same ones every time, and no more than asked for."""

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import read_video
from pipelines_tests.training.clip_files import noise, write_clip
from training.data import frames as module
from training.data.clips import fit
from training.data.frames import draw_frames, evenly_spaced
from training.data.manifest import make_manifest
from training.data.sources import open_source
from training.stopping import Stopped


@pytest.fixture
def clips(tmp_path):
    times = [0, 40, 80, 200, 240, 280, 320]
    write_clip(tmp_path / "clips" / "a.mp4", noise(30, 24, 32), fps=25)
    write_clip(tmp_path / "clips" / "b.mp4", noise(7, 24, 32, 1), fps=25, times=times)
    write_clip(tmp_path / "clips" / "c.mp4", noise(3, 24, 32, 2), fps=25)
    source = open_source(tmp_path / "clips")
    return source, make_manifest(source, tmp_path / "m.parquet").ok


def every_frame(source, entries) -> torch.Tensor:
    frames = [read_video(source.open(entry.key))[0] for entry in entries]
    frames[1] = frames[1][[0, 1, 2, 5, 6, 7, 8]]  # without the frame that is held, and repeated
    return torch.cat([fit(clip, 16, 24) for clip in frames])


@pytest.mark.parametrize("count", [1, 2, 7, 39, 40, 1000])
@pytest.mark.parametrize("seek_from", [2, 250])
def test_drawn_frames_are_evenly_spaced_over_all_clips(clips, count, seek_from, monkeypatch):
    monkeypatch.setattr(module, "SEEK_FROM", seek_from)
    source, entries = clips
    everything = every_frame(source, entries)
    drawn = draw_frames(source, entries, (16, 24), count, workers=2)
    assert torch.equal(drawn, everything[evenly_spaced(40, count)]) and len(drawn) == min(count, 40)


def test_clips_without_a_wanted_frame_are_not_opened(clips):
    source, entries = clips
    opened = []
    source.open = lambda key: opened.append(key) or type(source).open(source, key)
    draw_frames(source, entries, (16, 24), 2)
    assert opened == ["a.mp4", "c.mp4"]


def test_a_clip_that_is_gone_is_named_and_its_frames_are_missing(clips, capsys):
    source, entries = clips
    (source.folder / "b.mp4").write_bytes(b"another")
    drawn = draw_frames(source, entries, (16, 24), 1000)
    assert len(drawn) == 33 and "b.mp4: the file has changed" in capsys.readouterr().out
    for key in ("a.mp4", "c.mp4"):
        (source.folder / key).unlink()
    with pytest.raises(ValueError, match="none of the clips of .* can be read"):
        draw_frames(source, entries, (16, 24), 1000)


def test_drawing_stops_between_clips(clips):
    source, entries = clips
    with pytest.raises(Stopped, match="SIGTERM"):
        draw_frames(source, entries, (16, 24), 1000, stop=lambda: "signal SIGTERM")


def test_numbers_are_evenly_spaced():
    assert evenly_spaced(100, 4).tolist() == [0, 33, 66, 99] and evenly_spaced(3, 9).tolist() == [0, 1, 2]
    assert len(np.unique(evenly_spaced(2**31, 10**5).numpy())) == 10**5
