"""Attention on a CPU in its two forms, by length of sequence: `python -m benchmarks.attention_forms`.

`LONGEST_PLAIN_ON_CPU` in `models/attention.py` follows from its table. Lengths are those of the small models' layers and of larger ones.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from diffusers_mardini.models.attention import attend, attend_by_products

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


# Sequences, queries, keys: what a window of 9 frames of 64, 128, 256 and 512 pixels asks for, two frames given.
SHAPES = {
    "temporal, 64 px": (72, 7, 9),
    "cross, 64 px": (7, 72, 16),
    "spatial, 64 px": (7, 72, 72),
    "planner, 64 px": (1, 140, 180),
    "spatial, 128 px": (7, 272, 272),
    "spatio-temporal, 64 px": (1, 504, 648),
    "spatial, 256 px": (7, 1056, 1056),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_forms", description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    print(f"{options.heads} heads of {options.head_dim}, median (least to largest) of {options.repeats}")
    print(machine_line(machine))
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for name in options.shapes:
            sequences, queries, keys = SHAPES[name]
            query, key, value = (
                torch.randn(sequences, length, options.heads, options.head_dim, dtype=dtype)
                for length in (queries, keys, keys)
            )
            with torch.no_grad():
                seconds = alternate(
                    {
                        "kernel": lambda: attend(query, key, value, backend=AttentionBackendName.NATIVE),
                        "products": lambda: attend_by_products(query, key, value),
                    },
                    options.repeats,
                )
            faster = ratio(seconds["kernel"], seconds["products"])
            number_format = str(dtype).removeprefix("torch.")
            rows.append(
                {
                    "dtype": number_format,
                    "shape": name,
                    "keys": keys,
                    "kernel": Spread.of(seconds["kernel"]),
                    "products": Spread.of(seconds["products"]),
                    "speedup": faster,
                }
            )
            print(
                f"{number_format:<9} {name:<24} {keys:>5} keys: kernel {1e3 * rows[-1]['kernel'].median:8.2f} ms, plain products "
                f"{1e3 * rows[-1]['products'].median:8.2f} ms, {faster:.2f} times as fast",
                flush=True,
            )
    result = {"machine": machine, "rows": rows}
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
