"""Timing for all benchmarks: sides that run alternately, medians and ratios with their spread, machine, json file.

Ratios are computed per round and then summarized, because the speed of a shared machine drifts, but hardly in a round.
"""

import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini.hardware import has_bfloat16_units
from training.monitoring.environment import processor_name


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of some numbers."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __format__(self, form: str) -> str:
        return f"{self.median:{form}} ({self.least:{form}} to {self.largest:{form}})"


def alternate(
    sides: dict[str, Callable[[], Any]],
    repeats: int,
    device: torch.device | str = "cpu",
    warm_up: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Run all sides once in each of `warm_up + repeats` rounds; return the seconds of every side and counted round.

    On a CPU with one thread, processor time is measured, so that other processes do not count; elsewhere, wall-clock
    time; `clock` returns other seconds. Garbage is collected between the runs, not within them.
    """
    clock = clock or clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + repeats):
        for name, call in sides.items():
            gc.collect()
            gc.disable()
            try:
                start = clock()
                call()
                synchronize(device)
                took = clock() - start
            finally:
                gc.enable()
            if turn >= warm_up:
                seconds[name].append(took)
    return seconds


def clock_of(device: torch.device | str) -> Callable[[], float]:
    """Return the clock of `alternate`."""
    one_thread = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def synchronize(device: torch.device | str) -> None:
    """Wait until a device other than the CPU has finished: CUDA, MPS, XPU."""
    device = torch.device(device)
    if device.type not in ("cpu", "meta"):
        getattr(torch, device.type).synchronize(*() if device.type == "mps" else (device,))


def ratio(numerators: list[float], denominators: list[float]) -> Spread:
    """Return the ratio of two sides of `alternate`, round by round."""
    return Spread.of([one / other for one, other in zip(numerators, denominators, strict=True)])


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return processor, cores, threads and matrix units, without names of the machine or the user."""
    device = torch.device(device)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx": bool(capabilities.get("amx_bf16", False)),
        "bfloat16_units": has_bfloat16_units(device),
        "torch": torch.__version__,
        "seconds": "of the processor" if clock_of(device) is time.process_time else "of the clock",
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return the facts of `describe_machine` in one line."""
    units = "AMX" if machine["amx"] else "bfloat16 units, no AMX" if machine["bfloat16_units"] else "no bfloat16 units"
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used, {units}; "
        f"torch {machine['torch']} on {machine['device']}; seconds {machine['seconds']}"
    )


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result and print its path; do nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=_plain) + "\n", encoding="utf-8")
    print(f"Wrote {path}")


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written to json")
