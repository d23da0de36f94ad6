"""Part of `benchmarks.gpu.check`: sampling of the paper's large model, random weights, beside denoisers of diffusers.

    python -m benchmarks.gpu.sampling -o outputs/gpu/sampling.json

Image-to-video with 25 steps and the guidance of Sec. 3: seconds for a frame and peak memory, by attention backend,
eagerly, with compiled blocks, and with CUDA graphs. Then one evaluation of in-tree denoisers at the same size, times
the evaluations of their pipelines' defaults, without their autoencoders.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    LTXVideoTransformer3DModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)

from diffusers_mardini import (
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
    load_preset,
)
from diffusers_mardini.hardware import choose_device, has_bfloat16_units

from ..memory import VAE
from ..timing import synchronize
from .rows import Rows, peak_gib, reason_of, reset_peak


PAPER = 0.48  # seconds a frame of MarDini-L/T with 17 frames at 512 pixels (Table 5)
# `None` is this package's own choice; the others are names of diffusers. None of them fetches a kernel.
BACKENDS = (None, "native", "_native_flash", "_native_cudnn", "_native_efficient")


def make_pipeline(preset_name: str, device: torch.device, dtype: torch.dtype, small: bool) -> MarDiniPipeline:
    """Build a pipeline of a preset with random weights, directly on the device."""
    preset = load_preset(preset_name)
    vae = VAE | ({"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4} if small else {})
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            parts = {
                "vae": AutoencoderKL(**vae),
                "planner": MarDiniPlannerTransformer3DModel(**preset["planner"]),
                "transformer": MarDiniTransformer3DModel(**preset["transformer"]),
            }
    finally:
        torch.set_default_dtype(before)
    for part in parts.values():
        for name, module in part.named_modules():  # as `from_pretrained` leaves them
            if set(name.split(".")) & set(part._keep_in_fp32_modules or ()):
                module.float()
    pipe = MarDiniPipeline(
        **{name: part.eval() for name, part in parts.items()},
        scheduler=MarDiniScheduler(**preset["scheduler"]),
        planner_downscale=preset["planner_downscale"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def forms(pipe: MarDiniPipeline, device: torch.device) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield backend, way of running, and a function that prepares the models for both."""

    def use(backend: str | None, **compiling: Any) -> Callable[[], None]:
        def prepare() -> None:
            for model in (pipe.planner, pipe.transformer):
                if backend is None:
                    model.reset_attention_backend()
                else:
                    model.set_attention_backend(backend)
                if compiling:
                    model.compile_repeated_blocks(**compiling.get("options", {}))

        return prepare

    for backend in BACKENDS if device.type == "cuda" else (None, "_native_math"):
        yield backend or "own choice", "eager", use(backend)
    yield "own choice", "compiled blocks", use(None, options={})
    if device.type == "cuda":
        yield "own choice", "compiled blocks, CUDA graphs", use(None, options={"mode": "reduce-overhead"})


def sample(pipe: MarDiniPipeline, size: int, num_frames: int, steps: int) -> None:
    """Animate a picture."""
    picture = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    pipe(
        image=picture, num_frames=num_frames, num_inference_steps=steps, output_type="pt",
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


def measure_ours(rows: Rows, preset: str, size: int, frames: int, steps: int, device: torch.device) -> None:
    """Add a row for each form of our sampling; a form that fails says why."""
    dtype = torch.bfloat16 if has_bfloat16_units(device) else torch.float32
    pipe = make_pipeline(preset, device, dtype, small=preset == "mardini-nano")
    longest = 0.0
    for backend, way, prepare in forms(pipe, device):
        if rows.time_left < 2 * longest:
            rows.add(model=preset, backend=backend, way=way, failed="no time was left")
            continue
        begun = time.monotonic()
        try:
            prepare()
            sample(pipe, size, frames, min(2, steps))  # warms up, compiles
            warm = time.monotonic() - begun
            reset_peak(device)
            synchronize(device)
            started = time.perf_counter()
            sample(pipe, size, frames, steps)
            synchronize(device)
            seconds = time.perf_counter() - started
            rows.add(
                model=preset, backend=backend, way=way, seconds=seconds, seconds_per_frame=seconds / frames,
                of_paper=seconds / frames / PAPER, peak_gib=peak_gib(device), warm_up_seconds=warm,
            )  # fmt: skip
        except Exception as error:  # another form may run
            rows.add(model=preset, backend=backend, way=way, failed=reason_of(error))
        longest = max(longest, time.monotonic() - begun)
        torch.compiler.reset()


def peers(size: int, frames: int, small: bool) -> dict[str, tuple[Callable[[], torch.nn.Module], dict, int, int]]:
    """Return by name how to build a denoiser in its published size, its inputs, evaluations of a video by its
    pipeline's defaults, and frames of that video."""
    side, compressed = size // 8, (frames - 1) // 4 + 1
    long, low = (frames - 1) // 8 + 1, size // 32
    few = {"num_layers": 1, "num_attention_heads": 2} if small else {}
    svd = {"block_out_channels": (32, 32, 32, 32), "num_attention_heads": (2, 2, 2, 2)} if small else {}
    return {
        "SVD": (
            lambda: UNetSpatioTemporalConditionModel(**svd),
            {"sample": torch.randn(1, frames, 8, side, side), "timestep": torch.tensor(500.0),
             "encoder_hidden_states": torch.randn(1, 1, 1024), "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]])},
            2 * 25, frames,
        ),
        "Wan 2.1, 1.3 B": (
            lambda: WanTransformer3DModel(**{
                "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30, **few
            }),
            {"hidden_states": torch.randn(1, 16, compressed, side, side), "timestep": torch.tensor([500]),
             "encoder_hidden_states": torch.randn(1, 512, 4096)},
            2 * 50, frames,
        ),
        "LTX-Video, 2 B": (
            lambda: LTXVideoTransformer3DModel(**few, **({"cross_attention_dim": 128} if small else {})),
            {"hidden_states": torch.randn(1, long * low * low, 128), "timestep": torch.tensor([500]),
             "encoder_hidden_states": torch.randn(1, 128, 4096), "encoder_attention_mask": torch.ones(1, 128),
             "num_frames": long, "height": low, "width": low},
            2 * 50, frames,
        ),
    }  # fmt: skip


@torch.no_grad()
def measure_peers(rows: Rows, size: int, frames: int, device: torch.device, small: bool) -> None:
    """Add a row for each denoiser of diffusers."""
    dtype = torch.bfloat16 if has_bfloat16_units(device) else torch.float32
    for name, (build, inputs, evaluations, made) in peers(size, frames, small).items():
        if rows.time_left < 10:
            rows.add(model=name, failed="no time was left")
            continue
        try:
            with device:
                model = torch.nn.Module.to(build().eval(), dtype)
            given = {
                key: value.to(device, dtype if value.ndim > 1 else None) if torch.is_tensor(value) else value
                for key, value in inputs.items()
            }
            reset_peak(device)
            seconds = []
            for _ in range(4):
                synchronize(device)
                started = time.perf_counter()
                model(**given, return_dict=False)
                synchronize(device)
                seconds.append(time.perf_counter() - started)
            once = sorted(seconds[1:])[1]
            rows.add(
                model=name, parameters=sum(p.numel() for p in model.parameters()), seconds_per_evaluation=once,
                evaluations=evaluations, seconds_per_frame=once * evaluations / made, peak_gib=peak_gib(device),
            )  # fmt: skip
            del model
        except Exception as error:  # a class may have changed
            rows.add(model=name, failed=reason_of(error))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/gpu/sampling.json"), help="json")
    parser.add_argument("--seconds", type=float, default=130, help="begin nothing new after these")
    parser.add_argument("--dry", action="store_true", help="at toy size, to try the program")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    preset, size, frames, steps = ("mardini-nano", 64, 3, 2) if options.dry else ("mardini-l-t", 512, 17, 25)
    rows = Rows(options.output, device, options.seconds)
    rows.know(size=size, frames=frames, steps=steps)
    measure_ours(rows, preset, size, frames, steps, device)
    measure_peers(rows, size, 9 if options.dry else frames, device, options.dry)
    return {"rows": rows.rows}


if __name__ == "__main__":
    main()
