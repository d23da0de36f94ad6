"""Clip lists: spans of frames of clips of other sources, and rows that are refused or left out."""

import json
import tarfile

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import iterate_frames, read_frames, write_video
from pipelines_tests.tiny_pipeline import tiny_vae
from pipelines_tests.training.clip_files import noise, write_clip
from training.config.data_section import ConditionConfig
from training.data import manifest as manifests
from training.data.buckets import Bucket, WindowRequest
from training.data.clip_lists import ClipRow, write_clip_list
from training.data.clips import find_clips, load_clip
from training.data.conditions import ClipConditions
from training.data.manifest import make_manifest
from training.data.moments import encode_frames
from training.data.sources import open_source, source_exists
from training.data.windows import LatentWindows, PixelWindows
from training.evaluation.evaluation_windows import load_windows, training_clips
from training.evaluation.methods import TrainingClips


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Manifests of sources that are opened by name lie in the working directory."""
    monkeypatch.chdir(tmp_path)


def counting(length: int) -> np.ndarray:
    """Frame `i` is grey of value 5 * i."""
    return (
        np.full((length, 32, 32, 3), 1, dtype=np.uint8) * (5 * np.arange(length, dtype=np.uint8))[:, None, None, None]
    )


@pytest.fixture
def clips(tmp_path):
    write_clip(tmp_path / "clips/a.mp4", counting(40), fps=20)
    write_clip(tmp_path / "clips/b/c.mp4", counting(12), fps=10)
    return tmp_path / "clips"


def written(tmp_path, *rows: ClipRow):
    write_clip_list(tmp_path / "list.jsonl", rows)
    return open_source(tmp_path / "list.jsonl")


def numbers(frames: np.ndarray) -> list[int]:
    return (frames.astype(float).mean(axis=(1, 2, 3)) / 5).round().astype(int).tolist()


def frames_of(source, entry) -> list[int]:
    return numbers(read_frames(source.open(entry.key), entry.times(), source.fps(entry.key)))


def test_a_row_is_a_span_of_frames_of_a_clip(clips, tmp_path):
    source = written(
        tmp_path,
        ClipRow(str(clips), "a.mp4", 10, 20),
        ClipRow(str(clips), "a.mp4", 33),
        ClipRow(str(clips), "b/c.mp4"),
    )
    entries = make_manifest(source).entries
    assert [entry.key for entry in entries] == ["a.mp4[10:30]", "a.mp4[33:]", "b/c.mp4"]
    assert [entry.num_frames for entry in entries] == [20, 7, 12] and [entry.fps for entry in entries] == [20, 20, 10]
    assert [round(entry.duration, 6) for entry in entries] == [1.0, 0.35, 1.2]
    assert [frames_of(source, e) for e in entries] == [list(range(10, 30)), list(range(33, 40)), list(range(12))]
    assert len({entry.sha256 for entry in entries}) == 3
    (whole,) = [entry for entry in make_manifest(open_source(clips)).entries if entry.key == "b/c.mp4"]
    assert entries[2].sha256 == whole.sha256  # the same content, which shows that a clip is in two lists


def test_a_clip_is_decoded_once_for_all_of_its_spans_and_others_are_not(clips, tmp_path, monkeypatch):
    probed, real = [], manifests.probe_video
    monkeypatch.setattr(manifests, "probe_video", lambda path, *rest: (probed.append(path.name), real(path, *rest))[1])
    rows = [ClipRow(str(clips), "a.mp4", first, 10) for first in (0, 10, 20)]
    source = written(tmp_path, *rows)
    assert len(make_manifest(source, workers=2).ok) == 3 and probed == ["a.mp4"]
    make_manifest(written(tmp_path, *rows, ClipRow(str(clips), "a.mp4", 30, 5)))
    assert probed == ["a.mp4"]
    make_manifest(open_source(clips))
    assert probed == ["a.mp4", "c.mp4"]
    assert len(make_manifest(source).ok) == 3 and len(make_manifest(open_source(clips)).ok) == 2
    assert probed == ["a.mp4", "c.mp4"]


def test_a_span_is_read_again_after_its_clip_has_changed(clips, tmp_path):
    source = written(tmp_path, ClipRow(str(clips), "a.mp4", 10, 20))
    before = make_manifest(source).entries[0]
    assert source.stamp(before.key) == before.stamp
    write_clip(clips / "a.mp4", noise(35, 32, 32), fps=20)
    assert source.stamp(before.key) != before.stamp
    after = make_manifest(source).entries[0]
    assert after.num_frames == 20 and after.sha256 != before.sha256


def test_spans_of_pictures_shards_and_uneven_clips(clips, tmp_path):
    write_video(tmp_path / "pictures/x", counting(9), fps=1)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(clips / "a.mp4", "a.mp4")
    times = [0, 50, 100, 150, 400, 500, 600, 700, 800, 830]
    write_clip(tmp_path / "uneven/u.mp4", counting(10), times=times)
    source = written(
        tmp_path,
        ClipRow(str(tmp_path / "pictures"), "x", 2, 4, fps=5),
        ClipRow(str(tmp_path / "s.tar"), "s.tar/a.mp4", 5, 6),
        ClipRow(str(tmp_path / "uneven"), "u.mp4", 4, 5),
        ClipRow(str(tmp_path / "uneven"), "u.mp4", 2, 8),
    )
    entries = make_manifest(source).entries
    assert [entry.status for entry in entries] == ["ok"] * 4
    expected = [range(2, 6), range(5, 11), range(4, 9), range(2, 10)]
    assert [frames_of(source, entry) for entry in entries] == [list(part) for part in expected]
    assert [round(entry.fps, 3) for entry in entries[:3]] == [5, 20, 10]
    assert [entry.variable_rate for entry in entries] == [False, False, False, True]
    assert entries[0].key == f"{tmp_path / 'pictures'} x[2:6]"  # several sources may have clips of one name


def test_windows_from_the_cache_and_from_pixels_stay_within_a_span(clips, tmp_path):
    source = written(tmp_path, ClipRow(str(clips), "a.mp4", 10, 8), ClipRow(str(clips), "a.mp4", 25, 9))
    entries, vae = make_manifest(source).entries, tiny_vae()
    request = WindowRequest("stage", (Bucket(16, 16, 4),), strides=((1, 1.0),))
    cached = LatentWindows.build(source, entries, [request], vae, 2, tmp_path / "cache")
    whole = encode_frames(vae, load_clip(find_clips(clips)[0], 16)[0], 2).mean
    starts = {entry.key: entry.first_frame for entry in entries}
    for windows in (cached, PixelWindows(source, entries, [(16, 16)], vae, 2)):
        draws = windows.heldout(request, 11)
        assert len(draws) == 11  # five in eight frames, six in nine
        latents, _ = windows.batch(draws, [torch.Generator() for _ in draws])
        for draw, window in zip(draws, latents):
            expected = whole[[starts[draw.clip] + frame for frame in draw.frames]]
            torch.testing.assert_close(window, expected.float(), atol=2e-3, rtol=2e-3)


def test_conditions_are_the_rows_of_the_span(clips, tmp_path):
    (clips / "a.csv").write_text("steer\n" + "".join(f"{i}\n" for i in range(40)))
    (clips / "b/c.csv").write_text("steer\n" + "".join(f"{i}\n" for i in range(11)))
    source = written(tmp_path, ClipRow(str(clips), "a.mp4", 10, 20), ClipRow(str(clips), "b/c.mp4", 0, 5))
    first, second = make_manifest(source).entries
    conditions = ClipConditions(source, {"steer": ConditionConfig(columns=["steer"], range=[(0, 40)])})
    found = conditions.of(first, range(20), torch.zeros(20, 1, 1, 1))["steer"].flatten().tolist()
    assert found[1:] == list(range(11, 30))
    assert "c.csv' has 11 rows and its clip 12 frames" in conditions.why_absent(second)


def test_evaluation_and_the_best_match_cut_windows_from_spans(clips, tmp_path):
    written(tmp_path, ClipRow(str(clips), "a.mp4", 10, 20), ClipRow(str(clips), "b/c.mp4", 3, 9))
    path = str(tmp_path / "list.jsonl")
    windows = load_windows(path, 32, 5, stride=2, per_clip=2)
    assert windows.clips == ["a.mp4[10:30]"] * 2 + ["b/c.mp4[3:12]"] and windows.starts == [0, 11, 0]
    shown = [numbers((window.permute(0, 2, 3, 1) * 255).numpy()) for window in windows.frames]
    assert shown == [[10, 12, 14, 16, 18], [21, 23, 25, 27, 29], [3, 5, 7, 9, 11]]
    assert [len(clip) for clip, _ in training_clips(path, 32, 2)] == [20, 9]
    assert [len(load_clip(clip, 32)[0]) for clip in find_clips(path)] == [20, 9]
    key = TrainingClips(path, 32, 2).key()
    written(tmp_path, ClipRow(str(clips), "a.mp4", 11, 19))
    assert TrainingClips(path, 32, 2).key() != key


def test_a_span_of_an_uneven_clip_is_loaded_at_even_times(tmp_path):
    write_clip(tmp_path / "clips/u.mp4", counting(9), times=[0, 50, 100, 150, 200, 300, 400, 500, 600])
    written(tmp_path, ClipRow(str(tmp_path / "clips"), "u.mp4", 1, 8))
    (found,) = find_clips(tmp_path / "list.jsonl")
    frames, fps = load_clip(found, 32)
    assert numbers(frames.permute(0, 2, 3, 1).numpy()) == [1, 3, 4, 5, 6, 6, 7, 8] and fps == pytest.approx(7 / 0.55)


def test_frames_at_given_times_come_one_by_one(clips):
    times = [0.5, 0.55, 1.2]
    found = list(iterate_frames(clips / "a.mp4", timestamps=times))
    assert [time for time, _ in found] == times and numbers(np.stack([frame for _, frame in found])) == [10, 11, 24]
    with pytest.raises(ValueError, match="ends before 9.000 seconds"):
        list(iterate_frames(clips / "a.mp4", timestamps=[0.5, 9.0]))


@pytest.mark.parametrize(
    "row, reason",
    [
        (ClipRow("clips", "a.mp4", 30, 11), "frames 30 to 40 were asked for, but 'a.mp4' has 40 frames"),
        (ClipRow("clips", "a.mp4", 40), "frames from 40 on were asked for, but 'a.mp4' has 40 frames"),
        (ClipRow("clips", "gone.mp4"), "there is no clip 'gone.mp4' in 'clips'"),
        (ClipRow("clips", "bad.mp4", 0, 2), "bad.mp4"),
    ],
)
def test_a_span_that_is_not_there_is_left_out_with_line_and_reason(clips, tmp_path, row, reason):
    (clips / "bad.mp4").write_text("no video")
    (found,) = make_manifest(written(tmp_path, ClipRow("clips", "a.mp4", 0, 5), row)).left_out
    assert found.reason.startswith(f"line 2 of '{tmp_path / 'list.jsonl'}': ") and reason in found.reason


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "line 2 of '.*list.jsonl' is no JSON"),
        ("[1]", "line 2 of .* is no object"),
        ('{"file_name": "a.mp4"}', "has a file_name, as the metadata of a folder have; give that folder"),
        ('{"source": "clips"}', "must have a text as its clip, got None"),
        ('{"source": "clips", "clip": "a.mp4", "first": 3}', "has 'first'; it may have source, clip, first_frame"),
        ('{"source": "clips", "clip": "a.mp4", "first_frame": -1}', "at least 0 as its first_frame, got -1"),
        ('{"source": "clips", "clip": "a.mp4", "num_frames": 0}', "at least 1 as its num_frames, got 0"),
        ('{"source": "clips", "clip": "a.mp4", "num_frames": 2.5}', "whole number .* num_frames, got 2.5"),
        ('{"source": "clips", "clip": "a.mp4", "first_frame": true}', "whole number .* first_frame, got True"),
        ('{"source": "clips", "clip": "a.mp4", "fps": NaN}', "positive number as its fps, got nan"),
        ('{"source": "clips", "clip": "a.mp4", "recording": 3}', "text as its recording, got 3"),
        ('{"source": "other.jsonl", "clip": "a.mp4"}', "names another clip list, 'other.jsonl'; write the rows"),
        ('{"source": "nowhere", "clip": "a.mp4"}', "line 2 of .*: there is no source of clips at 'nowhere'"),
        ('{"source": "clips", "clip": "a.mp4", "num_frames": 5}', r"line 2 of .* repeats line 1: 'a.mp4\[0:5\]'"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(clips, tmp_path, line, problem):
    row = json.dumps({"source": "clips", "clip": "a.mp4", "num_frames": 5})
    (tmp_path / "list.jsonl").write_text(f"{row}\n{line}\n")
    with pytest.raises(ValueError, match=problem):
        open_source("list.jsonl")


def test_an_empty_or_missing_list_is_refused(tmp_path):
    (tmp_path / "list.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no rows"):
        open_source("list.jsonl")
    with pytest.raises(ValueError, match="there is no clip list at 'none.jsonl'"):
        open_source("none.jsonl")
    assert source_exists("list.jsonl") and not source_exists("none.jsonl")
    (tmp_path / "list.jsonl").write_bytes(b"\xff\xfe{\0")
    with pytest.raises(ValueError, match="is not UTF-8"):
        open_source("list.jsonl")


def test_pictures_have_one_rate(tmp_path):
    write_video(tmp_path / "pictures/x", noise(9, 16, 16), fps=1)
    written(tmp_path, ClipRow("pictures", "x", 0, 4, fps=5))
    with pytest.raises(ValueError, match="line 2 of .* gives the pictures of 'x' 6 frames per second, but .* 5"):
        written(tmp_path, ClipRow("pictures", "x", 0, 4, fps=5), ClipRow("pictures", "x", 4, 4, fps=6))
    for fps in (5, 8):  # another rate than that of an earlier manifest
        assert make_manifest(written(tmp_path, ClipRow("pictures", "x", 1, 4, fps=fps))).ok[0].fps == fps


def test_recordings_come_from_the_row_or_from_the_clips_source(clips, tmp_path):
    (clips / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "recording": "monday"}) + "\n" for name in ("a.mp4", "b/c.mp4"))
    )
    source = written(tmp_path, ClipRow("clips", "a.mp4", recording="tuesday"), ClipRow("clips", "b/c.mp4"))
    assert [source.recording(key) for key in source.keys()] == ["tuesday", "monday"]
