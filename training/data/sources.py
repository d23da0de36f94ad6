"""Sources of clips: folders of videos, folders of pictures, webdataset shards, `datasets` datasets.

A source lists keys and opens them; it never decodes. `manifest.py` collects facts by decoding each clip;
`diffusers_mardini/video_io.py` reads frames. Sources whose clips are spans of others are in `clip_lists.py` and
`lerobot.py`.
"""

import hashlib
import math
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from training.data import clip_lists, lerobot
from training.data.failures import sentence, shown
from training.data.folders import METADATA_FILES, Listing, existing, list_folder, natural_path_key, stat_stamp
from training.data.metadata import read_metadata
from training.data.spans import Span, WholeClips


_READ_ERRORS = (*FILE_ERRORS, tarfile.TarError)


class Source(Protocol):
    """The interface of a source for the manifest, the latent cache and training from pixels."""

    spec: str  # the argument of `open_source`; its name in messages and in the manifest

    def keys(self) -> Iterator[str]:
        """Yield the keys of all clips, always in the same order."""
        ...

    def open(self, key: str) -> Path | bytes:
        """Return a video file, its bytes, or a folder of pictures; raise `ValueError` if it is missing."""
        ...

    def stamp(self, key: str) -> str | None:
        """Return a text that changes whenever the clip does, without reading the clip; `None` if there is none."""
        ...

    def fps(self, key: str) -> float | None:
        """Return the frames per second of a folder of pictures; `None` for videos, which state it themselves."""
        ...

    def spans(self) -> Mapping[str, Span]:
        """Return, by key, the spans of other sources' clips that are the clips here; empty if clips are whole."""
        ...

    def rows(self, key: str, columns: Sequence[str]) -> Mapping[str, Sequence] | None:
        """Return columns with a number for each frame of a clip; `None` if they lie in a table beside the clip."""
        ...

    def recording(self, key: str) -> str | None:
        """Return the recording that a clip is part of, which a split keeps on one side; `None` if it is unknown."""
        ...

    def left_out(self) -> dict[str, str]:
        """Return the reasons for clips that are not among `keys`; complete once `keys` is exhausted."""
        ...

    def notes(self) -> tuple[str, ...]:
        """Return lines for the census on what else is ignored."""
        ...


def open_source(spec: str | Path, fps: float | None = None) -> Source:
    """Open a source by its name.

    Args:
        spec: a folder of videos, of picture folders, or of `.tar` shards; a shard, or several as
            `train-{000..009}.tar`; `datasets:NAME[#SPLIT]` (a folder or Hub id; `datasets-stream:` streams it);
            `lerobot:NAME[#CAMERA]` (a LeRobot dataset, a folder or Hub id); or a clip list, a `.jsonl` file.
        fps: frames per second of picture folders whose metadata do not state it.

    Raises:
        ValueError: if there is no such source.
    """
    spec = str(spec)
    for prefix, streaming in (("datasets:", False), ("datasets-stream:", True)):
        if spec.startswith(prefix):
            return DatasetVideos(spec, streaming)
    if spec.startswith(lerobot.PREFIX):
        return lerobot.LeRobotEpisodes(spec)
    if spec.endswith(clip_lists.SUFFIX) and not Path(spec).is_dir():
        return clip_lists.ClipList(spec, lambda inner, rate: open_source(inner, rate or fps))
    if spec.endswith(".tar"):
        return WebdatasetShards(spec)
    folder = Path(spec)
    if not folder.is_dir():
        raise ValueError(
            f"there is no source of clips at '{spec}'; give a folder of videos, of folders of pictures, or of .tar "
            "shards, a shard, datasets:NAME, lerobot:NAME#CAMERA, or a clip list (.jsonl)"
        )
    lerobot.refuse_plain(folder)
    listing = list_folder(folder)
    if listing.shards:
        return WebdatasetShards(spec, listing)
    metadata = read_metadata(listing)
    if metadata is not None:
        of_pictures = os.path.isdir(folder / next(iter(metadata.rows)))
        return PictureFolders(folder, fps, listing) if of_pictures else VideoFolder(folder, listing)
    if listing.videos:
        return VideoFolder(folder, listing)
    if listing.picture_folders:
        return PictureFolders(folder, fps, listing)
    raise ValueError(
        f"folder '{spec}' holds no clips; accepted are videos ({', '.join(VIDEO_SUFFIXES)}), folders of pictures "
        f"({', '.join(PICTURE_SUFFIXES)}) and .tar shards{listing.summary()}"
        + ("; the pictures of a clip lie in a folder of their own within it" if listing.pictures else "")
    )


def source_exists(spec: str) -> bool:
    """Return whether a source exists, without reading it; always true for what may lie on the Hub."""
    if spec.startswith(("datasets:", "datasets-stream:", lerobot.PREFIX)):
        return True
    if spec.endswith(clip_lists.SUFFIX) and Path(spec).is_file():
        return True
    return all(shard.exists() for shard in _shards(spec)) if spec.endswith(".tar") else Path(spec).is_dir()


class VideoFolder(WholeClips):
    """Videos of a folder and its subfolders (the layout of HF `videofolder`); keys are paths within it.

    With a `metadata.jsonl` or `metadata.csv`, exactly those that it names.
    """

    def __init__(self, folder: str | Path, listing: Listing | None = None):
        """Open the folder; `listing` is its listing if there is one already."""
        self.folder = Path(folder)
        self.spec = str(folder)
        self._listing = list_folder(folder) if listing is None else listing
        self._metadata = read_metadata(self._listing)
        self._rows = {} if self._metadata is None else self._metadata.rows

    @property
    def _there(self) -> list[str]:
        """Return everything in the folder that can be a clip of this kind."""
        return self._listing.videos

    def keys(self) -> Iterator[str]:
        """Yield the paths of the videos."""
        yield from self._there if self._metadata is None else sorted(self._rows, key=natural_path_key)

    def open(self, key: str) -> Path:
        """Return the path of a video."""
        path = existing(self.folder / key)
        if path.is_dir():
            raise ValueError(
                f"'{path}' is a folder, and this is a source of videos; make folders of pictures a source of their own"
            )
        return path

    def stamp(self, key: str) -> str | None:
        """Return its size and time of change."""
        path = self.folder / key
        return stat_stamp(path) if path.exists() else None

    def fps(self, key: str) -> float | None:
        """Return `None`: videos state their own rate."""
        return None

    def recording(self, key: str) -> str | None:
        """Return the `recording` of its metadata, if they have one."""
        name = self._rows.get(key, {}).get("recording")
        return None if name in (None, "") else str(name)

    def left_out(self) -> dict[str, str]:
        """Return videos that metadata do not name, and files that cannot be used."""
        unnamed = [key for key in self._there if self._metadata is not None and key not in self._rows]
        reason = f"not named in {' or '.join(METADATA_FILES)}"
        others = {key: why for key, why in self._listing.left_out.items() if key not in self._rows}
        return dict.fromkeys(unnamed, reason) | others

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored files and rows."""
        return self._listing.notes(self._rows) + (() if self._metadata is None else self._metadata.notes)


class PictureFolders(VideoFolder):
    """Folders of pictures in a folder, each a clip in natural order (2 before 10).

    Frames per second come from `fps` of the metadata's rows, else from the argument.
    """

    def __init__(self, folder: str | Path, fps: float | None = None, listing: Listing | None = None):
        super().__init__(folder, listing)
        self._fps = fps
        self._rates = {
            key: self._rate(key, row["fps"]) for key, row in self._rows.items() if row.get("fps") not in (None, "")
        }
        if fps is None and not all(key in self._rates for key in self.keys()):
            raise ValueError(
                f"the picture folders of '{folder}' do not say how many frames they have per second; give fps (a "
                "run's `data.picture_fps`, or --fps), or a metadata.jsonl with file_name (the folder) and fps"
            )

    @property
    def _there(self) -> list[str]:
        return self._listing.picture_folders

    def _rate(self, key: str, given: object) -> float:
        try:
            rate = float(given) if isinstance(given, (int, float, str)) and not isinstance(given, bool) else math.nan
        except (ValueError, OverflowError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise ValueError(
                f"'{self._metadata.path}' gives clip '{key}' fps {given!r}; give a positive number, frames per second"
            )
        return rate

    def open(self, key: str) -> Path:
        """Return the path of a folder of pictures."""
        return existing(self.folder / key)

    def stamp(self, key: str) -> str | None:
        """Return a hash of the names, sizes and times of change of its pictures."""
        path = self.folder / key
        if not path.is_dir():
            return None
        files = (file for file in path.iterdir() if not file.name.startswith("."))
        files = sorted(file for file in files if file.suffix.lower() in PICTURE_SUFFIXES)
        text = "".join(f"{file.name} {stat_stamp(file)}\n" for file in files)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def fps(self, key: str) -> float | None:
        """Return the frames per second of its metadata, else of the argument."""
        return self._rates.get(key, self._fps)

    def left_out(self) -> dict[str, str]:
        """Return unnamed folders, files that cannot be used, and videos."""
        reason = "a video beside folders of pictures; make videos a source of their own"
        return super().left_out() | {key: reason for key in self._listing.videos if key not in self._rows}

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored files and rows."""
        clips = self._there if self._metadata is None else [*self._there, *self._rows]
        return self._listing.notes(frozenset(clips)) + (() if self._metadata is None else self._metadata.notes)


class WebdatasetShards(WholeClips):
    """Video members of tar shards, read in place; keys are `shard.tar/member.mp4`.

    Other members (captions, metadata) are not clips. The shards are local and uncompressed, so that each clip can be
    read by itself. Of a damaged shard the members before the damage are used.
    """

    def __init__(self, spec: str | Path, listing: Listing | None = None):
        """Open the shards; `listing` is the listing of their folder if there is one already."""
        self.spec = str(spec)
        self._listing = list_folder(spec) if listing is None and Path(spec).is_dir() else listing
        shards = _shards(self.spec) if self._listing is None else [Path(spec) / name for name in self._listing.shards]
        self._members: dict[str, tuple[Path, int, int]] = {}  # by key: shard, offset, length
        self._inside = Listing(self.spec)  # members that are ignored
        for shard in shards:
            self._add(existing(shard))
        if not self._members:
            raise ValueError(
                f"the shards of '{self.spec}' hold no videos ({', '.join(VIDEO_SUFFIXES)}){self._inside.summary()}"
            )

    def _add(self, shard: Path) -> None:
        members, damage = _members(shard)
        if damage:
            self._inside.left_out[shown(shard.name)] = damage
        keys = [f"{shard.name}/{member.name}" for member in members]
        clips = {os.path.splitext(key)[0] for key in keys if key.lower().endswith(VIDEO_SUFFIXES)}
        size = shard.stat().st_size
        for key, member in zip(keys, members):
            if any(part.startswith(".") for part in Path(key).parts):
                self._inside.hidden += 1
                continue
            if key in self._members:
                raise ValueError(
                    f"'{key}' is there twice, in '{self._members[key][0]}' and in '{shard}'; give shards and members "
                    "names of their own"
                )
            why_not = "" if member.isfile() else "it is a link in the shard; put the file itself there"
            if member.offset_data + member.size > size:
                why_not = "the shard ends within it"
            self._inside.add(key, clips, why_not)
            if self._inside.videos and self._inside.videos[-1] == key:
                self._members[key] = (shard, member.offset_data, member.size)

    def keys(self) -> Iterator[str]:
        """Yield `shard.tar/member.mp4` in the order of the shards."""
        yield from self._members

    def open(self, key: str) -> bytes:
        """Return the bytes of a member."""
        if key not in self._members:
            raise ValueError(f"there is no '{key}' in the shards of '{self.spec}'")
        shard, offset, length = self._members[key]
        with open(existing(shard), "rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            raise ValueError(f"'{shard}' ends within '{key}'; it has changed since it was opened")
        return data

    def stamp(self, key: str) -> str | None:
        """Return its shard's size and time of change, and its place in it."""
        if key not in self._members or not self._members[key][0].exists():
            return None
        shard, offset, length = self._members[key]
        return f"{stat_stamp(shard)} {offset} {length}"

    def fps(self, key: str) -> None:
        """Return `None`: videos state their own rate."""
        return None

    def left_out(self) -> dict[str, str]:
        """Return damaged shards and members, and videos beside the shards."""
        if self._listing is None:
            return self._inside.left_out
        reason = "beside .tar shards, which are the clips of this folder; give videos a folder of their own"
        return self._inside.left_out | self._listing.left_out | dict.fromkeys(self._listing.videos, reason)

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored members and files."""
        inside = tuple(f"in the shards, {note}" for note in self._inside.notes())
        return inside + (() if self._listing is None else self._listing.notes(self._listing.shards))


class DatasetVideos(WholeClips):
    """The video column of a `datasets` dataset, local or streamed; keys are row numbers, such as `row-12`.

    The column is cast to `Video(decode=False)`, so that only PyAV decodes. A streamed dataset is read in order, and
    opening an earlier row restarts the stream; so make the latent cache from it instead of training from its pixels.
    """

    def __init__(self, spec: str, streaming: bool = False, dataset=None):
        """Load the dataset that `spec` names (see `open_source`), unless `dataset` is given."""
        import datasets

        self.spec = spec
        self._listing: Listing | None = None  # of a local folder of videos
        if dataset is None:
            name, _, split = spec.partition(":")[2].partition("#")
            arguments = {"split": split or "train", "streaming": streaming}
            listing = list_folder(name) if Path(name).is_dir() else None
            if listing is not None and listing.videos:
                self._listing = listing
                dataset = _load_dataset(spec, "videofolder", listing, data_dir=name, **arguments)
            else:  # on the Hub, or a folder of parquet or .tar files
                dataset = _load_dataset(spec, name, listing, **arguments)
        columns = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, datasets.Video)]
        if len(columns) != 1:
            raise ValueError(f"'{spec}' must have one column of videos, it has {columns}")
        self._column = columns[0]
        self._dataset = dataset.select_columns(columns).cast_column(self._column, datasets.Video(decode=False))
        self._streamed = isinstance(self._dataset, datasets.IterableDataset)
        self._rows: Iterator | None = None  # of a stream
        self._next = 0
        self._last: dict | None = None  # the row before `_next`
        self._opened: set[str] = set()  # real paths of the files that rows name
        self._broken: dict[str, str] = {}  # parts of a stream, with the reason

    def keys(self) -> Iterator[str]:
        """Yield `row-0`, `row-1`, ... in the order of the rows."""
        index = 0
        while self._has(index):
            yield f"row-{index}"
            index += 1

    def open(self, key: str) -> Path | bytes:
        """Return the path or the bytes of a row's video."""
        video = self._video(int(key.removeprefix("row-")))
        if video is None or (video["bytes"] is None and video["path"] is None):
            raise ValueError(f"{key} of '{self.spec}' holds no video")
        if video["bytes"] is not None:
            return video["bytes"]
        if os.path.isfile(video["path"]):
            self._opened.add(os.path.realpath(video["path"]))
            return Path(video["path"])
        import fsspec  # hf://, https:// and members of archives, as streamed datasets name them

        try:
            with fsspec.open(video["path"], "rb") as file:
                return file.read()
        except FILE_ERRORS as error:
            raise ValueError(
                f"'{video['path']}' ({key} of '{self.spec}') cannot be read ({sentence(error)})"
            ) from error

    def _has(self, index: int) -> bool:
        return self._read_to(index) if self._streamed else index < len(self._dataset)

    def _video(self, index: int) -> dict | None:
        if not self._has(index):
            rows = self._next if self._streamed else len(self._dataset)
            raise ValueError(f"'{self.spec}' ends at row {rows}; row {index} was asked for")
        return (self._last if self._streamed else self._dataset[index])[self._column]

    def _read_to(self, index: int) -> bool:
        """Read a stream up to a row; return whether there is such a row."""
        if self._rows is None or index < self._next - 1:
            self._rows, self._next, self._last = self._stream(), 0, None
        while self._next <= index:
            try:
                self._last = next(self._rows)
            except StopIteration:
                return False
            self._next += 1
        return True

    def _stream(self) -> Iterator[dict]:
        """Yield the rows of a stream file by file, so that a broken file does not end the others."""
        import datasets

        parts = self._dataset.num_shards
        for part in range(parts):
            try:
                yield from self._dataset.shard(parts, part) if parts > 1 else self._dataset
            except (ConnectionError, TimeoutError):  # not the fault of a file
                raise
            except (*_READ_ERRORS, datasets.exceptions.DatasetsError) as error:
                self._broken[f"file {part + 1} of {parts}"] = (
                    f"its rows, or the rest of them, cannot be read ({sentence(error)})"
                )

    def stamp(self, key: str) -> None:
        """Return `None`: rows have no stamp and are read again."""
        return None

    def fps(self, key: str) -> None:
        """Return `None`: videos state their own rate."""
        return None

    def left_out(self) -> dict[str, str]:
        """Return broken files of a stream, and videos that `datasets` does not list."""
        if self._listing is None:
            return self._broken
        reason = (
            "`datasets` does not list it: it belongs to another split, is behind a link, not named in the metadata, "
            "or of a format that `datasets` does not know; give the folder itself as the source"
        )
        real = {key: os.path.realpath(os.path.join(self._listing.root, key)) for key in self._listing.videos}
        unlisted = {key: reason for key, path in real.items() if path not in self._opened}
        return self._broken | self._listing.left_out | unlisted

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored files."""
        return () if self._listing is None else self._listing.notes()


def _load_dataset(spec: str, name: str, listing: Listing | None, **arguments):
    """Load a dataset; add the names of the faulty files to errors of `datasets`, which rarely names them."""
    import datasets

    try:
        return datasets.load_dataset(name, **arguments)
    except (*_READ_ERRORS, datasets.exceptions.DatasetsError) as error:
        found = [sentence(each) for each in (error, error.__cause__) if each is not None]
        if listing is not None:
            found += [f"{key}: {reason}" for key, reason in list(_damaged(listing).items())[:5]]
            try:
                read_metadata(listing)
            except ValueError as metadata_error:
                found.append(sentence(metadata_error))
        raise ValueError(f"'{spec}' cannot be loaded by `datasets`: {'; '.join(found)}") from error


def _shards(spec: str) -> list[Path]:
    from webdataset.shardlists import expand_urls  # the usual braces: train-{000..009}.tar

    return [Path(url) for url in expand_urls(spec)]


def _members(shard: Path) -> tuple[list[tarfile.TarInfo], str]:
    """Return the files in a shard up to its end or first damage, and a description of the damage, or ""."""
    members: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isdir():
                    members.append(member)
            end = tar.offset
        with open(shard, "rb") as file:  # tarfile ends without an error at bytes that are not a header
            file.seek(end)
            rest = file.read(1 << 16)
    except _READ_ERRORS as error:
        return members, f"it is no whole, uncompressed .tar shard ({sentence(error)}); write it again"
    if rest.strip(b"\0"):
        return (
            members,
            f"what follows its first {end} bytes is damaged, or another archive, and is not read; write it again",
        )
    return members, ""


def _damaged(listing: Listing) -> dict[str, str]:
    """Return the files of a folder that `datasets` cannot read, each with the reason."""
    import pyarrow.parquet

    found = dict(listing.left_out)
    for key in listing.others.get(".parquet", ()):
        try:
            pyarrow.parquet.ParquetFile(Path(listing.root, key)).close()
        except _READ_ERRORS as error:
            found[shown(key)] = f"it is no whole parquet file ({sentence(error)}); delete it, or write it again"
    for key in listing.archives:
        if key.lower().endswith(".tar") and (damage := _members(Path(listing.root, key))[1]):
            found[shown(key)] = damage
    return found
