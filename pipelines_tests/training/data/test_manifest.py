"""The manifest holds facts found by decoding; bad clips have a reason, and no clip is decoded twice."""

import errno
import shutil
import sys

import av
import pytest

from pipelines_tests.training.clip_files import noise, write_clip, write_sound
from pipelines_tests.training.data.old_files import as_lines
from training.data import manifest as module
from training.data import manifest_files
from training.data.entries import Entry
from training.data.manifest import main, make_manifest
from training.data.remote_errors import RemoteError
from training.data.sources import VideoFolder


def census(folder, path=None, workers=2):
    return make_manifest(VideoFolder(folder), path or folder.parent / "manifest.parquet", workers)


def entry_of(folder) -> Entry:
    (entry,) = census(folder).entries
    return entry


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "clips"


def test_a_good_clip_is_described_exactly(folder):
    path = write_clip(folder / "a.mp4", noise(12), fps=10)
    entry = entry_of(folder)
    assert (entry.key, entry.status, entry.num_frames, entry.fps) == ("a.mp4", "ok", 12, 10.0)
    assert (entry.width, entry.height, entry.codec, entry.variable_rate) == (48, 32, "h264", False)
    assert entry.duration == pytest.approx(1.2) and entry.size == path.stat().st_size and len(entry.sha256) == 64


def test_corrupt_clips_are_left_out(folder):
    data = bytearray(write_clip(folder / "a.mp4", noise(12)).read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    (folder / "a.mp4").write_bytes(data)
    entry = entry_of(folder)
    assert entry.status == "left out" and "cannot be decoded" in entry.reason


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_truncated_clips_are_left_out(folder, suffix):
    path = write_clip(folder / f"a{suffix}", noise(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert entry_of(folder).status == "left out"
    assert ("truncated" if suffix == ".mkv" else "cannot be decoded") in entry_of(folder).reason


def test_clips_without_frames_are_left_out(folder):
    folder.mkdir()
    with av.open(str(folder / "a.mp4"), mode="w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    entry = entry_of(folder)
    assert entry.status == "left out" and entry.reason


def test_files_of_zero_bytes_are_left_out(folder):
    folder.mkdir()
    (folder / "a.mp4").touch()
    assert entry_of(folder).reason == "the file is empty (0 bytes)"


def test_files_that_are_no_videos_are_left_out(folder):
    folder.mkdir()
    (folder / "a.mp4").write_text("not a video " * 100)
    assert "cannot be decoded as a video" in entry_of(folder).reason


def test_sound_without_pictures_is_left_out(folder):
    folder.mkdir()
    write_sound(folder / "a.mp4")
    assert "has no video stream" in entry_of(folder).reason


def test_variable_rates_are_kept_with_their_time_stamps(folder):
    times = [0, 40, 200, 220, 240, 700, 740]
    write_clip(folder / "a.mp4", noise(7), times=times)
    entry = entry_of(folder)
    assert entry.status == "ok" and entry.variable_rate
    assert entry.timestamps == pytest.approx([time / 1000 for time in times], abs=0.002)
    assert entry.times([1, 5]) == pytest.approx([0.04, 0.7], abs=0.002)


def test_odd_sizes_are_kept(folder):
    from diffusers_mardini.video_io import write_video

    write_video(folder / "a.gif", noise(5, 31, 45), fps=10)
    assert (entry_of(folder).height, entry_of(folder).width) == (31, 45)


def test_rotated_clips_are_described_upright(folder):
    write_clip(folder / "a.mp4", noise(4), rotation=90)
    assert (entry_of(folder).width, entry_of(folder).height) == (32, 48)


def test_very_long_clips_are_counted(folder):
    write_clip(folder / "a.mkv", noise(1, 16, 16).repeat(3000, axis=0), fps=25)
    assert (entry_of(folder).num_frames, entry_of(folder).duration) == (3000, 120.0)


def test_a_manifest_is_reused_until_a_file_changes(folder, monkeypatch):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_clip(folder / name, noise(4, seed=ord(name[0])))
    (folder / "d.mp4").write_text("no video")
    first = census(folder)
    probed = []
    real = module.probe_video
    monkeypatch.setattr(module, "probe_video", lambda source, *rest: probed.append(source.name) or real(source, *rest))
    before = first.path.stat().st_mtime_ns
    assert census(folder).entries == first.entries and probed == []
    assert first.path.stat().st_mtime_ns == before
    write_clip(folder / "b.mp4", noise(6))
    (folder / "c.mp4").unlink()
    changed = census(folder)
    assert probed == ["b.mp4"]
    assert [(entry.key, entry.num_frames) for entry in changed.ok] == [("a.mp4", 4), ("b.mp4", 6)]


def test_a_killed_census_goes_on_where_it_stood(folder, monkeypatch):
    for index in range(6):
        write_clip(folder / f"{index}.mp4", noise(3, seed=index))
    expected = census(folder, folder.parent / "whole.parquet").entries
    real, probed = module.probe_video, []

    def killed(source, *rest):
        if len(probed) == 3:
            raise KeyboardInterrupt
        probed.append(source.name)
        return real(source, *rest)

    monkeypatch.setattr(module, "probe_video", killed)
    with pytest.raises(KeyboardInterrupt):
        census(folder, workers=1)
    assert not (folder.parent / "manifest.parquet").exists()
    with open(folder.parent / ".manifest.jsonl.part", "a") as file:
        file.write('{"key": "5.m')  # a line that the kill cut short
    again = []
    monkeypatch.setattr(module, "probe_video", lambda source, *rest: again.append(source.name) or real(source, *rest))
    assert census(folder).entries == expected
    assert len(again) <= 4 and {"4.mp4", "5.mp4"} <= set(again)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["clips", "manifest.parquet", "whole.parquet"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), RemoteError("'s3://a/b' is away", again=True)]
)
def test_storage_that_is_away_ends_the_census_and_keeps_what_was_read(folder, monkeypatch, error):
    for index in range(14):
        write_clip(folder / f"{index:02d}.mp4", noise(3, seed=index))
    real, away = module.probe_video, [True]

    def outage(source, *rest):
        if away and source.name >= "03.mp4":
            raise error
        return real(source, *rest)

    monkeypatch.setattr(module, "probe_video", outage)
    with pytest.raises(
        ValueError,
        match=r"gave none of 10 clips in a row, the last was '12.mp4': .*(output error|is away); what was read",
    ):
        census(folder)
    assert not (folder.parent / "manifest.parquet").exists()
    away.clear()
    assert [entry.status for entry in census(folder).entries] == ["ok"] * 14


def test_damaged_clips_in_a_row_are_no_storage_that_is_away(folder):
    whole = write_clip(folder / "whole.mkv", noise(5)).read_bytes()
    for index in range(12):
        (folder / f"{index:02d}.mkv").write_bytes(whole[: 64 + 16 * index])
    assert [entry.status for entry in census(folder).entries].count("ok") == 1


def test_a_folder_that_vanishes_ends_the_census(folder, monkeypatch):
    for index in range(14):
        write_clip(folder / f"{index:02d}.mp4", noise(3, seed=index))
    real = module.probe_video

    def unmounted(source, *rest):
        if source.name == "02.mp4" and folder.is_dir():
            folder.rename(folder.parent / "elsewhere")
        return real(source, *rest)

    monkeypatch.setattr(module, "probe_video", unmounted)
    with pytest.raises(ValueError, match="gave none of 10 clips in a row"):
        census(folder, workers=1)
    assert not (folder.parent / "manifest.parquet").exists()


def test_single_clips_that_storage_does_not_give_are_left_out(folder, monkeypatch):
    for index in range(14):
        write_clip(folder / f"{index:02d}.mp4", noise(3, seed=index))
    real = module.probe_video

    def damaged(source, *rest):
        if source.name != "05.mp4":
            raise OSError(errno.EIO, "Input/output error")
        return real(source, *rest)

    monkeypatch.setattr(module, "probe_video", damaged)
    assert [entry.key for entry in census(folder).entries if entry.status == "ok"] == ["05.mp4"]


def test_another_decoder_decodes_anew(folder, monkeypatch):
    write_clip(folder / "a.mp4", noise(3))
    census(folder)
    probed = []
    real = module.probe_video
    monkeypatch.setattr(module, "probe_video", lambda source, *rest: probed.append(source.name) or real(source, *rest))
    monkeypatch.setattr(manifest_files, "decoder_version", lambda: "PyAV 99")
    census(folder)
    assert probed == ["a.mp4"]


def test_names_may_hold_what_other_files_take_for_the_end_of_a_line(folder):
    write_clip(folder / "a\u2028b.mp4", noise(3), fps=10)
    source, path = VideoFolder(folder), folder.parent / "kept.parquet"
    manifest = make_manifest(source, folder.parent / "manifest.parquet")
    manifest_files.write_manifest(manifest, path)
    assert manifest_files.read_manifest(source, path).entries == manifest.entries == census(folder).entries


def test_a_damaged_manifest_is_made_anew(folder, capsys):
    write_clip(folder / "a.mp4", noise(3))
    first = census(folder)
    entries, whole = list(first.entries), first.path.read_bytes()
    for damaged in (whole[:-9], whole[:9] + b"?" + whole[10:]):
        first.path.write_bytes(damaged)
        assert census(folder).entries == entries
        assert "is damaged" in capsys.readouterr().out


def test_a_manifest_of_json_lines_is_converted_and_nothing_is_decoded_again(folder, monkeypatch, capsys):
    write_clip(folder / "a.mp4", noise(7), times=[0, 40, 200, 220, 240, 700, 740])
    write_clip(folder / "b.mp4", noise(4), fps=10)
    (folder / "c.mp4").write_text("no video")
    entries = list(census(folder).entries)
    path = folder.parent / "manifest.parquet"
    old = as_lines(path)
    assert manifest_files.read_entries(path) == entries == list(manifest_files.read_entries(old))
    monkeypatch.setattr(module, "probe_video", lambda *_: pytest.fail("decoded again"))
    (folder / "c.mp4").unlink()
    assert census(folder).entries == entries[:2] and path.is_file() and not old.exists()
    assert "manifest.jsonl' is now 'manifest.parquet'" in capsys.readouterr().out


def test_a_damaged_manifest_of_json_lines_is_named(folder):
    write_clip(folder / "a.mp4", noise(3))
    old = as_lines(census(folder).path)
    old.write_text(old.read_text() + '{"key": "a.mp4", "frames": 3}\n')
    with pytest.raises(ValueError, match="manifest.jsonl' is damaged.*delete it"):
        manifest_files.read_entries(folder.parent / "manifest.parquet")


def test_known_clips_are_found_in_any_order_and_among_the_newest(folder, monkeypatch):
    for name in "abcde":
        write_clip(folder / f"{name}.mp4", noise(3, seed=ord(name)))
    first = {entry.key: entry for entry in census(folder).entries}
    monkeypatch.setattr(module, "probe_video", lambda *_: pytest.fail("decoded again"))
    (folder / "b.mp4").rename(folder / "z.mp4")
    monkeypatch.setattr(VideoFolder, "keys", lambda _: iter(["e.mp4", "a.mp4", "c.mp4", "d.mp4"]))
    assert list(census(folder).entries) == [first[key] for key in ("e.mp4", "a.mp4", "c.mp4", "d.mp4")]


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["manifest", *map(str, arguments)])
    return main()


def test_the_command_prints_the_census_and_is_strict_on_demand(folder, monkeypatch, capsys):
    write_clip(folder / "a.mp4", noise(4), fps=10)
    (folder / "b.mp4").touch()
    arguments = (folder, "-o", folder.parent / "m.parquet", "--workers", 1)
    assert run(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 clips" in printed and "b.mp4: the file is empty" in printed
    assert "10 (1)" in printed and "48x32 (1)" in printed and "4 to 4" in printed
    assert run(monkeypatch, *arguments, "--strict") == 1
    (folder / "b.mp4").unlink()
    assert run(monkeypatch, *arguments, "--strict") == 0
    shutil.rmtree(folder)
    assert run(monkeypatch, *arguments) == 2
    assert "there is no source of clips" in capsys.readouterr().err
