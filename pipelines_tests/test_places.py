"""Results take the places they were given, replace nothing that they should not, and leave nothing unfinished."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusers_mardini.video import places
from diffusers_mardini.video_io import check_writable, read_images, read_video, write_video


FRAMES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize(
    "name",
    ["12:30.mp4", "file:a.gif", "http:", "%d.mp4", "frame_%05d.mp4", "y" * 251 + ".mp4", "y" * 251 + ".gif", "z" * 255,
     "ä" * 125 + ".mp4", "-x.mp4", "a b?*.gif", ".hidden.mp4", "lock", "clip", "take:1/new folder/12:30.mp4"],
    ids=ascii,
)  # fmt: skip
def test_every_legal_name_is_written(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    check_writable(name, 8)
    assert names(tmp_path) == []
    path = write_video(name, FRAMES, 8).absolute()
    assert len(read_images(path)[0]) == 2 if path.is_dir() else path.stat().st_size > 100
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("-", "stands for standard output"),
        ("out.", "ends with a dot or a space"),
        ("out.mp4.", "ends with a dot or a space"),
        ("out ", "ends with a dot or a space"),
        (".mp4", "is a suffix without a name"),
        (".GIF", "is a suffix without a name"),
        ("", "has no name of its own"),
        (".", "has no name of its own"),
        ("..", "has no name of its own"),
        ("y" * 252 + ".mp4", "too long"),
        ("z" * 256, "too long"),
        ("y" * 256 + "/out.mp4", "too long"),
        ("taken/out.mp4", "taken' is a file"),
    ],
)
def test_what_is_no_name_for_a_file_is_refused_before_frames_are_made(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_bytes(b"precious")
    for refused in (lambda: check_writable(name, 8), lambda: write_video(name, FRAMES, 8)):
        with pytest.raises((ValueError, OSError), match=message):
            refused()
    with pytest.raises(ValueError):
        check_writable(name, 8)
    assert names(tmp_path) == ["taken"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes of this kind")
def test_devices_and_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "null.gif").symlink_to(os.devnull)
    for path in (tmp_path / "pipe.mp4", tmp_path / "null.gif", os.devnull):
        with pytest.raises(ValueError, match="is a device or a pipe"):
            check_writable(path, 8)


@needs_links
@pytest.mark.parametrize("there", (True, False))
@pytest.mark.parametrize("suffix", (".mp4", ".gif"))
def test_a_link_stays_and_its_target_is_written(tmp_path, there, suffix):
    target, link = tmp_path / "disk" / f"target{suffix}", tmp_path / f"link{suffix}"
    link.symlink_to(target)
    if there:
        target.parent.mkdir()
        target.write_bytes(b"old")
    check_writable(link, 8)
    write_video(link, FRAMES, 8)
    assert link.is_symlink() and len(read_video(target)[0]) == 2
    assert names(target.parent) == [target.name] and names(tmp_path) == ["disk", link.name]


@needs_links
def test_links_that_lead_nowhere_are_refused_before_frames_are_made(tmp_path):
    for name, target in (("loop.mp4", "loop.mp4"), ("gone", "nothing"), ("folder.mp4", ".")):
        (tmp_path / name).symlink_to(target)
    for name, message in (
        ("loop.mp4", "leads back to itself"),
        ("gone", "is a link to"),
        ("gone/out.mp4", "is a link to nothing"),
        ("folder.mp4", "is a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            check_writable(tmp_path / name, 8)


@pytest.mark.parametrize("name", ("out.mp4", "out.gif", "out"))
def test_what_exists_is_left_alone_unless_told_otherwise(tmp_path, name):
    path = write_video(tmp_path / name, FRAMES[:1], 8, overwrite=False)
    with pytest.raises(ValueError, match="exists by now"):
        write_video(path, FRAMES, 8, overwrite=False)
    assert len(read_images(path)[0]) == 1 and names(tmp_path) == [name]
    write_video(path, FRAMES, 8)
    assert len(read_images(path)[0]) == 2 and names(tmp_path) == [name]


@pytest.mark.parametrize("is_folder", (False, True))
def test_a_name_that_was_taken_a_moment_ago_is_not_taken_over(tmp_path, is_folder):
    with places.unfinished(tmp_path) as room:
        finished, taken = room / "clip", tmp_path / "taken"
        for path, text in ((finished, "new"), (taken, "precious")):
            if is_folder:
                path.mkdir()
            (path / "file" if is_folder else path).write_text(text)
        with pytest.raises(FileExistsError):
            places.publish(finished, taken, overwrite=False)
        assert (taken / "file" if is_folder else taken).read_text() == "precious"
        places.publish(finished, tmp_path / "free", overwrite=False)
    assert names(tmp_path) == ["free", "taken"]


def test_without_hard_links_the_name_is_taken_all_the_same(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no links on this disk")

    monkeypatch.setattr(os, "link", fails)
    path = write_video(tmp_path / "out.mp4", FRAMES, 8, overwrite=False)
    assert len(read_video(path)[0]) == 2
    with places.unfinished(tmp_path) as room:
        (room / "clip").write_text("new")
        with pytest.raises(FileExistsError):
            places.publish(room / "clip", path, overwrite=False)
    assert names(tmp_path) == ["out.mp4"]


def test_what_a_killed_process_left_is_removed_by_the_next_write_and_what_a_living_one_has_is_not(tmp_path):
    program = (
        "import runpy, sys; from pathlib import Path\n"
        f"unfinished = runpy.run_path({places.__file__!r})['unfinished']\n"
        "with unfinished(Path(sys.argv[1])) as room:\n"
        "    (room / 'clip').mkdir(); (room / 'clip/frame_00000.png.part').touch()\n"
        "    print(room.name, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    room = tmp_path / process.stdout.readline().strip()
    assert room.suffix == places.UNFINISHED and room.name.startswith(".")
    write_video(tmp_path / "a.gif", FRAMES, 8)
    assert (room / "clip/frame_00000.png.part").exists()
    process.kill()
    process.communicate()
    assert room.exists()
    write_video(tmp_path / "b.gif", FRAMES, 8)
    assert names(tmp_path) == ["a.gif", "b.gif"]


def test_what_another_machine_left_is_removed_after_a_day(tmp_path):
    rooms = [tmp_path / f".{machine}-00000000.part" for machine in ("aaaaaaaa", "bbbbbbbb")]
    for room in rooms:
        room.mkdir()
        (room / "lock").touch()
    os.utime(rooms[0], (0, 0))
    (tmp_path / ".mine.part").mkdir()
    check_writable(tmp_path / "out.mp4", 8)
    assert names(tmp_path) == [".bbbbbbbb-00000000.part", ".mine.part"]


def test_more_than_a_hundred_thousand_pictures_are_known_again(tmp_path):
    folder = write_video(tmp_path / "out", FRAMES, 8)
    (folder / "frame_00001.png").rename(folder / "frame_100000.png")
    check_writable(folder, 8)


def test_nothing_unfinished_looks_like_a_clip_or_a_picture(tmp_path, monkeypatch):
    seen, replace = [], os.replace

    def look(*arguments):
        seen.extend(path for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".gif", ".png"))
        monkeypatch.setattr(os, "replace", replace)
        replace(*arguments)

    for name in ("a.mp4", "b.gif", "c"):
        monkeypatch.setattr(os, "replace", look)
        write_video(tmp_path / f"folder of {name[0]}" / name, FRAMES, 8)
        assert seen == []
        shutil.rmtree(tmp_path / f"folder of {name[0]}")


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    folder, replace = write_video(tmp_path / "out", FRAMES, 8), os.replace

    def fails_once(source, target):
        if Path(source).name == "clip":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match="disk full"):
        write_video(folder, FRAMES[:1], 8)
    assert names(folder) == ["frame_00000.png", "frame_00001.png"] and names(tmp_path) == ["out"]
