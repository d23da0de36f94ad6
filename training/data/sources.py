"""Sources of clips: folders of videos, folders of pictures, one video, archives, tables, `datasets` datasets.

A source lists keys and opens them; it never decodes. `archives.py` opens tar and zip archives, `manifest.py` collects
facts by decoding each clip, and `diffusers_mardini/video_io.py` reads frames. Sources whose clips are spans of others
are in `clip_lists.py` and `lerobot.py`; `remote_sources.py` has those at URLs.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import PICTURE_SUFFIXES, VIDEO_SUFFIXES, FileSection, PictureSeries
from training.data import clip_lists, lerobot, tables
from training.data.archive_members import READ_ERRORS, damage_of_tar
from training.data.archives import ARCHIVE_SUFFIXES, ArchiveClips, archive_paths, refuse_packed_tar
from training.data.failures import sentence, shown
from training.data.folders import METADATA_FILES, Listing, existing, list_folder, natural_path_key, stat_stamp
from training.data.metadata import RECORDING_COLUMNS, read_metadata, recording_of
from training.data.remote import is_remote
from training.data.remote_sources import open_remote
from training.data.spans import Span, WholeClips
from training.data.stored import LocalFile


Clip = Path | bytes | FileSection | PictureSeries  # what `diffusers_mardini.video_io` reads: a path may be a folder


class Source(Protocol):
    """The interface of a source for the manifest, the latent cache and training from pixels.

    A source that knows how many keys it has says so by `__length_hint__`.
    """

    spec: str  # the argument of `open_source`; its name in messages and in the manifest

    def keys(self) -> Iterator[str]:
        """Yield the keys of all clips, always in the same order."""
        ...

    def open(self, key: str) -> Clip:
        """Return a video file, its bytes or place, or pictures; raise `ValueError` if it is missing."""
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


def open_source(spec: str | Path, fps: float | None = None, manifests: Path | None = None) -> Source:
    """Open a source by its name.

    Args:
        spec: a folder of videos, of picture folders, or of archives; a video; a folder of pictures; an archive, or
            several as `train-{000..009}.tar`; `datasets:NAME[#SPLIT]` (a folder or Hub id; `datasets-stream:` streams
            it); `lerobot:NAME[#CAMERA]` (a LeRobot dataset, a folder or Hub id); a Parquet file with a column of
            videos, several, or a folder of them; a URL of archives or Parquet files (see `open_remote`); or a clip
            list, a `.jsonl` file.
        fps: frames per second of picture folders whose metadata do not state it.
        manifests: the folder of the manifests, which keeps what archives and tables at URLs hold.

    Raises:
        ValueError: if there is no such source.
    """
    spec = str(spec)
    for prefix, streaming in (("datasets:", False), ("datasets-stream:", True)):
        if spec.startswith(prefix):
            return DatasetVideos(spec, streaming)
    if spec.startswith(lerobot.PREFIX):
        return lerobot.LeRobotEpisodes(spec)
    if is_remote(spec):
        return open_remote(spec, fps, manifests)
    if spec.endswith(clip_lists.SUFFIX) and not Path(spec).is_dir():
        return clip_lists.ClipList(spec, lambda inner, rate: open_source(inner, rate or fps, manifests))
    folder = Path(spec)
    if not folder.is_dir():
        if spec.lower().endswith(ARCHIVE_SUFFIXES):
            return ArchiveClips(spec, fps)
        if spec.partition("#")[0].lower().endswith(tables.SUFFIX):
            return _parquet_clips(spec)
        refuse_packed_tar(spec)
        if folder.is_file() and spec.lower().endswith(VIDEO_SUFFIXES):
            return OneVideo(spec)
        raise ValueError(
            f"there is no source of clips at '{spec}'; give a folder of videos, of folders of pictures, or of .tar or "
            ".zip archives, one of these archives, a video, a Parquet file, the URL of archives or Parquet files "
            "(s3://, gs://, hf://, https://), datasets:NAME, lerobot:NAME#CAMERA, or a clip list (.jsonl)"
        )
    lerobot.refuse_plain(folder)
    listing = list_folder(folder)
    if listing.shards:
        return ArchiveClips(spec, fps, listing)
    metadata = read_metadata(listing)
    if metadata is not None:
        of_pictures = os.path.isdir(folder / next(iter(metadata.rows)))
        return PictureFolders(folder, fps, listing) if of_pictures else VideoFolder(folder, listing)
    if listing.videos:
        return VideoFolder(folder, listing)
    if listing.pictures:
        return PictureFolders(folder, fps, listing)
    if names := [name for name in listing.others.get(tables.SUFFIX, ()) if "/" not in name]:
        files = [LocalFile(folder / name) for name in sorted(names, key=natural_path_key)]
        return tables.ParquetClips(spec, files, listing=listing)
    raise ValueError(
        f"folder '{spec}' holds no clips; accepted are videos ({', '.join(VIDEO_SUFFIXES)}), folders of pictures "
        f"({', '.join(PICTURE_SUFFIXES)}), and .tar and .zip archives{listing.summary()}"
    )


def source_exists(spec: str) -> bool:
    """Return whether a source exists, without reading it; always true for what may lie on the Hub or at a URL."""
    if is_remote(spec) or spec.startswith(("datasets:", "datasets-stream:", lerobot.PREFIX)):
        return True
    if spec.endswith(clip_lists.SUFFIX) and Path(spec).is_file():
        return True
    name = spec.partition("#")[0]
    several = (*ARCHIVE_SUFFIXES, tables.SUFFIX)
    paths = archive_paths(name) if name.lower().endswith(several) else [Path(spec)]
    return all(path.exists() for path in paths)


def _parquet_clips(spec: str) -> tables.ParquetClips:
    """Open Parquet files on this machine; the column of the videos may follow after `#`."""
    name, _, column = spec.partition("#")
    return tables.ParquetClips(spec, [LocalFile(existing(path)) for path in archive_paths(name)], column)


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

    def __length_hint__(self) -> int:
        return len(self._there if self._metadata is None else self._rows)

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
        """Return the recording that metadata name, else the subfolder that holds the clip; `None` without either."""
        return recording_of(self._rows.get(key, {})) or key.rpartition("/")[0] or None

    def left_out(self) -> dict[str, str]:
        """Return videos that metadata do not name, and files that cannot be used."""
        unnamed = [key for key in self._there if self._metadata is not None and key not in self._rows]
        reason = f"not named in {' or '.join(METADATA_FILES)}"
        others = {key: why for key, why in self._listing.left_out.items() if key not in self._rows}
        return dict.fromkeys(unnamed, reason) | others

    def notes(self) -> tuple[str, ...]:
        """Return lines on ignored files and rows."""
        return self._listing.notes(self._rows) + (() if self._metadata is None else self._metadata.notes)


class OneVideo(VideoFolder):
    """A video of any length as the only clip; its key is its name."""

    def __init__(self, path: str | Path):
        """Open the source; nothing else in the video's folder counts."""
        path = Path(path)
        self.folder, self.spec = path.parent, str(path)
        self._listing = Listing(str(path.parent), videos=[path.name])
        self._metadata, self._rows = None, {}


class PictureFolders(VideoFolder):
    """Folders of pictures in a folder, each a clip in natural order (2 before 10).

    A folder that holds pictures and no folders of them is itself the only clip; its key is `.`. Frames per second come from `fps` of the metadata's rows, else from the argument.
    """

    def __init__(self, folder: str | Path, fps: float | None = None, listing: Listing | None = None):
        super().__init__(folder, listing)
        self._fps = fps
        self._rates = {
            key: self._rate(key, row["fps"]) for key, row in self._rows.items() if row.get("fps") not in (None, "")
        }
        if fps is None and not all(key in self._rates for key in self.keys()):
            raise ValueError(
                f"the picture folders of '{folder}' do not say how many frames they have per second; give fps "
                "(`data.picture_fps` of a run, `picture_fps` of an autoencoder's training, or --picture-fps), or a "
                "metadata.jsonl with file_name (the folder) and fps"
            )

    @property
    def _there(self) -> list[str]:
        return self._listing.picture_folders or (["."] if self._listing.pictures else [])

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
        clips = ["" if key == "." else key for key in self._there]
        clips += [] if self._metadata is None else self._rows
        return self._listing.notes(frozenset(clips)) + (() if self._metadata is None else self._metadata.notes)


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
        self._recording_columns = [name for name in RECORDING_COLUMNS if name in dataset.features]
        dataset = dataset.select_columns([*columns, *self._recording_columns])
        self._dataset = dataset.cast_column(self._column, datasets.Video(decode=False))
        self._streamed = isinstance(self._dataset, datasets.IterableDataset)
        self._rows: Iterator | None = None  # of a stream
        self._next = 0
        self._last: dict | None = None  # the row before `_next`
        self._opened: set[str] = set()  # real paths of the files that rows name
        self._broken: dict[str, str] = {}  # parts of a stream, with the reason

    def __length_hint__(self) -> int:
        return NotImplemented if self._streamed else len(self._dataset)

    def keys(self) -> Iterator[str]:
        """Yield `row-0`, `row-1`, ... in the order of the rows."""
        index = 0
        while self._has(index):
            yield f"row-{index}"
            index += 1

    def open(self, key: str) -> Path | bytes:
        """Return the path or the bytes of a row's video."""
        video = self._row(key)[self._column]
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

    def _row(self, key: str) -> dict:
        index = int(key.removeprefix("row-"))
        if not self._has(index):
            rows = self._next if self._streamed else len(self._dataset)
            raise ValueError(f"'{self.spec}' ends at row {rows}; row {index} was asked for")
        row = self._last if self._streamed else self._dataset[index]
        assert row is not None, "`_has` has read it"
        return row

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
            except (*READ_ERRORS, datasets.exceptions.DatasetsError) as error:
                self._broken[f"file {part + 1} of {parts}"] = (
                    f"its rows, or the rest of them, cannot be read ({sentence(error)})"
                )

    def stamp(self, key: str) -> None:
        """Return `None`: rows have no stamp and are read again."""
        return None

    def fps(self, key: str) -> None:
        """Return `None`: videos state their own rate."""
        return None

    def recording(self, key: str) -> str | None:
        """Return the recording that a column of the dataset names, `None` if it has no such column."""
        return recording_of(self._row(key)) if self._recording_columns else None

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
    except (*READ_ERRORS, datasets.exceptions.DatasetsError) as error:
        found = [sentence(each) for each in (error, error.__cause__) if each is not None]
        if listing is not None:
            found += [f"{key}: {reason}" for key, reason in list(_damaged(listing).items())[:5]]
            try:
                read_metadata(listing)
            except ValueError as metadata_error:
                found.append(sentence(metadata_error))
        raise ValueError(f"'{spec}' cannot be loaded by `datasets`: {'; '.join(found)}") from error


def _damaged(listing: Listing) -> dict[str, str]:
    """Return the files of a folder that `datasets` cannot read, each with the reason."""
    import pyarrow.parquet

    found = dict(listing.left_out)
    for key in listing.others.get(".parquet", ()):
        try:
            pyarrow.parquet.ParquetFile(Path(listing.root, key)).close()
        except READ_ERRORS as error:
            found[shown(key)] = f"it is no whole parquet file ({sentence(error)}); delete it, or write it again"
    for key in listing.archives:
        if key.lower().endswith(".tar") and (damage := damage_of_tar(Path(listing.root, key))):
            found[shown(key)] = damage
    return found
