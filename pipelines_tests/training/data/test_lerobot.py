"""LeRobot datasets: episodes of one camera as clips, their rows as conditions, and what is refused."""

import json

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import read_frames
from pipelines_tests.tiny_pipeline import tiny_vae
from pipelines_tests.training.data.lerobot_files import (
    TOP,
    WRIST,
    grey_of,
    pictures,
    read_episodes,
    write_episodes,
    write_v2,
    write_v3,
)
from training.config.data_section import ConditionConfig
from training.data.clip_lists import ClipRow, write_clip_list
from training.data.clips import find_clips, load_clip
from training.data.conditions import ClipConditions
from training.data.latents import build_latent_cache
from training.data.manifest import make_manifest
from training.data.manifest_files import read_entries
from training.data.moments import encode_frames
from training.data.sources import open_source, source_exists


LENGTHS = [12, 7, 9, 5, 8]
ACTION = {
    "action": ConditionConfig(columns=["action.0", "action.2"], range=[(-1, 1)] * 2),
    "state": ConditionConfig(columns=["observation.state.0"], range=[(0, 5)]),
}


@pytest.fixture(scope="module", params=[write_v2, write_v3])
def folder(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("robots") / "robot", LENGTHS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("shared") / "robot", LENGTHS)


def entries_of(spec, tmp_path):
    source = open_source(spec)
    return source, make_manifest(source, tmp_path / "manifest.parquet").entries


@pytest.mark.parametrize("camera", [TOP, WRIST])
def test_the_frames_of_an_episode_are_exactly_its_own(folder, tmp_path, camera):
    source, entries = entries_of(f"lerobot:{folder}#{camera}", tmp_path)
    assert [(e.key, e.num_frames) for e in entries] == [(f"episode_{i:06d}", n) for i, n in enumerate(LENGTHS)]
    assert {entry.fps for entry in entries} == {10.0} and len({entry.sha256 for entry in entries}) == len(entries)
    for episode, entry in enumerate(entries):
        frames = read_frames(source.open(entry.key), entry.times(), source.fps(entry.key))
        assert np.abs(frames.astype(int) - pictures(episode, entry.num_frames, camera)).mean() < 2
        assert abs(frames[:, 8:].mean(axis=(1, 2, 3)) - grey_of(episode, camera)).max() < 3


def test_a_video_of_many_episodes_is_decoded_once_and_kept(shared, tmp_path):
    source, entries = entries_of(f"lerobot:{shared}#{TOP}", tmp_path)
    (files,) = [path for path in tmp_path.glob("*.parquet") if path.name != "manifest.parquet"]
    assert len(read_entries(files)) == 3  # two files of two episodes, one of one
    before = files.stat().st_mtime_ns
    assert make_manifest(source, tmp_path / "manifest.parquet").entries == entries
    assert files.stat().st_mtime_ns == before


def test_the_latent_cache_holds_an_episodes_frames_alone(shared, tmp_path):
    source, entries = entries_of(f"lerobot:{shared}#{TOP}", tmp_path)
    vae = tiny_vae()
    cache = build_latent_cache(source, entries, vae, (16, 16), 2, tmp_path / "cache")
    for found, entry in zip(find_clips(f"lerobot:{shared}#{TOP}"), entries):
        mean = cache.read(entry, range(entry.num_frames)).mean
        expected = encode_frames(vae, load_clip(found, 16)[0], 2).mean
        torch.testing.assert_close(mean, expected.half(), atol=2e-3, rtol=2e-3)


def test_actions_and_states_are_conditions_of_the_episodes_frames(folder, tmp_path):
    source, entries = entries_of(f"lerobot:{folder}#{TOP}", tmp_path)
    conditions = ClipConditions(source, ACTION)
    for episode, entry in enumerate(entries):
        assert conditions.why_absent(entry) is None
        found = conditions.of(entry, range(entry.num_frames), torch.zeros(entry.num_frames, 1, 1, 1))
        # Row i has the action that leads from frame i to the next one, and what was seen at frame i.
        assert found["action"][0].isnan().all() and found["action"][1:, 0].tolist() == list(
            range(entry.num_frames - 1)
        )
        assert set(found["action"][1:, 1].tolist()) == {0.5} and set(found["state"].flatten().tolist()) == {episode}


def test_a_missing_column_is_named_beside_those_that_there_are(folder, tmp_path):
    source, entries = entries_of(f"lerobot:{folder}#{TOP}", tmp_path)
    for column in ("torque", "torque.0"):
        reason = ClipConditions(source, {"x": ConditionConfig(columns=[column], range=[(0, 1)])}).why_absent(
            entries[0]
        )
        assert f"no column {column}; its columns are" in reason and "action.0 to action.2" in reason
    whole = ClipConditions(source, {"x": ConditionConfig(columns=["action"], range=[(0, 1)])}).why_absent(entries[0])
    assert "action holds [0.0, -0.0, 0.5], which is no number" in whole  # that of the first row, for the second frame
    beyond = ClipConditions(source, {"x": ConditionConfig(columns=["action.3"], range=[(0, 1)])})
    assert "has no action.3" in beyond.why_absent(entries[0])


def test_a_list_of_spans_of_episodes_keeps_rows_and_frames_together(shared, tmp_path):
    spec = f"lerobot:{shared}#{TOP}"
    write_clip_list(tmp_path / "list.jsonl", [ClipRow(spec, "episode_000001", 2, 4), ClipRow(spec, "episode_000004")])
    source, entries = entries_of(tmp_path / "list.jsonl", tmp_path)
    assert [(e.num_frames, e.first_frame) for e in entries] == [(4, 14), (8, 0)]
    frames = read_frames(source.open(entries[0].key), entries[0].times())
    assert np.abs(frames.astype(int) - pictures(1, 7, TOP)[2:6]).mean() < 2
    found = ClipConditions(source, ACTION).of(entries[0], range(4), torch.zeros(4, 1, 1, 1))
    assert found["action"][1:, 0].tolist() == [2, 3, 4] and set(found["state"].flatten().tolist()) == {1}
    assert source.recording(entries[0].key) == "episode_000001: task 1"


def test_episodes_of_all_cameras_are_one_recording(folder):
    top, wrist = (open_source(f"lerobot:{folder}#{camera}") for camera in (TOP, WRIST))
    assert top.recording("episode_000003") == wrist.recording("episode_000003") == "episode_000003: task 1"


def test_one_camera_is_chosen_and_several_are_listed(folder, tmp_path):
    assert len(list(open_source(f"lerobot:{write_v3(tmp_path / 'one', [3, 4], cameras=(WRIST,))}").keys())) == 2
    for spec, problem in ((f"lerobot:{folder}", "names no camera"), (f"lerobot:{folder}#top", "has no camera 'top'")):
        with pytest.raises(ValueError, match=problem) as error:
            open_source(spec)
        assert f"lerobot:{folder}#{TOP}" in str(error.value) and f"lerobot:{folder}#{WRIST}" in str(error.value)
        assert "depth" not in str(error.value)


@pytest.mark.parametrize("inner", ["", "videos", f"videos/{TOP}"])
def test_version_3_as_a_plain_folder_is_refused_with_the_right_spelling(shared, inner):
    for opening in (open_source, find_clips):
        with pytest.raises(ValueError, match="videos hold many episodes each") as error:
            opening(shared / inner)
        assert f"lerobot:{shared}#{TOP}" in str(error.value)


def test_an_episode_whose_video_is_short_or_gone_is_left_out_with_the_reason(tmp_path):
    folder = write_v3(tmp_path / "robot", [6, 6, 6, 6])
    episodes = read_episodes(folder)
    episodes[0]["length"] = 8  # would reach into the next episode
    write_episodes(folder, episodes)
    (folder / f"videos/{TOP}/chunk-000/file-001.mp4").unlink()
    source, entries = entries_of(f"lerobot:{folder}#{TOP}", tmp_path)
    reasons = {entry.key: entry.reason for entry in entries if entry.status != "ok"}
    assert list(reasons) == ["episode_000000", "episode_000002", "episode_000003"]
    assert "has 6 frames from 0 to 0.6 seconds, 8 were asked for" in reasons["episode_000000"]
    assert "there is nothing at" in reasons["episode_000003"]
    rows = ClipConditions(source, ACTION).why_absent(entries[0].model_copy(update={"status": "ok"}))
    assert "has 6 rows of episode_000000, not one for each of its 8 frames" in rows


def test_what_is_no_dataset_of_lerobot_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no LeRobot dataset: it has no meta/info.json"):
        open_source(f"lerobot:{tmp_path / 'empty'}")
    with pytest.raises(ValueError, match="there is no folder '/no/such/folder'"):
        open_source("lerobot:/no/such/folder#x")
    with pytest.raises(ValueError, match="there is no folder 'somebody/robot', nor can .* be had from the Hub"):
        open_source("lerobot:somebody/robot#x")
    assert source_exists("lerobot:somebody/robot#x")
    old = write_v2(tmp_path / "old", [3])
    info = json.loads((old / "meta/info.json").read_text())
    for text, problem in (
        (json.dumps(info | {"codebase_version": "v1.6"}), "of version v1.6; versions 2 and 3 can be read"),
        (json.dumps({"features": {}}), "cannot be read as the description of a LeRobot dataset"),
        ("{", "cannot be read as the description of a LeRobot dataset"),
        (json.dumps(info | {"video_path": None}), "cannot be read as the episodes of a LeRobot dataset"),
        (json.dumps(info | {"features": {"a": {"dtype": "image"}}}), "no camera with videos; a lie as pictures"),
    ):
        (old / "meta/info.json").write_text(text)
        with pytest.raises(ValueError, match=problem):
            open_source(f"lerobot:{old}#{TOP}")


def test_damaged_tables_of_episodes_are_named(shared, tmp_path):
    folder = write_v3(tmp_path / "robot", [3, 3])
    (folder / "meta/episodes/chunk-000/file-000.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="file-000.parquet' cannot be read as the episodes"):
        open_source(f"lerobot:{folder}#{TOP}")
    write_episodes(folder, [{"episode_index": 0, "length": 3, "tasks": ["x"]}] * 2)
    with pytest.raises(ValueError, match="no column data/chunk_index"):
        open_source(f"lerobot:{folder}#{TOP}")
