"""Clips of folders, picture folders, shards and datasets are the same clips."""

import json

import datasets
import pytest
import webdataset

from diffusers_mardini.video_io import read_frames, write_video
from pipelines_tests.training.clip_files import noise, write_clip
from training.data.archives import ArchiveClips
from training.data.frames import draw_frames
from training.data.latents import frames_of
from training.data.manifest import make_manifest
from training.data.moments import ClipError
from training.data.sources import DatasetVideos, PictureFolders, VideoFolder, open_source, source_exists
from training.data.spans import WholeClips


LENGTHS = {"a.mp4": 5, "b/c2.mp4": 3, "b/c10.mp4": 4}


@pytest.fixture
def folder(tmp_path):
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_clip(tmp_path / "clips" / name, noise(length, seed=seed), fps=10)
    return tmp_path / "clips"


def lengths(source, tmp_path) -> dict[str, int]:
    manifest = make_manifest(source, tmp_path / "manifest.parquet")
    for entry in manifest.ok:  # what the manifest says can be read
        frames = read_frames(source.open(entry.key), entry.times([entry.num_frames - 1]), source.fps(entry.key))
        assert frames.shape == (1, entry.height, entry.width, 3)
    return {entry.key: entry.num_frames for entry in manifest.ok}


def test_a_folder_of_videos_in_natural_order(folder, tmp_path):
    source = open_source(folder)
    assert isinstance(source, VideoFolder) and list(source.keys()) == list(LENGTHS)
    assert lengths(source, tmp_path) == LENGTHS


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_metadata_names_the_clips_and_the_others_are_reported(folder, tmp_path, name):
    keys = ["b/c10.mp4", "a.mp4", "gone.mp4"]
    if name.endswith("jsonl"):
        text = "".join(json.dumps({"file_name": key, "text": "x"}) + "\n" for key in keys)
    else:
        text = "file_name,text\n" + "".join(f"{key},x\n" for key in keys)
    (folder / name).write_text(text)
    manifest = make_manifest(open_source(folder), tmp_path / "manifest.parquet")
    assert [entry.key for entry in manifest.ok] == ["a.mp4", "b/c10.mp4"]
    reasons = {entry.key: entry.reason for entry in manifest.left_out}
    assert "nothing at" in reasons["gone.mp4"] and "not named in metadata" in reasons["b/c2.mp4"]


def test_broken_metadata_is_an_error(folder):
    (folder / "metadata.csv").write_text("name\na.mp4\n")
    with pytest.raises(ValueError, match="line 2 of .*metadata.csv.* must have a file_name"):
        open_source(folder)
    (folder / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="keep one of them"):
        open_source(folder)


def test_picture_folders_are_clips_at_a_given_rate(tmp_path):
    for name, length in (("x", 4), ("y", 12)):
        write_video(tmp_path / "clips" / name, noise(length, 15, 17), fps=1)
    source = open_source(tmp_path / "clips", fps=5)
    assert isinstance(source, PictureFolders) and lengths(source, tmp_path) == {"x": 4, "y": 12}
    assert make_manifest(source, tmp_path / "manifest.parquet").ok[0].fps == 5
    with pytest.raises(ValueError, match="do not say how many frames"):
        open_source(tmp_path / "clips")
    rows = [{"file_name": "x", "fps": 3}, {"file_name": "y", "fps": 4}]
    (tmp_path / "clips" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(tmp_path / "clips")
    assert [source.fps(key) for key in source.keys()] == [3.0, 4.0]


def test_the_stamp_of_a_picture_folder_changes_with_its_pictures(tmp_path):
    write_video(tmp_path / "clips" / "x", noise(4, 16, 16), fps=1)
    source = PictureFolders(tmp_path / "clips", fps=5)
    before = source.stamp("x")
    assert source.stamp("x") == before
    write_video(tmp_path / "clips" / "x", noise(3, 16, 16), fps=1)
    assert source.stamp("x") != before and source.stamp("none") is None


def test_webdataset_shards_are_read_in_place(folder, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    names = list(LENGTHS)
    for number, part in enumerate((names[:2], names[2:])):
        with webdataset.TarWriter(str(shards / f"train-{number:03d}.tar")) as writer:
            for name in part:
                key = name.replace("/", "-").removesuffix(".mp4")
                writer.write({"__key__": key, "mp4": (folder / name).read_bytes(), "json": {"text": "x"}})
    expected = {"train-000.tar/a.mp4": 5, "train-000.tar/b-c2.mp4": 3, "train-001.tar/b-c10.mp4": 4}
    for spec in (shards, shards / "train-{000..001}.tar"):
        source = open_source(spec)
        assert isinstance(source, ArchiveClips) and lengths(source, tmp_path) == expected
    assert source.open("train-000.tar/a.mp4").read() == (folder / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="there is no 'train-000.tar/x.mp4'"):
        source.open("train-000.tar/x.mp4")
    for shard in shards.iterdir():
        shard.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="hold no videos.*no whole, uncompressed .tar"):
        open_source(shards)


@pytest.mark.parametrize("kind", ["datasets", "datasets-stream"])
def test_a_datasets_folder_local_and_streamed(folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = open_source(f"{kind}:{folder}")
    found = lengths(source, tmp_path)
    assert list(found) == ["row-0", "row-1", "row-2"] and sorted(found.values()) == [3, 4, 5]
    again = [make_manifest(source, tmp_path / "manifest.parquet").ok[index].sha256 for index in (2, 0)]
    assert len(set(again)) == 2
    with pytest.raises((ValueError, IndexError)):
        source.open("row-3")


def test_a_datasets_dataset_with_videos_as_bytes(folder, tmp_path):
    rows = {"video": [{"path": None, "bytes": (folder / name).read_bytes()} for name in LENGTHS], "n": [1, 2, 3]}
    features = datasets.Features({"video": datasets.Video(decode=False), "n": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict(rows, features=features)
    source = DatasetVideos("datasets:memory", dataset=dataset)
    assert list(lengths(source, tmp_path).values()) == list(LENGTHS.values())
    streamed = DatasetVideos("datasets-stream:memory", dataset=dataset.to_iterable_dataset())
    assert streamed.open("row-2") == streamed.open("row-2") == source.open("row-2")
    with pytest.raises(ValueError, match="ends at row 3"):
        streamed.open("row-3")
    with pytest.raises(ValueError, match="one column of videos"):
        DatasetVideos("datasets:memory", dataset=dataset.remove_columns("video"))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_folders_of_parquet_and_shards_are_streamed_as_the_hub_would(folder, tmp_path, monkeypatch, kind):
    """What a dataset repository on the Hub holds, opened by the same call, without a network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    if kind == "parquet":
        rows = {"video": [{"path": name, "bytes": (folder / name).read_bytes()} for name in LENGTHS], "n": [1, 2, 3]}
        features = datasets.Features({"video": datasets.Video(decode=False), "n": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / "train-00000.parquet")
    else:
        with webdataset.TarWriter(str(tmp_path / "hub" / "train-00000.tar")) as writer:
            for number, name in enumerate(LENGTHS):
                writer.write({"__key__": str(number), "mp4": (folder / name).read_bytes(), "json": {"n": number}})
    source = open_source(f"datasets-stream:{tmp_path / 'hub'}")
    assert source._streamed and list(lengths(source, tmp_path).values()) == list(LENGTHS.values())


def test_a_stream_is_read_once_for_its_manifest(folder, tmp_path):
    read = []

    def rows():
        for name in LENGTHS:
            read.append(name)
            yield {"video": {"path": None, "bytes": (folder / name).read_bytes()}}

    features = datasets.Features({"video": datasets.Video(decode=False)})
    stream = datasets.IterableDataset.from_generator(rows, features=features)
    source = DatasetVideos("datasets-stream:memory", dataset=stream)
    manifest = make_manifest(source, tmp_path / "manifest.parquet")
    assert [entry.num_frames for entry in manifest.ok] == list(LENGTHS.values()) and read == list(LENGTHS)
    assert source.open("row-2") == source.open("row-2") and read == list(LENGTHS)  # the last row is still there
    assert source.open("row-1") == (folder / "b/c2.mp4").read_bytes() and len(read) == 3 + 2


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_without_a_video_are_left_out_with_the_reason(folder, tmp_path, streamed):
    videos = [None, {"path": None, "bytes": (folder / "a.mp4").read_bytes()}, None]
    dataset = datasets.Dataset.from_dict(
        {"video": videos}, features=datasets.Features({"video": datasets.Video(decode=False)})
    )
    source = DatasetVideos("datasets:memory", dataset=dataset.to_iterable_dataset() if streamed else dataset)
    manifest = make_manifest(source, tmp_path / "manifest.parquet")
    assert [entry.key for entry in manifest.ok] == ["row-1"]
    assert {entry.key: "holds no video" in entry.reason for entry in manifest.left_out} == {
        "row-0": True,
        "row-2": True,
    }


def test_shards_of_the_same_name_do_not_hide_each_other(folder, tmp_path):
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        with webdataset.TarWriter(str(tmp_path / part / "0.tar")) as writer:
            writer.write({"__key__": "a", "mp4": (folder / "a.mp4").read_bytes()})
    with pytest.raises(ValueError, match="'0.tar/a.mp4' is there twice, in .*names of their own"):
        open_source(str(tmp_path / "{x,y}" / "0.tar"))


def test_metadata_of_spreadsheets_and_with_line_separators_in_captions(folder):
    (folder / "metadata.csv").write_text("\ufefffile_name,text\na.mp4,x\n", encoding="utf-8")
    assert list(open_source(folder).keys()) == ["a.mp4"]
    (folder / "metadata.csv").unlink()
    row = json.dumps({"file_name": "a.mp4", "text": "one\u2028two\x85three"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(row + "\n", encoding="utf-8")
    assert list(open_source(folder).keys()) == ["a.mp4"]


def test_one_video_is_a_source_of_one_clip(folder, tmp_path):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b/c2.mp4"}) + "\n")
    source = open_source(folder / "a.mp4")
    assert lengths(source, tmp_path) == {"a.mp4": 5} and source_exists(str(folder / "a.mp4"))
    assert source.recording("a.mp4") is None and source.left_out() == {} and source.notes() == ()
    (folder / "notes.txt").touch()
    for name in ("notes.txt", "none.mp4"):
        with pytest.raises(ValueError, match="no source of clips at '.*a video"):
            open_source(folder / name)


def test_a_folder_of_pictures_is_a_source_of_one_clip(tmp_path):
    write_video(tmp_path / "p", noise(12, 15, 17), fps=1)
    (tmp_path / "p" / "read.me").touch()
    source = open_source(tmp_path / "p", fps=5)
    assert isinstance(source, PictureFolders) and lengths(source, tmp_path) == {".": 12}
    assert source.recording(".") is None and "not clips: 1 .me" in source.notes()[0] and len(source.notes()) == 1
    with pytest.raises(ValueError, match="do not say how many frames"):
        open_source(tmp_path / "p")


def test_clips_know_their_recording(folder, tmp_path):
    source = open_source(folder)
    assert [source.recording(key) for key in LENGTHS] == [None, "b", "b"]
    rows = [{"file_name": "a.mp4", "episode": 7}, {"file_name": "b/c2.mp4", "source": "x", "recording": "r"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(folder)
    assert [source.recording(row["file_name"]) for row in rows] == ["7", "r"]

    for name in ("day/x", "day/y", "z"):
        write_video(tmp_path / "pictures" / name, noise(2, 16, 16), fps=1)
    source = open_source(tmp_path / "pictures", fps=5)
    assert {key: source.recording(key) for key in source.keys()} == {"day/x": "day", "day/y": "day", "z": None}

    videos = [{"path": None, "bytes": (folder / "a.mp4").read_bytes()}] * 2
    features = {"video": datasets.Video(decode=False), "episode": datasets.Value("int64")}
    dataset = datasets.Dataset.from_dict({"video": videos, "episode": [0, 1]}, features=datasets.Features(features))
    for rows in (dataset, dataset.to_iterable_dataset()):
        source = DatasetVideos("datasets:memory", dataset=rows)
        assert [source.recording(key) for key in ("row-0", "row-1")] == ["0", "1"]
    assert DatasetVideos("datasets:memory", dataset=dataset.select_columns("video")).recording("row-0") is None


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no source of clips"):
        open_source(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no clips"):
        open_source(tmp_path)


def test_another_clip_of_a_source_without_stamps_is_not_taken_for_the_one_of_the_manifest(tmp_path):
    """As the rows of a dataset that has changed, or of a stream of which a file could not be read this time."""
    contents = {
        f"row-{i}": write_clip(tmp_path / f"{i}.mp4", noise(4, 32, 32, seed=i), fps=10).read_bytes() for i in range(2)
    }

    class Rows(WholeClips):
        spec = "rows"

        def keys(self):
            yield from contents

        def open(self, key):
            return contents[key]

        def stamp(self, key):
            return None

        def fps(self, key):
            return None

        def left_out(self):
            return {}

        def notes(self):
            return ()

    source = Rows()
    first, second = make_manifest(source, tmp_path / "rows.parquet").ok
    assert len(list(frames_of(source, first))) == 4
    contents["row-0"] = contents["row-1"]
    assert len(list(frames_of(source, second))) == 4
    with pytest.raises(ClipError, match="another clip than when the manifest was made"):
        list(frames_of(source, first))
    assert draw_frames(source, [first, second], (16, 16), 8, 1).shape[0] == 4
