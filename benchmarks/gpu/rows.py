"""Rows of a part of the check, on disk as soon as they are measured, and the time that a part may take."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from ..timing import describe_machine


class Rows:
    """Rows of one part: the file is written anew with each of them.

    Args:
        path: the json file; its folder is created.
        device: where is measured.
        seconds: `add` is for parts that ask `time_left` before they begin another measurement.
    """

    def __init__(self, path: Path, device: torch.device, seconds: float):
        self.path = path
        self.facts: dict[str, Any] = {"machine": describe_machine(device)}
        self.rows: list[dict[str, Any]] = []
        self._end = time.monotonic() + seconds
        self._write()

    @property
    def time_left(self) -> float:
        """Seconds until the part should end."""
        return self._end - time.monotonic()

    def add(self, **row: Any) -> None:
        """Add a row, print it, and write all."""
        self.rows.append(row)
        print("  ".join(f"{name}: {shown(value)}" for name, value in row.items()), flush=True)
        self._write()

    def know(self, **facts: Any) -> None:
        """Add facts that belong to all rows."""
        self.facts |= facts
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({**self.facts, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")


def shown(value: Any) -> str:
    """Return a value as text: floats with three digits that matter."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def reason_of(error: Exception) -> str:
    """Return the first line of an error, for the row of a form that did not run."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


def peak_gib(device: torch.device) -> float | None:
    """Return the most memory that tensors have taken since `reset_peak`, in GiB; `None` on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Free what is not in use, and count the most memory from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
