"""Reads what a run wrote about itself; a power cut or a full disk may have damaged it, and every message names the
file.

Lines are dropped one by one and told; a file that is one JSON value is an error as a whole.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers_mardini.video.errors import named_file_errors
from training.config.schema import RunConfig


# What is read of every line of `metrics.jsonl`.
METRICS = {"global_step": int, "stage": str, "step": int, "windows_seen": int}


def read_lines(path: Path, keys: Mapping[str, type] = MappingProxyType({})) -> list[dict[str, Any]]:
    """Return the records of a JSON lines file; none where there is no file.

    Every line that cannot be read is left out and told, except a last one that a kill cut short.

    Args:
        path: the file.
        keys: what a record must have, with their types; other lines are damaged.
    """
    return [record for _, record in whole_lines(path, keys)]


def whole_lines(path: Path, keys: Mapping[str, type] = MappingProxyType({})) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line that can be read, with its record; see `read_lines`."""
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
    """Add a line to a JSON lines file, after a line break if what stands there was cut short."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")


def read_json(path: Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: if it holds none, or one without some of `keys`; names the file.
    """
    with named_file_errors(f"'{path}'", "JSON"):
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
        if missing := [key for key in keys if key not in value]:
            raise ValueError(f"it has no {', no '.join(missing)}")
        return value


def read_run_config(run: Path) -> RunConfig:
    """Return the configuration that a run wrote into its folder.

    Raises:
        ValueError: if the folder is no run's, or the file is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{run} is not the folder of a run and has no finished pipeline: it has no config.json; give runs/NAME"
        )
    with named_file_errors(f"'{path}'", "a run's configuration"):
        return RunConfig.model_validate_json(path.read_bytes())
