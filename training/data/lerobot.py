"""LeRobot datasets (versions 2 and 3) as a source: each episode of one camera is a clip; read without that package.

In version 3 many episodes lie in one video, and `meta/episodes` says from when to when. The tables in `data/` hold a
row for each frame, with columns such as `action`, which conditions read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers_mardini.video.errors import named_file_errors
from training.data.failures import sentence
from training.data.folders import existing, stat_stamp
from training.data.metadata import utf8_text
from training.data.spans import Span, SpanSource, WholeClips


if TYPE_CHECKING:
    import pyarrow

PREFIX = "lerobot:"
INFO = "meta/info.json"
_OF_EPISODES = ("episode_index", "length", "tasks")


@dataclass(frozen=True)
class Episode:
    """An episode: its number, frames, tasks, the file of its rows, its video, and from when to when in it."""

    index: int
    length: int
    tasks: tuple[str, ...]
    data: str
    video: str
    seconds: tuple[float, float] | None

    @property
    def key(self) -> str:
        """Return its name as a clip."""
        return f"episode_{self.index:06d}"


class LeRobotEpisodes(SpanSource):
    """The episodes of one camera of a LeRobot dataset; keys are `episode_000012`."""

    def __init__(self, spec: str):
        """Open the dataset that `lerobot:FOLDER#CAMERA` names; with one camera its name may be left out.

        Raises:
            ValueError: if there is no such dataset or camera, or its files of metadata cannot be used.
        """
        name, camera = _parts(spec)
        self.folder = Path(name) if Path(name).is_dir() else _download(name, ["meta/*"])
        self.info = _read_info(self.folder)
        self.camera = _camera(spec, self.folder, self.info, camera)
        if not Path(name).is_dir():
            _download(name, ["meta/*", "data/*", f"videos/*{self.camera}/*"])
        read = _episodes_of_v3 if self.info["codebase_version"].startswith("v3") else _episodes_of_v2
        with named_file_errors(f"'{self.folder / 'meta'}'", "the episodes of a LeRobot dataset"):
            self.episodes = {episode.key: episode for episode in read(self.folder, self.info, self.camera)}
        if not self.episodes:
            raise ValueError(f"the LeRobot dataset '{self.folder}' has no episodes")
        videos = _Videos(self.folder, self.camera, [episode.video for episode in self.episodes.values()])
        super().__init__(
            spec,
            {
                key: Span(videos, episode.video, 0, episode.length, episode.seconds)
                for key, episode in self.episodes.items()
            },
        )

    def recording(self, key: str) -> str | None:
        """Return the episode with its tasks, the same for all cameras."""
        self._span(key)
        return ": ".join([key, *filter(None, [", ".join(self.episodes[key].tasks)])])

    def rows(self, key: str, columns: Sequence[str]) -> Mapping[str, Sequence]:
        """Return columns of the episode's rows, one for each frame; `action.0` is the first element of `action`.

        An action is recorded beside the frame at which it was chosen, and leads to the next one: it is returned for
        that one, and `None` for the first frame.
        """
        self._span(key)
        episode, found = self.episodes[key], {}
        table = self._table(episode, sorted({self._column(column) for column in columns}))
        for column in columns:
            cells = table.column(self._column(column)).to_pylist()
            values = cells if column == self._column(column) else [_element(cell, column, episode) for cell in cells]
            is_action = self._column(column).partition(".")[0] == "action"
            found[column] = [None, *values[:-1]] if is_action else values
        return found

    def _column(self, name: str) -> str:
        """Return the column of the files in which a value lies, that of a vector for one of its elements."""
        if name in self.info["features"]:
            return name
        vector, _, element = name.rpartition(".")
        if vector in self.info["features"] and element.isdigit():
            return vector
        raise ValueError(
            f"the LeRobot dataset '{self.folder}' has no column {name}; its columns are "
            + ", ".join(_column_names(self.info["features"]))
        )

    def _table(self, episode: Episode, columns: list[str]) -> "pyarrow.Table":
        import pyarrow.parquet  # comes with the optional `datasets`; importing it takes half a second

        path = self.folder / episode.data
        with named_file_errors(f"'{path}'", "a table of LeRobot"):
            table = pyarrow.parquet.read_table(
                path, columns=[*columns, "frame_index"], filters=[("episode_index", "=", episode.index)]
            ).sort_by("frame_index")
        if table.column("frame_index").to_pylist() != list(range(episode.length)):
            raise ValueError(
                f"'{path}' has {table.num_rows} rows of {episode.key}, not one for each of its {episode.length} frames"
            )
        return table


class _Videos(WholeClips):
    """The video files of a camera, which hold one or many episodes each; keys are paths within the dataset."""

    def __init__(self, folder: Path, camera: str, videos: Sequence[str]):
        self.folder = folder
        self.spec = f"videos of {folder}#{camera}"
        self._videos = list(dict.fromkeys(videos))

    def keys(self) -> Iterator[str]:
        yield from self._videos

    def open(self, key: str) -> Path:
        return existing(self.folder / key)

    def stamp(self, key: str) -> str | None:
        path = self.folder / key
        return stat_stamp(path) if path.exists() else None

    def fps(self, key: str) -> None:
        return None

    def left_out(self) -> dict[str, str]:
        return {}

    def notes(self) -> tuple[str, ...]:
        return ()


def refuse_plain(folder: Path) -> None:
    """Refuse a LeRobot dataset of version 3 that is given as a folder of videos: its episodes share files.

    Raises:
        ValueError: with the spelling that reads its episodes.
    """
    folder = folder.absolute()
    for root in (folder, *folder.parents[:4]):
        if not (root / INFO).is_file() or (root != folder and folder.relative_to(root).parts[0] != "videos"):
            continue
        try:
            info = _read_info(root)
        except ValueError:
            continue  # another program's meta/info.json
        if info["codebase_version"].startswith("v3"):
            inner = folder.relative_to(root).parts[1:2]
            cameras = [camera for camera in _cameras(info) if not inner or camera == inner[0]] or ["CAMERA"]
            spelling = " or ".join(f"{PREFIX}{root}#{camera}" for camera in cameras)
            raise ValueError(
                f"'{folder}' is a LeRobot dataset of version 3, whose videos hold many episodes each; give {spelling}"
            )


def _parts(spec: str) -> tuple[str, str]:
    """Return the folder or Hub id of a dataset, and the camera or ""."""
    name = spec.removeprefix(PREFIX)
    if Path(name).is_dir() or "#" not in name:
        return name, ""
    name, _, camera = name.rpartition("#")
    return name, camera


def _download(name: str, patterns: list[str]) -> Path:
    """Return the folder of a dataset on the Hub, of which the files that match are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
    except HFValidationError as error:
        raise ValueError(f"there is no folder '{name}'; give the folder of a LeRobot dataset") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"there is no folder '{name}', nor can a LeRobot dataset of that name be had from the Hub "
            f"({sentence(error)}); give a folder, or a Hub id where there is a network"
        ) from error


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    if not path.exists():
        raise ValueError(f"'{folder}' is no LeRobot dataset: it has no {INFO}")
    with named_file_errors(f"'{path}'", "the description of a LeRobot dataset"):
        info = json.loads(utf8_text(path))
        version, features = info["codebase_version"], dict(info["features"])
        if not isinstance(version, str) or not all(isinstance(feature, dict) for feature in features.values()):
            raise ValueError("codebase_version or features are not as published")
    if not version.startswith(("v2.", "v3.")):
        raise ValueError(
            f"'{folder}' is a LeRobot dataset of version {version}; versions 2 and 3 can be read. Convert it with the "
            "scripts of the lerobot package"
        )
    return info


def _cameras(info: dict[str, Any]) -> list[str]:
    """Return the cameras with videos, without depth, which is no picture."""
    depth = {
        name
        for name, feature in info["features"].items()
        for facts in (feature, feature.get("info") or {}, feature.get("video_info") or {})
        if facts.get("video.is_depth_map") or facts.get("is_depth_map")
    }
    return [
        name for name, feature in info["features"].items() if feature.get("dtype") == "video" and name not in depth
    ]


def _camera(spec: str, folder: Path, info: dict[str, Any], wanted: str) -> str:
    cameras = _cameras(info)
    if wanted in cameras:
        return wanted
    if not cameras:
        pictures = [name for name, feature in info["features"].items() if feature.get("dtype") == "image"]
        stored = f"; {', '.join(pictures)} lie as pictures in its tables, which are not read" if pictures else ""
        raise ValueError(f"the LeRobot dataset '{folder}' has no camera with videos{stored}")
    if wanted or len(cameras) > 1:
        problem = f"'{spec}' names no camera" if not wanted else f"the LeRobot dataset has no camera '{wanted}'"
        name = _parts(spec)[0]
        raise ValueError(f"{problem}; give one of {', '.join(f'{PREFIX}{name}#{camera}' for camera in cameras)}")
    return cameras[0]


def _episodes_of_v2(folder: Path, info: dict[str, Any], camera: str) -> Iterator[Episode]:
    """Yield the episodes of version 2: a video and a table for each."""
    path = folder / "meta/episodes.jsonl"
    with named_file_errors(f"'{path}'", "the episodes of a LeRobot dataset"):
        rows = [json.loads(line) for line in utf8_text(path).split("\n") if line.strip()]
        for row in sorted(rows, key=lambda row: row["episode_index"]):
            index = int(row["episode_index"])
            places = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
            yield Episode(
                index, int(row["length"]), tuple(map(str, row.get("tasks") or ())), info["data_path"].format(**places),
                info["video_path"].format(**places, video_key=camera), None,
            )  # fmt: skip


def _episodes_of_v3(folder: Path, info: dict[str, Any], camera: str) -> Iterator[Episode]:
    """Yield the episodes of version 3: parts of videos and tables that they share."""
    import pyarrow.parquet

    data, video = (
        ("data/chunk_index", "data/file_index"),
        (f"videos/{camera}/chunk_index", f"videos/{camera}/file_index"),
    )
    seconds = (f"videos/{camera}/from_timestamp", f"videos/{camera}/to_timestamp")
    paths, rows = sorted(folder.glob("meta/episodes/*/*.parquet")), []
    if not paths:
        raise ValueError("there are no tables in meta/episodes; the copy is incomplete")
    for path in paths:
        with named_file_errors(f"'{path}'", "the episodes of a LeRobot dataset"):
            columns = [*_OF_EPISODES, *data, *video, *seconds]
            if missing := set(columns) - set(pyarrow.parquet.read_schema(path).names):
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            rows += pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        if any(row[name] is None for name in (*data, *video, *seconds)):  # videos that were never encoded
            raise ValueError(f"they do not say where episode {row['episode_index']} lies; record it to its end")
        yield Episode(
            row["episode_index"],
            row["length"],
            tuple(row["tasks"] or ()),
            info["data_path"].format(chunk_index=row[data[0]], file_index=row[data[1]]),
            info["video_path"].format(video_key=camera, chunk_index=row[video[0]], file_index=row[video[1]]),
            (row[seconds[0]], row[seconds[1]]),
        )


def _column_names(features: Mapping[str, dict]) -> list[str]:
    """Return the names of all numbers of a frame."""
    names = []
    for name, feature in features.items():
        shape = feature.get("shape") or [1]
        if feature.get("dtype") in ("video", "image", "string"):
            continue
        names += [name] if list(shape) == [1] else [f"{name}.0 to {name}.{shape[0] - 1}"]
    return names


def _element(cell: Any, column: str, episode: Episode) -> Any:
    index = int(column.rpartition(".")[2])
    if not isinstance(cell, list) and index == 0:  # a vector of one element is stored as a number
        return cell
    if not isinstance(cell, list) or index >= len(cell):
        raise ValueError(f"{episode.key} has no {column}: {cell!r}"[:200])
    return cell[index]
