"""Count the costs of a run: tokens, operations, memory, disk; on meta tensors, so that nothing is allocated.

The training module itself runs forward and backward, with one and with two blocks per model; all blocks are alike, so
the costs of more are extrapolated linearly. `plan.py` prints the costs of all stages.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mardini import MarDiniScheduler
from diffusers_mardini.costs import PeakMemory, fused_attention
from diffusers_mardini.hardware import choose_device
from diffusers_mardini.masking import num_reference_frames_range
from diffusers_mardini.models.embeddings import append_next_tokens, patchify
from training.config.schema import AdapterConfig, RunConfig, StageConfig
from training.data.batches import Batch
from training.data.buckets import window_request
from training.data.census import StageCensus
from training.engine.layout import Layout
from training.engine.models import (
    adapted_layers,
    build_models,
    has_variance,
    model_arguments,
    trained_parts,
    vae_factor,
    whole_models,
)
from training.engine.optimizers import learned, learns_by_muon, make_optimizers
from training.engine.sharding import uses_bfloat16
from training.losses import MarDiniTrainingModel


# Bytes of a frozen weight by `lora.base_dtype`; scales of int8 are not counted.
FROZEN_WIDTHS = {"float32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, by kind.

    Attributes:
        weights: float32, of all models, whatever the stage trains; frozen weights of an adapter in `lora.base_dtype`.
        low_precision_weights: the copies that bf16 autocast keeps; under FSDP the blocks gathered at the same time.
        gradients: float32; twice under DDP, which keeps buckets beside them. Shards that accumulate parts keep the sum
            whole beside theirs.
        optimizer: averages of the gradients of trained parameters.
        ema: the average of the weights.
        activations: tensors kept for the backward pass, and the largest working set beside them; or, where that is
            more, the updates that Muon sends between copies.
        latents: of all training clips, where `data.device_gb` keeps them there.
    """

    weights: int
    low_precision_weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    latents: int = 0

    @property
    def total(self) -> int:
        """Return the bytes of all kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def saved(self) -> int:
        """Return the bytes that a checkpoint has of this device's share."""
        return self.weights + self.optimizer + self.ema


@dataclass(frozen=True)
class Shape:
    """Properties that decide what a step costs on one process; stages of the same shape are counted once.

    Attributes:
        arguments: `model_arguments`, as JSON.
        parts: the models that run.
        temporal_attention: of the transformer.
        batch, frames, num_masked: windows, their frames, and the masked ones of these.
        size: height and width in pixels.
        planner_downscale: the planner's frames are so many times smaller.
        factor: pixels of a side of a latent.
        dtype: of the computations.
        checkpointing: blocks are recomputed in the backward pass.
        lora: the adapter, for any number of blocks; `None` if all weights are trained.
    """

    arguments: str
    parts: tuple[str, ...]
    temporal_attention: str
    batch: int
    frames: int
    num_masked: int
    size: tuple[int, int]
    planner_downscale: int
    factor: int
    dtype: torch.dtype
    checkpointing: bool
    lora: AdapterConfig | None = None

    @classmethod
    def of(cls, config: RunConfig, stage: StageConfig, num_masked: int, checkpointing: bool | None = None) -> "Shape":
        """Return the shape of a stage's step; `stage` has a `batch_size` (`StageConfig.for_processes`)."""
        return cls(
            arguments=json.dumps(model_arguments(config)),
            parts=trained_parts(stage),
            temporal_attention=stage.temporal_attention,
            batch=stage.batch_size,
            frames=stage.num_frames,
            num_masked=num_masked,
            size=config.size_of(stage),
            planner_downscale=config.data.planner_downscale,
            factor=vae_factor(config),
            dtype=torch.bfloat16 if uses_bfloat16(config) else torch.float32,
            checkpointing=config.gradient_checkpointing if checkpointing is None else checkpointing,
            lora=None if config.lora is None else _for_any_block(config),
        )

    def training_model(
        self, layers: tuple[int, int] | None = None, device: torch.device | str = "meta"
    ) -> MarDiniTrainingModel:
        """Return the module of a step in float32, with `layers` blocks of planner and transformer, or all of them."""
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
        """Return a batch of noise on a device (no numbers on meta); the first frames of each window are masked."""
        channels = json.loads(self.arguments)["transformer"].get("in_channels", 16)
        height, width = (side // self.factor for side in self.size)
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


@dataclass(frozen=True)
class BucketCosts:
    """Costs of the windows of one shape.

    Attributes:
        num_frames, size: the shape.
        share: of the stage's batches; equal shares if the clips are unknown.
        tokens: of one window, by model, [NEXT] included.
        operations_per_step: floating-point operations of all processes, forward and backward.
        memory: of each device, as configured.
        memory_other: with gradient checkpointing switched the other way.
    """

    num_frames: int
    size: tuple[int, int]
    share: float
    tokens: dict[str, int]
    operations_per_step: float
    memory: Memory
    memory_other: Memory


@dataclass(frozen=True)
class StageCosts:
    """Costs of a stage.

    Attributes:
        steps, clips: optimizer steps, and windows seen in them by all processes.
        batch: windows of a step, of all processes.
        parameters: number of trained parameters.
        buckets: the shapes of its windows, one or several.
        seconds_per_step: at the stated throughput, or as measured; `None` if neither is known.
        census: the clips; `None` without data.
    """

    name: str
    trains: str
    sampling: str
    steps: int
    clips: int
    batch: int
    parameters: int
    buckets: tuple[BucketCosts, ...]
    seconds_per_step: float | None = None
    census: StageCensus | None = None

    @property
    def largest(self) -> BucketCosts:
        """Return the bucket that needs the most memory."""
        return max(self.buckets, key=lambda bucket: bucket.memory.total)

    @property
    def operations_per_step(self) -> float:
        """Return the mean over the batches of all buckets."""
        return sum(bucket.share * bucket.operations_per_step for bucket in self.buckets)

    @property
    def operations(self) -> float:
        """Return the floating-point operations of all steps and processes."""
        return self.operations_per_step * self.steps

    @property
    def hours(self) -> float | None:
        """Return the duration of the stage, if known."""
        return None if self.seconds_per_step is None else self.seconds_per_step * self.steps / 3600


def masked_frames(stage: StageConfig) -> tuple[float, int]:
    """Return the mean number of masked frames of a window under the stage's mixture of tasks, and the largest."""
    least, largest = num_reference_frames_range(stage.num_frames, stage.reference_ratio)
    kept = {"random": (least, largest), "interpolation": (2, 2), "leading": stage.leading_frames}
    weights = {task: weight for task, weight in stage.tasks.model_dump().items() if weight > 0}
    mean = sum(weight * sum(kept[task]) / 2 for task, weight in weights.items()) / sum(weights.values())
    return stage.num_frames - mean, stage.num_frames - min(kept[task][0] for task in weights)


def count_tokens(config: RunConfig, stage: StageConfig) -> dict[str, int]:
    """Return the tokens of one window in planner and transformer, [NEXT] included; 0 for models that do not run."""
    shape = Shape.of(config, stage.model_copy(update={"batch_size": 1}), 1)
    batch, arguments = shape.batch_of("meta", shape.dtype), json.loads(shape.arguments)
    tokens = {}
    for name, latents, patch_size in (("planner", batch.planner_latents, 1), ("transformer", batch.latents, 2)):
        patches = patchify(latents, arguments[name].get("patch_size", patch_size))
        sequences = append_next_tokens(patches, patches[0, 0, 0, 0])  # (1, frames, tokens, channels)
        tokens[name] = sequences.shape[1] * sequences.shape[2] if name in shape.parts else 0
    return tokens


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Return the numbers of parameters that a run learns, by model; only the adapter's, if there is one."""
    return {name: sum(p.numel() for p in learned(model).values()) for name, model in whole_models(config).items()}


def count_operations(config: RunConfig, stage: StageConfig) -> float:
    """Return the operations of a step on one process, forward and backward of all its accumulated parts.

    Counts the mean number of masked frames.
    """
    mean, _ = masked_frames(stage)
    low, high = int(mean), int(mean) + (mean != int(mean))  # linear in between: only masked frames need queries
    shapes = [Shape.of(config, stage, masked) for masked in (low, high)]
    at_low, at_high = (_by_layers(shape, partial(_count_operations, shape)) for shape in shapes)
    return stage.gradient_accumulation * (at_low + (at_high - at_low) * (mean - low))


def count_activations(config: RunConfig, stage: StageConfig, checkpointing: bool) -> int:
    """Return the most bytes of results alive at once in a step on one process, without gradients of weights."""
    shape = Shape.of(config, stage, masked_frames(stage)[1], checkpointing)
    kept = _by_layers(shape, partial(_count_bytes, shape))
    beside = _count_bytes(shape, 1, 1, backward=True) - _count_bytes(shape, 1, 1)  # one block's, while the rest waits
    return int(kept + beside)


def count_memory(config: RunConfig, stage: StageConfig, layout: Layout, checkpointing: bool) -> Memory:
    """Return the memory of each device; where processes share tokens, each has an equal part of the activations."""
    models = whole_models(config)
    everything = sum(p.numel() for p in learned(models).values())
    frozen = sum(p.numel() for p in models.parameters()) - everything
    frozen_width = 4 if config.lora is None else FROZEN_WIDTHS[config.lora.base_dtype]
    trained = [(f"{part}.{name}", p) for part in trained_parts(stage) for name, p in learned(models[part]).items()]
    updated = sum(p.numel() for _, p in trained)
    by_muon = sum(p.numel() for name, p in trained if learns_by_muon(name, p, config.optimizer))
    width = 2 if uses_bfloat16(config) else 4
    shards, in_copies = layout.shards, layout.copies > 1 and layout.shards == 1
    accumulates = shards > 1 and stage.gradient_accumulation > 1
    if shards > 1:
        parts: list[Any] = [models[part] for part in trained_parts(stage) if part != "head"]
        blocks = [block for part in parts for block in part.transformer_blocks]
        largest = max(sum(p.numel() for p in block.parameters()) for block in blocks)
        copies = largest * (2 * width + 4)  # a block in use, one on its way, and one's gradient on its way out
    else:
        copies = updated * width if width == 2 else 0
    return Memory(
        weights=(4 * everything + frozen_width * frozen) // shards,
        low_precision_weights=copies,
        gradients=4 * updated * (2 if in_copies else 1) // shards + (4 * updated if accumulates else 0),
        optimizer=(8 * (updated - by_muon) + 4 * by_muon) // shards,
        ema=4 * everything // shards,
        activations=max(
            count_activations(config, stage, checkpointing) // layout.context, 4 * by_muon if in_copies else 0
        ),
    )


def estimate_stage(
    config: RunConfig, stage: StageConfig, layout: Layout, flops_per_second: float | None, census: StageCensus | None,
    latents_on_device: int = 0,
) -> StageCosts:  # fmt: skip
    """Return what a stage, resolved for a layout, costs on all processes; see `training.plan` for the arguments."""
    parameters = count_parameters(config)
    shapes = config.by_bucket(stage)
    known = census is not None and census.clips
    shares = [bucket.share for bucket in census.buckets] if known else [1 / len(shapes)] * len(shapes)
    rates = "/".join(f"{fps:g}" for fps in sorted(stage.rates))
    sampling = f"{rates} fps" if rates else "stride " + "/".join(map(str, sorted(stage.strides)))
    plan = StageCosts(
        name=stage.name,
        trains=stage.trains,
        sampling=sampling,
        steps=stage.steps,
        clips=stage.steps * stage.windows_per_step,
        batch=stage.windows_per_step,
        parameters=sum(parameters[part] for part in trained_parts(stage)),
        buckets=tuple(
            _estimate_bucket(config, shape, share, layout, latents_on_device) for shape, share in zip(shapes, shares)
        ),
        census=census,
    )
    if not flops_per_second:
        return plan
    most = -(-plan.batch // layout.data_ranks)  # the others wait for the process with the most windows
    per_window = plan.operations_per_step / plan.batch
    return replace(plan, seconds_per_step=per_window * most / layout.context / flops_per_second)


def _estimate_bucket(
    config: RunConfig, shape: StageConfig, share: float, layout: Layout, latents_on_device: int
) -> BucketCosts:
    checkpointing = config.gradient_checkpointing
    memory, other = (
        replace(count_memory(config, shape, layout, switch), latents=latents_on_device)
        for switch in (checkpointing, not checkpointing)
    )
    per_window = count_operations(config, shape) / (shape.batch_size * shape.gradient_accumulation)
    return BucketCosts(
        num_frames=shape.num_frames,
        size=config.size_of(shape),
        share=share,
        tokens=count_tokens(config, shape),
        operations_per_step=per_window * shape.windows_per_step,
        memory=memory,
        memory_other=other,
    )


def count_disk(
    config: RunConfig, stages: list[StageCosts], frames: Mapping[tuple[int, int], int], shards: int
) -> dict[str, int]:
    """Return bytes on disk by kind.

    Checkpoints hold float32 weights, averages and optimizer state of learned parameters; while one is written there is
    one more than are kept. Latents are means and variances in float16; an autoencoder without variance needs half.

    Args:
        config, stages: the run, and the costs of its stages.
        frames: that are encoded, by size; see `LatentForms`.
        shards: of the weights.
    """
    parameters = count_parameters(config)
    everything = sum(parameters.values())
    optimizer = max(stage.largest.memory.optimizer for stage in stages) * shards
    width = getattr(torch, config.save_dtype).itemsize
    results = "pipelines" if config.lora is None else "adapters"
    disk = {
        "checkpoints": (8 * everything + optimizer) * (config.keep_checkpoints + 1),
        results: (everything - parameters.get("head", 0)) * width * len(stages),
    }
    if config.data.from_pixels:
        return disk
    copies = len({view for stage in config.stages for view in window_request(config, stage).views})
    sizes = {bucket.size for stage in stages for bucket in stage.buckets}
    disk["latents per 1000 frames"] = latent_bytes(config, dict.fromkeys(sizes, 1000 * copies))
    disk["latents"] = latent_bytes(config, frames)
    return disk


def latent_bytes(config: RunConfig, frames: Mapping[tuple[int, int], int], width: int = 4) -> int:
    """Return the bytes of the latents of frames at both models' sizes; `width` of each value and its variance."""
    channels, low = model_arguments(config)["transformer"].get("in_channels", 16), config.data.planner_downscale
    return sum(
        count * width * channels * (h * w + h * w // low**2) // vae_factor(config) ** 2
        for (h, w), count in frames.items()
    )


def count_latents_on_device(config: RunConfig, frames: Mapping[tuple[int, int], int] | None) -> int:
    """Return the bytes of latents that each process keeps on its device.

    Means are kept as they are stored, in float16, and deviations in float32.

    Args:
        config: the run.
        frames: all of the training clips, by size; `None` if they are unknown: as much as is allowed.
    """
    most = int(config.data.device_gb * 1e9)
    if not most or frames is None:
        return most
    needed = latent_bytes(config, frames, 6 if has_variance(config) else 2)
    return needed if needed <= most else 0


def probe(config: RunConfig, stage: StageConfig, num_steps: int) -> float:
    """Return the seconds of a real step on this machine's device, with random latents; one step warms up."""
    device = choose_device()
    shape = Shape.of(config, stage, round(masked_frames(stage)[0]))
    model = shape.training_model(device=device)
    optimizers = make_optimizers(model, config.optimizer, stage.learning_rate)
    batch = shape.batch_of(device, torch.float32)

    def step() -> None:
        for _ in range(stage.gradient_accumulation):
            with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config)):
                loss = model(batch)["loss"]
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device

    step()
    started = time.monotonic()
    for _ in range(num_steps):
        step()
    return (time.monotonic() - started) / num_steps


def count_forward(shape: Shape) -> float:
    """Return the operations of a forward pass without gradients: a third of a step's, whose backward pass has two."""
    return _by_layers(shape, partial(_count_operations, shape)) / 3


def time_forward(shape: Shape, device: torch.device, bfloat16: bool) -> float:
    """Return the seconds of a forward pass without gradients on a device; one pass warms up."""
    model = shape.training_model(device=device).eval()
    batch = shape.batch_of(device, torch.float32)
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            model(batch)["loss"].item()
        seconds = time.monotonic() - started
    return seconds


def _for_any_block(config: RunConfig) -> AdapterConfig:
    """Return the adapter with targets that match the same layers in every block, however many there are."""
    names = {f"{part}.{name}" for part, names in adapted_layers(config).items() for name in names}
    # Names are escaped before `\d+` is inserted.
    patterns = sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name), count=1) for name in names})
    return config.lora.model_copy(update={"targets": "|".join(patterns)})


def _by_layers(shape: Shape, measure: Callable[[int, int], float]) -> float:
    """Return what `measure` gives for all blocks, extrapolated from one and two blocks."""
    arguments = json.loads(shape.arguments)
    total = one = measure(1, 1)
    for part, two in (("planner", (2, 1)), ("transformer", (1, 2))):
        if part in shape.parts:
            total += (arguments[part].get("num_layers", 8) - 1) * (measure(*two) - one)
    return total


def _on_meta(shape: Shape, layers: tuple[int, int]) -> tuple[MarDiniTrainingModel, Batch]:
    """Return module and batch, in bf16 throughout if autocast uses it; its copies of weights are counted apart."""
    model = shape.training_model(layers).to(shape.dtype)
    return model, shape.batch_of("meta", shape.dtype)


def forget_counts() -> None:
    """Count anew from now on: models of the same configuration have been changed."""
    _count_operations.cache_clear()
    _count_bytes.cache_clear()


@cache
def _count_operations(shape: Shape, planner_layers: int, transformer_layers: int) -> int:
    model, batch = _on_meta(shape, (planner_layers, transformer_layers))
    with fused_attention(), FlopCounterMode(display=False) as counter:
        model(batch)["loss"].backward()
    return counter.get_total_flops()


@cache
def _count_bytes(shape: Shape, planner_layers: int, transformer_layers: int, backward: bool = False) -> int:
    """Return the bytes kept by the forward pass or, with `backward`, the most alive at any moment, without gradients.

    Counted apart from the operations, because torch's counter keeps tensors that a recomputed block releases.
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
