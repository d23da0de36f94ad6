"""The files in a tar or zip archive, each with its place; archives at URLs are read header by header.

`archives.py` makes clips of them.
"""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import FileSection
from training.data.failures import sentence
from training.data.remote_errors import RemoteError
from training.data.stored import LocalFile, StoredFile, look_into


READ_ERRORS = (*FILE_ERRORS, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class Member:
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

    archive: StoredFile
    name: str
    offset: int
    length: int
    checksum: int | None = None
    deflated: bool = False
    why_not: str = ""

    def open(self) -> bytes | FileSection:
        """Return the bytes of a packed file, the section of another; raise `ValueError` if it is damaged."""
        offset, key = self.offset, f"{self.archive.name}/{self.name}"
        if self.archive.size < offset + self.length:
            raise ValueError(f"'{self.archive}' ends within '{key}'; it has changed since it was opened")
        if self.checksum is not None:
            header = self.archive.section(offset, 30).read()
            if header[:4] != b"PK\3\4":
                raise ValueError(f"'{key}' does not begin where '{self.archive}' says; write the archive again")
            offset += 30 + sum(struct.unpack("<HH", header[26:]))  # lengths of its name and of extra fields
            if self.deflated:
                return self._unpacked(self.archive.section(offset, self.length).read())
        return self.archive.section(offset, self.length)

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


def members_of(archives: Sequence[StoredFile], manifests: Path | None) -> list[tuple[list[Member], str]]:
    """Return the files of each archive, and a description of its damage, or ""; see `look_into`."""
    found = look_into(archives, _contents, "archive", manifests)
    return [
        ([Member(archive, *values) for values in contents["members"]], contents["damage"])
        for archive, contents in zip(archives, found)
    ]


def _contents(archive: StoredFile) -> dict[str, Any]:
    """Return the files of an archive and its damage as values of JSON."""
    members, damage = (_zip_members if archive.name.lower().endswith(".zip") else _tar_members)(archive)
    values = [(each.name, each.offset, each.length, each.checksum, each.deflated, each.why_not) for each in members]
    return {"members": values, "damage": damage}


def damage_of_tar(path: Path) -> str:
    """Return a description of the damage of a tar, or ""."""
    return _tar_members(LocalFile(path))[1]


def _tar_members(archive: StoredFile) -> tuple[list[Member], str]:
    """Return the files in a tar up to its end or first damage, and a description of the damage, or ""."""
    members: list[Member] = []
    try:
        size = archive.size
        with archive.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:  # reads headers, skips what follows
            for member in tar:
                tar.members = []  # tarfile would keep them all
                if not member.isdir():
                    why_not = "" if member.isfile() else "it is a link in the shard; put the file itself there"
                    if member.offset_data + member.size > size:
                        why_not = "the shard ends within it"
                    members.append(Member(archive, member.name, member.offset_data, member.size, why_not=why_not))
            end = tar.offset
            file.seek(end)  # tarfile ends without an error at bytes that are not a header
            rest = file.read(1 << 16)
    except RemoteError:  # the storage's fault, not the archive's
        raise
    except READ_ERRORS as error:
        return members, f"it is no whole, uncompressed .tar shard ({sentence(error)}); write it again"
    if rest.strip(b"\0"):
        return (
            members,
            f"what follows its first {end} bytes is damaged, or another archive, and is not read; write it again",
        )
    return members, ""


def _zip_members(archive: StoredFile) -> tuple[list[Member], str]:
    """Return the files in a zip, and a description of its damage, or ""."""
    try:
        with archive.open() as file, zipfile.ZipFile(file) as packed:
            found = [info for info in packed.infolist() if not info.is_dir()]
    except RemoteError:
        raise
    except READ_ERRORS as error:
        return [], f"it is no whole .zip archive ({sentence(error)}); write it again"
    return [
        Member(
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
