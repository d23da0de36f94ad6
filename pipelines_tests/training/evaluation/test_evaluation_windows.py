"""Which windows are cut out of which clips."""

import numpy as np
import pytest
import torch

from diffusers_mardini.masking import task_indices
from diffusers_mardini.video_io import EvenVideo, read_video, write_video
from pipelines_tests.tiny_pipeline import SIZE
from pipelines_tests.training.clip_files import noise, write_clip
from training.data.clips import load_clip
from training.data.entries import Entry
from training.data.metadata import write_metadata
from training.data.order import Rate, frame_indices, num_starts
from training.evaluation.evaluation_windows import (
    clip_step,
    load_windows,
    to_bytes,
    training_clips,
    window_starts,
)


def write_counting_clip(path, length: int, fps: float) -> None:
    """Frame i is grey of value 10 * i."""
    frames = np.full((length, SIZE, SIZE, 3), 0, dtype=np.uint8)
    frames += (10 * np.arange(length, dtype=np.uint8))[:, None, None, None]
    write_video(path, frames, fps)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, length, fps in (("a", 12, 10), ("b", 24, 20), ("c", 3, 10)):
        write_counting_clip(folder / f"{name}.mp4", length, fps)
    return folder


def test_no_more_clips_are_decoded_than_asked_for(clips, monkeypatch):
    every = load_windows(clips, SIZE, 5, stride=1, per_clip=2)
    assert every.clips == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]
    loaded, real = [], EvenVideo.open
    monkeypatch.setattr(EvenVideo, "open", lambda path: (loaded.append(path.name), real(path))[1])
    assert load_windows(clips, SIZE, 5, stride=1, per_clip=2, max_clips=1).clips == ["a.mp4", "a.mp4"]
    assert loaded == ["a.mp4"]
    with pytest.raises(ValueError, match="max_clips is 0"):
        load_windows(clips, SIZE, 5, stride=1, per_clip=2, max_clips=0)


def test_a_long_clip_is_searched_in_parts_that_overlap(clips):
    whole = list(training_clips(clips, SIZE, 2))
    parts = list(training_clips(clips, SIZE, 2, part=10, overlap=4))
    assert [len(clip) for clip, _ in parts] == [10, 6, 10, 10, 10, 6, 3]
    assert torch.equal(torch.cat([parts[0][0], parts[1][0][4:]]), whole[0][0])
    assert torch.equal(torch.cat([parts[2][0], *(clip[4:] for clip, _ in parts[3:6])]), whole[1][0])


def test_frames_that_are_asked_for_are_those_of_the_whole_video(tmp_path):
    """Also of a clip whose frames are held for different times, so that some are repeated."""
    write_clip(tmp_path / "clip.mp4", noise(7), fps=25, times=[0, 40, 80, 200, 240, 280, 320])
    whole, fps = read_video(tmp_path / "clip.mp4")
    clip = EvenVideo.open(tmp_path / "clip.mp4")
    assert len(clip) == len(whole) > 7 and clip.fps == fps
    assert np.array_equal(np.stack(list(clip.frames())), whole)
    assert np.array_equal(np.stack(list(clip.frames([1, 4, 5]))), whole[[1, 4, 5]])


def shown(window: torch.Tensor) -> list[int]:
    """The numbers of a counting clip's frames."""
    return (window.mean(dim=(1, 2, 3)) * 25.5).round().int().tolist()


def test_windows_are_evenly_spaced_from_the_first_to_the_last_possible_start():
    assert window_starts(64, 17, 2) == [0, 47]
    assert window_starts(64, 17, 3) == [0, 24, 47]
    assert window_starts(18, 17, 3) == [0, 1]
    assert window_starts(17, 17, 2) == [0]
    assert window_starts(16, 17, 2) == []
    assert window_starts(64, 17, 1) == [0]


def test_short_clips_are_counted_and_named(clips, capsys):
    windows = load_windows(clips, SIZE, num_frames=5, stride=2, per_clip=2)
    assert windows.frames.shape == (4, 5, 3, SIZE, SIZE)
    assert windows.clips == ["a.mp4"] * 2 + ["b.mp4"] * 2 and windows.starts == [0, 3, 0, 15]
    assert shown(windows.frames[1]) == [3, 5, 7, 9, 11]
    assert windows.skipped == {"c.mp4": "3 frames, a window needs 9"}
    with pytest.raises(ValueError, match="no clip .* gives 30 frames at stride 2"):
        load_windows(clips, SIZE, num_frames=30, stride=2, per_clip=2)
    assert "c.mp4: 3 frames" in capsys.readouterr().out


def test_by_frames_per_second_clips_of_any_pace_give_the_same_pace(clips):
    windows = load_windows(clips, SIZE, num_frames=3, stride=1, per_clip=1, fps=4)
    assert windows.clips == ["a.mp4", "b.mp4"]
    assert [shown(window) for window in windows.frames] == [[0, 2, 5], [0, 5, 10]]  # 2.5 and 5 clip frames apart
    assert windows.skipped == {"c.mp4": "3 frames, a window needs 6"}


def test_a_clip_slower_than_asked_for_is_left_out_and_named(clips, capsys):
    windows = load_windows(clips, SIZE, num_frames=5, stride=1, per_clip=1, fps=20)
    assert windows.clips == ["b.mp4"]
    assert windows.skipped["a.mp4"] == "10 frames per second, 20 were asked for"
    assert [step for _, step in training_clips(clips, SIZE, 1, fps=20)] == [1.0]
    assert "2 training clips" in capsys.readouterr().out
    with pytest.raises(ValueError, match="gives 5 frames at 60 frames per second"):
        load_windows(clips, SIZE, num_frames=5, stride=1, per_clip=1, fps=60)


@pytest.mark.parametrize("wrong", [{"num_frames": 1}, {"stride": 0}, {"per_clip": 0}, {"fps": 0.0}])
def test_numbers_that_make_no_window_are_refused(clips, wrong):
    with pytest.raises(ValueError, match="is 0|is 1"):
        load_windows(clips, SIZE, **{"num_frames": 5, "stride": 1, "per_clip": 1, **wrong})


def test_a_rate_just_above_the_clips_own_is_rounding():
    assert clip_step(29.97, 3, 29.98) == 1.0 and clip_step(30, 3, None) == 3


def test_tasks_give_the_frames_of_the_paper():
    assert task_indices("interpolation", 9) == [0, 8]
    assert task_indices("image-to-video", 9) == [0]
    assert task_indices("expansion", 9) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="'guessing'.*interpolation"):
        task_indices("guessing", 9)


def test_the_digest_knows_every_pixel(clips):
    windows = load_windows(clips, SIZE, num_frames=3, stride=1, per_clip=1)
    before = windows.digest()
    assert before == load_windows(clips, SIZE, num_frames=3, stride=1, per_clip=1).digest()
    windows.frames[0, 2, 1, 5, 7] += 1 / 255
    assert windows.digest() != before


def test_bytes_are_what_a_file_holds():
    assert to_bytes(torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.2])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("stride", "fps"), [(3, None), (1, 8), (1, 12), (1, 20), (1, 4.5)])
def test_windows_have_the_frames_that_training_takes(clips, stride, fps):
    windows = load_windows(clips, SIZE, num_frames=5, stride=stride, per_clip=3, fps=fps)
    rate = Rate(stride=stride) if fps is None else Rate(fps=fps)
    for name, start, frames in zip(windows.clips, windows.starts, windows.frames, strict=True):
        clip, clip_fps = load_clip(clips / name, SIZE)
        entry = Entry(key=name, status="ok", num_frames=len(clip), fps=clip_fps)
        starts = num_starts(entry, 5, rate)
        expected = frame_indices(entry, (start + 0.5) / starts, 5, rate)
        assert torch.equal(frames, clip[list(expected)].float() / 255)


def test_clips_of_one_name_in_two_folders_are_two(tmp_path):
    for name in ("a/0.mp4", "b/0.mp4"):
        write_video(tmp_path / name, np.zeros((4, 16, 16, 3), dtype=np.uint8), fps=10)
    write_metadata(tmp_path, [{"file_name": name} for name in ("a/0.mp4", "b/0.mp4", "c/0.mp4")])
    found = load_windows(tmp_path, 16, 3, 1, 1)
    assert found.clips == ["a/0.mp4", "b/0.mp4"] and list(found.skipped) == ["c/0.mp4"]
