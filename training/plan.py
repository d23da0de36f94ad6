"""What a configuration costs, and what in it cannot work, before anything runs: `python -m training.plan CONFIG`.

    python -m training.plan training/configs/mardini_l_t.yaml --no-data --processes 16 --parallel fsdp --gpu-memory 80

Counts come from `step_costs.py`, clips from `census.py`; the trainer calls `problems` itself. Exit code 1 where something cannot work;
every problem is printed with its fix.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diffusers_mardini.hardware import choose_device
from diffusers_mardini.presets import load_preset
from training.config.layers import load_config
from training.config.schema import RunConfig, StageConfig
from training.costs import (
    VAE_FACTOR,
    Memory,
    Shape,
    adapted_layers,
    build_models,
    count_memory,
    count_operations,
    count_parameters,
    count_tokens,
    masked_frames,
    model_arguments,
    trained_parts,
    uses_bfloat16,
)
from training.curriculum import window_request
from training.data.buckets import Census, assign, size_multiple
from training.data.census import StageCensus, open_clips, read_clips
from training.data.sources import is_there
from training.engine.adapter import base_arguments, summary
from training.engine.optimizers import make_optimizers


PARALLELISMS = ("single", "ddp", "fsdp")


@dataclass(frozen=True)
class BucketPlan:
    """What the windows of one shape cost.

    Attributes:
        num_frames, size: the shape.
        share: of the stage's batches; equal shares where the clips are not known.
        tokens: of one window, by model, [NEXT] included.
        operations_per_step: floating-point operations of all processes, forward and backward.
        memory: of each device, as configured.
        memory_other: the same with gradient checkpointing switched the other way.
    """

    num_frames: int
    size: tuple[int, int]
    share: float
    tokens: dict[str, int]
    operations_per_step: float
    memory: Memory
    memory_other: Memory


@dataclass(frozen=True)
class StagePlan:
    """A stage in numbers.

    Attributes:
        steps, clips: optimizer steps, and windows seen in them by all processes.
        batch: windows of a step, of all processes.
        parameters: those trained.
        buckets: the shapes of its windows, one or several.
        seconds_per_step: at the stated throughput, or as measured; `None` where neither is there.
        census: what clips there are; `None` without data.
    """

    name: str
    trains: str
    sampling: str
    steps: int
    clips: int
    batch: int
    parameters: int
    buckets: tuple[BucketPlan, ...]
    seconds_per_step: float | None = None
    census: StageCensus | None = None

    @property
    def largest(self) -> BucketPlan:
        """The bucket that needs the most memory."""
        return max(self.buckets, key=lambda bucket: bucket.memory.total)

    @property
    def operations_per_step(self) -> float:
        """The mean over the batches of all buckets."""
        return sum(bucket.share * bucket.operations_per_step for bucket in self.buckets)

    @property
    def operations(self) -> float:
        return self.operations_per_step * self.steps

    @property
    def hours(self) -> float | None:
        return None if self.seconds_per_step is None else self.seconds_per_step * self.steps / 3600


@dataclass(frozen=True)
class Plan:
    """A run in numbers: its stages, the parameters that it learns by model, bytes on disk by kind, and the layers that an adapter changes."""

    stages: list[StagePlan]
    parameters: dict[str, int]
    disk: dict[str, int]
    problems: list[str]
    notes: list[str]
    adapted: dict[str, list[str]] | None = None


def problems(config: RunConfig, with_data: bool = True) -> list[str]:
    """What cannot work, each with its fix, as far as it can be told without reading a clip or running a step.

    Args:
        with_data: whether sources of clips have to be there.
    """
    found = []
    if config.lora is not None:
        try:
            found += _adapter_problems(config)
        except ValueError as error:
            return [f"planner and transformer cannot be adapted: {error}"]
    try:
        arguments = model_arguments(config)
        models = build_models(arguments)
    except (TypeError, ValueError) as error:
        return [f"planner and transformer cannot be built: {error}; check `preset`, `planner` and `transformer`"]
    planner, transformer = models["planner"].config, models["transformer"].config
    width = planner.num_attention_heads * planner.attention_head_dim
    for key, theirs, ours in (
        ("planning_dim", "hidden size", width),
        ("in_channels", "in_channels", planner.in_channels),
    ):
        if transformer[key] != ours:
            found.append(
                f"the transformer's {key} is {transformer[key]}, but the planner's {theirs} is {ours}; set `transformer.{key}` to {ours}"
            )
    multiple = size_multiple(VAE_FACTOR, transformer.patch_size, planner.patch_size, config.data.planner_downscale)
    for stage in (shape for whole in config.stages for shape in config.by_bucket(whole)):
        where = f"stage {stage.name!r}"
        size = config.size_of(stage)
        if any(side % multiple for side in size):
            nearest = [max(1, round(side / multiple)) * multiple for side in size]
            found.append(
                f"{where}: {size[0]}x{size[1]} pixels do not divide into the autoencoder's {VAE_FACTOR}, patches and `planner_downscale` "
                f"{config.data.planner_downscale}; sides must be multiples of {multiple}, the nearest are {nearest[0]}x{nearest[1]}"
            )
        low = stage.reference_ratio[0]
        if stage.tasks.random > 0 and round(low * stage.num_frames) >= stage.num_frames:
            most = (stage.num_frames - 1) / stage.num_frames
            found.append(
                f"{where}: a reference_ratio from {low:g} keeps all of {stage.num_frames} frames and leaves none to learn from; "
                f"lower its first number to {math.floor(most * 100) / 100:g} or less"
            )
        if stage.tasks.interpolation > 0 and stage.num_frames < 3:
            found.append(
                f"{where}: interpolation keeps the first and the last of {stage.num_frames} frames and leaves none to learn from; "
                "raise `num_frames` to 3 or more, or set `tasks.interpolation` to 0"
            )
    for key, spec in (("train", config.data.train), ("validation", config.data.validation)):
        if with_data and spec is not None and not is_there(spec):
            found.append(f"there is no source of clips at {spec}; set `data.{key}` to yours")
    return list(dict.fromkeys(found))  # the same of several buckets, once


def _adapter_problems(config: RunConfig) -> list[str]:
    """Where a run does not fit the pipeline that it adapts.

    Raises:
        ValueError: if there is no such pipeline, or no layer of it is adapted.
    """
    base, adapted = base_arguments(config.init_from), adapted_layers(config)
    found, lora = [], config.lora
    if lora.base_dtype != "float32" and not uses_bfloat16(config):
        found.append(
            f"lora.base_dtype is {lora.base_dtype}, and this device would compute in float32; set `mixed_precision: bf16`, or base_dtype to float32"
        )
    if config.data.planner_downscale != base["pipeline"]["planner_downscale"]:
        found.append(
            f"`data.planner_downscale` is {config.data.planner_downscale}, but {config.init_from} has "
            f"{base['pipeline']['planner_downscale']}; an adapter is used with the base's, set it to that"
        )
    for stage in config.stages:
        attention = base["transformer"].get("temporal_attention", "temporal")
        if stage.temporal_attention != attention:
            found.append(
                f"stage {stage.name!r} has {stage.temporal_attention} attention, but {config.init_from} has {attention}, with which an adapter "
                f"is used; set `temporal_attention: {attention}`"
            )
        if not set(trained_parts(stage)) & set(adapted):
            found.append(
                f"stage {stage.name!r} trains the {stage.trains} alone, but `lora.targets` {lora.targets!r} changes only the "
                f"{' and '.join(adapted)}; set `trains: joint`, or other targets"
            )
    return found


def notes(config: RunConfig) -> list[str]:
    """What works and may not be meant; `config` has `steps` (`RunConfig.for_processes`)."""
    found = []
    # A pipeline does not say how many frames it is meant for.
    meant_for = load_preset(config.preset)["num_frames"] if config.lora is None else math.inf
    if config.data.from_pixels:
        found.append("`data.from_pixels`: what the autoencoder costs in every step is not counted here")
    for stage in config.stages:
        most = max(shape.num_frames for shape in config.by_bucket(stage))
        if most > meant_for:
            found.append(f"stage {stage.name!r} has {most} frames; preset {config.preset} is meant for {meant_for}")
    return found + warmup_notes(config)


def warmup_notes(config: RunConfig) -> list[str]:
    """One line for each stage that ends before its warm-up does; `config` has `steps`."""
    return [
        f"stage {stage.name!r} ends after {stage.steps} steps, within its warm-up of {stage.warmup_steps}; its "
        "learning rate never "
        f"reaches the peak, but {stage.steps / stage.warmup_steps:.1%} of it: lower `warmup_steps`"
        for stage in config.stages
        if stage.warmup_steps > stage.steps
    ]


def make_plan(
    config: RunConfig,
    num_processes: int = 1,
    parallelism: str = "single",
    gpu_memory: float | None = None,
    flops_per_second: float | None = None,
    probe_steps: int = 0,
    with_data: bool = True,
) -> Plan:
    """Counts everything; see `main` for the arguments."""
    found = problems(config, with_data)
    config = config.for_processes(num_processes)
    if any(
        text in problem
        for problem in found
        for text in ("cannot be built", "cannot be adapted", "pixels do not divide", "changes only")
    ):
        return Plan([], {}, {}, found, notes(config))  # there is nothing to count
    entries = None
    if with_data and is_there(config.data.train):
        entries = read_clips(config, open_clips(config, config.data.train)).entries
    told, stages, censuses = notes(config), [], []
    for stage in config.stages:
        census = None
        if entries is not None:
            sampling = window_request(config, stage)
            censuses.append(assign(entries, sampling))
            census = StageCensus.of(censuses[-1], sampling, stage.windows_per_step(num_processes))
            if not census.clips:
                found.append(
                    f"stage {stage.name!r}: no clip has windows of its frames at {' or '.join(census.windows)}; lower `num_frames` or "
                    f"{'change `fps`' if stage.fps else 'the stride'}, or add longer clips"
                )
            told += [
                f"stage {stage.name!r}: no clip has a window at {rate}; smaller strides are taken in its place"
                for rate, windows in census.windows.items()
                if windows == 0 and census.clips
            ]
        plan = _plan_stage(config, stage, num_processes, parallelism, flops_per_second, census)
        if gpu_memory is not None and plan.largest.memory.total > gpu_memory * 2**30:
            found.append(_does_not_fit(config, stage, plan.largest, gpu_memory, parallelism, num_processes))
        if probe_steps:
            try:
                seconds = [probe(config, shape, probe_steps) for shape in config.by_bucket(stage)]
                mean = sum(bucket.share * value for bucket, value in zip(plan.buckets, seconds))
                plan = replace(plan, seconds_per_step=mean)
            except torch.OutOfMemoryError:
                found.append(
                    f"stage {stage.name!r}: a step of {stage.batch_size} windows does not fit this device; lower `batch_size`, or set "
                    "`gradient_checkpointing: true`"
                )
        stages.append(plan)
    shards = num_processes if parallelism == "fsdp" else 1
    adapted = None if config.lora is None else adapted_layers(config)
    return Plan(stages, count_parameters(config), _disk(config, stages, censuses, shards), found, told, adapted)


def _plan_stage(
    config: RunConfig, stage: StageConfig, num_processes: int, parallelism: str, flops_per_second: float | None,
    census: StageCensus | None,
) -> StagePlan:  # fmt: skip
    parameters = count_parameters(config)
    shapes = config.by_bucket(stage)
    known = census is not None and census.clips
    shares = [bucket.share for bucket in census.buckets] if known else [1 / len(shapes)] * len(shapes)
    sampling = f"{stage.fps:g} fps" if stage.fps else "stride " + "/".join(map(str, sorted(stage.strides)))
    plan = StagePlan(
        name=stage.name,
        trains=stage.trains,
        sampling=sampling,
        steps=stage.steps,
        clips=stage.steps * stage.windows_per_step(num_processes),
        batch=stage.windows_per_step(num_processes),
        parameters=sum(parameters[part] for part in trained_parts(stage)),
        buckets=tuple(
            _plan_bucket(config, shape, share, num_processes, parallelism) for shape, share in zip(shapes, shares)
        ),
        census=census,
    )
    if not flops_per_second:
        return plan
    return replace(plan, seconds_per_step=plan.operations_per_step / num_processes / flops_per_second)


def _plan_bucket(
    config: RunConfig, shape: StageConfig, share: float, num_processes: int, parallelism: str
) -> BucketPlan:
    checkpointing = config.gradient_checkpointing
    memory, other = (
        count_memory(config, shape, parallelism, num_processes, switch)
        for switch in (checkpointing, not checkpointing)
    )
    return BucketPlan(
        num_frames=shape.num_frames,
        size=config.size_of(shape),
        share=share,
        tokens=count_tokens(config, shape),
        operations_per_step=count_operations(config, shape) * num_processes,
        memory=memory,
        memory_other=other,
    )


def _does_not_fit(
    config: RunConfig, stage: StageConfig, plan: BucketPlan, gpu_memory: float, parallelism: str, num_processes: int
) -> str:
    """The problem, and the first of: checkpointing, a smaller batch, sharding."""
    limit = gpu_memory * 2**30
    best = plan.memory if config.gradient_checkpointing else plan.memory_other
    fixed = best.total - best.activations
    fits = int((limit - fixed) // (best.activations / stage.batch_size)) if limit > fixed else 0
    if best.total <= limit:
        fix = "set `gradient_checkpointing: true`"
    elif fits >= 1:
        fix = f"set `batch_size` to {fits} or less (now {stage.batch_size} on each of {num_processes} processes)"
        fix += "" if config.gradient_checkpointing else " and `gradient_checkpointing: true`"
    elif parallelism != "fsdp":
        fix = "shard the models over several devices (`--parallel fsdp --processes N`) or make them smaller"
    else:
        fix = f"use more than {num_processes} processes, smaller models or smaller windows"
    return f"stage {stage.name!r} needs {plan.memory.total / 2**30:.1f} GiB on each device, which has {gpu_memory:g}; {fix}"


def _disk(config: RunConfig, stages: list[StagePlan], censuses: list[Census], shards: int) -> dict[str, int]:
    """Bytes by kind. Checkpoints: float32 weights, their averages and the optimizer, of what is learned, one more than are kept while it is written.
    Latents: means and variances in float16; an autoencoder without variance needs half."""
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
    channels = model_arguments(config)["transformer"].get("in_channels", 16)
    low = config.data.planner_downscale
    copies = len({view for stage in config.stages for view in window_request(config, stage).views})
    per_frame = {
        (h, w): copies * 2 * 2 * channels * (h * w + h * w // low**2) // VAE_FACTOR**2
        for h, w in {bucket.size for stage in stages for bucket in stage.buckets}
    }
    needed = {  # a clip is kept once at each size that some stage has for it
        (bucket.size, entry.key): entry.num_frames
        for census in censuses
        for bucket, clips in zip(census.buckets, census.clips)
        for entry in clips
    }
    disk["latents per 1000 frames"] = 1000 * sum(per_frame.values())
    disk["latents"] = sum(frames * per_frame[size] for (size, _), frames in needed.items())
    return disk


def probe(config: RunConfig, stage: StageConfig, num_steps: int) -> float:
    """Seconds of a real step on this machine's device, with the stage's models and made-up latents; one step warms up."""
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


def render(plan: Plan, title: str) -> str:
    """The plan as plain text."""
    lines = [title]
    if plan.stages:
        parameters = ", ".join(f"{name} {_short(count)}" for name, count in plan.parameters.items())
        if plan.adapted is None:
            lines += [f"parameters: {parameters} (the head is thrown away after training)", ""]
        else:
            lines += _render_adapter(plan)
        rows = [("stage", "trains", "frames", "size", "sampled", "clips seen", "steps", "batch", "tokens planner", "transformer",
                 "parameters", "FLOP/step", "FLOP", "s/step", "hours")]  # fmt: skip
        for s in plan.stages:
            one = s.buckets[0] if len(s.buckets) == 1 else None
            shape = _shape(one) if one else ("", f"{len(s.buckets)} buckets")
            rows.append(
                (s.name, s.trains, *shape, s.sampling, _short(s.clips), f"{s.steps:,}", s.batch, *(_tokens(one) if one else ("", "")),
                 _short(s.parameters), f"{s.operations_per_step:.3g}", f"{s.operations:.3g}", _number(s.seconds_per_step),
                 _number(s.hours))
            )  # fmt: skip
            for bucket in s.buckets if one is None else ():
                rows.append(
                    (f"  {bucket.share:.1%} of it", "", *_shape(bucket), "", "", "", "", *_tokens(bucket), "",
                     f"{bucket.operations_per_step:.3g}", "", "", "")
                )  # fmt: skip
        hours = None if any(s.hours is None for s in plan.stages) else sum(s.hours for s in plan.stages)
        rows.append(("all", "", "", "", "", _short(sum(s.clips for s in plan.stages)), f"{sum(s.steps for s in plan.stages):,}", "",
                     "", "", "", "", f"{sum(s.operations for s in plan.stages):.3g}", "", _number(hours)))  # fmt: skip
        lines += [
            *_table(rows),
            "",
            "memory of each device, GiB, for the largest bucket; in brackets with gradient checkpointing switched the other way",
        ]
        rows = [("stage", "weights", "low-precision", "gradients", "optimizer", "average", "activations", "together")]
        for s in plan.stages:
            m, other = s.largest.memory, s.largest.memory_other
            kinds = (m.weights, m.low_precision_weights, m.gradients, m.optimizer, m.ema)
            rows.append(
                (s.name, *map(_gib, kinds), f"{_gib(m.activations)} ({_gib(other.activations)})",
                 f"{_gib(m.total)} ({_gib(other.total)})")
            )  # fmt: skip
        lines += [*_table(rows), ""]
        lines.append("disk, GiB: " + ", ".join(f"{kind} {_gib(size)}" for kind, size in plan.disk.items() if size))
        lines += _render_clips(plan)
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"problem: {problem}" for problem in plan.problems] or ["nothing stands against it"]
    return "\n".join(lines)


def _render_adapter(plan: Plan) -> list[str]:
    """The layers that are adapted and what is learned, by model."""
    lines = []
    for part, count in plan.parameters.items():
        names = plan.adapted.get(part, [])
        lines.append(f"{part}: {len(names)} layers adapted, {_short(count)} parameters to be learned")
        lines += [f"  {name}" for name in summary(names)]
    return [*lines, ""]


def _render_clips(plan: Plan) -> list[str]:
    lines = []
    for stage in plan.stages:
        if stage.census is not None:
            first, *others = stage.census.lines(stage.clips)
            lines += [f"{stage.name}: {first}", *others]
    return lines


def _shape(bucket: BucketPlan) -> tuple[int, str]:
    return bucket.num_frames, "x".join(map(str, dict.fromkeys(bucket.size)))


def _tokens(bucket: BucketPlan) -> tuple[int | str, int | str]:
    return bucket.tokens["planner"] or "-", bucket.tokens["transformer"] or "-"


def _table(rows: list[tuple]) -> list[str]:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in cells
    ]


def _short(number: int) -> str:
    for unit, size in ((" B", 1e9), (" M", 1e6), (" k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}" if size < 2**30 else f"{size / 2**30:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, for example training/configs/mardini_s_st.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to it, such as stages.joint.steps=10"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="devices that train (default 1)")
    parser.add_argument("--parallel", choices=PARALLELISMS, help="default: single for one process, ddp for more")
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="memory of each device in GiB; what does not fit is a problem"
    )
    parser.add_argument(
        "--flops-per-second",
        type=float,
        metavar="X",
        help="what each device really gets done, for the hours; 2e14 is 20%% of an H100",
    )
    parser.add_argument(
        "--probe",
        type=int,
        default=0,
        metavar="N",
        help="times N real steps of each stage on one device of this machine instead; that device holds the whole models",
    )
    parser.add_argument("--no-data", action="store_true", help="leave the clips out of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    options = parser.parse_intermixed_args(arguments)  # overrides may stand anywhere
    parallelism = options.parallel or ("single" if options.processes == 1 else "ddp")
    try:
        if options.processes < 1 or (parallelism == "single" and options.processes > 1):
            raise ValueError(
                f"--processes is {options.processes} and --parallel {parallelism}; single is one process, others at least 1"
            )
        config = load_config(options.config, options.overrides)
        plan = make_plan(
            config, options.processes, parallelism, options.gpu_memory, options.flops_per_second, options.probe, not options.no_data
        )  # fmt: skip
    except ValueError as error:
        print(f"problem: {error}")
        return 1
    print(render(plan, f"{config.name}: {len(config.stages)} stages, {options.processes} process(es), {parallelism}"))
    if options.json:
        numbers = asdict(plan)
        for values, stage in zip(numbers["stages"], plan.stages):
            values |= {
                "operations_per_step": stage.operations_per_step,
                "operations": stage.operations,
                "hours": stage.hours,
                "memory_total": stage.largest.memory.total,
            }
        options.json.write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    return 1 if plan.problems else 0


if __name__ == "__main__":
    sys.exit(main())
