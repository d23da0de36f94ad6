"""Count the CPU cores that a program may use."""

import os
from contextlib import suppress
from pathlib import Path

import psutil


_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST_PROCESSES = 61 if os.name == "nt" else None  # of a pool: Windows waits for at most so many


def cores() -> int:
    """Return how many CPU cores this process may use: a container or a cluster may allow fewer than there are."""
    allowed = os.cpu_count() or 1
    with suppress(AttributeError):  # macOS has no such limit
        allowed = len(psutil.Process().cpu_affinity())
    with suppress(OSError, ValueError):  # a container's share, as microseconds of each period; "max" is no limit
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def pool_size(workers: int) -> int:
    """Return how many of so many worker processes a pool can have on this system."""
    return workers if _MOST_PROCESSES is None else min(workers, _MOST_PROCESSES)
