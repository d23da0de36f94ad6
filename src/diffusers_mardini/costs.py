"""Count the costs of a model without allocating it: parameters, floating-point operations and memory, on the meta
device.

The counts are for one window with a first and a last frame given, a batch of one and no guidance, sampled as the
pipeline does: the given frames pass the transformer once ("references"), the others at every step. Operations are
those of matrix products, attention and convolutions (torch's `FlopCounterMode`; a multiplication and an addition count
as two). The cost plan of a run and the benchmarks count with the same `measure`.
"""

import contextlib
import json
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .models.autoencoder_patch_basis import AutoencoderPatchBasis
from .models.transformer_mardini import MarDiniTransformer3DModel
from .models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from .presets import list_presets, load_preset
from .sizes import size_text
from .trained_window import DEFAULT_FRAMES, TrainedWindow


@dataclass(frozen=True)
class Cost:
    """The costs of one component.

    Attributes:
        name: the component.
        parameters: the number of its parameters.
        weight_bytes: memory of the weights.
        operations: floating-point operations of one call.
        calls: the number of calls for one window.
        activation_bytes: the peak memory of results in a call without gradients, without weights and
            without attention scores (see `fused_attention`).
    """

    name: str
    parameters: int
    weight_bytes: int
    operations: int
    calls: int
    activation_bytes: int


@dataclass(frozen=True)
class ModelCosts:
    """The costs of one window of a preset or of a checkpoint.

    Attributes:
        num_frames, height, width: of the window, in pixels.
        planned_height, planned_width: of the planner's frames.
        parts: the costs of each component.
        notes: sentences on what is not counted, or counted otherwise.
    """

    num_frames: int
    height: int
    width: int
    planned_height: int
    planned_width: int
    parts: list[Cost]
    notes: list[str]

    def __str__(self) -> str:
        total = sum(cost.operations * cost.calls for cost in self.parts)
        lines = [
            f"{self.num_frames} frames of {size_text((self.height, self.width))}, planned at "
            f"{size_text((self.planned_height, self.planned_width))}; activations with fused attention, which stores no "
            "scores",
            f"{'part':<12} {'parameters':>12} {'weights':>10} {'operations':>13} {'calls':>6} {'together':>13} "
            f"{'activations':>12}",
        ]
        for cost in self.parts:
            lines.append(
                f"{cost.name:<12} {_short(cost.parameters):>12} {_bytes(cost.weight_bytes):>10} "
                f"{_flops(cost.operations):>13} {cost.calls:>6} {_flops(cost.operations * cost.calls):>13} "
                f"{_bytes(cost.activation_bytes):>12}"
            )
        lines.append(
            f"{'together':<12} {_short(sum(c.parameters for c in self.parts)):>12} "
            f"{_bytes(sum(c.weight_bytes for c in self.parts)):>10} {'':>13} {'':>6} {_flops(total):>13} "
            f"{_bytes(max(c.activation_bytes for c in self.parts)):>12}"
        )
        return "\n".join(lines + self.notes)


def count_model(
    model: str,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    steps: int = 25,
    dtype: torch.dtype = torch.bfloat16,
) -> ModelCosts:
    """Count the costs of a preset or of a checkpoint's folder; `str` of the result is a table in plain text.

    Raises:
        ValueError: if `model` is neither, its size is neither known nor given, or the window does not fit the model.
    """
    configs = read_configs(model)
    num_frames = num_frames or configs.get("num_frames") or DEFAULT_FRAMES
    height, width = height or configs.get("height"), width or configs.get("width")
    if height is None or width is None:
        raise ValueError(f'{model} does not say which size it learned; give --size, such as "512" or "512x768"')
    parts = count_costs(configs, num_frames, height, width, steps, dtype)
    notes = []
    if configs.get("quantized"):
        notes.append("The weights of this folder are quantized; they are counted as they were before.")
    if "pretrained_model_name_or_path" in configs["vae"]:
        notes.append(
            f"The autoencoder is not counted; it is {configs['vae']['pretrained_model_name_or_path']} on the Hub."
        )
    downscale = configs["planner_downscale"]
    return ModelCosts(num_frames, height, width, height // downscale, width // downscale, parts, notes)


def read_configs(model: str) -> dict[str, Any]:
    """Return the keyword arguments of each part, from a preset or from the JSON files of a saved pipeline.

    Raises:
        ValueError: if `model` is neither.
    """
    if model in list_presets():
        return load_preset(model)
    index = Path(model) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{model!r} is neither a preset ({', '.join(list_presets())}) nor the folder of a checkpoint")
    saved = json.loads(index.read_text(encoding="utf-8"))
    configs: dict[str, Any] = {"planner_downscale": saved.get("planner_downscale", 4)}
    for part in ("planner", "transformer", "vae"):
        config = json.loads((Path(model) / part / "config.json").read_text(encoding="utf-8"))
        name = config.pop("_class_name")
        # Quantized weights are counted as if they were not quantized: their size depends on the library.
        configs[part] = {
            key: value
            for key, value in config.items()
            if not key.startswith("_") and key not in ("quantization_config", "auto_map")
        }
        configs["quantized"] = configs.get("quantized", False) or "quantization_config" in config
        if part == "vae":
            configs[part]["class_name"] = name
    return configs | TrainedWindow.of_checkpoint(saved, configs["vae"]).config


def count_costs(
    configs: dict[str, Any], num_frames: int, height: int, width: int, steps: int, dtype: torch.dtype
) -> list[Cost]:
    """Return the costs of planner, transformer and, for our autoencoder and `AutoencoderKL`, the decoder.

    Raises:
        ValueError: if the size does not fit the model, or the window has no frame between the first and the last.
    """
    channels, low = configs["transformer"]["in_channels"], configs["planner_downscale"]
    # As the pipeline computes them (`vae_scale_factor`, `size_multiple`). Presets that name a VAE on the Hub mean one
    # of 8x.
    factor = 2 ** (len(configs["vae"].get("block_out_channels", [0] * 4)) - 1)
    patches = configs["transformer"].get("patch_size", 2), low * configs["planner"].get("patch_size", 1)
    multiple = factor * math.lcm(*patches)
    if height % multiple or width % multiple:
        raise ValueError(
            f"the size {size_text((height, width))} does not fit; both sides must be divisible by {multiple}"
        )
    if num_frames < 3:
        raise ValueError(f"a window of {num_frames} frames has none between the first and the last; give 3 or more")
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "planner": MarDiniPlannerTransformer3DModel(**configs["planner"]),
            "transformer": MarDiniTransformer3DModel(**configs["transformer"]),
        }
        vae = _build_vae(configs["vae"])
        mask = torch.zeros(1, num_frames, dtype=torch.bool)
        low_latents = torch.empty(
            1, num_frames, channels, height // factor // low, width // factor // low, dtype=dtype
        )
        latents = torch.empty(1, num_frames, channels, height // factor, width // factor, dtype=dtype)
        timestep = torch.zeros(1)
    masked = num_frames - 2

    costs = []
    window = {"reference_mask": mask, "num_masked_frames": masked}
    signals, cost = _measure(
        "planner", parts["planner"], dtype, 1, lambda m: m(low_latents, **window).planning_signals
    )
    costs.append(cost)
    state, cost = _measure(
        "references",
        parts["transformer"],
        dtype,
        1,
        lambda m: m(latents, timestep, signals, **window, return_window_state=True),
    )
    # The transformer's weights are counted once.
    costs.append(replace(cost, parameters=0, weight_bytes=0))
    _, cost = _measure(
        "transformer", parts["transformer"], dtype, steps, lambda m: m(latents[:, 1:-1], timestep, window_state=state)
    )
    costs.append(replace(cost, activation_bytes=cost.activation_bytes + state.num_bytes))
    if vae is not None:
        _, cost = _measure("vae.decode", vae, dtype, num_frames, lambda m: m.decode(latents[0, :1]).sample)
        costs.append(cost)
    return costs


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Make attention on meta tensors behave like fused kernels, which store no scores.

    diffusers' default backend, `scaled_dot_product_attention`, runs such kernels on GPUs, and on a CPU for the models'
    float32 sampling. Without this, meta tensors would split attention into two products and keep the scores between
    them. That still happens, and is counted, where it happens on a device too: with a mask, and where only torch's
    `SDPBackend.MATH` is allowed. The scores that MPS stores (it has no fused kernel for whole sequences) and those of
    the plain products of `models/attention.py` on a CPU are not counted.

    torch's function is replaced meanwhile, because modes do not reach blocks that are recomputed in a backward pass.
    """
    original = nn.functional.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        allowed = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
        if query.device.type == "meta" and allowed and attn_mask is None and not enable_gqa:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = original


class PeakMemory(TorchDispatchMode):
    """Add up the bytes of new results while they live, and keep the largest sum (`peak`)."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self._known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in inputs and storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


def measure(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """Run a call without gradients; return its result, its operations and the peak bytes of its results."""
    with torch.no_grad(), fused_attention(), FlopCounterMode(display=False) as counter, PeakMemory() as memory:
        result = call()
    return result, counter.get_total_flops(), memory.peak


def _measure(name: str, module: nn.Module, dtype: torch.dtype, calls: int, call) -> tuple[Any, Cost]:
    # nn.Module's `to`: that of ModelMixin warns that some norms are better kept in float32, which does not matter
    # here.
    nn.Module.to(module, dtype).requires_grad_(False)
    result, operations, activation_bytes = measure(lambda: call(module))
    parameters = list(module.parameters())
    return result, Cost(
        name=name,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        operations=operations,
        calls=calls,
        activation_bytes=activation_bytes,
    )


def _build_vae(config: dict[str, Any]) -> nn.Module | None:
    config = dict(config)
    name = config.pop("class_name", None)
    if name == "AutoencoderPatchBasis":
        return AutoencoderPatchBasis(**config)
    if name == "AutoencoderKL":
        from diffusers import AutoencoderKL

        return AutoencoderKL(**config)
    return None


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _short(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


def _flops(number: int) -> str:
    for unit, size in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e6:.3f} MFLOP"
