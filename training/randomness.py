"""Randomness as a function: what a step draws depends on (seed, stage, step, sample) and on nothing that came before.

A resumed run therefore needs no saved generator or loader state, and a batch is the same however many processes share it.
"""

import hashlib

import torch


def step_generator(seed: int, *keys: str | int) -> torch.Generator:
    """A CPU generator seeded by the run's seed and any keys, such as (stage name, step, sample index)."""
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
