"""How many CPU cores a program may use."""

import os
from contextlib import suppress

import psutil


_MOST_PROCESSES = 61 if os.name == "nt" else None  # of a pool: Windows waits for at most so many


def cores() -> int:
    """Return how many CPU cores this process may use: a container or a cluster may allow fewer than there are."""
    with suppress(AttributeError):  # macOS has no such limit
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count() or 1


def pool_size(workers: int) -> int:
    """Return how many of so many worker processes a pool can have on this system."""
    return workers if _MOST_PROCESSES is None else min(workers, _MOST_PROCESSES)
