"""What the asymmetry of resolution and attention saves (Table 3): `python -m benchmarks.asymmetry`.

Seconds of whole windows at our size, and operations and memory of the paper's four sizes, counted on meta tensors with nothing allocated. As in
Table 3, 12 frames are made from 1 in 25 steps, without guidance, of which the table does not speak. The autoencoder is not counted.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel, load_preset
from diffusers_mardini.costs import PeakMemory
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.masking import leading_indices, reference_mask_from_indices
from training.step_costs import fused_attention

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


FRAMES, GIVEN, STEPS = 13, 1, 25
PAPER_PRESETS = ("mardini-s-st", "mardini-l-st", "mardini-s-t", "mardini-l-t")
# Table 3, one A100 in bf16: the asymmetric model of temporal attention; the symmetric one ran out of memory.
PAPER_SECONDS = {256: 2.63, 512: 6.05}
PAPER_GIGABYTES = {512: 42.6}


@dataclass(frozen=True)
class Variant:
    """How a window is sampled: where the planner looks, how often it runs, and over what the transformer attends.

    Attributes:
        low_resolution: of the planner.
        planner_runs: for a window.
        temporal_attention: of the transformer; `None` for the preset's own.
    """

    low_resolution: bool
    planner_runs: int
    temporal_attention: str | None = None


VARIANTS = {
    "planner at low resolution, once (MarDini)": Variant(True, 1),
    "the same, spatio-temporal attention": Variant(True, 1, "spatiotemporal"),
    "planner at low resolution, at every step": Variant(True, STEPS),
    "planner at full resolution, once": Variant(False, 1),
    "planner at full resolution, at every step (symmetric)": Variant(False, STEPS),
}


@dataclass(frozen=True)
class Count:
    """Of one call of a model: operations, bytes of its weights, most bytes of results alive."""

    operations: int
    weights: int
    activations: int


def _count(model: torch.nn.Module, dtype: torch.dtype, call: Callable[[torch.nn.Module], Any]) -> Count:
    torch.nn.Module.to(model, dtype)
    with torch.no_grad(), fused_attention():
        with FlopCounterMode(display=False) as counter:
            call(model)
        with PeakMemory() as memory:
            call(model)
    return Count(counter.get_total_flops(), sum(p.nbytes for p in model.parameters()), memory.peak)


def count_planner(arguments: dict[str, Any], side: int, dtype: torch.dtype) -> Count:
    """Of the planner for latents of a side; blocks are alike, so that more of them follow from one and two."""

    def count(layers: int) -> Count:
        with torch.device("meta"):
            model = MarDiniPlannerTransformer3DModel(**{**arguments, "num_layers": layers})
            latents = torch.empty(1, FRAMES, arguments["in_channels"], side, side, dtype=dtype)
            mask = torch.zeros(1, FRAMES, dtype=torch.bool)
        return _count(model, dtype, lambda m: m(latents, mask, num_masked_frames=FRAMES - GIVEN))

    return _of_all_layers(count, arguments["num_layers"])


def count_transformer(
    arguments: dict[str, Any], side: int, low_side: int, temporal_attention: str, dtype: torch.dtype
) -> Count:
    """Of one step of the transformer."""

    def count(layers: int) -> Count:
        changed = {"num_layers": layers, "temporal_attention": temporal_attention}
        with torch.device("meta"):
            model = MarDiniTransformer3DModel(**{**arguments, **changed})
            latents = torch.empty(1, FRAMES, arguments["in_channels"], side, side, dtype=dtype)
            signals = torch.empty(1, FRAMES, low_side, low_side, arguments["planning_dim"], dtype=dtype)
            mask, timestep = torch.zeros(1, FRAMES, dtype=torch.bool), torch.zeros(1)
        return _count(model, dtype, lambda m: m(latents, timestep, signals, mask, num_masked_frames=FRAMES - GIVEN))

    return _of_all_layers(count, arguments["num_layers"])


def _of_all_layers(count: Callable[[int], Count], layers: int) -> Count:
    one, two = count(1), count(2)
    more = layers - 1
    return Count(
        one.operations + more * (two.operations - one.operations),
        one.weights + more * (two.weights - one.weights),
        max(one.activations, two.activations),  # nothing is kept from block to block
    )


def count_preset(name: str, size: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A row for every variant: operations of a window, of which by the planner, bytes of weights and of the largest working set."""
    preset = load_preset(name)
    arguments, side = preset["transformer"], size // 8
    rows = []
    for label, variant in VARIANTS.items():
        low_side = side // (preset["planner_downscale"] if variant.low_resolution else 1)
        attention = variant.temporal_attention or arguments["temporal_attention"]
        planner = count_planner(preset["planner"], low_side, dtype)
        step = count_transformer(arguments, side, low_side, attention, dtype)
        rows.append(
            {
                "preset": name,
                "size": size,
                "variant": label,
                "operations": planner.operations * variant.planner_runs + step.operations * STEPS,
                "planner_operations": planner.operations * variant.planner_runs,
                "weight_bytes": planner.weights + step.weights,
                "activation_bytes": max(planner.activations, step.activations),
            }
        )
    return rows


def time_variants(
    preset_name: str, size: int, steps: int, repeats: int, device: torch.device, dtype: torch.dtype
) -> dict[str, list[float]]:
    """Seconds of planner and transformer for a window, by variant; a planner that runs at every step does so `steps` times."""
    preset = load_preset(preset_name)
    torch.manual_seed(0)
    planner = torch.nn.Module.to(MarDiniPlannerTransformer3DModel(**preset["planner"]), device, dtype).eval()
    transformer = torch.nn.Module.to(MarDiniTransformer3DModel(**preset["transformer"]), device, dtype).eval()
    side, channels, masked = size // 8, preset["transformer"]["in_channels"], FRAMES - GIVEN
    mask = reference_mask_from_indices(leading_indices(GIVEN), FRAMES, device=device)
    latents = torch.randn(1, FRAMES, channels, side, side, device=device, dtype=dtype)
    timestep = torch.full((1,), 500, device=device)

    def window(variant: Variant) -> Callable[[], None]:
        low_side = side // (preset["planner_downscale"] if variant.low_resolution else 1)
        low = torch.randn(1, FRAMES, channels, low_side, low_side, device=device, dtype=dtype)
        attention = variant.temporal_attention or preset["transformer"]["temporal_attention"]

        @torch.no_grad()
        def run() -> None:
            transformer.set_temporal_attention(attention)
            for step in range(steps):
                if step == 0 or variant.planner_runs > 1:
                    signals = planner(low, mask, num_masked_frames=masked).planning_signals
                transformer(latents, timestep, signals, mask, num_masked_frames=masked)

        return run

    return alternate({name: window(variant) for name, variant in VARIANTS.items()}, repeats, device, warm_up=1)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asymmetry", description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=PAPER_PRESETS, help="counted")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 768, 1024], help="in pixels, counted")
    parser.add_argument("--timed-preset", default="mardini-tiny")
    parser.add_argument("--timed-size", type=int, default=64, help="in pixels")
    parser.add_argument("--steps", type=int, default=STEPS, help="timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-timing", action="store_true", help="only count")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    dtype, _ = choose_dtype(options.dtype, device)
    machine = describe_machine(device)
    result: dict[str, Any] = {"machine": machine, "frames": FRAMES, "given": GIVEN, "timed": [], "counted": []}

    if not options.no_timing:
        print(
            f"{FRAMES - GIVEN} frames from {GIVEN}, {options.timed_preset}, {options.timed_size} pixels, {options.steps} steps, {dtype}"
        )
        print(machine_line(machine))
        seconds = time_variants(
            options.timed_preset, options.timed_size, options.steps, options.repeats, device, dtype
        )
        first = next(iter(seconds.values()))
        for name, times in seconds.items():
            row = {"variant": name, "seconds": Spread.of(times), "of_mardini": ratio(times, first)}
            result["timed"].append(row)
            print(f"{name:<54} {row['seconds']:.3f} s, {row['of_mardini']:.2f} times MarDini's")

    for name in options.presets:
        for size in options.sizes:
            rows = count_preset(name, size, torch.bfloat16)
            result["counted"] += rows
            print(
                f"\n{name}, {FRAMES - GIVEN} frames of {size} pixels from {GIVEN}, {STEPS} steps, bf16"
                + _paper(name, size)
            )
            for row in rows:
                print(
                    f"{row['variant']:<54} {row['operations'] / 1e12:10.1f} TFLOP ({row['planner_operations'] / row['operations']:4.0%} planner)"
                    f" {row['operations'] / rows[0]['operations']:7.2f}x, {row['weight_bytes'] / 1e9:5.1f} GB + {row['activation_bytes'] / 1e9:6.1f} GB",
                    flush=True,
                )
    write_json(options.output, result)
    return result


def _paper(preset: str, size: int) -> str:
    if preset != "mardini-l-t" or size not in PAPER_SECONDS:
        return ""
    memory = f", {PAPER_GIGABYTES[size]} GB" if size in PAPER_GIGABYTES else ""
    return f" (the paper, Table 3, one A100: {PAPER_SECONDS[size]} s{memory}; symmetric: out of memory)"


if __name__ == "__main__":
    main()
