"""What MarDini's asymmetries save, as ratios measured in one run: `make bench`.

Each pair differs in one thing, runs alternately, and is compared by medians, so that the ratio survives a busy machine. The models are
random: speed does not depend on the weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel, load_preset
from diffusers_mardini.masking import interpolation_indices, reference_mask_from_indices


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    print(f"Timing {options.preset} at {options.size} pixels on {options.device}, median of {options.repeats}")
    ratios = {}
    with torch.no_grad():
        for name, first, second in pairs(options.preset, options.size, options.device):
            seconds = alternate(first, second, options.repeats, options.device)
            ratios[name] = seconds[0] / seconds[1]
            print(f"{name:<66} {seconds[0]:8.3f} s / {seconds[1]:8.3f} s = {ratios[name]:5.2f}", flush=True)
    return ratios


def pairs(preset_name: str, size: int, device: str) -> list[tuple[str, Callable, Callable]]:
    """What is compared: name, numerator, denominator."""
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


def alternate(first: Callable, second: Callable, repeats: int, device: str) -> tuple[float, float]:
    """Median seconds of both, run in turn after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for call, record in zip((first, second), times):
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize(device)
            if repeat:
                record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
