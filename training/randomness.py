"""Randomness as a function: what a step draws depends on (seed, stage, step, sample) and on nothing that came before.

A resumed run therefore needs no saved generator or loader state, and a batch is the same however many processes share it.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def step_generator(seed: int, *keys: str | int) -> torch.Generator:
    """A CPU generator seeded by the run's seed and any keys, such as (stage name, step, sample index)."""
    return torch.Generator().manual_seed(_seed(seed, *keys))


@contextlib.contextmanager
def seeded_layers(device: torch.device, seed: int, *keys: str | int) -> Iterator[None]:
    """Within, layers that draw from the global generators (dropout) draw as `seed` and `keys` say; afterwards these stand where they stood."""
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(_seed(seed, *keys))
        yield


def _seed(seed: int, *keys: str | int) -> int:
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return int.from_bytes(digest[:8], "little")
