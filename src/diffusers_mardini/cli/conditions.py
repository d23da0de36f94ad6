"""Read the conditions of a result from a table: a row for each frame, a column for each channel."""

import csv
import math
from collections.abc import Mapping

from ..models.conditions import Condition
from ..video.errors import named_file_errors


def read_table(file: str, known: Mapping[str, Condition]) -> dict[str, list[list[float]]]:
    """Return the conditions that a `.csv` holds, those of the checkpoint whose channels are among its columns.

    A column is named after a channel (`steering`), as `action.0` if channels have no names, or as the condition if it
    has one channel. An empty cell is a value that is not known.

    Raises:
        ValueError: if the file is no such table, a column belongs to no condition, or a condition lacks a column.
    """
    with (
        named_file_errors(f"'{file}'", "a table of conditions"),
        open(file, newline="", encoding="utf-8-sig") as table,
    ):
        try:
            reader = csv.DictReader(table, strict=True)
            rows, names = list(reader), list(reader.fieldnames or ())
        except csv.Error as error:
            raise ValueError(error) from error
    if not known:
        raise ValueError(f"--conditions is {file}, but this checkpoint takes none; leave it out, or give another one")
    if not rows:
        raise ValueError(f"{file} holds no row; give one with the names of the columns, then one for each frame")
    columns = {name: _columns(condition) for name, condition in known.items()}
    strange = [name for name in names if not any(name in some for some in columns.values())]
    if strange:
        listed = "; ".join(", ".join(some) for some in columns.values())
        raise ValueError(
            f"{file} has the column {strange[0]!r}, which is no condition; this checkpoint takes {listed}"
        )
    found = {}
    for name, some in columns.items():
        missing = [column for column in some if column not in names]
        if len(missing) < len(some):
            if missing:
                raise ValueError(f"{file} has no column {missing[0]}; {known[name]} needs {', '.join(some)}")
            found[name] = [[_number(file, i, column, row) for column in some] for i, row in enumerate(rows)]
    return found


def _columns(condition: Condition) -> list[str]:
    if condition.names:
        return list(condition.names)
    if condition.channels == 1:
        return [condition.name]
    return [f"{condition.name}.{i}" for i in range(condition.channels)]


def _number(file: str, frame: int, column: str, row: Mapping[str | None, str | list[str] | None]) -> float:
    cell = row[column]
    if None in row or not isinstance(cell, str):
        raise ValueError(
            f"the row of frame {frame} in {file} has another number of cells than the first line has names"
        )
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        raise ValueError(f"{file} holds {cell!r} as {column} of frame {frame}; give a number, or nothing") from None
