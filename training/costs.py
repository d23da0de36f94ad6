"""What one step of a stage costs: tokens, floating-point operations and memory, counted on meta tensors, nothing allocated.

The training module itself runs forward and backward, with one and with two blocks per model; blocks are alike, so that more of
them follow by a straight line. `plan.py` puts the stages together.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniScheduler, MarDiniTransformer3DModel
from diffusers_mardini.costs import PeakMemory, fused_attention
from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from diffusers_mardini.masking import num_reference_frames_range
from diffusers_mardini.models.embeddings import append_next_tokens, patchify
from diffusers_mardini.presets import load_preset
from training.config.schema import AdapterConfig, RunConfig, StageConfig
from training.curriculum import Batch
from training.engine.adapter import add_adapter, base_arguments, matched_layers
from training.engine.optimizers import learned, learns_by_muon
from training.losses import MarDiniTrainingModel, PlannerReconstructionHead


VAE_FACTOR = 8  # pixels of a side of a latent; both autoencoders this project takes have it
FROZEN_WIDTHS = {
    "float32": 4,
    "bf16": 2,
    "int8": 1,
}  # bytes of a weight by `lora.base_dtype`; scales of int8 are not counted


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by kind.

    Attributes:
        weights: float32, of all models, whatever the stage trains; those that an adapter leaves frozen as `lora.base_dtype` says.
        low_precision_weights: the copies that bf16 autocast keeps; under FSDP the blocks gathered at one moment.
        gradients: float32; twice under DDP, which keeps buckets beside them.
        optimizer: averages of gradients, of what the stage trains.
        ema: the average of the weights.
        activations: kept for the backward pass, and the largest working set beside it.
    """

    weights: int
    low_precision_weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def model_arguments(config: RunConfig) -> dict[str, dict]:
    """Keyword arguments of planner, transformer and scheduler, as a run builds them."""
    if config.lora is not None:
        arguments = base_arguments(config.init_from)
        return {part: arguments[part] for part in ("planner", "transformer", "scheduler")}
    preset = load_preset(config.preset)
    parts = ("planner", "transformer", "scheduler")
    return {part: {**preset[part], **getattr(config, part)} for part in parts}


def build_models(
    arguments: dict[str, dict], device: torch.device | str = "meta", lora: AdapterConfig | None = None
) -> nn.ModuleDict:
    """`planner`, `transformer` and `head` of a run, on a device; with an adapter, frozen but for it and without a head."""
    with torch.device(device):
        planner = MarDiniPlannerTransformer3DModel(**arguments["planner"])
        transformer = MarDiniTransformer3DModel(**arguments["transformer"])
        planning_dim = planner.config.num_attention_heads * planner.config.attention_head_dim
        if lora is not None:
            models = nn.ModuleDict({"planner": planner, "transformer": transformer})
            add_adapter(models, lora, seed=0)
            return models
        head = PlannerReconstructionHead(planning_dim, planner.config.in_channels, planner.config.patch_size)
    return nn.ModuleDict({"planner": planner, "transformer": transformer, "head": head})


def whole_models(config: RunConfig) -> nn.ModuleDict:
    """The models of a run on meta, to be looked at and not changed."""
    return _whole_models(json.dumps(model_arguments(config)), config.lora)


@cache
def _whole_models(arguments: str, lora: AdapterConfig | None) -> nn.ModuleDict:
    return build_models(json.loads(arguments), lora=lora)


def adapted_layers(config: RunConfig) -> dict[str, list[str]]:
    """Names of the linear layers that an adapter changes, by part; see `adapter.matched_layers`."""
    return matched_layers(_whole_models(json.dumps(model_arguments(config)), None), config.lora.targets)


def trained_parts(stage: StageConfig) -> tuple[str, ...]:
    """Which of the models a stage trains, as the loop does."""
    parts = {"planner": ("planner", "head"), "transformer": ("transformer",), "joint": ("planner", "transformer")}
    return parts[stage.trains] + (("head",) if stage.trains == "joint" and stage.planner_loss_weight > 0 else ())


@dataclass(frozen=True)
class Shape:
    """All that decides what a step costs on one process; stages of the same shape are counted once.

    Attributes:
        arguments: `model_arguments`, as JSON.
        parts: the models that run.
        temporal_attention: of the transformer.
        batch, frames, num_masked: windows, their frames, and how many of those are masked.
        size: height and width in pixels.
        planner_downscale: how many times smaller the planner's frames are.
        dtype: what is computed in.
        checkpointing: whether blocks are recomputed in the backward pass.
        lora: the adapter, for as many blocks as there are; `None` where all weights are trained.
    """

    arguments: str
    parts: tuple[str, ...]
    temporal_attention: str
    batch: int
    frames: int
    num_masked: int
    size: tuple[int, int]
    planner_downscale: int
    dtype: torch.dtype
    checkpointing: bool
    lora: AdapterConfig | None = None

    @classmethod
    def of(cls, config: RunConfig, stage: StageConfig, num_masked: int, checkpointing: bool | None = None) -> "Shape":
        """The shape of a stage's step; `stage` has a `batch_size` (`StageConfig.for_processes`)."""
        return cls(
            arguments=json.dumps(model_arguments(config)),
            parts=trained_parts(stage),
            temporal_attention=stage.temporal_attention,
            batch=stage.batch_size,
            frames=stage.num_frames,
            num_masked=num_masked,
            size=config.size_of(stage),
            planner_downscale=config.data.planner_downscale,
            dtype=torch.bfloat16 if uses_bfloat16(config) else torch.float32,
            checkpointing=config.gradient_checkpointing if checkpointing is None else checkpointing,
            lora=None if config.lora is None else _for_any_block(config),
        )

    def training_model(
        self, layers: tuple[int, int] | None = None, device: torch.device | str = "meta"
    ) -> MarDiniTrainingModel:
        """What a step runs, in float32, with `layers` blocks of planner and transformer, or all of them."""
        arguments = json.loads(self.arguments)
        for part, number in zip(("planner", "transformer"), layers or ()):
            arguments[part]["num_layers"] = number
        models = build_models(arguments, device, self.lora)
        models["transformer"].set_temporal_attention(self.temporal_attention)
        if self.checkpointing:
            models["planner"].enable_gradient_checkpointing()
            models["transformer"].enable_gradient_checkpointing()
        chosen = (models[part] if part in self.parts else None for part in ("planner", "head", "transformer"))
        return MarDiniTrainingModel(*chosen, MarDiniScheduler(**arguments["scheduler"]), planner_loss_weight=1.0)

    def batch_of(self, device: torch.device | str, dtype: torch.dtype) -> Batch:
        """A made-up batch: noise on a device, nothing on meta; the first frames of each window are masked."""
        channels = json.loads(self.arguments)["transformer"].get("in_channels", 16)
        height, width = (side // VAE_FACTOR for side in self.size)
        low = self.planner_downscale
        with torch.device(device):
            latents, noise = (
                torch.randn(self.batch, self.frames, channels, height, width, dtype=dtype) for _ in range(2)
            )
            reference_mask = torch.ones(self.batch, self.frames, dtype=torch.bool)
            reference_mask[:, : self.num_masked] = False
            return Batch(
                latents=latents,
                planner_latents=torch.randn(
                    self.batch, self.frames, channels, height // low, width // low, dtype=dtype
                ),
                reference_mask=reference_mask,
                num_masked_frames=self.num_masked,
                noise=noise,
                timesteps=torch.full((self.batch,), 500),
                planning_signals_mask=torch.ones(self.batch, dtype=torch.bool),
            )


def uses_bfloat16(config: RunConfig) -> bool:
    return config.mixed_precision == "bf16" or (
        config.mixed_precision == "auto" and has_bfloat16_units(choose_device())
    )


def masked_frames(stage: StageConfig) -> tuple[float, int]:
    """The mean number of masked frames of a window under the stage's mixture of tasks, and the largest."""
    least, largest = num_reference_frames_range(stage.num_frames, stage.reference_ratio)
    kept = {"random": (least, largest), "interpolation": (2, 2), "leading": stage.leading_frames}
    weights = {task: weight for task, weight in stage.tasks.model_dump().items() if weight > 0}
    mean = sum(weight * sum(kept[task]) / 2 for task, weight in weights.items()) / sum(weights.values())
    return stage.num_frames - mean, stage.num_frames - min(kept[task][0] for task in weights)


def count_tokens(config: RunConfig, stage: StageConfig) -> dict[str, int]:
    """Tokens of one window in planner and transformer, [NEXT] included; 0 for a model the stage does not run."""
    shape = Shape.of(config, stage.model_copy(update={"batch_size": 1}), 1)
    batch, arguments = shape.batch_of("meta", shape.dtype), json.loads(shape.arguments)
    tokens = {}
    for name, latents, patch_size in (("planner", batch.planner_latents, 1), ("transformer", batch.latents, 2)):
        patches = patchify(latents, arguments[name].get("patch_size", patch_size))
        sequences = append_next_tokens(patches, patches[0, 0, 0, 0])  # (1, frames, tokens, channels)
        tokens[name] = sequences.shape[1] * sequences.shape[2] if name in shape.parts else 0
    return tokens


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Parameters of `planner`, `transformer` and `head` that a run learns: all or, of an adapter's, those of the adapter."""
    return {name: sum(p.numel() for p in learned(model).values()) for name, model in whole_models(config).items()}


def count_operations(config: RunConfig, stage: StageConfig) -> float:
    """Floating-point operations of a step on one process, all its accumulated parts, forward and backward, at the mean number of
    masked frames."""
    mean, _ = masked_frames(stage)
    low, high = int(mean), int(mean) + (mean != int(mean))  # linear in between: masked frames are those that ask
    shapes = [Shape.of(config, stage, masked) for masked in (low, high)]
    at_low, at_high = (_by_layers(shape, partial(_count_operations, shape)) for shape in shapes)
    return stage.gradient_accumulation * (at_low + (at_high - at_low) * (mean - low))


def count_activations(config: RunConfig, stage: StageConfig, checkpointing: bool) -> int:
    """Most bytes of results alive at once in a step on one process, gradients of weights not counted."""
    shape = Shape.of(config, stage, masked_frames(stage)[1], checkpointing)
    kept = _by_layers(shape, partial(_count_bytes, shape))
    beside = _count_bytes(shape, 1, 1, backward=True) - _count_bytes(shape, 1, 1)  # one block's, while the rest waits
    return int(kept + beside)


def count_memory(
    config: RunConfig, stage: StageConfig, parallelism: str, num_processes: int, checkpointing: bool
) -> Memory:
    """Memory of each device under `single`, `ddp` or `fsdp` (all sharded over the processes)."""
    models = whole_models(config)
    everything = sum(p.numel() for p in learned(models).values())
    frozen = sum(p.numel() for p in models.parameters()) - everything
    frozen_width = 4 if config.lora is None else FROZEN_WIDTHS[config.lora.base_dtype]
    trained = [(f"{part}.{name}", p) for part in trained_parts(stage) for name, p in learned(models[part]).items()]
    updated = sum(p.numel() for _, p in trained)
    by_muon = sum(p.numel() for name, p in trained if learns_by_muon(name, p, config.optimizer))
    width = 2 if uses_bfloat16(config) else 4
    shards = num_processes if parallelism == "fsdp" else 1
    if parallelism == "fsdp":
        parts: list[Any] = [models[part] for part in trained_parts(stage) if part != "head"]
        blocks = [block for part in parts for block in part.transformer_blocks]
        largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
        copies = largest * (2 * width + 4)  # a block in use, one on its way, and one's gradient on its way out
    else:
        copies = updated * width if width == 2 else 0
    return Memory(
        weights=(4 * everything + frozen_width * frozen) // shards,
        low_precision_weights=copies,
        gradients=4 * updated * (2 if parallelism == "ddp" else 1) // shards,
        optimizer=(8 * (updated - by_muon) + 4 * by_muon) // shards,
        ema=4 * everything // shards,
        activations=count_activations(config, stage, checkpointing),
    )


def _for_any_block(config: RunConfig) -> AdapterConfig:
    """The adapter with targets that match the same layers in every block, since costs are counted with one and with two of them."""
    names = {f"{part}.{name}" for part, names in adapted_layers(config).items() for name in names}
    # Escaped first: what stands for any number must not be.
    patterns = sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name), count=1) for name in names})
    return config.lora.model_copy(update={"targets": "|".join(patterns)})


def _by_layers(shape: Shape, measure: Callable[[int, int], float]) -> float:
    """What `measure` gives for all blocks, from what it gives for one and for two of them."""
    arguments = json.loads(shape.arguments)
    total = one = measure(1, 1)
    for part, two in (("planner", (2, 1)), ("transformer", (1, 2))):
        if part in shape.parts:
            total += (arguments[part].get("num_layers", 8) - 1) * (measure(*two) - one)
    return total


def _on_meta(shape: Shape, layers: tuple[int, int]) -> tuple[MarDiniTrainingModel, Batch]:
    """Module and batch. In bf16 throughout where autocast computes in it; its copies of the weights are counted apart."""
    model = shape.training_model(layers).to(shape.dtype)
    return model, shape.batch_of("meta", shape.dtype)


@cache
def _count_operations(shape: Shape, planner_layers: int, transformer_layers: int) -> int:
    model, batch = _on_meta(shape, (planner_layers, transformer_layers))
    with fused_attention(), FlopCounterMode(display=False) as counter:
        model(batch)["loss"].backward()
    return counter.get_total_flops()


@cache
def _count_bytes(shape: Shape, planner_layers: int, transformer_layers: int, backward: bool = False) -> int:
    """Bytes kept by the forward pass or, with `backward`, the most alive at any moment; gradients are let go as they come.

    Apart from the operations, because torch's counter holds on to what a recomputed block lets go.
    """
    model, batch = _on_meta(shape, (planner_layers, transformer_layers))
    for parameter in learned(model).values():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with fused_attention(), PeakMemory() as memory:
        loss = model(batch)["loss"]
        if not backward:
            return memory.now
        loss.backward()
    return memory.peak
