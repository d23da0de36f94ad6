"""A broken file never ends a census, the encoding of latents or a run; errors name it and say what to do."""

import io
import os
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import av
import datasets
import pytest
import torch
from PIL import Image

from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.video_io import write_video
from pipelines_tests.training.clip_files import noise, write_clip
from training.data.archives import ArchiveClips
from training.data.buckets import Bucket, WindowRequest
from training.data.failures import FailedClips
from training.data.latent_shards import ChunkIndex
from training.data.latents import build_latent_cache
from training.data.manifest import make_manifest
from training.data.manifest_files import read_manifest
from training.data.order import StepRows
from training.data.sources import VideoFolder, open_source
from training.data.windows import PixelWindows


# What readers have raised of damaged files.
ERRORS = [
    ValueError("bad"), OSError("bad"), EOFError("bad"), SyntaxError("bad"), TypeError("bad"), IndexError("bad"),
    OverflowError("bad"), NotImplementedError("bad"), MemoryError(), struct.error("bad"), zlib.error("bad"),
    Image.DecompressionBombError("bad"), av.error.InvalidDataError(1, "bad"),
    UnicodeDecodeError("utf-8", b"", 0, 0, "bad"),
]  # fmt: skip
REQUEST = WindowRequest("stage", (Bucket(16, 16, 3),), strides=((1, 1.0),))


class OneBreaks(VideoFolder):
    """A source of which the clip `1.mp4` raises what a reader of files may raise."""

    def __init__(self, folder: Path, error: Exception | None = None):
        super().__init__(folder)
        self.error = error

    def open(self, key: str) -> Path:
        if key == "1.mp4" and self.error is not None:
            raise self.error
        return super().open(key)


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(3):
        write_clip(tmp_path / "clips" / f"{index}.mp4", noise(4, 16, 16, seed=index), fps=10)
    return tmp_path / "clips"


def tiny_vae() -> AutoencoderPatchBasis:
    torch.manual_seed(0)
    vae = AutoencoderPatchBasis(
        latent_channels=4, block_out_channels=(8,) * 4, encoder_blocks=0, decoder_blocks=0, scaling_factor=2.0
    )
    return vae.eval()


def census(source, path: Path) -> dict[str, str]:
    """Reasons by clip; "" for those that can be used."""
    return {entry.key: entry.reason for entry in make_manifest(source, path / "manifest.parquet").entries}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_clip_that_raises_is_left_out_of_census_latents_and_windows(folder, tmp_path, error):
    good = make_manifest(OneBreaks(folder), tmp_path / "good.parquet").ok
    source = OneBreaks(folder, error)
    assert {key: bool(reason) for key, reason in census(source, tmp_path).items()} == {
        "0.mp4": False, "1.mp4": True, "2.mp4": False,
    }  # fmt: skip
    cache = build_latent_cache(source, good, tiny_vae(), (16, 16), 2, tmp_path / "cache")
    assert list(cache.left_out) == ["1.mp4"] and cache.left_out["1.mp4"]
    windows = PixelWindows(source, good, [(16, 16)], tiny_vae(), 2)
    generators = [torch.Generator().manual_seed(row) for row in range(6)]
    draws = windows.draw(REQUEST, StepRows(0, 0, 6, tuple(range(6))), generators)
    windows.batch(draws, generators)
    assert list(windows.failures) == ["1.mp4"] and windows.failures["1.mp4"]


def test_an_error_that_is_no_files_fault_is_not_swallowed(folder, tmp_path):
    with pytest.raises(AssertionError):
        census(OneBreaks(folder, AssertionError("a slip of ours")), tmp_path)
    entries = make_manifest(VideoFolder(folder), tmp_path / "good.parquet").ok
    windows = PixelWindows(VideoFolder(folder), entries, [(16, 16)], torch.nn.Identity(), 2)  # no autoencoder
    generators = [torch.Generator()]
    with pytest.raises(AttributeError):
        windows.batch(windows.draw(REQUEST, StepRows(0, 0, 1, (0,)), generators), generators)
    assert windows.failures == {}


@pytest.mark.parametrize("error", [MemoryError(), OSError("the disk is gone")])
def test_what_memory_or_a_disk_did_to_a_clip_is_not_remembered(folder, tmp_path, error):
    assert census(OneBreaks(folder, error), tmp_path)["1.mp4"]
    assert census(OneBreaks(folder), tmp_path)["1.mp4"] == ""


@pytest.mark.parametrize("damage", ["cut", "no picture", "bomb", "text in the middle"])
def test_a_damaged_picture_leaves_out_its_folder_only(tmp_path, damage):
    for name in ("good", "odd"):
        write_video(tmp_path / "clips" / name, noise(3, 16, 16), fps=1)
    path = sorted((tmp_path / "clips/odd").iterdir())[1]
    data = path.read_bytes()
    if damage == "bomb":  # a header that states 60,000 x 60,000 pixels
        header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    else:
        path.write_bytes(
            {"cut": data[:60], "no picture": b"x" * 99, "text in the middle": data[:40] + b"x" * 20 + data[60:]}[
                damage
            ]
        )
    found = census(open_source(tmp_path / "clips", 5), tmp_path)
    assert found["good"] == "" and path.name in found["odd"]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_picture_that_is_a_link_to_nothing_leaves_out_its_folder_only(tmp_path):
    for name in ("good", "odd"):
        write_video(tmp_path / "clips" / name, noise(3, 16, 16), fps=1)
    os.symlink("gone", tmp_path / "clips/odd/9.png")
    found = census(open_source(tmp_path / "clips", 5), tmp_path)
    assert found["good"] == "" and "9.png" in found["odd"]


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"[1, 2]\n", b"\0" * 50, b"PAR1", b""])
def test_a_damaged_manifest_is_made_anew_or_named(folder, tmp_path, damage, capsys):
    source, path = VideoFolder(folder), tmp_path / "manifest.parquet"
    whole = list(make_manifest(source, path).entries)
    path.write_bytes(path.read_bytes()[:-20] + damage)
    with pytest.raises(ValueError, match="manifest.parquet' is damaged.*delete it"):
        read_manifest(source, path)
    assert make_manifest(source, path).entries == whole and "is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"", b"[]", b'{"settings": {}}', b'{"settings": 3'])
def test_a_damaged_index_of_latents_is_named_with_what_to_do(folder, tmp_path, damage):
    source = VideoFolder(folder)
    entries = make_manifest(source, tmp_path / "manifest.parquet").ok
    build_latent_cache(source, entries, tiny_vae(), (16, 16), 2, tmp_path / "cache")
    (index,) = (tmp_path / "cache").rglob("index.json")
    index.write_bytes(damage)
    with pytest.raises(ValueError, match="index.json' is damaged.*delete the folder"):
        build_latent_cache(source, entries, tiny_vae(), (16, 16), 2, tmp_path / "cache")


def test_shards_that_lack_frames_are_not_filled_up(folder, tmp_path):
    source = VideoFolder(folder)
    entries = make_manifest(source, tmp_path / "manifest.parquet").ok
    cache = build_latent_cache(source, entries, tiny_vae(), (16, 16), 2, tmp_path / "cache")
    (chunk,) = ChunkIndex.open(cache.folder / "index.arrow").chunks(entries[0].sha256)
    ChunkIndex.of({entries[0].sha256: [replace(chunk, end=chunk.end - 1)]}).write(cache.folder / "index.arrow")
    with pytest.raises(ValueError, match="lack frames of clip '0.mp4'; delete the folder"):
        type(cache)(cache.folder).read(entries[0], range(4))


def test_damaged_lines_of_the_failed_clips_do_not_end_a_run(tmp_path):
    path = tmp_path / "failed_clips.jsonl"
    path.write_bytes(b'\0\0\0\n[1]\n3\n{"source": "s"}\n\xff\xfe\n{"source": "s", "clip": "a", "rea')
    failed = FailedClips(path)
    assert len(failed) == 0
    failed.add("s", "b", "gone")
    failed.add("s", "c", "gone")
    assert len(failed) == 2  # none was written to the end of half a line


def write_shard(path: Path, members: dict[str, bytes], links: tuple[str, ...] = ()) -> int:
    """A shard; returns where its last member's bytes begin."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "a.mp4"
            tar.addfile(link)
    with tarfile.open(path) as tar:
        return [member for member in tar if member.isfile()][-1].offset_data


@pytest.mark.parametrize("damage", ["cut off", "garbage", "appended", "compressed", "empty"])
def test_of_a_damaged_shard_the_members_before_the_damage_are_used(folder, tmp_path, damage):
    data = (folder / "0.mp4").read_bytes()
    shard = tmp_path / "shards/y.tar"
    write_shard(tmp_path / "shards/x.tar", {"a.mp4": data})
    last = write_shard(shard, {"a.mp4": data, "b.mp4": data})
    whole = shard.read_bytes()
    shard.write_bytes({
        "cut off": whole[: last + 100], "garbage": whole[: last - 512] + b"\7" * 512 + whole[last:],
        "appended": whole + whole,
        "compressed": zlib.compress(whole), "empty": b"",
    }[damage])  # fmt: skip
    found = census(open_source(tmp_path / "shards"), tmp_path)
    assert found["x.tar/a.mp4"] == "" and "write it again" in found["y.tar"]
    expected = {"cut off": {"a.mp4"}, "garbage": {"a.mp4"}, "appended": {"a.mp4", "b.mp4"}}.get(damage, set())
    assert {key for key, reason in found.items() if not reason} - {"x.tar/a.mp4"} == {f"y.tar/{n}" for n in expected}
    assert ("y.tar/b.mp4" in found) == (damage in ("cut off", "appended"))


def test_members_of_shards_that_are_not_clips_are_reported(folder, tmp_path):
    data = (folder / "0.mp4").read_bytes()
    members = {
        "./a.mp4": data,
        "./a.json": b"{}",
        "./b.json": b"{}",
        "._a.mp4": data,
        b"\xff.mp4".decode("utf-8", "surrogateescape"): data,
    }
    write_shard(tmp_path / "shards/x.tar", members, links=("c.mp4",))
    (tmp_path / "shards/v.mp4").write_bytes(data)
    (tmp_path / "shards/._x.tar").write_bytes(b"x")
    (tmp_path / "shards/sub").mkdir()
    (tmp_path / "shards/sub/z.tar").write_bytes(b"x")
    source = open_source(tmp_path / "shards")
    found = census(source, tmp_path)
    assert isinstance(source, ArchiveClips) and found.pop("x.tar/./a.mp4") == ""
    assert set(found) == {"x.tar/\\xff.mp4", "x.tar/c.mp4", "v.mp4"} and "beside .tar shards" in found["v.mp4"]
    reported = "\n".join(source.notes())
    assert (
        "in the archives, not clips: 1 .json (x.tar/./b.json)" in reported
        and "in the archives, passed over: 1 hidden" in reported
    )
    assert "archives that are not opened: sub/z.tar" in reported


def hub(folder: Path, tmp_path: Path, kind: str) -> Path:
    """A folder of three parquet files or shards, the second of them broken."""
    data = (folder / "0.mp4").read_bytes()
    (tmp_path / "hub").mkdir()
    for index in range(3):
        path = tmp_path / "hub" / f"train-{index}.{kind}"
        if kind == "tar":
            write_shard(path, {f"{index}.mp4": data})
        else:
            features = datasets.Features({"video": datasets.Video(decode=False)})
            rows = {"video": [{"path": None, "bytes": data}]}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        if index == 1:
            path.write_bytes(path.read_bytes()[:1000])
    return tmp_path / "hub"


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_broken_file_of_a_dataset_does_not_end_its_stream(folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = census(open_source(f"datasets-stream:{hub(folder, tmp_path, kind)}"), tmp_path)
    assert found.pop("row-0") == found.pop("row-1") == "" and list(found) == ["file 2 of 3"]
    assert "cannot be read" in found["file 2 of 3"]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_dataset_that_cannot_be_loaded_names_its_broken_file(folder, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(ValueError, match=f"hub' cannot be loaded by `datasets`: .*train-1.{kind}: it is no whole"):
        open_source(f"datasets:{hub(folder, tmp_path, kind)}")


def test_clips_that_datasets_does_not_list_are_reported(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (folder / "2.mp4").rename(folder / "2.webm")
    (folder / "notes.txt").touch()
    manifest = make_manifest(open_source(f"datasets:{folder}"), tmp_path / "manifest.parquet")
    assert [entry.key for entry in manifest.ok] == ["row-0", "row-1"]
    assert [entry.key for entry in manifest.left_out] == ["2.webm"] and "not clips: 1 .txt" in manifest.census()


def test_broken_metadata_of_a_datasets_folder_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (folder / "metadata.csv").write_text("file_name\n0.mp4\n", encoding="utf-16")
    with pytest.raises(ValueError, match="metadata.csv' is not UTF-8.*save it as UTF-8"):
        open_source(f"datasets:{folder}")
