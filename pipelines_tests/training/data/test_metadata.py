"""`metadata.csv` and `metadata.jsonl` name clips exactly, or errors name the file and the line."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from diffusers_mardini.video_io import write_video
from pipelines_tests.training.clip_files import noise, write_clip
from training.data.clips import find_clips
from training.data.manifest import make_manifest
from training.data.sources import open_source


links = pytest.mark.skipif(os.name != "posix", reason="Windows lets few users make links")
ROWS = {"metadata.csv": "file_name,text\na.mp4,x\n", "metadata.jsonl": '{"file_name": "a.mp4", "text": "x"}\n'}


@pytest.fixture
def folder(tmp_path) -> Path:
    write_clip(tmp_path / "clips" / "a.mp4", noise(4), fps=10)
    (tmp_path / "clips" / "s").mkdir()
    shutil.copy(tmp_path / "clips/a.mp4", tmp_path / "clips/s/b.mp4")
    return tmp_path / "clips"


def keys(folder: Path) -> list[str]:
    return list(open_source(folder).keys())


def refused(folder: Path, said: str) -> None:
    for opening in (open_source, find_clips):
        with pytest.raises(ValueError, match=said):
            opening(folder)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_metadata_of_another_encoding_are_named_with_what_to_do(folder, name, encoding):
    (folder / name).write_bytes(ROWS[name].replace("x", "é").encode(encoding))
    refused(folder, f"{name}' is not UTF-8.*save it as UTF-8")


@pytest.mark.parametrize("name", ROWS)
def test_the_mark_before_utf8_is_accepted(folder, name):
    (folder / name).write_text(ROWS[name], encoding="utf-8-sig")
    assert keys(folder) == ["a.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,text\n"),
        ("metadata.csv", ""),
        ("metadata.csv", "\n,\n"),
        ("metadata.jsonl", "\n\n"),
    ],
)
def test_metadata_without_rows_never_mean_all_clips(folder, name, text):
    (folder / name).write_text(text)
    refused(folder, f"{name}' names no clip")


@links
@pytest.mark.parametrize(
    "name",
    [
        "s/b.mp4",
        "./s/b.mp4",
        "s//b.mp4",
        "s/./b.mp4",
        "s/../s/b.mp4",
        "../clips/s/b.mp4",
        " s/b.mp4 ",
        "s\\b.mp4",
        "FULL",
        "REAL",
    ],
)
def test_a_clip_is_the_same_however_its_path_is_written(folder, tmp_path, monkeypatch, name):
    os.symlink(folder, tmp_path / "link")  # the source is opened by a link, as /tmp of macOS is one
    names = {"FULL": os.path.abspath(tmp_path / "link/s/b.mp4"), "REAL": os.path.realpath(folder / "s/b.mp4")}
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": names.get(name, name)}))
    monkeypatch.chdir(tmp_path)
    manifest = make_manifest(open_source("link"), Path("manifest.parquet"))
    assert [entry.key for entry in manifest.ok] == ["s/b.mp4"]
    assert [entry.key for entry in manifest.left_out] == ["a.mp4"]  # which alone is not named


def test_a_folder_of_pictures_is_the_same_however_its_path_is_written(tmp_path):
    write_video(tmp_path / "pictures/p", noise(3, 16, 16), fps=1)
    (tmp_path / "pictures/metadata.csv").write_text("file_name,fps\n./p/,5\n")
    manifest = make_manifest(open_source(tmp_path / "pictures"), tmp_path / "manifest.parquet")
    assert [(entry.key, entry.fps) for entry in manifest.entries] == [("p", 5.0)]


@pytest.mark.parametrize(
    "given", [5, None, "", " ", ["a.mp4"], {"path": "a.mp4"}, True, float("nan"), "\ud800", "a\0.mp4"]
)
def test_a_file_name_that_is_no_path_is_refused_with_its_line(folder, given):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4"}\n' + json.dumps({"file_name": given}))
    refused(folder, "line 2 of .*metadata.jsonl' must be a JSON object with a file_name")


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/x.mp4", "s/../../x.mp4", ".", "..\\x.mp4"])
def test_a_file_name_that_leads_out_of_the_folder_is_refused(folder, name):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    refused(folder, re.escape("does not lie in"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.mp4"}\n{"file', "line 2 of .*metadata.jsonl' must be a JSON object"),
        ("metadata.jsonl", '[{"file_name": "a.mp4"}]', "line 1 of .*metadata.jsonl' must be a JSON object"),
        ("metadata.jsonl", '{"file_name": "a.mp4", "file_name": "s/b.mp4"}', "line 1 of .*file_name twice"),
        ("metadata.csv", "file_name;text\na.mp4;x\n", r"line 2 of .*the columns are \['file_name;text'\]"),
        ("metadata.csv", "file_name,file_name\na.mp4,s/b.mp4\n", "line 1 of .*metadata.csv' has file_name twice"),
        ("metadata.csv", "file_name,text\na.mp4,x,y\n", "line 2 of .*3 values for 2 columns"),
        ("metadata.csv", 'file_name,text\na.mp4,"x\ns/b.mp4,y\n', "line 3 of .*a quote may be missing"),
        ("metadata.csv", "text,file_name\nx\n", "line 2 of .*must have a file_name"),
        ("metadata.csv", "file_name,fps\na.mp4,1\n./a.mp4,2\n", "line 3 of .*gives 'a.mp4' another fps"),
    ],
)  # fmt: skip
def test_broken_rows_are_named_with_their_line(folder, name, text, said):
    (folder / name).write_text(text)
    refused(folder, said)


@pytest.mark.parametrize(
    "text", ["file_name,text\r\na.mp4,x\r\n,\r\n", "file_name,text\ra.mp4,x\r", ' file_name ,text\na.mp4,"x, y"\n']
)
def test_tables_of_spreadsheets_are_read(folder, text):
    (folder / "metadata.csv").write_bytes(text.encode())
    assert keys(folder) == ["a.mp4"]


def test_a_clip_that_is_named_again_is_used_once_and_reported(folder):
    (folder / "metadata.csv").write_text("file_name,text\na.mp4,x\n./a.mp4,y\ns/b.mp4,z\n")
    manifest = make_manifest(open_source(folder), folder.parent / "manifest.parquet")
    assert [entry.key for entry in manifest.ok] == ["a.mp4", "s/b.mp4"]
    assert "rows of metadata.csv that name a clip again: 1" in manifest.census()


def test_a_named_clip_that_cannot_be_there_is_left_out(folder):
    names = ["a.mp4", "gone.mp4", "no/such/gone.mp4", "x" * 300 + ".mp4"]
    (folder / "metadata.csv").write_text("\n".join(["file_name", *reversed(names)]))
    manifest = make_manifest(open_source(folder), folder.parent / "manifest.parquet")
    assert [entry.key for entry in manifest.ok] == ["a.mp4"]
    assert {entry.key for entry in manifest.left_out} == {*names[1:], "s/b.mp4"}


@links
def test_metadata_that_cannot_be_read_never_mean_all_clips(folder):
    os.symlink("gone", folder / "metadata.csv")
    refused(folder, "metadata.csv' is a link to nothing")


@pytest.mark.parametrize("fps", ["abc", True, float("nan"), float("inf"), -1, 0, [5]])
def test_a_rate_that_is_none_is_refused_with_its_clip(tmp_path, fps):
    write_video(tmp_path / "pictures/p", noise(3, 16, 16), fps=1)
    (tmp_path / "pictures/metadata.jsonl").write_text(json.dumps({"file_name": "p", "fps": fps}))
    with pytest.raises(ValueError, match="metadata.jsonl' gives clip 'p' fps .*a positive number"):
        open_source(tmp_path / "pictures", fps=5)
