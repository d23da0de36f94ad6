"""Measure peak memory of several ways to sample: `python -m benchmarks.memory`.

Each way runs in its own process on this machine; reported is its peak resident memory above that of a process that
only imports. For the paper's sizes, the memory on an accelerator is counted on meta tensors, including offloading,
which has no effect on a CPU.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from diffusers_mardini import (
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniTransformer3DModel,
    costs,
    load_preset,
)

from .long_video_costs import peak_bytes
from .sampling_speed import CHECKPOINT
from .timing import describe_machine, machine_line, write_json


LAYERWISE = {"storage_dtype": torch.float8_e4m3fn}
# The published configuration of the autoencoder of the paper's presets.
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _layerwise(pipe: MarDiniPipeline, dtype: torch.dtype) -> None:
    for model in (pipe.planner, pipe.transformer):
        model.enable_layerwise_casting(**LAYERWISE, compute_dtype=dtype)


# name: number format, preparation of the pipeline, keyword arguments of its call
RUNS: dict[str, tuple[torch.dtype, Callable[[MarDiniPipeline, torch.dtype], None], dict[str, Any]]] = {
    "float32, all frames through the VAE at once": (torch.float32, lambda *_: None, {"decode_chunk_size": 10**6}),
    "float32": (torch.float32, lambda *_: None, {}),
    "float32, VAE frame by frame": (torch.float32, lambda *_: None, {"decode_chunk_size": 1}),
    "bfloat16": (torch.bfloat16, lambda *_: None, {}),
    "bfloat16, layerwise casting to float8": (torch.bfloat16, _layerwise, {}),
}


def measure(name: str | None, checkpoint: str, frames: int, size: int, steps: int) -> dict[str, int]:
    """Sample in this process in the way of that name; `None` only imports."""
    if name is not None:
        dtype, prepare, call = RUNS[name]
        pipe = MarDiniPipeline.from_pretrained(checkpoint, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        prepare(pipe, dtype)
        video = torch.rand(max(1, frames // 2), 3, size, size)
        pipe(video=video, num_frames=frames, num_inference_steps=steps, output_type="pil", **call)
    return {"peak_bytes": peak_bytes()}


def count_modes(preset_name: str, size: int, decode_chunk_size: int) -> dict[str, int]:
    """Return peak bytes on an accelerator by mode, for a window of the preset with one given frame, in bf16.

    The running model needs its loaded weights and its peak activations; the mode decides whether the other models wait
    on the host or on the accelerator. Group offload loads one block at a time, without prefetching.
    """
    preset, dtype = load_preset(preset_name), torch.bfloat16
    frames, channels, side = preset["num_frames"], preset["transformer"]["in_channels"], size // 8
    low_side = side // preset["planner_downscale"]
    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {
            "planner": MarDiniPlannerTransformer3DModel(**preset["planner"]),
            "transformer": MarDiniTransformer3DModel(**preset["transformer"]),
            "vae": AutoencoderKL(**VAE),
        }
        low = torch.empty(1, frames, channels, low_side, low_side, dtype=dtype)
        latents = torch.empty(1, frames, channels, side, side, dtype=dtype)
        signals = torch.empty(1, frames, low_side, low_side, preset["transformer"]["planning_dim"], dtype=dtype)
        mask, timestep = torch.zeros(1, frames, dtype=torch.bool), torch.zeros(1)
    for model in models.values():
        torch.nn.Module.to(model, dtype)
    vae = models["vae"]
    one, many = (_peak(lambda n=n: vae.decode(latents[0, :n], return_dict=False)) for n in (1, decode_chunk_size))
    work = {
        "planner": _peak(lambda: models["planner"](low, mask, num_masked_frames=frames - 1)),
        "transformer": _peak(
            lambda: models["transformer"](latents, timestep, signals, mask, num_masked_frames=frames - 1)
        ),
        "vae": many,
    }
    weights = {name: _bytes(model) for name, model in models.items()}
    eighths = {name: weights[name] - _bytes_saved(model) for name, model in models.items() if name != "vae"}
    eighths["vae"] = weights["vae"]
    blocks = {
        name: weights[name]
        - sum(map(_bytes, models[name].transformer_blocks))
        + _bytes(models[name].transformer_blocks[0])
        for name in ("planner", "transformer")
    } | {"vae": weights["vae"]}
    everything, parts = sum(weights.values()), work.keys()
    return {
        "all on the device": everything + max(work.values()),
        "all on the device, VAE frame by frame": everything + max(work["planner"], work["transformer"], one),
        "layerwise casting to float8": sum(eighths.values()) + max(work["planner"], work["transformer"], one),
        "model offload": max(weights[part] + (one if part == "vae" else work[part]) for part in parts),
        "group offload, one block": max(blocks[part] + (one if part == "vae" else work[part]) for part in parts),
    }


def _peak(call: Callable[[], Any]) -> int:
    return costs.measure(call)[2]


def _bytes(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def _bytes_saved(model: torch.nn.Module) -> int:
    """Return the bytes that layerwise casting saves: half of the linear layers that the model does not exempt."""
    skipped = model._skip_layerwise_casting_patterns
    return sum(
        _bytes(module) // 2
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(pattern in name for pattern in skipped)
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=str(CHECKPOINT), help="folder or Hub id of a pipeline")
    parser.add_argument("--frames", type=int, default=64, help="of a window; half of them are given")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--presets", nargs="*", default=["mardini-s-t", "mardini-l-t"], help="presets to count")
    parser.add_argument("--counted-size", type=int, default=512, help="side of a frame in pixels")
    parser.add_argument("--ways", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--one", nargs="?", const="", help="measure one way, or none, in this process; prints json")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(
            json.dumps(measure(options.one or None, options.checkpoint, options.frames, options.size, options.steps))
        )
        return {}

    def run(name: str) -> int:
        command = [sys.executable, "-m", "benchmarks.memory", "--one", name, "--checkpoint", options.checkpoint]
        command += ["--frames", str(options.frames), "--size", str(options.size), "--steps", str(options.steps)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])["peak_bytes"]

    machine = describe_machine()
    print(
        f"{Path(options.checkpoint).name}, {options.frames} frames of {options.size} pixels, {options.steps} step(s)"
    )
    print(machine_line(machine))
    result: dict[str, Any] = {"machine": machine, "run": [], "counted": []}
    base = run("") if options.ways else 0
    for name in options.ways:
        above = run(name) - base
        result["run"].append({"way": name, "bytes_above_imports": above})
        print(f"{name:<48} {above / 1e6:8.0f} MB above {base / 1e6:.0f} MB of imports", flush=True)
    for preset in options.presets:
        print(f"\n{preset}, {options.counted_size} pixels, bf16, counted")
        for mode, count in count_modes(preset, options.counted_size, 16).items():
            result["counted"].append({"preset": preset, "size": options.counted_size, "mode": mode, "bytes": count})
            print(f"{mode:<48} {count / 1e9:8.2f} GB", flush=True)
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
