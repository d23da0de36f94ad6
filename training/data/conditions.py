"""Conditions of windows: numbers for each frame, read from a table beside the clip or derived from the window (ours).

`data.conditions` of the configuration names them; `diffusers_mardini/models/conditions.py` embeds them. Unknown values
are NaN; `training/curriculum.py` drops values at random.
"""

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from diffusers_mardini.models.conditions import read_config
from diffusers_mardini.pipelines.conditions import conditions_at
from diffusers_mardini.video.errors import named_file_errors
from training.config.data_section import ConditionConfig
from training.data.entries import Entry
from training.data.sources import Source


TABLE_SUFFIXES = (".csv", ".parquet")


class ClipConditions:
    """The conditions of the clips of one source.

    Args:
        source: of the clips; the table of a clip has its path with the suffix `.csv` or `.parquet`.
        conditions: by name, as in the configuration.
    """

    def __init__(self, source: Source, conditions: Mapping[str, ConditionConfig]):
        self.source, self.conditions = source, dict(conditions)
        self.known = read_config(*condition_arguments(conditions).values())
        self._table = lru_cache(maxsize=4096)(self._read_table)

    @property
    def has_tables(self) -> bool:
        """Return whether some condition is read from tables."""
        return any(condition.columns for condition in self.conditions.values())

    @property
    def read_latents(self) -> bool:
        """Whether some condition is derived from latents."""
        return any(condition.derive == "motion" for condition in self.conditions.values())

    def why_absent(self, entry: Entry) -> str | None:
        """Return why a clip cannot be used: its table is missing, damaged, or has not one row per frame."""
        if not self.has_tables:
            return None
        try:
            self._table(entry)
        except ValueError as error:
            return str(error)
        return None

    def of(self, entry: Entry, frames: Sequence[int], latents: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each condition of a window, float32 `(frames, channels)`.

        Args:
            entry: the clip.
            frames: indices of the window's frames, rising.
            latents: of these frames, `(frames, channels, height, width)`, from which motion is derived.

        Raises:
            ValueError: if the table of the clip cannot be used.
        """
        found = {}
        for name, condition in self.conditions.items():
            if condition.columns:
                columns = self._table(entry)
                values = np.stack([columns[column] for column in condition.columns], axis=1)
                clip = {name: torch.from_numpy(values)[None]}  # (1, frames of the clip, channels)
                rows = conditions_at(clip, self.known, list(frames))[name][0]
                # The models know a frame with all values of a condition, or without that condition.
                found[name] = rows.masked_fill(rows.isnan().any(dim=-1, keepdim=True), torch.nan)
            elif condition.derive == "rate":
                found[name] = frame_intervals(entry.times(frames))
            else:
                found[name] = latent_motion(latents)
        return found

    def _read_table(self, entry: Entry) -> dict[str, np.ndarray]:
        wanted = [column for condition in self.conditions.values() for column in condition.columns or ()]
        rows = self.source.rows(entry.key, wanted)
        if rows is not None:
            columns, first, count = _numbers(rows, wanted), 0, entry.num_frames
            place = f"'{entry.key}' of '{self.source.spec}'"
        else:
            path = self._table_beside(entry)
            columns, first, count = read_table(path, wanted), entry.first_frame, entry.clip_frames or entry.num_frames
            place = f"'{path}'"
        given = len(next(iter(columns.values())))
        if given != count:
            raise ValueError(f"{place} has {given} rows and its clip {count} frames; give one row for each frame")
        return {name: values[first : first + entry.num_frames] for name, values in columns.items()}

    def _table_beside(self, entry: Entry) -> Path:
        """Return the path of the table beside a clip's file, or beside the file of which it is a span."""
        clip = self.source.open(entry.key)
        if not isinstance(clip, Path):
            raise ValueError(
                f"conditions are read from tables beside clips, but the clips of '{self.source.spec}' are not files; "
                "unpack them into a folder"
            )
        tables = [path for suffix in TABLE_SUFFIXES if (path := _beside(clip, suffix)).is_file()]
        if len(tables) != 1:
            names = " or ".join(_beside(clip, suffix).name for suffix in TABLE_SUFFIXES)
            raise ValueError(f"'{clip.name}' has {len(tables)} tables of conditions beside it; give one, {names}")
        return tables[0]


def condition_arguments(conditions: Mapping[str, ConditionConfig]) -> dict[str, dict | None]:
    """Return the arguments with which planner and transformer are built to take these conditions."""
    return {
        "conditions": {name: condition.channels for name, condition in conditions.items()} or None,
        "condition_info": {name: condition.info for name, condition in conditions.items()} or None,
    }


def read_table(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of numbers, float32 `(rows,)`; an empty cell becomes NaN, an unknown value.

    Raises:
        ValueError: if the file is damaged, a column is missing, or a cell is not a number.
    """
    with named_file_errors(f"'{path}'", "a table of conditions"):
        table = _parquet_columns(path) if path.suffix == ".parquet" else _csv_columns(path)
        return _numbers(table, columns)


def _numbers(table: Mapping[str, Sequence], columns: Sequence[str]) -> dict[str, np.ndarray]:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}; its columns are {', '.join(table)}")
    values = {column: np.array([_number(cell, column) for cell in table[column]], np.float32) for column in columns}
    endless = [column for column in columns if np.isinf(values[column]).any()]
    if endless:
        raise ValueError(
            f"column {endless[0]} holds a value that is not finite; leave the cell empty if the value is unknown"
        )
    return values


def frame_intervals(times: np.ndarray) -> torch.Tensor:
    """Return the seconds between each frame and the one before, `(frames, 1)`; NaN at the first frame."""
    return torch.from_numpy(np.diff(times, prepend=np.nan).astype(np.float32))[:, None]


def latent_motion(latents: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of latents from the frame before, `(frames, 1)`; NaN at the first frame."""
    difference = latents.diff(dim=0).abs().flatten(1).mean(dim=1)
    return torch.cat([difference.new_full((1,), torch.nan), difference]).float()[:, None]


def _beside(clip: Path, suffix: str) -> Path:
    return clip.with_name(clip.name + suffix) if clip.is_dir() else clip.with_suffix(suffix)


def _csv_columns(path: Path) -> dict[str, list]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has another number of cells than the first line has names")
    return {name: [row[name] for row in rows] for name in reader.fieldnames or ()}


def _number(cell: float | str | None, column: str) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return np.nan
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"column {column} holds {cell!r}, which is no number") from None


def _parquet_columns(path: Path) -> dict[str, list]:
    import pyarrow.parquet  # comes with the optional `datasets`; importing it takes half a second

    table = pyarrow.parquet.read_table(path)
    columns = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        if values and isinstance(
            values[0], list
        ):  # LeRobot stores a vector per cell; name its elements action.0, action.1, ...
            columns |= {f"{name}.{i}": [row[i] for row in values] for i in range(len(values[0]))}
        else:
            columns[name] = values
    return columns
