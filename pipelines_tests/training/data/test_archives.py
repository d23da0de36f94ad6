"""Clips in zip and tar archives are those of the folders that were packed; nothing is unpacked on the disk."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_mardini.video_io import FileSection, PictureSeries, iterate_frames, read_frames, write_video
from pipelines_tests.training.clip_files import noise, write_clip
from pipelines_tests.training.test_train_mardini import make_vae
from training.data.archives import ArchiveClips
from training.data.latents import build_latent_cache
from training.data.manifest import make_manifest
from training.data.sources import open_source, source_exists


@pytest.fixture
def videos(tmp_path) -> Path:
    for seed, name in enumerate(("a.mp4", "day/b2.mp4", "day/b10.mkv")):
        write_clip(tmp_path / "videos" / name, noise(5 + seed, seed=seed), fps=10)
    (tmp_path / "videos" / "a.txt").write_text("a caption")
    return tmp_path / "videos"


@pytest.fixture
def pictures(tmp_path) -> Path:
    for seed, name in enumerate(("x", "day/y")):
        write_video(tmp_path / "pictures" / name, noise(12, 32, 32, seed), fps=1)
    return tmp_path / "pictures"


def pack(folder: Path, archive: Path, deflated: bool = False) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as packed:
            for file in reversed(files):  # not in the order of the frames
                packed.write(file, file.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as packed:
            for file in reversed(files):
                packed.add(file, file.relative_to(folder))
    return archive


def contents(source, tmp_path) -> dict[str, tuple]:
    """Return what the manifest says of each clip, and its frames, read in both ways."""
    found = {}
    for entry in make_manifest(source, tmp_path / "manifest.parquet", workers=2).ok:
        opened, fps = source.open(entry.key), source.fps(entry.key)
        frames = np.stack([frame for _, frame in iterate_frames(opened, fps)])
        assert np.array_equal(read_frames(opened, entry.times([1, 3]), fps), frames[[1, 3]])
        found[entry.key] = entry.sha256, entry.fps, entry.codec, frames.tobytes()
    (tmp_path / "manifest.parquet").unlink()
    return found


@pytest.mark.parametrize("archive, deflated", [("c.zip", False), ("c.zip", True), ("c.tar", False)])
@pytest.mark.parametrize("kind", ["videos", "pictures"])
def test_an_archive_holds_the_clips_of_the_folder(request, tmp_path, kind, archive, deflated):
    folder = request.getfixturevalue(kind)
    packed = open_source(pack(folder, tmp_path / archive, deflated), fps=5)
    assert isinstance(packed, ArchiveClips) and source_exists(str(tmp_path / archive))
    expected = contents(open_source(folder, fps=5), tmp_path)
    assert contents(packed, tmp_path) == {f"{archive}/{key}": facts for key, facts in expected.items()}
    inside = [key for key in packed.keys() if "/day/" in key]
    assert inside and {packed.recording(key) for key in inside} == {f"{archive}/day"}
    assert {packed.recording(key) for key in packed.keys() if key not in inside} == {None}


def test_a_packed_clip_is_not_read_to_be_opened(videos, pictures, tmp_path):
    stored, in_tar = open_source(pack(videos, tmp_path / "v.zip")), open_source(pack(videos, tmp_path / "v.tar"))
    for source in (stored, in_tar):
        assert all(isinstance(source.open(key), FileSection) for key in source.keys())
    deep = open_source(pack(pictures, tmp_path / "p.zip", deflated=True), fps=5)
    assert all(isinstance(deep.open(key), PictureSeries) for key in deep.keys())


def test_pictures_of_an_archive_need_a_rate_and_are_encoded(pictures, tmp_path):
    archive = pack(pictures, tmp_path / "p.tar")
    with pytest.raises(ValueError, match="do not say how many frames.*data.picture_fps"):
        open_source(archive)
    caches = []
    for source in (open_source(archive, 5), open_source(pictures, 5)):
        entries = make_manifest(source, tmp_path / f"{len(caches)}.parquet").ok
        cache = build_latent_cache(source, entries, make_vae(), (32, 32), 2, tmp_path / f"latents-{len(caches)}")
        caches.append([cache.read(entry, [0, 11]).mean for entry in sorted(entries, key=lambda entry: entry.sha256)])
    assert all(torch.equal(packed, plain) for packed, plain in zip(*caches, strict=True))


def test_pictures_at_the_top_of_an_archive_are_one_clip(pictures, tmp_path):
    source = open_source(pack(pictures / "x", tmp_path / "x.zip"), fps=5)
    assert list(source.keys()) == ["x.zip"] and len(source.open("x.zip")) == 12 and source.fps("x.zip") == 5


def test_pictures_beside_videos_in_an_archive_are_no_clips(videos, tmp_path):
    write_video(videos / "thumbnails", noise(2, 16, 16), fps=1)
    source = open_source(pack(videos, tmp_path / "v.zip"))
    assert len(list(source.keys())) == 3 and any("pictures that are no clips: 2" in note for note in source.notes())


def test_a_folder_of_archives_is_a_source_unless_it_holds_clips_itself(videos, tmp_path):
    (tmp_path / "packed").mkdir()
    for name in ("1.zip", "2.zip", "3.tar"):
        pack(videos, tmp_path / "packed" / name)
    assert len(list(open_source(tmp_path / "packed").keys())) == 9
    pack(videos, videos / "backup.zip")
    source = open_source(videos)
    assert len(list(source.keys())) == 3 and "not opened: backup.zip" in "\n".join(source.notes())


@pytest.mark.parametrize("name", ["v.tar.gz", "v.tgz"])
def test_a_compressed_tar_is_refused_with_the_way_out(videos, tmp_path, name):
    pack(videos, tmp_path / name)
    with pytest.raises(ValueError, match=r"compressed as a whole.*unpack it once \(mkdir '.*/v'; tar -xf .*as .tar"):
        open_source(tmp_path / name)


def test_members_that_cannot_be_read_are_left_out_with_the_reason(videos, tmp_path):
    archive = tmp_path / "v.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(videos / "a.mp4", "a.mp4")
        packed.write(videos / "a.mp4", "packed.mp4", zipfile.ZIP_DEFLATED)
        packed.write(videos / "a.mp4", "odd.mp4", zipfile.ZIP_BZIP2)
        packed.write(videos / "a.mp4", "__MACOSX/a.mp4")
        packed.write(videos / "a.mp4", ".hidden/a.mp4")
        place = packed.getinfo("packed.mp4").header_offset
    data = bytearray(archive.read_bytes())
    data[place + 200] ^= 255
    archive.write_bytes(data)
    manifest = make_manifest(open_source(archive), tmp_path / "manifest.parquet")
    assert [entry.key for entry in manifest.ok] == ["v.zip/a.mp4"]
    reasons = {entry.key: entry.reason for entry in manifest.left_out}
    assert "damaged" in reasons["v.zip/packed.mp4"] and "method 12" in reasons["v.zip/odd.mp4"]
    assert any("2 hidden" in note for note in manifest.notes)
    archive.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(ValueError, match="hold no videos.*no whole .zip archive"):
        open_source(archive)


def test_an_encrypted_member_says_so(videos, tmp_path):
    archive = pack(videos, tmp_path / "v.zip")
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags of local and of central headers
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            data[place + offset] |= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted in the archive; pack it without a password"):
        open_source(archive)


def test_a_section_of_a_file_is_read_like_a_file_of_its_own(tmp_path):
    (tmp_path / "all").write_bytes(bytes(range(100)))
    with FileSection(tmp_path / "all", 10, 50).open() as file:
        assert file.read(3) == bytes([10, 11, 12]) and file.tell() == 3
        assert file.seek(-2, io.SEEK_END) == 48 and file.read() == bytes([58, 59]) and file.read() == b""
        assert file.seek(60) == 60 and file.read(1) == b""
        file.seek(0)
        assert file.read() == bytes(range(10, 60))
