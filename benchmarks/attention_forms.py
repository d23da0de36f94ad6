"""Time denoising steps on a CPU with both forms of attention, by frame size: `python -m benchmarks.attention_forms`.

`LONGEST_PLAIN_ON_CPU` in `models/attention.py` is chosen by it. Whole steps are timed, because attention alone would
find other data in the caches.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from diffusers_mardini import MarDiniTransformer3DModel, load_preset
from diffusers_mardini.masking import interpolation_indices, reference_mask_from_indices
from diffusers_mardini.models import attention

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


IN_A_ROW = 5  # steps of one form in a row, so that caches are filled as in sampling
FORMS = {"kernel": 0, "products": 10**9, "chosen": None}  # the longest sequence that plain products take


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_forms", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of a frame in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    preset, machine = load_preset(options.preset), describe_machine()
    print(f"A step of {options.preset}, seven frames between two, median (least to largest) of {options.repeats}")
    print(machine_line(machine))
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in options.sizes:
            seconds = alternate(steps(preset, size, dtype), options.repeats)
            number_format = str(dtype).removeprefix("torch.")
            keys = (size // 8 // preset["transformer"]["patch_size"]) * (
                size // 8 // preset["transformer"]["patch_size"] + 1
            )
            row = {
                "dtype": number_format,
                "size": size,
                "keys": keys,
                "seconds": {name: Spread.of(times) for name, times in seconds.items()},
                "products": ratio(seconds["kernel"], seconds["products"]),
                "chosen": ratio(seconds["kernel"], seconds["chosen"]),
            }
            rows.append(row)
            milliseconds = 1e3 * row["seconds"]["kernel"].median / IN_A_ROW
            print(
                f"{number_format:<9} {size} px, {keys:>5} keys: kernel {milliseconds:8.1f} ms, "
                f"products {row['products']:.2f} and the choice {row['chosen']:.2f} times as fast",
                flush=True,
            )
    result = {"machine": machine, "rows": rows}
    write_json(options.output, result)
    return result


def steps(preset: dict[str, Any], size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the same denoising step in every form."""
    torch.manual_seed(0)
    transformer = MarDiniTransformer3DModel(**preset["transformer"]).eval()
    torch.nn.Module.to(transformer, dtype)
    frames, channels, side = preset["num_frames"], preset["transformer"]["in_channels"], size // 8
    low_side = side // preset["planner_downscale"]
    mask = reference_mask_from_indices(interpolation_indices(frames), frames)
    latents = torch.randn(1, frames, channels, side, side, dtype=dtype)
    signals = torch.randn(1, frames, low_side, low_side, preset["transformer"]["planning_dim"], dtype=dtype)
    with torch.no_grad():
        state = transformer(latents, 0, signals, mask, num_masked_frames=frames - 2, return_window_state=True)

    def step(longest: int | None):
        limits = dict.fromkeys(attention.LONGEST_PLAIN_ON_CPU, longest) if longest is not None else {}

        @torch.no_grad()
        def run() -> None:
            with patch.dict(attention.LONGEST_PLAIN_ON_CPU, limits):
                for _ in range(IN_A_ROW):
                    transformer(latents[:, 1:-1], 500, window_state=state)

        return run

    return {name: step(longest) for name, longest in FORMS.items()}


if __name__ == "__main__":
    main()
