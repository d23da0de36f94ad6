"""Which windows are cut out of which clips."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_mardini.masking import task_indices
from diffusers_mardini.video_io import iterate_frames, write_video
from pipelines_tests.tiny_pipeline import SIZE
from pipelines_tests.training.clip_files import noise, write_clip
from training.config.data_section import ConditionConfig
from training.data.clips import find_clips, fit, load_clip
from training.data.conditions import ClipConditions
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


def test_windows_are_taken_of_some_clips_or_evenly_over_all(clips):
    every = load_windows(clips, SIZE, 5, stride=1, per_clip=2)
    assert every.clips == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"] == every.wholes
    assert load_windows(clips, SIZE, 5, stride=1, per_clip=2, max_clips=1).clips == ["a.mp4", "a.mp4"]
    thin = load_windows(clips, SIZE, 5, stride=1, per_clip=8, max_windows=3)
    assert list(zip(thin.clips, thin.starts)) == [("a.mp4", 0), ("b.mp4", 0), ("b.mp4", 19)]
    for name in ("max_clips", "max_windows"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            load_windows(clips, SIZE, 5, stride=1, per_clip=2, **{name: 0})


def test_a_long_clip_is_searched_in_parts_that_overlap(clips):
    whole = list(training_clips(clips, SIZE, 2))
    parts = list(training_clips(clips, SIZE, 2, part=10, overlap=4))
    assert [len(clip) for clip, _ in parts] == [10, 6, 10, 10, 10, 6, 3]
    assert torch.equal(torch.cat([parts[0][0], parts[1][0][4:]]), whole[0][0])
    assert torch.equal(torch.cat([parts[2][0], *(clip[4:] for clip, _ in parts[3:6])]), whole[1][0])


def shown(window: torch.Tensor) -> list[int]:
    """The numbers of a counting clip's frames."""
    return (window.mean(dim=(1, 2, 3)) * 25.5).round().int().tolist()


def test_windows_are_evenly_spaced_from_the_first_to_the_last_possible_start():
    assert window_starts(48, 2) == [0, 47]
    assert window_starts(48, 3) == [0, 24, 47]
    assert window_starts(2, 3) == [0, 1]
    assert window_starts(1, 2) == window_starts(48, 1) == [0]
    assert window_starts(0, 2) == window_starts(0, 1) == []


def test_short_clips_are_counted_and_named(clips, capsys):
    windows = load_windows(clips, SIZE, num_frames=5, stride=2, per_clip=2)
    assert windows.frames.shape == (4, 5, 3, SIZE, SIZE)
    assert windows.clips == ["a.mp4"] * 2 + ["b.mp4"] * 2 and windows.starts == [0, 3, 0, 15]
    assert shown(windows.frames[1]) == [3, 5, 7, 9, 11]
    assert windows.skipped == {"c.mp4": "has 3 frames; 5 at stride 2 span 9"}
    with pytest.raises(ValueError, match="no clip .* gives 30 frames at stride 2"):
        load_windows(clips, SIZE, num_frames=30, stride=2, per_clip=2)
    assert "c.mp4: has 3 frames" in capsys.readouterr().out


def test_by_frames_per_second_clips_of_any_pace_give_the_same_pace(clips):
    windows = load_windows(clips, SIZE, num_frames=3, stride=1, per_clip=1, fps=4)
    assert windows.clips == ["a.mp4", "b.mp4"]
    assert [shown(window) for window in windows.frames] == [[0, 2, 5], [0, 5, 10]]  # 2.5 and 5 clip frames apart
    assert windows.skipped == {"c.mp4": "lasts 0.30 s; 3 frames at 4 frames per second take 0.50 s"}


def test_a_clip_slower_than_asked_for_is_left_out_and_named(clips, capsys):
    windows = load_windows(clips, SIZE, num_frames=5, stride=1, per_clip=1, fps=20)
    assert windows.clips == ["b.mp4"]
    assert windows.skipped["a.mp4"] == "has 10 frames per second; at 20 frames per second frames would be repeated"
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
        (found,) = (one for one in find_clips(clips) if one.name == name)
        clip, entry = load_clip(found, SIZE)[0], found.entry
        starts = num_starts(entry, 5, rate)
        expected = frame_indices(entry, (start + 0.5) / starts, 5, rate)
        assert torch.equal(frames, clip[list(expected)].float() / 255)


def test_clips_of_one_name_in_two_folders_are_two(tmp_path):
    for name in ("a/0.mp4", "b/0.mp4"):
        write_video(tmp_path / name, np.zeros((4, 16, 16, 3), dtype=np.uint8), fps=10)
    write_metadata(tmp_path, [{"file_name": name} for name in ("a/0.mp4", "b/0.mp4", "c/0.mp4")])
    found = load_windows(tmp_path, 16, 3, 1, 1)
    assert found.clips == ["a/0.mp4", "b/0.mp4"] and list(found.skipped) == ["c/0.mp4"]


@pytest.mark.parametrize(("stride", "fps"), [(2, None), (1, 5)])
def test_clips_of_a_varying_rate_give_the_windows_of_training_with_their_own_frames_and_times(tmp_path, stride, fps):
    """A pause is no frozen window, and a table with a row for each decoded frame belongs to these frames."""
    times = [*range(0, 800, 40), *range(2000, 4000, 100)]  # 25 a second, a pause, 10 a second
    write_clip(tmp_path / "clip.mp4", noise(40, SIZE, SIZE), fps=25, times=times)
    windows = load_windows(tmp_path, SIZE, num_frames=4, stride=stride, per_clip=50, fps=fps)
    rate = Rate(stride=stride) if fps is None else Rate(fps=fps)
    (clip,) = find_clips(tmp_path)
    assert clip.entry.variable_rate and len(windows.places) == num_starts(clip.entry, 4, rate) > 8
    decoded = {index: frame for index, (_, frame) in enumerate(iterate_frames(tmp_path / "clip.mp4"))}
    for places, frames in zip(windows.places, windows.frames):
        assert (np.diff(places) > 0).all()
        expected = np.stack([decoded[index] for index in places])
        assert torch.equal(frames, fit(expected, SIZE, SIZE).float() / 255)
        if fps is not None:
            assert np.abs(np.diff(clip.entry.times(places)) - 1 / fps).max() < 0.5 / fps
    config = ConditionConfig(columns=["row"], range=[(0, 40)])
    (tmp_path / "clip.csv").write_text("row\n" + "".join(f"{row}\n" for row in range(40)))
    conditions = ClipConditions(
        clip.source, {"number": config, "rate": ConditionConfig(derive="rate", range=[(0, 9)])}
    )
    found = conditions.of(clip.entry, windows.places[0], torch.zeros(4, 1, 2, 2))
    assert found["rate"][1:, 0].numpy() == pytest.approx(np.diff(clip.entry.times(windows.places[0])))
    assert found["number"][0, 0] == windows.places[0][0]


def test_rows_of_one_clip_are_one_clip_for_intervals(tmp_path, clips):
    rows = [{"source": str(clips), "clip": "b.mp4", "first_frame": first, "num_frames": 8} for first in (0, 12)]
    rows.append({"source": str(clips), "clip": "a.mp4", "first_frame": 0, "num_frames": 12})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    windows = load_windows(tmp_path / "list.jsonl", SIZE, 5, stride=1, per_clip=2)
    assert len(set(windows.clips)) == 3 and len(set(windows.wholes)) == 2


def test_a_folder_of_pictures_is_evaluated_at_the_rate_that_is_given(tmp_path):
    for index in range(8):
        (tmp_path / "clips/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIZE, SIZE, 3), 10 * index, np.uint8)).save(tmp_path / f"clips/a/{index}.png")
    windows = load_windows(tmp_path / "clips", SIZE, 3, stride=1, per_clip=1, fps=5, picture_fps=10)
    assert shown(windows.frames[0]) == [0, 2, 4]
    with pytest.raises(ValueError, match="how many frames they have per second"):
        load_windows(tmp_path / "clips", SIZE, 3, stride=1, per_clip=1)
