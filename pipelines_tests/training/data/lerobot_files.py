"""Small LeRobot datasets in the published layouts of versions 2.1 and 3.0, each episode of its own grey."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from pipelines_tests.training.clip_files import write_clip


TOP, WRIST = "observation.images.top", "observation.images.wrist"


def grey_of(episode: int, camera: str) -> int:
    return 40 + 30 * episode + (15 if camera == WRIST else 0)


def pictures(episode: int, length: int, camera: str) -> np.ndarray:
    """Frame `i` of an episode: a grey that only this episode of this camera has, with a bar that moves with `i`."""
    frames = np.full((length, 32, 48, 3), grey_of(episode, camera), dtype=np.uint8)
    for index in range(length):
        frames[index, :4, : 2 * (index + 1)] = 250
    return frames


def rows(episode: int, length: int, fps: int, first: int) -> dict:
    numbers = np.arange(length)
    return {
        "observation.state": [[float(episode), float(i)] for i in numbers],
        "action": [[float(i), -float(i), 0.5] for i in numbers],
        "timestamp": (numbers / fps).astype(np.float32),
        "frame_index": numbers,
        "episode_index": np.full(length, episode),
        "index": first + numbers,
        "task_index": np.full(length, episode % 2),
    }


def table(columns: dict) -> pyarrow.Table:
    vector = {
        name: pyarrow.list_(pyarrow.float32(), len(columns[name][0])) for name in ("observation.state", "action")
    }
    return pyarrow.table({name: pyarrow.array(column, vector.get(name)) for name, column in columns.items()})


def write_info(folder: Path, version: str, lengths: list[int], fps: int, cameras: tuple[str, ...], **paths) -> None:
    video = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"], "info": {}}
    numbers = {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index")}
    features = {
        **dict.fromkeys(cameras, video),
        "observation.depth": {**video, "info": {"video.is_depth_map": True}},
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        "action": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
        **numbers,
    }
    info = {
        "codebase_version": version, "robot_type": None, "total_episodes": len(lengths),
        "total_frames": sum(lengths), "chunks_size": 1000, "fps": fps, "splits": {"train": f"0:{len(lengths)}"},
        **paths, "features": features,
    }  # fmt: skip
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info, indent=4))


def write_v2(folder: Path, lengths: list[int], fps: int = 10, cameras: tuple[str, ...] = (TOP, WRIST)) -> Path:
    """Version 2.1: a video and a table for each episode."""
    data, video = (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        ("videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    )
    write_info(folder, "v2.1", lengths, fps, cameras, data_path=data, video_path=video)
    episodes = [{"episode_index": i, "tasks": [f"task {i % 2}"], "length": length} for i, length in enumerate(lengths)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in episodes))
    for episode, length in enumerate(lengths):
        path = folder / data.format(episode_chunk=0, episode_index=episode)
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table(rows(episode, length, fps, sum(lengths[:episode]))), path)
        for camera in cameras:
            place = video.format(episode_chunk=0, episode_index=episode, video_key=camera)
            write_clip(folder / place, pictures(episode, length, camera), fps)
    return folder


def write_v3(
    folder: Path, lengths: list[int], fps: int = 10, in_a_file: int = 2, cameras: tuple[str, ...] = (TOP, WRIST)
) -> Path:
    """Version 3.0: `in_a_file` episodes share a video and a table; the last table of episodes has one row."""
    data, video = (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        ("videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
    )
    write_info(folder, "v3.0", lengths, fps, cameras, data_path=data, video_path=video)
    episodes = []
    for file, first in enumerate(range(0, len(lengths), in_a_file)):
        group = list(enumerate(lengths))[first : first + in_a_file]
        tables = [table(rows(episode, length, fps, sum(lengths[:episode]))) for episode, length in group]
        path = folder / data.format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables), path)
        for camera in cameras:
            frames = np.concatenate([pictures(episode, length, camera) for episode, length in group])
            write_clip(folder / video.format(video_key=camera, chunk_index=0, file_index=file), frames, fps)
        for episode, length in group:
            begin = sum(lengths[first:episode]) / fps
            row = {
                "episode_index": episode, "tasks": [f"task {episode % 2}"], "length": length,
                "data/chunk_index": 0, "data/file_index": file,
                "dataset_from_index": sum(lengths[:episode]), "dataset_to_index": sum(lengths[: episode + 1]),
            }  # fmt: skip
            for camera in cameras:
                row |= {
                    f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file,
                    f"videos/{camera}/from_timestamp": begin, f"videos/{camera}/to_timestamp": begin + length / fps,
                }  # fmt: skip
            episodes.append(row)
    write_episodes(folder, episodes)
    return folder


def write_episodes(folder: Path, episodes: list[dict]) -> None:
    for number, part in enumerate((episodes[:-1], episodes[-1:])):
        path = folder / f"meta/episodes/chunk-000/file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(part, schema=pyarrow.Table.from_pylist(episodes).schema), path
        )


def read_episodes(folder: Path) -> list[dict]:
    paths = sorted(folder.glob("meta/episodes/*/*.parquet"))
    return [row for path in paths for row in pyarrow.parquet.read_table(path).to_pylist()]
