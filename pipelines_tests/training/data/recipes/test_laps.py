"""Laps are cut where the camera's time stamps say so, and held-out laps stay apart, on made-up pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video_io import read_video
from training.data.recipes import laps as prepare_laps
from training.data.recipes.laps import Tub, find_runs, motion, prepare, read_times


@pytest.fixture(autouse=True)
def short_clips(monkeypatch):
    monkeypatch.setattr(prepare_laps, "NUM_FRAMES", 10)


def make_tub(folder, count, still=(), late=(), session="22-11-11_0", seed=0):
    """Numbered noise; `still` numbers are (nearly) one grey picture, `late` ones come a second after the last."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows, time = [], 0
    for number in range(count):
        picture = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        if number in still:
            picture = np.full_like(picture, 100)
            picture[0, 0, 0] = number
        Image.fromarray(picture).save(folder / "images" / f"{number}_cam_image_array_.jpg", quality=95)
        time += 1000 if number in late else 50
        rows.append({"_index": number, "_session_id": session, "_timestamp_ms": time})
    stale = {"_index": 3, "_session_id": "22-10-26_0", "_timestamp_ms": 9_999_999}
    (folder / "catalog_0.catalog").write_text("".join(json.dumps(row) + "\n" for row in [stale, *rows]))
    sessions = {"created_at": 1, "sessions": {"last_full_id": session}}
    (folder / "manifest.json").write_text("\n".join(json.dumps(line) for line in (["cam/image_array"], {}, sessions)))


def starts(rows):
    return [int(row["file_name"][-9:-4]) for row in rows]


def test_runs_end_at_missing_and_late_pictures():
    times = {0: 0, 1: 50, 2: 171, 3: 220, 5: 320, 6: 440}
    assert find_runs([0, 1, 2, 3, 5, 6], times) == [[0, 1], [2, 3], [5, 6]]
    assert find_runs([0, 1, 2, 4], {}) == [[0, 1, 2], [4]]
    assert find_runs([], {}) == []


def test_rows_of_earlier_sessions_are_ignored(tmp_path):
    make_tub(tmp_path, 5)
    assert read_times(tmp_path) == {0: 50, 1: 100, 2: 150, 3: 200, 4: 250}


def test_clips_are_cut_from_runs_and_still_ones_left_out(tmp_path, capsys):
    make_tub(tmp_path / "checkout" / "tub", 60, still=range(20, 30), late=(34,))
    rows = prepare(tmp_path / "checkout", tmp_path / "out", (Tub("s1", "tub"),))
    assert starts(rows["train"]) == [0, 10, 34, 44] and rows["val"] == []
    assert "1 still" in capsys.readouterr().out
    frames, fps = read_video(tmp_path / "out" / "train" / "rc_s1_00034.mp4")
    assert frames.shape == (10, 24, 32, 3) and fps == 20
    lines = (tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows["train"]
    assert rows["train"][0]["license"] == "MIT" and rows["train"][0]["source"].endswith("0..9_cam_image_array_.jpg")


def test_heldout_laps_are_apart_from_training(tmp_path):
    make_tub(tmp_path / "tub", 60)
    tub = Tub("s1", "tub", train_until=30, heldout_from=40)
    rows = prepare(tmp_path, tmp_path / "out", (tub,))
    assert starts(rows["train"]) == [0, 10, 20] and starts(rows["val"]) == [40, 50]
    assert (tmp_path / "out" / "val" / "rc_s1_00050.mp4").is_file()


def test_a_copied_tub_gives_no_clips(tmp_path, capsys):
    make_tub(tmp_path / "a", 20)
    make_tub(tmp_path / "b", 20)
    rows = prepare(tmp_path, tmp_path / "out", (Tub("a", "a"), Tub("b", "b")))
    assert [row["file_name"] for row in rows["train"]] == ["rc_a_00000.mp4", "rc_a_00010.mp4"]
    assert "2 with a picture of an earlier clip" in capsys.readouterr().out


def test_motion_is_zero_for_a_standing_car():
    assert motion(np.full((10, 2, 2, 3), 9, dtype=np.uint8)) == 0
    assert motion(np.arange(10, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)) == 8


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="checkout of criscola/donkeycar"):
        prepare(tmp_path, tmp_path / "out")
    make_tub(tmp_path / "tub", 10)
    prepare(tmp_path, tmp_path / "out", (Tub("s1", "tub"),))
    with pytest.raises(ValueError, match="already holds clips"):
        prepare(tmp_path, tmp_path / "out", (Tub("s1", "tub"),))
