"""Compare a denoising step with its own matrix products, and profile the rest: `python -m benchmarks.denoising_step`.

All forms run alternately on the same window. The limit of a form is the time of its matrix products alone, in its
number format; a share of 1 (limit over form) would be a step of nothing but products at this machine's speed.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from diffusers_mardini import MarDiniTransformer3DModel, load_preset
from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from diffusers_mardini.masking import leading_indices, reference_mask_from_indices

from .products import products_alone, record_products
from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


# Kinds of operators by parts of their names; the first match counts.
KINDS = {
    "matrix products": ("addmm", "::mm", "::bmm", "baddbmm", "linear"),
    "attention": ("scaled_dot_product", "softmax"),
    "norms": ("layer_norm", "rms_norm", "rsqrt", "::mean", "::pow"),
    "activations": ("gelu", "silu"),
    "copies and casts": (
        "copy_", "::cat", "index", "clone", "contiguous", "::to", "_to_copy", "gather", "where", "::fill_", "::zero_"
    ),
    "elementwise": ("::mul", "::add", "::sub", "::div", "::neg", "addcmul"),
    "compiled": ("graph_", "CompiledFx", "inductor", "Torch-Compiled", "TorchDynamo"),
}  # fmt: skip
COMPILED, ALONE = ", compiled", ", its products alone"


def make_step(preset: dict[str, Any], frames: int, given: int, size: int, device: torch.device) -> Callable:
    """Return `make(dtype, compiled, with_state)`, which returns a function that runs one denoising step.

    The leading frames of the window are given; with the state of the window, the step runs on its masked frames alone.
    """
    arguments = preset["transformer"]
    side, low_side = size // 8, size // 8 // preset["planner_downscale"]
    mask = reference_mask_from_indices(leading_indices(given), frames, device=device)
    latents = torch.randn(1, frames, arguments["in_channels"], side, side, device=device)
    signals = torch.randn(1, frames, low_side, low_side, arguments["planning_dim"], device=device)
    timestep = torch.full((1,), 500, device=device)

    def make(dtype: torch.dtype, compiled: bool, with_state: bool) -> Callable[[], Any]:
        torch.manual_seed(0)
        # As `from_pretrained(dtype=...)` loads it: `_keep_in_fp32_modules` stay in float32.
        transformer = MarDiniTransformer3DModel(**arguments).to(device).eval()
        for name, parameter in transformer.named_parameters():
            if not any(part in name.split(".") for part in transformer._keep_in_fp32_modules):
                parameter.data = parameter.data.to(dtype)
        if compiled:
            transformer.compile_repeated_blocks()
        inputs = latents.to(dtype), timestep, signals.to(dtype), mask

        @torch.no_grad()
        def whole():
            return transformer(*inputs, num_masked_frames=frames - given)

        if not with_state:
            return whole
        with torch.no_grad():
            state = transformer(*inputs, num_masked_frames=frames - given, return_window_state=True)
        noisy = inputs[0][:, given:]

        @torch.no_grad()
        def masked_frames():
            return transformer(noisy, timestep, window_state=state)

        return masked_frames

    return make


def profile_by_kind(step: Callable[[], Any], device: torch.device, runs: int = 3) -> dict[str, float]:
    """Return the milliseconds of a run by `KINDS` of operators, each operator's own time; "other" is the rest."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    step()
    with profile(activities=activities) as profiler:
        for _ in range(runs):
            step()
    totals = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        totals[kind] += own / 1000 / runs
    return totals


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.denoising_step", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--given", type=int, default=1, help="leading frames that are given")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the compiled forms, a minute or more each"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    machine = describe_machine(device)
    print(f"A step of {options.preset}, {options.given} of {options.frames} frames of {options.size} pixels given")
    print(machine_line(machine))

    make = make_step(load_preset(options.preset), options.frames, options.given, options.size, device)
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if has_bfloat16_units(device) else {})
    forms, limits, operations = {}, {}, {}
    for name, dtype, with_state in [
        (name + (", masked frames alone" if with_state else ""), dtype, with_state)
        for name, dtype in dtypes.items()
        for with_state in (False, True)
    ]:
        forms[name] = make(dtype, False, with_state)
        products = record_products(forms[name])
        limits[name] = products_alone(products, device)
        operations[name] = sum(product.operations for product in products)
        if not options.no_compile:
            forms[f"{name}{COMPILED}"] = make(dtype, True, with_state)
    sides = forms | {f"{name}{ALONE}": limit for name, limit in limits.items()}
    seconds = alternate(sides, options.repeats, device, warm_up=2)

    rows = []
    print(f"{'':<44} {'ms':>28} {'share of its products':>28} {'GFLOP/s':>9}")
    for name, times in seconds.items():
        form = name.removesuffix(COMPILED).removesuffix(ALONE)
        share = ratio(seconds[f"{form}{ALONE}"], times)
        speed = operations[form] / Spread.of(times).median / 1e9
        rows.append({"name": name, "seconds": Spread.of(times), "share": share, "gflops": speed})
        milliseconds = f"{Spread.of([1000 * time for time in times]):.2f}"
        print(f"{name:<44} {milliseconds:>28} {f'{share:.2f}':>28} {speed:9.1f}")
    profiles = {}
    for name, form in forms.items():
        profiles[name] = profile_by_kind(form, device)
        print(f"{name}: " + ", ".join(f"{kind} {ms:.1f} ms" for kind, ms in profiles[name].items() if ms >= 0.05))
    result = {
        "machine": machine,
        "preset": options.preset,
        "rows": rows,
        "profile_ms": profiles,
        "operations": operations,
    }
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
