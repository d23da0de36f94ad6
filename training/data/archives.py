"""Clips in tar and zip archives, read in place: videos (webdataset shards among others) or folders of pictures.

`sources.py` decides which files are archives; `folders.py` lists what lies outside of them.
"""

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import PICTURE_SUFFIXES, VIDEO_SUFFIXES, FileSection, PictureSeries
from training.data.failures import sentence, shown
from training.data.folders import Listing, existing, list_folder, stat_stamp
from training.data.spans import WholeClips


ARCHIVE_SUFFIXES = (".tar", ".zip")
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
READ_ERRORS = (*FILE_ERRORS, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class _Member:
    """A file in an archive.

    Attributes:
        archive: the archive.
        name: the file's path in it.
        offset: the place of its bytes or, in a zip, of the header before them.
        length: number of its bytes as they lie there.
        checksum: CRC-32 of the unpacked bytes in a zip; `None` in a tar.
        deflated: whether it has to be unpacked.
        why_not: reason why it cannot be read, or "".
    """

    archive: Path
    name: str
    offset: int
    length: int
    checksum: int | None = None
    deflated: bool = False
    why_not: str = ""

    def open(self) -> bytes | FileSection:
        """Return the bytes of a packed file, the section of another; raise `ValueError` if it is damaged."""
        offset, key = self.offset, f"{self.archive.name}/{self.name}"
        if existing(self.archive).stat().st_size < offset + self.length:
            raise ValueError(f"'{self.archive}' ends within '{key}'; it has changed since it was opened")
        if self.checksum is not None:
            with open(self.archive, "rb") as file:
                file.seek(offset)
                header = file.read(30)
                if header[:4] != b"PK\3\4":
                    raise ValueError(f"'{key}' does not begin where '{self.archive}' says; write the archive again")
                offset += 30 + sum(struct.unpack("<HH", header[26:]))  # lengths of its name and of extra fields
                if self.deflated:
                    file.seek(offset)
                    return self._unpacked(file.read(self.length))
        return FileSection(self.archive, offset, self.length)

    def read(self) -> bytes:
        """Return its bytes."""
        found = self.open()
        return found if isinstance(found, bytes) else found.read()

    def _unpacked(self, packed: bytes) -> bytes:
        try:
            data = zlib.decompress(packed, -zlib.MAX_WBITS)
        except zlib.error as error:
            raise ValueError(f"'{self.name}' in '{self.archive}' is damaged ({error}); write it again") from error
        if zlib.crc32(data) != self.checksum:
            raise ValueError(f"'{self.name}' in '{self.archive}' is damaged (its checksum is wrong); write it again")
        return data


class ArchiveClips(WholeClips):
    """Clips in tar and zip archives; keys are `shard.tar/member.mp4` or, for a folder of pictures, `clips.zip/run1`.

    If no archive holds videos, folders of pictures are the clips, each in natural order. Other members (captions,
    metadata) are not clips. The archives are local, and each clip is read by itself, so a tar must not be compressed.
    Of a damaged tar the members before the damage are used.
    """

    def __init__(self, spec: str | Path, fps: float | None = None, listing: Listing | None = None):
        """Open the archives.

        Args:
            spec: an archive, several as `train-{000..009}.tar`, or a folder of them.
            fps: frames per second of folders of pictures.
            listing: the listing of that folder if there is one already.
        """
        self.spec = str(spec)
        self._fps = fps
        self._listing = list_folder(spec) if listing is None and Path(spec).is_dir() else listing
        names = archive_paths(self.spec) if self._listing is None else self._listing.shards
        self._members: dict[str, _Member] = {}  # videos by key
        self._pictures: dict[str, list[_Member]] = {}  # by key of their folder
        self._inside = Listing(self.spec)  # members that are ignored
        for archive in names:
            self._add(existing(Path(spec) / archive if self._listing is not None else archive))
        if not self._members and not self._pictures:
            raise ValueError(
                f"the archives of '{self.spec}' hold no videos ({', '.join(VIDEO_SUFFIXES)}) and no pictures "
                f"({', '.join(PICTURE_SUFFIXES)}){self._inside.summary()}"
            )
        if self._members:
            self._pictures = {}
        elif fps is None:
            raise ValueError(
                f"the folders of pictures in '{self.spec}' do not say how many frames they have per second; give fps "
                "(a run's `data.picture_fps`, or --fps)"
            )

    def _add(self, archive: Path) -> None:
        members, damage = _members(archive)
        if damage:
            self._inside.left_out[shown(archive.name)] = damage
        keys = [f"{archive.name}/{member.name}" for member in members]
        clips = {os.path.splitext(key)[0] for key in keys if key.lower().endswith(VIDEO_SUFFIXES)}
        for key, member in zip(keys, members):
            parts = key.split("/")
            if any(part.startswith(".") and part != "." for part in parts) or "__MACOSX" in parts:
                self._inside.hidden += 1
                continue
            folder = "/".join(part for part in parts[:-1] if part != ".")
            found = self._members.get(key) or next(iter(self._pictures.get(folder, ())), member)
            if found.archive != archive or key in self._members:
                raise ValueError(
                    f"'{key}' is there twice, in '{found.archive}' and in '{archive}'; give archives and members "
                    "names of their own"
                )
            self._inside.add(key, clips, member.why_not)
            if self._inside.videos and self._inside.videos[-1] == key:
                self._members[key] = member
            elif key.lower().endswith(PICTURE_SUFFIXES) and not member.why_not:
                self._pictures.setdefault(folder, []).append(member)

    def __length_hint__(self) -> int:
        return len(self._members or self._pictures)

    def keys(self) -> Iterator[str]:
        """Yield the keys in the order of the archives."""
        yield from self._members or self._pictures

    def open(self, key: str) -> bytes | FileSection | PictureSeries:
        """Return a member, or the pictures of a folder."""
        if key in self._members:
            return self._members[key].open()
        if key not in self._pictures:
            raise ValueError(f"there is no '{key}' in the archives of '{self.spec}'")
        by_name = {os.path.basename(member.name): member for member in self._pictures[key]}
        return PictureSeries(f"folder '{key}'", by_name, lambda name: by_name[name].read())

    def stamp(self, key: str) -> str | None:
        """Return its archive's size and time of change, and its place in it."""
        members = [self._members[key]] if key in self._members else self._pictures.get(key)
        if not members or not members[0].archive.exists():
            return None
        stamp = stat_stamp(members[0].archive)
        last = members[-1] if len(members) > 1 else None
        ends = "" if last is None else f" {len(members)} {last.offset} {last.length}"
        return f"{stamp} {members[0].offset} {members[0].length}{ends}"

    def fps(self, key: str) -> float | None:
        """Return the frames per second of folders of pictures; `None` for videos, which state their own."""
        return self._fps if key in self._pictures else None

    def recording(self, key: str) -> str | None:
        """Return the folder within the archive that holds the clip, `None` at its top."""
        folders = [part for part in key.split("/")[:-1] if part != "."]
        return "/".join(folders) if len(folders) > 1 else None

    def left_out(self) -> dict[str, str]:
        """Return damaged archives and members, and videos beside the archives."""
        if self._listing is None:
            return self._inside.left_out
        reason = "beside .tar shards, which are the clips of this folder; give videos a folder of their own"
        return self._inside.left_out | self._listing.left_out | dict.fromkeys(self._listing.videos, reason)

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored members and files."""
        inside = tuple(f"in the archives, {note}" for note in self._inside.notes(self._pictures))
        return inside + (() if self._listing is None else self._listing.notes(self._listing.shards))


def archive_paths(spec: str) -> list[Path]:
    """Return the archives that a name with the usual braces means, such as `train-{000..009}.tar`."""
    from webdataset.shardlists import expand_urls

    return [Path(url) for url in expand_urls(spec)]


def refuse_packed_tar(spec: str) -> None:
    """Refuse a tar that is compressed as a whole: none of its clips can be read by itself.

    Raises:
        ValueError: with the commands that unpack it.
    """
    suffix = next((suffix for suffix in PACKED_TARS if spec.lower().endswith(suffix)), None)
    if suffix is not None:
        folder = spec[: -len(suffix)]
        raise ValueError(
            f"'{spec}' is compressed as a whole, so none of its clips can be read without unpacking all before it; "
            f"unpack it once (mkdir '{folder}'; tar -xf '{spec}' -C '{folder}') and give '{folder}', or pack it "
            "again as .tar or .zip"
        )


def damage_of_tar(archive: Path) -> str:
    """Return a description of the damage of a tar, or ""."""
    return _tar_members(archive)[1]


def _members(archive: Path) -> tuple[list[_Member], str]:
    """Return the files of an archive, and a description of its damage, or ""."""
    return (_zip_members if archive.suffix.lower() == ".zip" else _tar_members)(archive)


def _tar_members(archive: Path) -> tuple[list[_Member], str]:
    """Return the files in a tar up to its end or first damage, and a description of the damage, or ""."""
    members: list[_Member] = []
    try:
        size = archive.stat().st_size
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                tar.members = []  # tarfile would keep them all
                if not member.isdir():
                    why_not = "" if member.isfile() else "it is a link in the shard; put the file itself there"
                    if member.offset_data + member.size > size:
                        why_not = "the shard ends within it"
                    members.append(_Member(archive, member.name, member.offset_data, member.size, why_not=why_not))
            end = tar.offset
        with open(archive, "rb") as file:  # tarfile ends without an error at bytes that are not a header
            file.seek(end)
            rest = file.read(1 << 16)
    except READ_ERRORS as error:
        return members, f"it is no whole, uncompressed .tar shard ({sentence(error)}); write it again"
    if rest.strip(b"\0"):
        return (
            members,
            f"what follows its first {end} bytes is damaged, or another archive, and is not read; write it again",
        )
    return members, ""


def _zip_members(archive: Path) -> tuple[list[_Member], str]:
    """Return the files in a zip, and a description of its damage, or ""."""
    try:
        with zipfile.ZipFile(archive) as packed:
            found = [info for info in packed.infolist() if not info.is_dir()]
    except READ_ERRORS as error:
        return [], f"it is no whole .zip archive ({sentence(error)}); write it again"
    return [
        _Member(
            archive, info.filename, info.header_offset, info.compress_size, info.CRC,
            info.compress_type == zipfile.ZIP_DEFLATED, _why_not(info),
        )
        for info in found
    ], ""  # fmt: skip


def _why_not(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "it is encrypted in the archive; pack it without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"it is compressed by method {info.compress_type}; pack it by zip's usual methods (stored or deflated)"
    return ""
