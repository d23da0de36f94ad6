"""Where clips come from: folders of videos, folders of pictures, webdataset shards, `datasets` datasets.

A source lists keys and opens them; it never decodes. What decoding says of each clip is in `manifest.py`, frames are read by
`diffusers_mardini/video_io.py`.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from diffusers_mardini.video_io import PICTURE_SUFFIXES, VIDEO_SUFFIXES, natural_key
from training.data.clips import METADATA_FILES, read_metadata


class Source(Protocol):
    """What a manifest, the latent cache and training from pixels ask of a source."""

    spec: str  # what `open_source` was given: the name in messages and in the manifest

    def keys(self) -> Iterator[str]:
        """Names of all clips, always in the same order."""

    def open(self, key: str) -> Path | bytes:
        """A video file, its bytes, or a folder of pictures; `ValueError` if it is not there."""

    def stamp(self, key: str) -> str | None:
        """Changes when the clip does, known without reading it; `None` where there is no such thing."""

    def fps(self, key: str) -> float | None:
        """Frames per second of a folder of pictures, `None` for videos, which say it themselves."""

    def unnamed(self) -> dict[str, str]:
        """Clips that are there and not among `keys`, each with the reason."""


def open_source(spec: str | Path, fps: float | None = None) -> Source:
    """Finds out what is where.

    Args:
        spec: a folder of videos, of picture folders, or of `.tar` shards; a shard, or several as `train-{000..009}.tar`; or
            `datasets:NAME[#SPLIT]` (a folder or Hub id; `datasets-stream:` streams it).
        fps: frames per second of picture folders, where their metadata does not say.

    Raises:
        ValueError: if nothing of the kind is there.
    """
    spec = str(spec)
    for prefix, streaming in (("datasets:", False), ("datasets-stream:", True)):
        if spec.startswith(prefix):
            return DatasetVideos(spec, streaming)
    if spec.endswith(".tar"):
        return WebdatasetShards(spec)
    folder = Path(spec)
    if not folder.is_dir():
        raise ValueError(
            f"there is no source of clips at '{spec}'; give a folder of videos, of folders of pictures, or of .tar shards, "
            "a shard, or datasets:NAME"
        )
    if any(folder.glob("*.tar")):
        return WebdatasetShards(spec)
    if read_metadata(folder):
        named = folder / next(iter(read_metadata(folder)))
        return PictureFolders(folder, fps) if named.is_dir() else VideoFolder(folder)
    if any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*")):
        return VideoFolder(folder)
    if any(_holds_pictures(path) for path in folder.rglob("*")):
        return PictureFolders(folder, fps)
    raise ValueError(
        f"folder '{spec}' holds no clips; accepted are videos ({', '.join(VIDEO_SUFFIXES)}), folders of pictures "
        f"({', '.join(PICTURE_SUFFIXES)}) and .tar shards"
    )


def is_there(spec: str) -> bool:
    """Whether there is anything at a source's place, without reading it; `datasets` are taken at their word."""
    if spec.startswith(("datasets:", "datasets-stream:")):
        return True
    return all(shard.exists() for shard in _shards(spec)) if spec.endswith(".tar") else Path(spec).is_dir()


class VideoFolder:
    """Videos of a folder and the folders in it (the layout of HF `videofolder`); keys are paths within it.

    With a `metadata.jsonl` or `metadata.csv`, exactly those that it names.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.spec = str(folder)
        self._rows = read_metadata(self.folder)
        there = (path for path in self.folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
        self._there = sorted(_relative(there, self.folder), key=_natural_path_key)

    def keys(self) -> Iterator[str]:
        yield from sorted(self._rows, key=_natural_path_key) if self._rows else self._there

    def open(self, key: str) -> Path:
        return _existing(self.folder / key)

    def stamp(self, key: str) -> str | None:
        path = self.folder / key
        return _stat_stamp(path) if path.exists() else None

    def fps(self, key: str) -> None:
        return None

    def unnamed(self) -> dict[str, str]:
        return _not_named(self._there, self._rows)


class PictureFolders(VideoFolder):
    """A folder of folders of pictures, each a clip in natural order (2 before 10).

    Frames per second come from `fps` of the metadata's rows, else from the argument.
    """

    def __init__(self, folder: str | Path, fps: float | None = None):
        self.folder = Path(folder)
        self.spec = str(folder)
        self._fps = fps
        self._rows = read_metadata(self.folder)
        there = (path for path in self.folder.rglob("*") if _holds_pictures(path))
        self._there = sorted(_relative(there, self.folder), key=_natural_path_key)
        if fps is None and not all("fps" in self._rows.get(key, {}) for key in self.keys()):
            raise ValueError(
                f"the picture folders of '{folder}' do not say how many frames they have per second; give fps (a run's "
                "`data.picture_fps`, or --fps), or a metadata.jsonl with file_name (the folder) and fps"
            )

    def stamp(self, key: str) -> str | None:
        path = self.folder / key
        if not path.is_dir():
            return None
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        text = "".join(f"{file.name} {_stat_stamp(file)}\n" for file in files)
        return hashlib.sha256(text.encode()).hexdigest()

    def fps(self, key: str) -> float | None:
        fps = self._rows.get(key, {}).get("fps", self._fps)
        return None if fps is None else float(fps)


class WebdatasetShards:
    """Video members of tar shards, read in place: keys are `shard.tar/member.mp4`.

    Other members (captions, metadata) are no clips. The shards are local and uncompressed, so that any clip can be read by
    itself.
    """

    def __init__(self, spec: str | Path):
        self.spec = str(spec)
        self._members: dict[str, tuple[Path, int, int]] = {}  # by key: shard, offset, length
        for shard in _shards(self.spec):
            try:
                with tarfile.open(_existing(shard), "r:") as tar:
                    for member in tar:
                        if member.isfile() and Path(member.name).suffix.lower() in VIDEO_SUFFIXES:
                            key = f"{shard.name}/{member.name}"
                            if key in self._members:
                                raise ValueError(
                                    f"'{key}' is there twice, in '{self._members[key][0]}' and in '{shard}'; give shards and members "
                                    "names of their own"
                                )
                            self._members[key] = (shard, member.offset_data, member.size)
            except tarfile.TarError as error:
                raise ValueError(
                    f"'{shard}' is no whole, uncompressed .tar shard ({error}); write it again"
                ) from error
        if not self._members:
            raise ValueError(f"the shards of '{self.spec}' hold no videos ({', '.join(VIDEO_SUFFIXES)})")

    def keys(self) -> Iterator[str]:
        yield from self._members

    def open(self, key: str) -> bytes:
        if key not in self._members:
            raise ValueError(f"there is no '{key}' in the shards of '{self.spec}'")
        shard, offset, length = self._members[key]
        with open(_existing(shard), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def stamp(self, key: str) -> str | None:
        if key not in self._members or not self._members[key][0].exists():
            return None
        shard, offset, length = self._members[key]
        return f"{_stat_stamp(shard)} {offset} {length}"

    def fps(self, key: str) -> None:
        return None

    def unnamed(self) -> dict[str, str]:
        return {}


class DatasetVideos:
    """The video column of a `datasets` dataset, local or streamed; keys are row numbers, such as `row-12`.

    The column is cast to `Video(decode=False)`, so that PyAV alone decodes. A streamed dataset is read in order, once for a manifest:
    its rows are counted as they are opened, and opening a row that lies before the last one starts it again. Make the latent cache
    from it, rather than train from its pixels.
    """

    def __init__(self, spec: str, streaming: bool = False, dataset=None):
        """`dataset` is loaded by `spec` (see `open_source`) where none is given."""
        import datasets

        self.spec = spec
        if dataset is None:
            name, _, split = spec.partition(":")[2].partition("#")
            arguments = {"split": split or "train", "streaming": streaming}
            if Path(name).is_dir() and any(path.suffix.lower() in VIDEO_SUFFIXES for path in Path(name).rglob("*")):
                dataset = datasets.load_dataset("videofolder", data_dir=name, **arguments)
            else:  # on the Hub, or a folder of parquet or .tar files
                dataset = datasets.load_dataset(name, **arguments)
        columns = [name for name, feature in (dataset.features or {}).items() if isinstance(feature, datasets.Video)]
        if len(columns) != 1:
            raise ValueError(f"'{spec}' must have one column of videos, it has {columns}")
        self._column = columns[0]
        self._dataset = dataset.select_columns(columns).cast_column(self._column, datasets.Video(decode=False))
        self._streamed = isinstance(self._dataset, datasets.IterableDataset)
        self._rows: Iterator | None = None  # of a stream
        self._next = 0
        self._last: dict | None = None  # the row before `_next`

    def keys(self) -> Iterator[str]:
        index = 0
        while self._has(index):
            yield f"row-{index}"
            index += 1

    def open(self, key: str) -> Path | bytes:
        video = self._video(int(key.removeprefix("row-")))
        if video is None or (video["bytes"] is None and video["path"] is None):
            raise ValueError(f"{key} of '{self.spec}' holds no video")
        if video["bytes"] is not None:
            return video["bytes"]
        if Path(video["path"]).is_file():
            return Path(video["path"])
        import fsspec  # hf://, https:// and members of archives, as streamed datasets name them

        try:
            with fsspec.open(video["path"], "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:
            raise ValueError(f"'{video['path']}' ({key} of '{self.spec}') cannot be read ({error})") from error

    def _has(self, index: int) -> bool:
        return self._read_to(index) if self._streamed else index < len(self._dataset)

    def _video(self, index: int) -> dict | None:
        if not self._has(index):
            rows = self._next if self._streamed else len(self._dataset)
            raise ValueError(f"'{self.spec}' ends at row {rows}; row {index} was asked for")
        return (self._last if self._streamed else self._dataset[index])[self._column]

    def _read_to(self, index: int) -> bool:
        """Makes a row of a stream the last one that was read; whether there is such a row."""
        if self._rows is None or index < self._next - 1:
            self._rows, self._next, self._last = iter(self._dataset), 0, None
        while self._next <= index:
            try:
                self._last = next(self._rows)
            except StopIteration:
                return False
            self._next += 1
        return True

    def stamp(self, key: str) -> None:
        return None

    def fps(self, key: str) -> None:
        return None

    def unnamed(self) -> dict[str, str]:
        return {}


def _shards(spec: str) -> list[Path]:
    if Path(spec).is_dir():
        return sorted(Path(spec).glob("*.tar"), key=natural_key)
    from webdataset.shardlists import expand_urls  # the usual braces: train-{000..009}.tar

    return [Path(url) for url in expand_urls(spec)]


def _holds_pictures(path: Path) -> bool:
    return path.is_dir() and any(file.suffix.lower() in PICTURE_SUFFIXES for file in path.iterdir())


def _relative(paths: Iterator[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def _natural_path_key(key: str) -> list:
    return [natural_key(part) for part in Path(key).parts]


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"there is nothing at '{path}'")
    return path


def _stat_stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _not_named(there: list[str], rows: dict[str, dict]) -> dict[str, str]:
    reason = f"not named in {' or '.join(METADATA_FILES)}"
    return {key: reason for key in there if rows and key not in rows}
