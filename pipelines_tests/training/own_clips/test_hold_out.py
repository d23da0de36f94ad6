"""What is held out is whole, the same again, apart from what is trained on, and said in words."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipelines_tests.training.own_clips.footage import shot, write
from training.data.entries import Entry
from training.own_clips.fingerprints import Prints
from training.own_clips.hold_out import Split, hold_out, write_split
from training.own_clips.look import Clip, Look, look
from training.own_clips.reading import ClipLook


NO_PRINTS = Prints(np.zeros(0), np.zeros(0), np.zeros((0, 64), dtype=np.uint8))


def clip(name: str, *scenes: int, split: str | None = None, source: str = "nowhere") -> Clip:
    begins = np.cumsum([0, *scenes])
    entry = Entry(key=name, status="ok", sha256=name, num_frames=sum(scenes), fps=20.0, duration=sum(scenes) / 20)
    return Clip(source, entry, ClipLook(tuple(zip(begins.tolist(), scenes)), {}, (), False, NO_PRINTS), split)


def split_of(clips, copies=(), seed: int = 0) -> Split:
    return hold_out(Look("nowhere", tuple(clips), {}, tuple(copies), ()), seed)


def names(pieces) -> set[str]:
    return {piece.clip.name for piece in pieces}


def spans(pieces) -> list[tuple[str, int, int]]:
    return [(piece.clip.name, piece.first_frame, piece.num_frames) for piece in pieces]


def letters(number: int) -> list[str]:
    return [f"{chr(97 + index // 26)}{chr(97 + index % 26)}.mp4" for index in range(number)]


def test_separate_clips_are_held_out_whole_in_a_fit_share():
    split = split_of([clip(name, 60) for name in letters(100)])
    assert not names(split.train) & names(split.held_out)
    assert 0.05 <= split.share <= 0.15 and split.windows >= 20 and len(split.train) + len(split.held_out) == 100
    assert "Held out by clip, whole" in split.reasons[0]


def test_the_choice_is_the_same_again_and_changes_little_with_more_clips():
    held = names(split_of([clip(name, 60) for name in letters(200)]).held_out)
    assert held == names(split_of([clip(name, 60) for name in reversed(letters(200))]).held_out)
    more = names(split_of([clip(name, 60) for name in letters(220)]).held_out)
    assert len(held - more) <= 2
    assert held != names(split_of([clip(name, 60) for name in letters(200)], seed=1).held_out)


def test_numbered_pieces_of_a_recording_stay_together():
    clips = [clip(f"drive{chr(97 + index // 4)}_part{index % 4:02d}.mp4", 60) for index in range(80)]
    split = split_of(clips)
    recordings = [{name[:6] for name in names(side)} for side in (split.train, split.held_out)]
    assert not recordings[0] & recordings[1] and "by recording" in split.reasons[0]


def test_of_few_long_recordings_the_end_of_each_is_held_out_after_a_gap():
    clips = [clip(f"{recording}_{index:03d}.mp4", 60) for recording in ("s", "t") for index in range(40)]
    split = split_of(clips)
    assert names(split.held_out) == {f"{recording}_{index:03d}.mp4" for recording in "st" for index in range(36, 40)}
    assert set(split.left_out) == {"s_035.mp4", "t_035.mp4"} and "gap" in split.left_out["s_035.mp4"]
    assert not names(split.train) & (names(split.held_out) | set(split.left_out))


def test_folders_are_recordings():
    split = split_of([clip(f"day {index // 5}/{name}", 60) for index, name in enumerate(letters(100))])
    days = [{name.split("/")[0] for name in names(side)} for side in (split.train, split.held_out)]
    assert not days[0] & days[1] and "by folder" in split.reasons[0]


@pytest.mark.parametrize("column", ["recording", "episode", "source", "lab", "author"])
def test_a_column_of_the_metadata_says_what_belongs_together(tmp_path, column):
    names_of = letters(40)
    rows = [{"file_name": name, column: f"value {index % 10}"} for index, name in enumerate(names_of)]
    for name in names_of:
        (tmp_path / name).touch()
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = split_of([clip(name, 60, source=str(tmp_path)) for name in names_of])
    values = [{names_of.index(name) % 10 for name in names(side)} for side in (split.train, split.held_out)]
    assert len(values[1]) == 1 and not values[0] & values[1]


def test_one_long_video_is_parted_in_time_with_a_gap():
    (train,), (held,) = (
        side for side in (split_of([clip("a.mp4", 2000)]).train, split_of([clip("a.mp4", 2000)]).held_out)
    )
    assert held.first_frame == 1800 and held.num_frames == 200
    assert train.first_frame == 0 and train.num_frames == 1800 - 40  # two seconds


def test_scenes_of_one_long_video_are_parted_at_a_cut():
    split = split_of([clip("a.mp4", 700, 8, 460, 580, 160, 90)])
    assert spans(split.held_out) == [("a.mp4", 1748, 160), ("a.mp4", 1908, 90)]
    assert spans(split.train) == [("a.mp4", 0, 700), ("a.mp4", 708, 460), ("a.mp4", 1168, 540)]


def test_of_a_few_clips_one_is_held_out_whole():
    split = split_of([clip(name, 400) for name in ("mouse.mp4", "fly.mp4", "fish.mp4", "worm.mp4")])
    assert (
        len(split.held_out) == 1 and len(split.train) == 3 and any("more than 15%" in said for said in split.reasons)
    )


def test_scenes_of_a_clip_are_on_one_side_where_there_are_many_clips():
    split = split_of([clip(name, 30, 30, 40) for name in letters(50)])
    assert not names(split.train) & names(split.held_out)


def test_copies_are_kept_on_one_side():
    clips = [clip(name, 60) for name in letters(60)]
    copies = [(index, index + 30, 0.0) for index in range(30)]
    split = split_of(clips, copies)
    held = names(split.held_out)
    assert held and all((clips[a].name in held) == (clips[b].name in held) for a, b, _ in copies)


def test_of_footage_that_two_clips_show_one_alone_is_parted_in_time():
    """An excerpt of a long video would train on what the end of that video holds out."""
    split = split_of([clip("full.mp4", 12_000), clip("part.mp4", 2_400), clip("other.mp4", 300)], [(0, 1, -480.0)])
    assert "part.mp4" not in names(split.train) | names(split.held_out)
    assert split.left_out["part.mp4"] == "shows footage of 'full.mp4', which is parted in time"
    assert names(split.held_out) & {"full.mp4"} and "other.mp4" in names((*split.train, *split.held_out))


def test_folders_below_one_that_all_share_say_sides_and_recordings(tmp_path):
    for side, seed in (("train", 1), ("train", 2), ("val", 3)):
        write(tmp_path / "clips" / "ds" / side / f"{seed}.mp4", shot(seed, 60))
    found = look(tmp_path / "clips", tmp_path / "manifests", workers=1, say=lambda line: None)
    assert {clip.name: clip.split for clip in found.clips} == {
        "ds/train/1.mp4": "train", "ds/train/2.mp4": "train", "ds/val/3.mp4": "held out",
    }  # fmt: skip
    split = split_of([clip(f"clips/day {index // 5}/{name}", 60) for index, name in enumerate(letters(100))])
    days = [{name.split("/")[1] for name in names(side)} for side in (split.train, split.held_out)]
    assert not days[0] & days[1] and "by folder" in split.reasons[0]


def test_what_a_source_says_of_recordings_is_kept_together():
    clips = [replace(clip(name, 60), recording=f"take {index % 20}") for index, name in enumerate(letters(100))]
    split = split_of(clips)
    takes = [{piece.clip.recording for piece in side} for side in (split.train, split.held_out)]
    assert not takes[0] & takes[1] and "by recording" in split.reasons[0]


def test_sides_that_the_clips_have_are_kept_and_copies_of_held_out_footage_leave_training():
    clips = [clip(f"train/{name}", 60, split="train") for name in letters(10)]
    clips += [clip(f"val/{name}", 60, split="held out") for name in ("x.mp4", "y.mp4")]
    clips += [clip("test/z.mp4", 60, split="test")]
    split = split_of(clips, [(3, 10, 0.0)])
    assert names(split.held_out) == {"val/x.mp4", "val/y.mp4"} and len(split.train) == 9
    assert "same footage" in split.left_out[clips[3].name] and "left alone" in split.left_out["test/z.mp4"]


def test_folders_train_and_val_are_sides(tmp_path):
    for side, seed in (("train", 1), ("train", 2), ("val", 3)):
        write(tmp_path / "clips" / side / f"{seed}.mp4", shot(seed, 60))
    write(tmp_path / "clips" / "train" / "copy.mp4", shot(3, 60), crf=34)
    found = look(tmp_path / "clips", tmp_path / "manifests", workers=1, say=lambda line: None)
    assert [found.clips[index].name for index in found.copies[0][:2]] == ["train/copy.mp4", "val/3.mp4"]
    split = hold_out(found)
    assert names(split.train) == {"train/1.mp4", "train/2.mp4"} and names(split.held_out) == {"val/3.mp4"}


def test_splits_of_a_dataset_are_sides(tmp_path):
    pytest.importorskip("datasets")
    for side, seed in (("train", 1), ("train", 2), ("validation", 3)):
        write(tmp_path / "clips" / side / f"{seed}.mp4", shot(seed, 40))
    found = look(f"datasets:{tmp_path / 'clips'}", tmp_path / "manifests", workers=1, say=lambda line: None)
    split = hold_out(found)
    assert names(split.train) == {"train/row-0", "train/row-1"} and names(split.held_out) == {"validation/row-0"}


def test_too_few_windows_are_said_and_nothing_is_refused():
    split = split_of([clip(name, 20) for name in letters(20)])
    assert any("fewer than 20 windows" in said for said in split.reasons)


def test_a_last_clip_that_is_longer_than_all_others_is_not_held_out_whole():
    """As of a phone, whose names end in numbers."""
    split = split_of([clip(f"IMG_{number}.mp4", 5000 if number == 9 else 200) for number in range(10)])
    assert 0 < split.share <= 0.34


def test_clips_too_short_to_be_split_are_refused():
    with pytest.raises(ValueError, match="leaves nothing to hold out"):
        split_of([clip("a.mp4", 30)])


def test_both_sides_are_written_as_clip_lists(tmp_path):
    split = split_of([clip("a.mp4", 1000, 1000)])
    write_split(split, tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    span = {"first_frame": 1800, "num_frames": 200, "fps": 20.0}
    assert row == {"source": "nowhere", "clip": "a.mp4", **span, "recording": "a.mp4"}
    record = json.loads((tmp_path / "split.json").read_text())
    assert record["held_out_frames"] == 200 and record["reasons"] == list(split.reasons)
