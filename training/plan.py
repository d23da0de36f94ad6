"""Print what a configuration costs and what in it cannot work, before a run: `python -m training.plan CONFIG`.

    python -m training.plan training/configs/mardini_l_t.yaml --no-data --processes 16 --parallel fsdp --gpu-memory 80

Exit code 1 if something cannot work; every problem is printed with its fix. Costs are counted in `costs.py`; the
problems that need no clips are found in `engine/feasibility.py`, for the trainer, too.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from training.config.layers import load_config
from training.config.schema import RunConfig, StageConfig
from training.costs import BucketCosts, StageCosts, count_disk, count_parameters, estimate_stage, probe
from training.data.buckets import assign, window_request
from training.data.census import StageCensus, open_clips, read_clips
from training.data.sources import source_exists
from training.engine.adapter import summary
from training.engine.feasibility import Problem, find_notes, find_problems
from training.engine.models import adapted_layers
from training.files import write_whole


PARALLELISMS = ("single", "ddp", "fsdp")


@dataclass(frozen=True)
class Plan:
    """Costs of a run.

    Attributes:
        stages: costs by stage.
        parameters: numbers of learned parameters by model.
        disk: bytes on disk by kind.
        problems, notes: what cannot work, and what may be a mistake.
        adapted: names of the layers that an adapter changes, by model.
    """

    stages: list[StageCosts]
    parameters: dict[str, int]
    disk: dict[str, int]
    problems: list[Problem]
    notes: list[str]
    adapted: dict[str, list[str]] | None = None


def make_plan(
    config: RunConfig,
    num_processes: int = 1,
    parallelism: str = "single",
    gpu_memory: float | None = None,
    flops_per_second: float | None = None,
    probe_steps: int = 0,
    with_data: bool = True,
) -> Plan:
    """Count the costs of a run and find its problems; see `main` for the arguments."""
    found = find_problems(config, with_data)
    config = config.for_processes(num_processes)
    if any(problem.prevents_counting for problem in found):
        return Plan([], {}, {}, found, find_notes(config))
    entries = None
    if with_data and source_exists(config.data.train):
        entries = read_clips(config, open_clips(config, config.data.train)).entries
    notes, stages, censuses = find_notes(config), [], []
    for stage in config.stages:
        census = None
        if entries is not None:
            sampling = window_request(config, stage)
            censuses.append(assign(entries, sampling))
            census = StageCensus.of(censuses[-1], sampling, stage.windows_per_step(num_processes))
            if not census.clips:
                text = (
                    f"stage {stage.name!r}: no clip has windows of its frames at {' or '.join(census.windows)}; lower "
                    f"`num_frames` or {'change `fps`' if stage.fps else 'the stride'}, or add longer clips"
                )
                found.append(Problem("clips", text))
            notes += [
                f"stage {stage.name!r}: no clip has a window at {rate}; "
                f"{'another rate is' if stage.fps else 'smaller strides are'} taken in its place"
                for rate, windows in census.windows.items()
                if windows == 0 and census.clips
            ]
        costs = estimate_stage(config, stage, num_processes, parallelism, flops_per_second, census)
        if gpu_memory is not None and costs.largest.memory.total > gpu_memory * 2**30:
            found.append(_does_not_fit(config, stage, costs.largest, gpu_memory, parallelism, num_processes))
        if probe_steps:
            try:
                seconds = [probe(config, shape, probe_steps) for shape in config.by_bucket(stage)]
                mean = sum(bucket.share * value for bucket, value in zip(costs.buckets, seconds))
                costs = replace(costs, seconds_per_step=mean)
            except torch.OutOfMemoryError:
                text = (
                    f"stage {stage.name!r}: a step of {stage.batch_size} windows does not fit this device; lower "
                    "`batch_size`, or set `gradient_checkpointing: true`"
                )
                found.append(Problem("memory", text))
        stages.append(costs)
    shards = num_processes if parallelism == "fsdp" else 1
    adapted = None if config.lora is None else adapted_layers(config)
    return Plan(stages, count_parameters(config), count_disk(config, stages, censuses, shards), found, notes, adapted)


def _does_not_fit(
    config: RunConfig, stage: StageConfig, costs: BucketCosts, gpu_memory: float, parallelism: str, num_processes: int
) -> Problem:
    """Return the problem with the first fix that helps: checkpointing, a smaller batch, sharding."""
    limit = gpu_memory * 2**30
    best = costs.memory if config.gradient_checkpointing else costs.memory_other
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
    needs = f"stage {stage.name!r} needs {costs.memory.total / 2**30:.1f} GiB on each device, which has {gpu_memory:g}"
    return Problem("memory", f"{needs}; {fix}")


def render(plan: Plan, title: str) -> str:
    """Return the plan as plain text."""
    lines = [title]
    if plan.stages:
        parameters = ", ".join(f"{name} {_short(count)}" for name, count in plan.parameters.items())
        if plan.adapted is None:
            lines += [f"parameters: {parameters} (the head is thrown away after training)", ""]
        else:
            lines += _render_adapter(plan)
        rows = [("stage", "trains", "frames", "size", "sampled", "clips seen", "steps", "batch", "tokens planner",
                 "transformer",
                 "parameters", "FLOP/step", "FLOP", "s/step", "hours")]  # fmt: skip
        for s in plan.stages:
            one = s.buckets[0] if len(s.buckets) == 1 else None
            shape = _shape(one) if one else ("", f"{len(s.buckets)} buckets")
            rows.append(
                (s.name, s.trains, *shape, s.sampling, _short(s.clips), f"{s.steps:,}", s.batch,
                 *(_tokens(one) if one else ("", "")), _short(s.parameters), f"{s.operations_per_step:.3g}",
                 f"{s.operations:.3g}", _number(s.seconds_per_step), _number(s.hours))
            )  # fmt: skip
            for bucket in s.buckets if one is None else ():
                rows.append(
                    (f"  {bucket.share:.1%} of it", "", *_shape(bucket), "", "", "", "", *_tokens(bucket), "",
                     f"{bucket.operations_per_step:.3g}", "", "", "")
                )  # fmt: skip
        hours = None if any(s.hours is None for s in plan.stages) else sum(s.hours for s in plan.stages)
        rows.append(("all", "", "", "", "", _short(sum(s.clips for s in plan.stages)),
                     f"{sum(s.steps for s in plan.stages):,}", "", "", "", "", "",
                     f"{sum(s.operations for s in plan.stages):.3g}", "", _number(hours)))  # fmt: skip
        lines += [
            *_table(rows),
            "",
            "memory of each device, GiB, for the largest bucket; in brackets with gradient checkpointing switched the "
            "other way",
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
    """Return lines on adapted layers and learned parameters, by model."""
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


def _shape(bucket: BucketCosts) -> tuple[int, str]:
    return bucket.num_frames, "x".join(map(str, dict.fromkeys(bucket.size)))


def _tokens(bucket: BucketCosts) -> tuple[int | str, int | str]:
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
    """Print the plan of a configuration; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, for example training/configs/mardini_s_st.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to it, such as stages.joint.steps=10"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="devices that train (default 1)")
    parser.add_argument("--parallel", choices=PARALLELISMS, help="default: single for one process, ddp for more")
    parser.add_argument(
        "--gpu-memory",
        type=float,
        metavar="GB",
        help="memory of each device in GiB; a stage that needs more is a problem",
    )
    parser.add_argument(
        "--flops-per-second",
        type=float,
        metavar="X",
        help="throughput that each device reaches, for the hours; 2e14 is 20%% of an H100",
    )
    parser.add_argument(
        "--probe",
        type=int,
        default=0,
        metavar="N",
        help="time N real steps of each stage on one device of this machine instead; it must hold the whole models",
    )
    parser.add_argument("--no-data", action="store_true", help="do not look at the clips")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    options = parser.parse_intermixed_args(arguments)  # overrides may stand anywhere
    parallelism = options.parallel or ("single" if options.processes == 1 else "ddp")
    try:
        if options.processes < 1 or (parallelism == "single" and options.processes > 1):
            raise ValueError(
                f"--processes is {options.processes} and --parallel {parallelism}; single is one process, others at "
                "least 1"
            )
        config = load_config(options.config, options.overrides)
        plan = make_plan(
            config, options.processes, parallelism, options.gpu_memory, options.flops_per_second, options.probe,
            not options.no_data,
        )  # fmt: skip
    except ValueError as error:
        print(f"problem: {error}")
        return 1
    print(render(plan, f"{config.name}: {len(config.stages)} stages, {options.processes} process(es), {parallelism}"))
    if options.json:
        numbers = {**asdict(plan), "problems": [problem.text for problem in plan.problems]}
        for values, stage in zip(numbers["stages"], plan.stages):
            values |= {
                "operations_per_step": stage.operations_per_step,
                "operations": stage.operations,
                "hours": stage.hours,
                "memory_total": stage.largest.memory.total,
            }
        write_whole(options.json, json.dumps(numbers, indent=2))
    return 1 if plan.problems else 0


if __name__ == "__main__":
    sys.exit(main())
