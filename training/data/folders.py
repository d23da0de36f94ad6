"""List a folder that is given as a source: videos, folders of pictures, and everything that is ignored.

Only names are examined here. `sources.py` decides which of them a source uses; `metadata.py` reads metadata.
"""

import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from diffusers_mardini.video_io import PICTURE_SUFFIXES, VIDEO_SUFFIXES, natural_key
from training.data.failures import is_utf8, reason_lines, shown


METADATA_FILES = ("metadata.jsonl", "metadata.csv")
_ARCHIVES = (".tar", ".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
# Files with the name of a clip: its captions and its table of conditions, which are not worth a note.
_SIDECARS = (".txt", ".json", ".caption", ".srt", ".vtt", ".csv", ".parquet")
_UNFINISHED = re.compile(r"\.(part|partial|temp|tmp|download|crdownload)$", re.IGNORECASE)
_METADATA = (".jsonl", ".csv", ".tsv", ".parquet")


@dataclass
class Listing:
    """The names in a folder and its subfolders. Links to folders are followed; every real folder is listed once.

    Attributes:
        root: the folder.
        videos: paths within it, in natural order (2 before 10).
        pictures: how many pictures lie in each folder, by its path; "" is the root.
        archives: paths of archives, including shards.
        left_out: reasons by path, for what may be a clip but cannot be used.
        others: paths of files that are not clips, by suffix.
        hidden: number of files and folders whose names begin with a dot.
        empty, linked_again: empty folders, and links to folders that are listed under another path.
        metadata: paths of files named like metadata outside of the root.
        folders: paths of all listed folders, by real path.
    """

    root: str
    videos: list[str] = field(default_factory=list)
    pictures: Counter[str] = field(default_factory=Counter)
    archives: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    hidden: int = 0
    empty: list[str] = field(default_factory=list)
    linked_again: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def picture_folders(self) -> list[str]:
        """Return the folders that hold pictures, in natural order, without the root."""
        return sorted(filter(None, self.pictures), key=natural_path_key)

    def add(self, key: str, clips: Container[str] = (), why_not: str = "") -> None:
        """Add a file to the videos, to the clips left out with a reason, or to the files that are only counted.

        Args:
            key: path of the file.
            clips: paths of clips without their suffix; a text or table with such a path belongs to the clip.
            why_not: reason why the file cannot be a clip, whatever its name.
        """
        folder, _, name = key.rpartition("/")
        stem, suffix = os.path.splitext(name)
        suffix = "" if suffix == "." else suffix.lower()
        is_video = suffix in VIDEO_SUFFIXES
        if is_video and _UNFINISHED.search(stem):
            why_not = why_not or "its name says that it is not finished"
        clip = folder if suffix in PICTURE_SUFFIXES else key
        if (is_video or suffix in PICTURE_SUFFIXES) and not is_utf8(clip):
            self.left_out[shown(clip)] = "its name is not UTF-8; rename it"
        elif why_not:
            self.left_out[shown(key)] = why_not
        elif is_video:
            self.videos.append(key)
        elif suffix in PICTURE_SUFFIXES:
            self.pictures[folder] += 1
        elif suffix in _ARCHIVES:
            self.archives.append(key)
        elif stem.lower() == "metadata" and suffix in _METADATA:
            if key not in METADATA_FILES:
                self.metadata.append(key)
        elif not (suffix in _SIDECARS and os.path.splitext(key)[0] in clips):
            self.others.setdefault(suffix, []).append(key)

    @cached_property
    def known(self) -> frozenset[str]:
        """Return the paths of everything that can be a clip."""
        return frozenset((*self.videos, *self.picture_folders))

    @cached_property
    def folded(self) -> dict[str, str]:
        """Return the same paths by how Windows and macOS compare them: case-folded, in one Unicode normal form."""
        return {unicodedata.normalize("NFC", key).casefold(): key for key in self.known}

    @property
    def shards(self) -> list[str]:
        """Return the archives that are the clips of this folder, in natural order.

        These are those in the root whose suffix is `.tar` or, where no videos or pictures lie outside, `.zip`.
        """
        suffixes = (".tar",) if self.videos or self.pictures else (".tar", ".zip")
        top = (key for key in self.archives if "/" not in key and key.lower().endswith(suffixes))
        return sorted(top, key=natural_key)

    def notes(self, used: Container[str] = ()) -> tuple[str, ...]:
        """Describe what is ignored besides `left_out`, in one line per kind of file.

        Args:
            used: paths that metadata name; for pictures, the folders that are clips.
        """
        others = {suffix: [key for key in keys if key not in used] for suffix, keys in self.others.items()}
        counts = sorted(((-len(keys), suffix, keys) for suffix, keys in others.items() if keys))
        by_suffix = [
            f"{-count} {suffix or 'without a suffix'} ({_examples(keys, 1)})" for count, suffix, keys in counts
        ]
        pictures = {key: count for key, count in self.pictures.items() if key not in used}
        archives = [key for key in self.archives if key not in used]
        hidden = "1 hidden file or folder" if self.hidden == 1 else f"{self.hidden} hidden files or folders"
        more = f" and {len(by_suffix) - 8} other suffixes" if by_suffix[8:] else ""
        where = _examples([key or "." for key in pictures])
        only = " or ".join(METADATA_FILES)
        lines = (
            (by_suffix, f"not clips: {', '.join(by_suffix[:8])}{more}"),
            (pictures, f"pictures that are no clips: {sum(pictures.values())}, in {where}"),
            (
                archives,
                f"archives that are not opened: {_examples(archives)}; unpack them, or give .tar or .zip archives as a source",
            ),
            (self.hidden, f"passed over: {hidden}"),
            (self.empty, f"empty folders: {_examples(self.empty)}"),
            (self.linked_again, f"links to folders that are listed already: {_examples(self.linked_again)}"),
            (self.metadata, f"not read: {_examples(self.metadata)}; only {only} of the folder itself counts"),
        )
        return tuple(line for there, line in lines if there)

    def summary(self) -> str:
        """Return what the folder holds instead, to end a sentence that nothing in it can be used."""
        return "".join(f"; {line}" for line in (*reason_lines(self.left_out, 3, 5), *self.notes()))


def list_folder(folder: str | os.PathLike) -> Listing:
    """List a folder and its subfolders; what cannot be read is left out with its reason."""
    listing = Listing(os.fspath(folder))
    above = {str(path) for path in Path(os.path.realpath(folder)).parents}
    waiting, links = deque([""]), deque()
    while waiting or links:
        key = waiting.popleft() if waiting else links.popleft()  # links last, so that a folder keeps its own path
        path = os.path.join(listing.root, key)
        real = os.path.realpath(path)
        if real in listing.folders or real in above:
            listing.linked_again.append(key)
            continue
        listing.folders[real] = key
        try:
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            listing.left_out[shown(key or ".")] = f"the folder cannot be read ({error.strerror})"
            continue
        if not entries and key:
            listing.empty.append(key)
        names = [(entry, f"{key}/{entry.name}" if key else entry.name) for entry in entries if entry.name[0] != "."]
        listing.hidden += len(entries) - len(names)
        files, clips = [], set()  # captions have the name of a video or of a folder of pictures
        for entry, inner in names:
            if _is_folder(entry):
                (links if entry.is_symlink() else waiting).append(inner)
                clips.add(inner)
                continue
            files.append((entry, inner))
            if inner.lower().endswith(VIDEO_SUFFIXES):
                clips.add(os.path.splitext(inner)[0])
        for entry, inner in files:
            listing.add(inner, clips, _why_not(entry))
    listing.videos.sort(key=natural_path_key)
    return listing


def natural_path_key(key: str) -> list:
    """Return a sorting key for paths that compares numbers by value, folder by folder."""
    return [natural_key(part) for part in Path(key).parts]


def existing(path: Path) -> Path:
    """Return the path of a file or folder; raise `ValueError` if there is neither."""
    if not os.path.exists(path):
        raise ValueError(f"there is nothing at '{path}'")
    if not os.path.isfile(path) and not os.path.isdir(path):  # opening a pipe would wait forever
        raise ValueError(f"'{path}' is neither a file nor a folder")
    return path


def stat_stamp(path: Path) -> str:
    """Return a text that changes whenever the file does: its size and time of change."""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to an unreachable place
        return False


def _why_not(entry: os.DirEntry) -> str:
    """Return why a file cannot be a clip whatever its name, "" if it can."""
    if not os.path.isfile(entry.path):
        if entry.is_symlink():
            return f"it is a link to '{shown(os.readlink(entry.path))}', where nothing is"
        return "it is neither a file nor a folder"
    if os.path.splitext(entry.name)[1] in ("", ".") and _is_binary(entry.path):
        return "its name has no suffix; call it by its format, such as .mp4"
    return ""


def _is_binary(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(4096)
    except OSError:
        return True


def _examples(keys: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(shown, keys[:most])) + (" and others" if len(keys) > most else "")
