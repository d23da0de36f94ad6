"""Measure size and quality of quantized models: `python -m benchmarks.quantized_models CHECKPOINT CLIPS`.

Every form samples the same windows from the same noise as float32 weights, and is compared with them; PSNR is capped
at 60 dB. Forms whose package is not installed are left out and named.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig, PipelineQuantizationConfig, TorchAoConfig

from diffusers_mardini import MarDiniPipeline, MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from diffusers_mardini.loaders import allow_single_files, layers_to_keep
from diffusers_mardini.masking import reference_mask_from_indices, task_indices
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.metrics import score_windows, summarize
from training.evaluation.sampling import generate
from training.evaluation.tables import markdown_table

from .timing import write_json


MODELS = {"planner": MarDiniPlannerTransformer3DModel, "transformer": MarDiniTransformer3DModel}


def stored_bytes(value: torch.nn.Module | torch.Tensor) -> int:
    """Return the bytes that tensors really take; a quantized tensor reports its unquantized size."""
    if isinstance(value, torch.nn.Module):
        return sum(stored_bytes(tensor) for tensor in value.state_dict(keep_vars=True).values())
    if hasattr(value, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    return value.numel() * value.element_size()


def write_gguf(file: Path, model: torch.nn.Module, kind: str, kept: Sequence[str]) -> None:
    """Write a GGUF file with weights in blocks of 32 numbers; layers in `kept`, and other tensors, stay in float32."""
    import gguf

    writer = gguf.GGUFWriter(file, "mardini")
    quantization = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name.split(".")[0] in kept or values.ndim != 2 or values.shape[1] % 32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(checkpoint: str, plain: MarDiniPipeline, kind: str, keeps: bool) -> MarDiniPipeline:
    """Load the pipeline with both models from GGUF files that are made from `plain`."""
    allow_single_files()
    parts = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model_class in MODELS.items():
            file = Path(folder) / f"{name}.gguf"
            write_gguf(file, getattr(plain, name), kind, layers_to_keep(name) if keeps else [])
            config = GGUFQuantizationConfig(compute_dtype=torch.float32)
            parts[name] = model_class.from_single_file(
                str(file), config=checkpoint, subfolder=name, quantization_config=config, dtype=torch.float32
            )
    return MarDiniPipeline.from_pretrained(checkpoint, **parts)


def load_torchao(checkpoint: str, dtype: torch.dtype, keeps: bool) -> MarDiniPipeline:
    from torchao.quantization import Int8WeightOnlyConfig

    mapping = {
        name: TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=layers_to_keep(name) if keeps else None)
        for name in MODELS
    }
    config = PipelineQuantizationConfig(quant_mapping=mapping)
    return MarDiniPipeline.from_pretrained(checkpoint, quantization_config=config, dtype=dtype)


def forms(checkpoint: str, plain: MarDiniPipeline) -> dict[str, Callable[[], MarDiniPipeline]]:
    """Return by name a function that loads a form; forms of missing packages are left out."""
    float32, bfloat16 = torch.float32, torch.bfloat16
    result = {"bfloat16": lambda: MarDiniPipeline.from_pretrained(checkpoint, dtype=bfloat16)}
    if importlib.util.find_spec("torchao"):
        result["torchao int8, all layers"] = lambda: load_torchao(checkpoint, float32, keeps=False)
        result["torchao int8"] = lambda: load_torchao(checkpoint, float32, keeps=True)
        result["torchao int8, the rest bfloat16"] = lambda: load_torchao(checkpoint, bfloat16, keeps=True)
    if importlib.util.find_spec("gguf"):
        for kind in ("Q8_0", "Q5_0", "Q4_0"):
            result[f"GGUF {kind}, all layers"] = lambda kind=kind: load_gguf(checkpoint, plain, kind, keeps=False)
            result[f"GGUF {kind}"] = lambda kind=kind: load_gguf(checkpoint, plain, kind, keeps=True)
    left_out = [package for package in ("torchao", "gguf") if not importlib.util.find_spec(package)]
    if left_out:
        print(f"Left out, because it is not installed: {', '.join(left_out)}")
    return result


def kind_of(layer: str) -> str:
    """Return the group of similar layers: `transformer_blocks.3.attn.to_q` belongs to `blocks.attn`."""
    words = layer.split(".")
    return f"blocks.{words[2]}" if words[0] == "transformer_blocks" else words[0]


@torch.no_grad()
def harm(pipe: MarDiniPipeline, windows: torch.Tensor, given: Sequence[int], bits: int) -> list[dict[str, Any]]:
    """Round the transformer's weights to some bits, one kind of layers at a time, and compare velocities.

    Returns:
        A row for each kind: its share of the weights and of the summed squared errors, which are means of four
        timesteps.
    """
    transformer = pipe.transformer
    pixels = windows * 2 - 1
    latents, low = pipe.encode_frames(pixels), pipe.encode_low_frames(pixels)
    given, num_frames = list(given), windows.shape[1]
    signals = pipe.plan(low[:, given], given, num_frames)
    mask = reference_mask_from_indices(given, num_frames, len(windows))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    def velocities() -> torch.Tensor:
        result = []
        for timestep in (900, 600, 300, 50):
            noisy = pipe.scheduler.add_noise(latents, noise, torch.tensor([timestep]))
            noisy[:, given] = latents[:, given]
            result.append(transformer(noisy, torch.tensor(timestep), signals, mask).sample[~mask])
        return torch.stack(result)

    before = velocities()
    layers: dict[str, list[torch.nn.Linear]] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            layers.setdefault(kind_of(name), []).append(module)
    rows = []
    for kind, modules in layers.items():
        weights = [module.weight.data for module in modules]
        for module in modules:
            step = module.weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            module.weight.data = (module.weight / step).round() * step
        error = (velocities() - before).square().flatten(1).mean(1) / before.square().flatten(1).mean(1)
        for module, weight in zip(modules, weights, strict=True):
            module.weight.data = weight
        rows.append({"layers": kind, "weights": sum(w.numel() for w in weights), "error": error.mean().item()})
    all_weights, all_errors = sum(row["weights"] for row in rows), sum(row["error"] for row in rows)
    return [
        {"layers": row["layers"], "of_weights": row["weights"] / all_weights, "of_error": row["error"] / all_errors}
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantized_models", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("--size", type=int, default=64, help="side of the square crop in pixels")
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--windows-per-clip", type=int, default=1)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    windows = load_windows(options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip)
    truth, given = windows.frames, task_indices("interpolation", options.num_frames)
    plain = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=torch.float32)
    print(f"interpolation, {len(truth)} windows, {options.steps} steps on a CPU, torch {torch.__version__}")

    result: dict[str, Any] = {"harm": {}, "forms": []}
    for bits in (8, 4):
        result["harm"][bits] = harm(plain, truth, given, bits)
        columns = (f"weights of the transformer in {bits} bits", "of the weights", "of the squared error")
        cells = [
            (f"`{row['layers']}`", f"{row['of_weights']:.2%}", f"{row['of_error']:.1%}")
            for row in result["harm"][bits]
        ]
        print(markdown_table(columns, cells), flush=True)

    reference, full = None, sum(stored_bytes(getattr(plain, name)) for name in MODELS)
    cells = []
    for name, load in {"float32": lambda: plain, **forms(options.checkpoint, plain)}.items():
        pipe = load()
        pipe.set_progress_bar_config(disable=True)
        frames = generate(pipe, truth, given, options.steps)
        scores = summarize(score_windows(frames, truth, given))
        near = None if reference is None else summarize(score_windows(frames, reference, given))["psnr"]
        reference = frames if reference is None else reference
        size = sum(stored_bytes(getattr(pipe, part)) for part in MODELS)
        row = {"form": name, "bytes": size, "of_float32": size / full, "psnr_to_float32": near}
        result["forms"].append(row | {score: scores[score] for score in ("mid_ssim", "mid_psnr")})
        bytes_cell, near_cell = f"{size / 1e6:.1f} MB ({size / full:.0%})", "" if near is None else f"{near:.1f} dB"
        cells.append((name, bytes_cell, near_cell, f"{scores['mid_ssim']:.3f}", f"{scores['mid_psnr']:.2f} dB"))
    columns = ("form", "planner and transformer", "PSNR to float32", "middle SSIM", "middle PSNR")
    print(markdown_table(columns, cells))
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
