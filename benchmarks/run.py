"""Measure the savings of MarDini's asymmetries as ratios: `make bench`.

Each pair differs in one thing, runs alternately, and is compared by medians, so that a busy machine changes the ratios
little. The models are random: speed does not depend on the weights.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel, load_preset
from diffusers_mardini.masking import interpolation_indices, reference_mask_from_indices

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    machine = describe_machine(options.device)
    print(f"Timing {options.preset} at {options.size} pixels, median (least to largest) of {options.repeats}")
    print(machine_line(machine))
    ratios, rows = {}, []
    with torch.no_grad():
        for name, first, second in pairs(options.preset, options.size, options.device):
            seconds = list(alternate({"first": first, "second": second}, options.repeats, options.device).values())
            spread = ratio(*seconds)
            ratios[name] = spread.median
            medians = [Spread.of(side).median for side in seconds]
            print(f"{name:<66} {medians[0]:8.3f} s / {medians[1]:8.3f} s = {spread:5.2f}", flush=True)
            rows.append({"name": name, "seconds": medians, "ratio": spread})
    write_json(options.output, {"machine": machine, "preset": options.preset, "size": options.size, "rows": rows})
    return ratios


def pairs(preset_name: str, size: int, device: str) -> list[tuple[str, Callable, Callable]]:
    """Return the comparisons: name, numerator, denominator."""
    preset = load_preset(preset_name)
    torch.manual_seed(0)
    planner = MarDiniPlannerTransformer3DModel(**preset["planner"]).to(device).eval()
    transformer = MarDiniTransformer3DModel(**preset["transformer"]).to(device).eval()
    frames, channels, side = preset["num_frames"], preset["planner"]["in_channels"], size // 8
    low_side = side // preset["planner_downscale"]
    mask = reference_mask_from_indices(interpolation_indices(frames), frames, device=device)
    high = torch.randn(1, frames, channels, side, side, device=device)
    low = torch.randn(1, frames, channels, low_side, low_side, device=device)
    timestep = torch.full((1,), 500, device=device)
    signals = planner(low, mask).planning_signals
    masked = frames - 2

    def denoise(attention: str, count: int | None) -> Callable:
        def call():
            transformer.set_temporal_attention(attention)
            transformer(high, timestep, signals, mask, num_masked_frames=count)

        return call

    return [
        (
            "planner at full / at low resolution (Table 3)",
            lambda: planner(high, mask, num_masked_frames=masked),
            lambda: planner(low, mask, num_masked_frames=masked),
        ),
        (
            "transformer with spatio-temporal / temporal attention (Table 3)",
            denoise("spatiotemporal", masked),
            denoise("temporal", masked),
        ),
        (
            "identity attention by row / with one count of masked frames",
            denoise("spatiotemporal", None),
            denoise("spatiotemporal", masked),
        ),
        (
            "one step of the transformer / the one run of the planner",
            denoise("temporal", masked),
            lambda: planner(low, mask, num_masked_frames=masked),
        ),
    ]


if __name__ == "__main__":
    main()
