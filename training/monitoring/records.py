"""Read and append a run's records, which a power cut or a full disk may have damaged; messages name the file.

Damaged lines are left out one by one and reported; a damaged JSON file is an error.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers_mardini.video.errors import named_file_errors
from training.config.schema import RunConfig


# Keys that every line of `metrics.jsonl` must have.
METRICS = {"global_step": int, "stage": str, "step": int, "windows_seen": int}


def read_lines(path: Path, keys: Mapping[str, type] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Return the records of a JSON lines file; none if there is no file.

    Every damaged line is left out and reported, except a last one that a kill cut short.

    Args:
        path: the file.
        keys: keys that a record must have, with their types; lines without them count as damaged.
    """
    return [record for _, record in whole_lines(path, keys)]


def whole_lines(path: Path, keys: Mapping[str, type] = MappingProxyType({})) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each undamaged line with its record; see `read_lines`."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line.strip(b"\0 \t\r").decode("utf-8"))  # a power cut leaves zeros
            missing = [key for key, kind in keys.items() if type(record[key]) is not kind]
            if missing or not isinstance(record, dict):
                raise ValueError(f"{missing or record} is not what it should be")
        except (ValueError, LookupError, TypeError) as error:
            if number < len(lines):
                print(f"{path}, line {number}: damaged, left out ({type(error).__name__}: {error})")
            continue
        yield line + b"\n", record


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append a line to a JSON lines file, after a line break if the last line was cut short."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: if it holds no object, or one that lacks some of `keys`; names the file.
    """
    with named_file_errors(f"'{path}'", "JSON"):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"it has no {', no '.join(missing)}")
        return value


def read_run_config(run: Path) -> RunConfig:
    """Return the configuration saved in a run's folder.

    Raises:
        ValueError: if the folder is not that of a run, or the file is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{run} is not the folder of a run and has no finished pipeline: it has no config.json; give runs/NAME"
        )
    with named_file_errors(f"'{path}'", "a run's configuration"):
        return RunConfig.model_validate_json(path.read_bytes())
