"""Clips in tar and zip archives, read in place: videos (webdataset shards among others) or folders of pictures.

`sources.py` decides which files are archives; `folders.py` lists what lies outside of them, `archive_members.py` what
lies in them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffusers_mardini.video_io import PICTURE_SUFFIXES, VIDEO_SUFFIXES, FileSection, PictureSeries
from training.data.archive_members import Member, members_of
from training.data.failures import shown
from training.data.folders import Listing, existing, list_folder
from training.data.remote import WHOLE, RemoteFile
from training.data.spans import WholeClips
from training.data.stored import LocalFile, StoredFile


ARCHIVE_SUFFIXES = (".tar", ".zip")
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


class ArchiveClips(WholeClips):
    """Clips in tar and zip archives; keys are `shard.tar/member.mp4` or, for a folder of pictures, `clips.zip/run1`.

    If no archive holds videos, folders of pictures are the clips, each in natural order. Other members (captions,
    metadata) are not clips. Each clip is read by itself, from this machine or from a URL, so a tar must not be
    compressed.
    Of a damaged tar the members before the damage are used.
    """

    def __init__(
        self, spec: str | Path, fps: float | None = None, listing: Listing | None = None,
        archives: Sequence[StoredFile] | None = None, manifests: Path | None = None,
    ):  # fmt: skip
        """Open the archives.

        Args:
            spec: an archive, several as `train-{000..009}.tar`, or a folder of them.
            fps: frames per second of folders of pictures.
            listing: the listing of that folder if there is one already.
            archives: the archives, if they are known; those at URLs must be.
            manifests: see `look_into`.
        """
        self.spec = str(spec)
        self._fps = fps
        self._listing = listing
        if archives is None:
            self._listing = list_folder(spec) if listing is None and Path(spec).is_dir() else listing
            inside = self._listing is not None
            paths = [Path(spec) / name for name in self._listing.shards] if inside else archive_paths(self.spec)
            archives = [LocalFile(existing(path)) for path in paths]
        self._members: dict[str, Member] = {}  # videos by key
        self._pictures: dict[str, list[Member]] = {}  # by key of their folder
        self._inside = Listing(self.spec)  # members that are ignored
        for archive, (members, damage) in zip(archives, members_of(archives, manifests)):
            self._add(archive, members, damage)
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
                "(`data.picture_fps` of a run, `picture_fps` of an autoencoder's training, or --picture-fps)"
            )

    def _add(self, archive: StoredFile, members: Sequence[Member], damage: str) -> None:
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
        read = _together(list(by_name.values())) or (lambda member: member.read())
        return PictureSeries(f"folder '{key}'", by_name, lambda name: read(by_name[name]))

    def stamp(self, key: str) -> str | None:
        """Return the stamp of its archive, and its place in it."""
        members = [self._members[key]] if key in self._members else self._pictures.get(key)
        stamp = members[0].archive.stamp if members else None
        if not members or stamp is None:
            return None
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


def _together(members: Sequence[Member]) -> Callable[[Member], bytes] | None:
    """Return a function that reads members by one request for all of them; `None` if this is not to their advantage."""
    archive, begin = members[0].archive, min(member.offset for member in members)
    length = max(member.offset + member.length for member in members) - begin
    plain = isinstance(archive, RemoteFile) and all(member.checksum is None for member in members)
    if not plain or length > min(WHOLE, 2 * sum(member.length + 1024 for member in members)):
        return None
    section = archive.section(begin, length)
    return lambda member: section.read()[member.offset - begin : member.offset - begin + member.length]


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
