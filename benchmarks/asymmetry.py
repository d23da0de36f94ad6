"""Measure the savings of the asymmetry of resolution and attention (Table 3): `python -m benchmarks.asymmetry`.

Seconds of a window and memory are measured at our size; operations and memory of the paper's four sizes are counted on
meta tensors. As in Table 3, 12 frames are sampled from 1 in 25 steps; without guidance, which the table does not
mention. The autoencoder is not counted.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel, costs, load_preset
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.masking import leading_indices, reference_mask_from_indices

from .long_video_costs import peak_bytes
from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


FRAMES, GIVEN, STEPS = 13, 1, 25
PAPER_PRESETS = ("mardini-s-st", "mardini-l-st", "mardini-s-t", "mardini-l-t")
# Table 3, one A100 in bf16: the asymmetric model of temporal attention; the symmetric one ran out of memory.
PAPER_SECONDS = {256: 2.63, 512: 6.05}
PAPER_GIGABYTES = {512: 42.6}


@dataclass(frozen=True)
class Variant:
    """A design of planner and transformer.

    Attributes:
        low_resolution: whether the planner sees a low resolution.
        planner_runs: runs of the planner for a window.
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
    "the same, spatio-temporal attention (symmetric)": Variant(False, 1, "spatiotemporal"),
    "planner at full resolution, at every step": Variant(False, STEPS),
}


@dataclass(frozen=True)
class Count:
    """Operations of one call of a model, bytes of its weights, and peak bytes of its activations."""

    operations: int
    weights: int
    activations: int


def _count(model: torch.nn.Module, dtype: torch.dtype, call: Callable[[torch.nn.Module], Any]) -> Count:
    torch.nn.Module.to(model, dtype)
    _, operations, activations = costs.measure(lambda: call(model))
    return Count(operations, sum(p.nbytes for p in model.parameters()), activations)


def count_planner(arguments: dict[str, Any], side: int, dtype: torch.dtype) -> Count:
    """Count the planner for square latents; all blocks cost the same, so one and two blocks give the rest."""

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
    """Count one step of the transformer."""

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
        max(one.activations, two.activations),  # activations are freed after each block
    )


def count_preset(name: str, size: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return a row for every variant: operations of window and planner, bytes of weights and of peak activations."""
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


class Models:
    """Planner and transformer of a preset with random weights, and their calls for each variant.

    Args:
        preset_name: the preset.
        size: side of a frame in pixels.
        device: of weights and latents.
        dtype: of weights and latents.
    """

    def __init__(self, preset_name: str, size: int, device: torch.device, dtype: torch.dtype):
        preset = load_preset(preset_name)
        torch.manual_seed(0)
        self.planner = torch.nn.Module.to(MarDiniPlannerTransformer3DModel(**preset["planner"]), device, dtype).eval()
        self.transformer = torch.nn.Module.to(MarDiniTransformer3DModel(**preset["transformer"]), device, dtype).eval()
        self.own_attention, self.downscale = preset["transformer"]["temporal_attention"], preset["planner_downscale"]
        self.shape = (1, FRAMES, preset["transformer"]["in_channels"])
        self.planning_dim, self.side = preset["transformer"]["planning_dim"], size // 8
        self.like = {"device": device, "dtype": dtype}
        self.window = {
            "reference_mask": reference_mask_from_indices(leading_indices(GIVEN), FRAMES, device=device),
            "num_masked_frames": FRAMES - GIVEN,
        }

    def low_side(self, variant: Variant) -> int:
        return self.side // (self.downscale if variant.low_resolution else 1)

    def planner_run(self, variant: Variant) -> Callable[[], torch.Tensor]:
        """Return a function that runs the planner once."""
        latents = torch.randn(*self.shape, self.low_side(variant), self.low_side(variant), **self.like)

        @torch.no_grad()
        def run() -> torch.Tensor:
            return self.planner(latents, **self.window).planning_signals

        return run

    def step(self, variant: Variant) -> Callable[[], None]:
        """Return a function that runs one step of the transformer with planning signals of the variant's size."""
        low = self.low_side(variant)
        latents = torch.randn(*self.shape, self.side, self.side, **self.like)
        signals = torch.randn(1, FRAMES, low, low, self.planning_dim, **self.like)
        timestep = torch.full((1,), 500, device=self.like["device"])

        @torch.no_grad()
        def run() -> None:
            self.transformer.set_temporal_attention(variant.temporal_attention or self.own_attention)
            self.transformer(latents, timestep, signals, **self.window)

        return run


def time_variants(models: Models, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of planner and transformer for a window, by variant.

    Single calls are timed in every round and summed: calls do not depend on each other, and a whole window of the
    slowest variants takes minutes on a CPU.
    """
    planner_runs = {variant.low_resolution: models.planner_run(variant) for variant in VARIANTS.values()}
    steps = {
        (variant.low_resolution, variant.temporal_attention): models.step(variant) for variant in VARIANTS.values()
    }
    calls = {("planner", key): call for key, call in planner_runs.items()} | {
        ("step", key): call for key, call in steps.items()
    }
    return windows_of(alternate(calls, repeats, models.like["device"], warm_up=1))


def windows_of(seconds: dict[tuple[str, Any], list[float]]) -> dict[str, list[float]]:
    """Return the seconds of a window by variant and round, from those of its calls.

    Args:
        seconds: of `("planner", low_resolution)` and `("step", (low_resolution, attention))`.
    """
    result = {}
    for name, variant in VARIANTS.items():
        planner = seconds["planner", variant.low_resolution]
        step = seconds["step", (variant.low_resolution, variant.temporal_attention)]
        result[name] = [variant.planner_runs * p + STEPS * s for p, s in zip(planner, step, strict=True)]
    return result


def measure_memory(preset_name: str, size: int, dtype: torch.dtype, variant: Variant) -> dict[str, int]:
    """Return the peak memory of this process on a CPU, after the imports and after one call of both models."""
    imported = peak_bytes()
    models = Models(preset_name, size, torch.device("cpu"), dtype)
    models.planner_run(variant)()
    models.step(variant)()
    return {"imported_bytes": imported, "peak_bytes": peak_bytes()}


def memory_of_variants(preset_name: str, size: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Run `measure_memory` in a process for each variant; the number of planner runs makes no difference."""
    measured, rows = {}, []
    for name, variant in VARIANTS.items():
        key = (variant.low_resolution, variant.temporal_attention)
        if key not in measured:
            command = [sys.executable, "-m", "benchmarks.asymmetry", "--one", name, "--timed-preset", preset_name]
            command += ["--timed-size", str(size), "--device", "cpu", "--dtype", str(dtype).removeprefix("torch.")]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            measured[key] = json.loads(output.splitlines()[-1])
        rows.append({"variant": name, **measured[key]})
        above, imported = rows[-1]["peak_bytes"] - rows[-1]["imported_bytes"], rows[-1]["imported_bytes"]
        print(f"{name:<54} {above / 1e6:6.0f} MB above {imported / 1e6:.0f} MB of imports", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asymmetry", description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="*", default=PAPER_PRESETS, help="presets to count")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512, 768, 1024], help="sides of a frame in pixels to count"
    )
    parser.add_argument("--timed-preset", default="mardini-tiny")
    parser.add_argument("--timed-size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-timing", action="store_true", help="only count")
    parser.add_argument("--memory", action="store_true", help="measure memory, on the CPU, a process for each variant")
    parser.add_argument("--one", choices=VARIANTS, help="measure memory of one variant in this process; prints json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    dtype, _ = choose_dtype(options.dtype, device)
    if options.one:
        print(json.dumps(measure_memory(options.timed_preset, options.timed_size, dtype, VARIANTS[options.one])))
        return {}
    machine = describe_machine(device)
    result: dict[str, Any] = {
        "machine": machine,
        "frames": FRAMES,
        "given": GIVEN,
        "timed": [],
        "memory": [],
        "counted": [],
    }

    if not options.no_timing:
        print(
            f"{FRAMES - GIVEN} frames from {GIVEN}, {options.timed_preset}, {options.timed_size} pixels, "
            f"{STEPS} steps, {dtype}"
        )
        print(machine_line(machine))
        seconds = time_variants(Models(options.timed_preset, options.timed_size, device, dtype), options.repeats)
        first = next(iter(seconds.values()))
        for name, times in seconds.items():
            row = {"variant": name, "seconds": Spread.of(times), "of_mardini": ratio(times, first)}
            result["timed"].append(row)
            print(f"{name:<54} {row['seconds']:.3f} s, {row['of_mardini']:.2f} times MarDini's")

    if options.memory:
        result["memory"] = memory_of_variants(options.timed_preset, options.timed_size, dtype)

    for name in options.presets:
        for size in options.sizes:
            rows = count_preset(name, size, torch.bfloat16)
            result["counted"] += rows
            print(
                f"\n{name}, {FRAMES - GIVEN} frames of {size} pixels from {GIVEN}, {STEPS} steps, bf16"
                + _paper(name, size)
            )
            for row in rows:
                operations = row["operations"]
                share, times = row["planner_operations"] / operations, operations / rows[0]["operations"]
                memory = f"{row['weight_bytes'] / 1e9:5.1f} GB + {row['activation_bytes'] / 1e9:6.1f} GB"
                operations_text = f"{operations / 1e12:10.1f} TFLOP ({share:4.0%} planner) {times:7.2f}x"
                print(f"{row['variant']:<54} {operations_text}, {memory}", flush=True)
    write_json(options.output, result)
    return result


def _paper(preset: str, size: int) -> str:
    if preset != "mardini-l-t" or size not in PAPER_SECONDS:
        return ""
    memory = f", {PAPER_GIGABYTES[size]} GB" if size in PAPER_GIGABYTES else ""
    return f" (the paper, Table 3, one A100: {PAPER_SECONDS[size]} s{memory}; symmetric: out of memory)"


if __name__ == "__main__":
    main()
