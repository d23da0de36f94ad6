"""Clips are chosen by laboratory, length and motion, and copied as they are, on made-up videos."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffusers_mardini.video_io import read_video, write_video
from training.data.recipes import droid as prepare_droid
from training.data.recipes.droid import HELDOUT_LAB, TRAIN_LABS, VIDEOS, clip_name, prepare


LAB = sorted(TRAIN_LABS)[0]


def add_video(checkout, lab, second, frames=12, moving=True):
    folder = checkout / VIDEOS / lab / "2023-05-09" / f"Tue_May__9_02:22:{second:02d}_2023"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(second).integers(0, 255, (frames, 32, 48, 3), dtype=np.uint8)
    write_video(folder / "20655732.mp4", noise if moving else np.repeat(noise[:1], frames, axis=0), 30, crf=20)
    return folder / "20655732.mp4"


def test_a_name_states_laboratory_time_and_camera():
    assert clip_name(Path("20d7e5d4/2023-05-09/Tue_May__9_02:22:47_2023/20655732.mp4")) == (
        "droid_20d7e5d4_20230509_022247_20655732.mp4"
    )
    with pytest.raises(ValueError, match="give a checkout of"):
        clip_name(Path("20d7e5d4/yesterday/20655732.mp4"))


def test_clips_too_short_for_a_motion_are_left_out_on_both_sides(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_droid, "MIN_FRAMES", 4)
    checkout = tmp_path / "checkout"
    for second, (lab, frames) in enumerate([(HELDOUT_LAB, 8), (HELDOUT_LAB, 9), (LAB, 8), (LAB, 12)]):
        add_video(checkout, lab, second, frames=frames)
    prepare(checkout, tmp_path / "out")
    for split, frames in (("val", 9), ("train", 12)):
        (row,) = [json.loads(line) for line in (tmp_path / "out" / split / "metadata.jsonl").read_text().splitlines()]
        assert row["num_frames"] == frames and row["motion"] > 0
    assert "2 of 8 frames or fewer" in capsys.readouterr().out


def test_one_laboratory_is_heldout_as_a_whole_and_short_long_or_still_clips_are_not_trained_on(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(prepare_droid, "MIN_FRAMES", 12)
    monkeypatch.setattr(prepare_droid, "MAX_FRAMES", 20)
    checkout = tmp_path / "checkout"
    trained_on = add_video(checkout, LAB, 1)
    add_video(checkout, LAB, 2, frames=21)
    add_video(checkout, LAB, 3, moving=False)
    add_video(checkout, LAB, 7, frames=11)
    add_video(checkout, HELDOUT_LAB, 4, frames=21)
    add_video(checkout, HELDOUT_LAB, 5, moving=False)
    add_video(checkout, "f147f077", 6)
    rows = prepare(checkout, tmp_path / "out")
    assert [row["file_name"] for row in rows["train"]] == [f"droid_{LAB}_20230509_022201_20655732.mp4"]
    assert [row["num_frames"] for row in rows["val"]] == [21, 12]
    assert "left out: 2 not of 12 to 20 frames, 1 of other laboratories, 1 still" in capsys.readouterr().out
    copied = tmp_path / "out/train" / rows["train"][0]["file_name"]
    assert copied.read_bytes() == trained_on.read_bytes() and read_video(copied)[0].shape == (12, 32, 48, 3)
    lines = (tmp_path / "out/val/metadata.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows["val"]
    assert {row["license"] for row in rows["val"]} == {"CC-BY-4.0"} and {row["lab"] for row in rows["val"]} == {
        HELDOUT_LAB
    }


def test_clips_that_are_there_and_other_folders_are_refused(tmp_path):
    add_video(tmp_path / "checkout", HELDOUT_LAB, 1)
    prepare(tmp_path / "checkout", tmp_path / "out")
    with pytest.raises(ValueError, match="already holds clips"):
        prepare(tmp_path / "checkout", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no videos"):
        prepare(tmp_path, tmp_path / "other")
