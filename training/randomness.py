"""Randomness as a function: generators depend on a seed and on keys such as (stage, step, row), never on earlier
draws.

So a resumed run needs no saved generator or loader state, and a batch is the same however many processes share it.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def step_generator(seed: int, *keys: str | int) -> torch.Generator:
    """Return a CPU generator seeded by the run's seed and any keys, such as (stage name, step, row)."""
    return torch.Generator().manual_seed(_seed(seed, *keys))


@contextlib.contextmanager
def seeded_layers(device: torch.device, seed: int, *keys: str | int) -> Iterator[None]:
    """Seed the global generators, from which dropout draws, within the block; restore them afterwards."""
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(_seed(seed, *keys))
        yield


def _seed(seed: int, *keys: str | int) -> int:
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return int.from_bytes(digest[:8], "little")
