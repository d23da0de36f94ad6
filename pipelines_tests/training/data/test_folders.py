"""Every file in a folder of clips is used or reported, and none ends the census."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from diffusers_mardini.video_io import VIDEO_SUFFIXES, write_video
from pipelines_tests.training.clip_files import noise, write_clip
from training.data.clips import find_clips
from training.data.manifest import main, make_manifest
from training.data.manifest_files import Manifest, read_manifest
from training.data.sources import PictureFolders, VideoFolder, open_source


posix = pytest.mark.skipif(os.name != "posix", reason="names and kinds of files that only POSIX has")


@pytest.fixture
def folder(tmp_path) -> Path:
    write_clip(tmp_path / "clips" / "a.mp4", noise(4), fps=10)
    return tmp_path / "clips"


def put(folder: Path, *names: str) -> None:
    """Copies of the good clip."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "a.mp4", path)


def census(folder: Path, fps: float | None = None) -> Manifest:
    return make_manifest(open_source(folder, fps), folder.parent / "manifest.parquet")


def used(folder: Path, fps: float | None = None) -> list[str]:
    return [entry.key for entry in census(folder, fps).ok]


def reasons(folder: Path, fps: float | None = None) -> dict[str, str]:
    return {entry.key: entry.reason for entry in census(folder, fps).left_out}


def test_every_suffix_of_a_video_is_listed(folder):
    put(folder, *(f"b{suffix}" for suffix in VIDEO_SUFFIXES), "c.MP4")
    expected = {"a.mp4", "c.MP4", *(f"b{suffix}" for suffix in VIDEO_SUFFIXES)}
    assert set(open_source(folder).keys()) == expected


def test_files_that_are_no_clips_are_counted_by_suffix_in_one_line(folder):
    put(folder, "b.xyz", "c/d.xyz")
    for name in ("notes.txt", "README", "c/e.json", "a.txt", "a.csv"):
        (folder / name).write_text("x")
    reported = census(folder).census()
    assert "not clips: 2 .xyz (b.xyz and others), 1 without a suffix (README), 1 .json (c/e.json), 1 .txt" in reported
    assert "a.txt" not in reported and "a.csv" not in reported  # captions and conditions of a clip
    assert reported.startswith("1 of 1 clips")


def test_a_file_without_a_suffix_that_is_no_text_is_left_out_by_name(folder):
    put(folder, "b", "c.")
    assert reasons(folder) == dict.fromkeys(("b", "c."), "its name has no suffix; call it by its format, such as .mp4")


def test_hidden_and_unfinished_files_are_never_clips(folder):
    put(folder, ".x.123.part.mp4", ".git/y.mp4", "._a.mp4", "z.part.mp4", "z.mp4.crdownload")
    assert used(folder) == ["a.mp4"] and list(reasons(folder)) == ["z.part.mp4"]
    reported = census(folder).census()
    assert "passed over: 3 hidden files or folders" in reported and "1 .crdownload (z.mp4.crdownload)" in reported


def test_archives_empty_folders_and_metadata_of_inner_folders_are_named(folder):
    put(folder, "b.zip", "c.tar.gz", "d/e.mp4", "f/g.tar")
    (folder / "empty").mkdir()
    (folder / "d/metadata.jsonl").write_text("{}")
    reported = census(folder).census()
    assert "archives that are not opened: b.zip, c.tar.gz, f/g.tar" in reported and "empty folders: empty" in reported
    assert "not read: d/metadata.jsonl" in reported


@posix
def test_links_to_folders_are_followed_and_each_folder_is_listed_once(folder):
    put(folder, "../other/b.mp4", "real/c.mp4")
    for name, target in {"set": "../other", "again": "set", "self": ".", "up": "..", "alias": "real"}.items():
        os.symlink(target, folder / name)
    assert used(folder) == ["a.mp4", "again/b.mp4", "real/c.mp4"] and reasons(folder) == {}
    assert "links to folders that are listed already: alias, self, set and others" in census(folder).census()


@posix
def test_links_that_lead_nowhere_are_named(folder):
    os.symlink("nowhere.mp4", folder / "b.mp4")
    os.symlink("gone", folder / "set")
    os.symlink("loop.mp4", folder / "loop.mp4")
    assert reasons(folder) == {
        "b.mp4": "it is a link to 'nowhere.mp4', where nothing is",
        "set": "it is a link to 'gone', where nothing is",
        "loop.mp4": "it is a link to 'loop.mp4', where nothing is",
    }


@posix
def test_pipes_are_named_and_never_waited_for(folder):
    os.mkfifo(folder / "b.mp4")
    os.mkfifo(folder / "c")
    assert used(folder) == ["a.mp4"]
    assert reasons(folder) == dict.fromkeys(("b.mp4", "c"), "it is neither a file nor a folder")
    (folder / "metadata.csv").write_text("file_name\na.mp4\nb.mp4\n")
    assert used(folder) == ["a.mp4"] and "neither a file nor a folder" in reasons(folder)["b.mp4"]


@posix
def test_a_name_that_is_not_utf8_leaves_its_clip_out_and_no_other(folder, capsys):
    try:
        shutil.copy(folder / "a.mp4", os.fsencode(folder) + b"/b\xff.mp4")
    except OSError:
        pytest.skip("this file system has names of UTF-8 only")
    os.mkdir(os.fsencode(folder) + b"/\xfe")
    shutil.copy(folder / "a.mp4", os.fsencode(folder) + b"/\xfe/c.mp4")
    manifest = census(folder)
    assert reasons(folder) == dict.fromkeys(("b\\xff.mp4", "\\xfe/c.mp4"), "its name is not UTF-8; rename it")
    assert used(folder) == ["a.mp4"] and "b\\xff.mp4: its name" in manifest.census()
    assert read_manifest(VideoFolder(folder), manifest.path) == manifest  # the file is UTF-8
    skipped = {}
    assert [clip.name for clip in find_clips(folder, skipped)] == ["a.mp4"] and skipped == reasons(folder)


@posix
def test_a_source_whose_own_name_is_not_utf8_can_be_used(folder, monkeypatch, capsys):
    named = os.fsdecode(os.fsencode(folder.parent) + b"/\xff")
    try:
        os.rename(folder, named)
    except OSError:
        pytest.skip("this file system has names of UTF-8 only")
    (Path(named) / "b.mp4").write_text("no video")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("sys.argv", ["manifest", named])
    assert main() == 0
    assert "1 of 2 clips of" in capsys.readouterr().out


@posix
def test_control_characters_of_a_name_do_not_reach_the_census(folder):
    (folder / "b\nc.mp4").touch()
    (folder / "\x1b[31md.mp4").touch()
    reported = census(folder).census()
    assert "b\\nc.mp4: the file is empty" in reported and "\\x1b[31md.mp4: the file is empty" in reported


def test_a_folder_with_the_name_of_a_clip_is_a_folder(folder):
    put(folder, "clip.mp4/b.mp4")
    assert used(folder) == ["a.mp4", "clip.mp4/b.mp4"]


@posix
def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    put(folder, "b/c.mp4")
    monkeypatch.chdir(folder)
    for _ in range(20):  # deeper than the system can say: no permission would do the same, but not for root
        os.mkdir("x" * 250)
        os.chdir("x" * 250)
    os.chdir(folder.parent)
    assert used(folder) == ["a.mp4", "b/c.mp4"]
    assert ["the folder cannot be read (File name too long)"] == list(reasons(folder).values())


def test_the_census_of_very_many_clips_is_short(folder):
    for index in range(300):
        (folder / f"{index}.mp4").touch()
        (folder / f"x.{index}a").touch()
    manifest = census(folder)
    reported = manifest.census()
    assert len(reported.splitlines()) < 25 and "and 290 more: the file is empty (0 bytes)" in reported
    assert "and 292 other suffixes" in reported and len(manifest.left_out) == 300


def test_pictures_beside_videos_and_videos_beside_pictures_are_reported(folder):
    write_video(folder / "p", noise(3, 16, 16), fps=1)
    assert "pictures that are no clips: 3, in p" in census(folder).census()
    (folder / "metadata.jsonl").write_text('{"file_name": "p", "fps": 5}')
    assert used(folder) == ["p"] and "a video beside folders of pictures" in reasons(folder)["a.mp4"]
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4"}\n{"file_name": "p"}')
    assert "is a folder, and this is a source of videos" in reasons(folder)["p"]


def test_other_files_in_a_folder_of_pictures_are_reported(folder):
    pictures = folder.parent / "pictures"
    write_video(pictures / "p", noise(3, 16, 16), fps=1)
    Image.new("RGB", (16, 16)).save(pictures / "loose.png")
    (pictures / "p/Thumbs.db").touch()
    before = PictureFolders(pictures, 5).stamp("p")
    (pictures / "p/._0.png").write_bytes(bytes(9))
    reported = "\n".join(PictureFolders(pictures, 5).notes())
    assert (
        "pictures that are no clips: 1, in ." in reported
        and "1 .db (p/Thumbs.db)" in reported
        and "1 hidden file" in reported
    )
    assert PictureFolders(pictures, 5).stamp("p") == before


def test_a_folder_without_clips_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    for opening in (open_source, find_clips):
        with pytest.raises(ValueError, match=r"holds no clips; accepted are .*; not clips: 1 .txt \(notes.txt\)"):
            opening(tmp_path)


def test_what_a_listing_passes_over_is_printed(folder, capsys):
    put(folder, "b.xyz")
    find_clips(folder)
    assert capsys.readouterr().out.count("not clips: 1 .xyz") == 1
