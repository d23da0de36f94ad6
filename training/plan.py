"""Print what a configuration costs and what in it cannot work, before a run: `python -m training.plan CONFIG`.

    python -m training.plan training/configs/mardini_l_t.yaml --no-data --processes 64 --parallel hybrid \\
        --gpu-memory 80 --flops-per-second 2e14 --bandwidth 400 --bandwidth-across 50

Exit code 1 if something cannot work; every problem is printed with its fix. Costs are counted in `costs.py`; the
problems that need no clips are found in `engine/feasibility.py`, for the trainer, too.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from diffusers_mardini.hardware import choose_device, is_lack_of_memory
from training.config.layers import load_config
from training.config.schema import RunConfig, StageConfig
from training.costs import (
    BucketCosts,
    StageCosts,
    count_disk,
    count_latents_on_device,
    count_parameters,
    estimate_stage,
    latent_bytes,
    probe,
)
from training.data.buckets import Census, assign, window_request
from training.data.census import StageCensus, open_clips, read_clips
from training.data.drawn_windows import Form, LatentForms
from training.data.manifest_files import Manifest, default_path
from training.data.sources import source_exists
from training.engine.feasibility import Problem, find_notes, find_problems
from training.engine.layout import ONE_PROCESS, Layout
from training.engine.models import adapted_layers, added_parameters, load_vae, new_vae
from training.evaluation.probe import Probe, probe_run
from training.files import write_whole
from training.gathering import (
    Bandwidth,
    Sharing,
    count_sharing,
    gathering_notes,
    sharing_notes,
)
from training.overheads import (
    KINDS,
    count_window,
    encoding_seconds,
    process_bytes,
    read_seconds,
    stage_overheads,
    start_up_seconds,
    time_window,
)
from training.plan_text import gib, render


RUNS = Path("runs")  # the trainer's folder of all runs
PARALLELISMS = ("single", "ddp", "fsdp", "hybrid")
DEVICES_OF_A_NODE = 8


@dataclass(frozen=True)
class LatentsOnDisk:
    """Bytes of the latents of every frame of the training clips, and at most of those that steps draw; the form taken."""

    form: Form
    all: int
    drawn: int

    def __str__(self) -> str:
        return (
            f"latents, GiB: of every frame {gib(self.all)}, of the frames that steps draw at most {gib(self.drawn)}; "
            f"the run caches {self.form} (`data.latents`)"
        )


@dataclass(frozen=True)
class Plan:
    """Costs of a run.

    Attributes:
        stages: costs by stage.
        parameters: numbers of learned parameters by model.
        disk: bytes on disk by kind.
        problems, notes: what cannot work, and what may be a mistake.
        adapted: names of the layers that an adapter changes, by model.
        added: numbers of parameters of the conditions that an adapter adds.
        overheads: seconds beside the steps, by kind; empty if no speed is known.
        process: bytes that the trainer's process takes beside what is counted; 0 for a GPU.
        checkpoint_copies: bytes of the host's memory in which each process keeps its part of a checkpoint while a thread
            writes it.
        room: what the autoencoder and simple methods reach on the held-out clips; `None` if that is not measured.
        sharing: of each stage's steps between processes.
        latents: what is cached of the training clips; `None` without clips or a cache.
    """

    stages: list[StageCosts]
    parameters: dict[str, int]
    disk: dict[str, int]
    problems: list[Problem]
    notes: list[str]
    adapted: dict[str, list[str]] | None = None
    added: dict[str, int] = field(default_factory=dict)
    overheads: dict[str, float] = field(default_factory=dict)
    process: int = 0
    checkpoint_copies: int = 0
    room: Probe | None = None
    sharing: list[Sharing] = field(default_factory=list)
    latents: LatentsOnDisk | None = None

    @property
    def hours(self) -> float | None:
        """Return the duration of the run with everything beside its steps, if a speed is known."""
        if not self.stages or any(stage.hours is None for stage in self.stages):
            return None
        return sum(stage.hours for stage in self.stages) + sum(self.overheads.values()) / 3600


def make_plan(
    config: RunConfig,
    layout: Layout = ONE_PROCESS,
    gpu_memory: float | None = None,
    flops_per_second: float | None = None,
    probe_steps: int = 0,
    with_data: bool = True,
    bandwidth: Bandwidth | None = None,
) -> Plan:
    """Count the costs of a run and find its problems; see `main` for the arguments."""
    found = find_problems(config, with_data, layout)
    given, config = config, config.for_processes(layout.data_ranks)
    if any(problem.prevents_counting for problem in found):
        return Plan([], {}, {}, found, find_notes(config))
    notes, stages, censuses = [*find_notes(config), *sharing_notes(config, layout)], [], []
    clips, vae, room = _Clips.read(config) if with_data else _Clips(), None, None
    if with_data and not any(problem.kind == "autoencoder" for problem in found):
        try:
            vae = load_vae(config.vae, config.vae_subfolder)
        except ValueError as error:
            found.append(Problem("autoencoder", str(error)))
    if vae is not None and clips.heldout is not None:
        room = _room(config, vae, clips, found, notes)
    notes += overlap_notes(clips.train, clips.heldout)
    counts: list[StageCensus | None] = [None] * len(config.stages)
    if clips.train is not None:
        counts = [_census(config, stage, clips.train, censuses, found, notes) for stage in config.stages]
    forms = None if clips.train is None else LatentForms.of(config, censuses)
    on_device = count_latents_on_device(config, None if forms is None else forms.all)
    for stage, census in zip(config.stages, counts):
        costs = estimate_stage(config, stage, layout, flops_per_second, census, on_device)
        if gpu_memory is not None and costs.largest.memory.total > gpu_memory * 2**30:
            found.append(_does_not_fit(config, stage, costs.largest, gpu_memory, layout))
        if probe_steps:
            costs = _timed(config, stage, costs, probe_steps, found)
        stages.append(costs)
    # Only now, since libraries keep buffers of the steps and of the autoencoder that have run.
    process = process_bytes() if gpu_memory is None and choose_device().type == "cpu" else 0
    form, frames = "all", {}
    if forms is not None and clips.train is not None:
        form = forms.chosen(config, _cache(config, clips.train), vae)
        frames = forms.all if form == "all" else forms.drawn
    disk = count_disk(config, stages, frames, layout.shards)
    sharing = [
        count_sharing(given, stage, costs, layout, bandwidth, flops_per_second)
        for stage, costs in zip(given.stages, stages)
    ]
    notes += gathering_notes(stages, sharing)
    found += _disk_problems(config, disk, clips.train)
    plan = Plan(
        stages, count_parameters(config), disk, found, notes, None if config.lora is None else adapted_layers(config),
        {} if config.lora is None else added_parameters(config),
        process=process, checkpoint_copies=_checkpoint_copies(config, stages, layout), room=room, sharing=sharing,
        latents=None if forms is None or config.data.from_pixels else _compare(config, forms, form),
    )  # fmt: skip
    return replace(plan, overheads=_overheads(config, plan, clips, vae, layout, flops_per_second, frames))


def _compare(config: RunConfig, forms: LatentForms, form: Form) -> LatentsOnDisk:
    return LatentsOnDisk(form, latent_bytes(config, forms.all), latent_bytes(config, forms.drawn))


@dataclass(frozen=True)
class _Clips:
    """The manifests of a run's sources; `None` for a source that is missing or not given."""

    train: Manifest | None = None
    heldout: Manifest | None = None

    @classmethod
    def read(cls, config: RunConfig) -> "_Clips":
        specs = (config.data.train, config.data.validation)
        there = (spec if spec is not None and source_exists(spec) else None for spec in specs)
        return cls(*(None if spec is None else read_clips(config, open_clips(config, spec)) for spec in there))


def _room(
    config: RunConfig, vae: torch.nn.Module, clips: _Clips, found: list[Problem], notes: list[str]
) -> Probe | None:
    """Probe the held-out clips; add the verdict to the problems or notes."""
    room = probe_run(config, open_clips(config, config.data.validation), clips.heldout.entries, vae)
    if room is not None and room.is_below and not config.anyway:
        text = f"{room.verdict()[0]}. `anyway: true` trains nevertheless"
        found.append(Problem("room", text))
    elif room is not None:
        notes += room.verdict()
    return room


def overlap_notes(train: Manifest | None, heldout: Manifest | None) -> list[str]:
    """Return a sentence on held-out clips that are trained on, too, by the hash of their bytes."""
    if train is None or heldout is None:
        return []
    kept = [(entry.key, entry.sha256) for entry in heldout.ok]
    trained = train.ok.keys_of(digest for _, digest in kept)
    both = [(key, trained[digest]) for key, digest in kept if digest in trained]
    if not both:
        return []
    number = f"{len(both)} of the {len(heldout.ok)} held-out clips {'are' if len(both) > 1 else 'is'}"
    return [
        f"{number} among the training clips, too, byte for byte (the first: {both[0][0]} is {both[0][1]}), so that "
        "held-out losses and scores look better than they are; take them out of one of the two"
    ]


def _checkpoint_copies(config: RunConfig, stages: list[StageCosts], layout: Layout) -> int:
    """Return the bytes that a process copies; where several have the same values, they share the work."""
    if config.lora is not None:
        return 0  # an adapter's are small
    return max(stage.largest.memory.saved for stage in stages) // layout.copies


def _census(
    config: RunConfig, stage: StageConfig, train: Manifest, censuses: list[Census], found: list[Problem],
    notes: list[str],
) -> StageCensus:  # fmt: skip
    """Return the clips of a stage; add what is wrong with them to problems and notes."""
    sampling = window_request(config, stage)
    censuses.append(assign(train.entries, sampling))
    census = StageCensus.of(censuses[-1], stage.windows_per_step)
    if not census.clips:
        text = (
            f"stage {stage.name!r}: no clip has windows of its frames at {' or '.join(census.windows)}; lower "
            f"`num_frames` or {'change `fps`' if stage.fps else 'the stride'}, or add longer clips"
        )
        found.append(Problem("clips", text))
    notes += [
        f"stage {stage.name!r}: no clip has a window at {rate}; smaller strides are taken in its place"
        for rate, windows in census.windows.items()
        if windows == 0 and census.clips
    ]
    return census


def _timed(config: RunConfig, stage: StageConfig, costs: StageCosts, steps: int, found: list[Problem]) -> StageCosts:
    """Return the costs with the measured seconds of a step; add a problem if a step does not fit the device."""
    try:
        seconds = [probe(config, shape, steps) for shape in config.by_bucket(stage)]
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        text = (
            f"stage {stage.name!r}: a step of {stage.batch_size} windows does not fit this device; lower "
            "`batch_size`, or set `gradient_checkpointing: true`"
        )
        found.append(Problem("memory", text))
        return costs
    mean = sum(bucket.share * value for bucket, value in zip(costs.buckets, seconds))
    return replace(costs, seconds_per_step=mean)


def _disk_problems(config: RunConfig, disk: dict[str, int], train: Manifest | None) -> list[Problem]:
    """Return where the free space of a disk is less than what the run writes there, beside what it has written."""
    if train is None:
        return []
    cache, run = _cache(config, train), RUNS / config.name
    # By device: latents and results may lie on one disk or on two.
    needed: dict[int, list] = {}
    results = sum(size for kind, size in disk.items() if not kind.startswith("latents"))
    for folder, size, what in ((cache, disk.get("latents", 0), "latents"), (run, results, "checkpoints and results")):
        there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
        entry = needed.setdefault(there.stat().st_dev, [there, 0, []])
        entry[1] += max(0, size - _bytes_in(folder))
        entry[2].append(f"{what} in {folder}")
    return [
        Problem(
            "disk",
            f"{' and '.join(what)} need {size / 2**30:.1f} GiB more, and {shutil.disk_usage(there).free / 2**30:.1f} "
            "are free; make room, set `data.cache` to another disk, or set `data.from_pixels: true`, which caches "
            "no latents",
        )
        for there, size, what in needed.values()
        if size > shutil.disk_usage(there).free
    ]


def _overheads(
    config: RunConfig, plan: Plan, clips: _Clips, vae: torch.nn.Module | None, layout: Layout,
    flops_per_second: float | None, frames: Mapping[tuple[int, int], int],
) -> dict[str, float]:  # fmt: skip
    """Return the seconds beside the steps by kind; empty if no speed is known."""
    if any(stage.seconds_per_step is None for stage in plan.stages):
        return {}
    seconds, first, by_size = dict.fromkeys(KINDS, 0.0), 0, {}
    measured = flops_per_second is None
    for stage in config.stages:
        shape = config.by_bucket(stage)[0]  # held-out windows are of the first bucket
        if measured and vae is None:
            vae = new_vae(config)
        times = (
            time_window(config, shape, vae) if measured else count_window(config, shape).scaled(1 / flops_per_second)
        )
        by_size[config.size_of(shape)] = times
        for kind, value in stage_overheads(config, shape, first, times).items():
            seconds[kind] += value / (layout.data_ranks if kind in ("held-out losses", "held-out scores") else 1)
        first += stage.steps
    if clips.train is not None and not config.data.from_pixels and plan.disk.get("latents"):
        source = open_clips(config, config.data.train)
        missing = max(0.0, 1 - _bytes_in(_cache(config, clips.train)) / plan.disk["latents"])
        heldout = 0 if clips.heldout is None else sum(entry.num_frames for entry in clips.heldout.ok)
        frames = {size: count + heldout for size, count in frames.items()}
        read = read_seconds(source, clips.train.ok, next(iter(by_size))) if measured else 0.0
        seconds["encoding"] = missing * encoding_seconds(config, frames, by_size, read) / layout.processes
    seconds["start-up"] = start_up_seconds()
    return seconds


def _cache(config: RunConfig, manifest: Manifest) -> Path:
    return config.data.cache / default_path(manifest.source).stem


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _does_not_fit(
    config: RunConfig, stage: StageConfig, costs: BucketCosts, gpu_memory: float, layout: Layout
) -> Problem:
    """Return the problem with the first fix that helps: checkpointing, a smaller batch, sharding."""
    limit = gpu_memory * 2**30
    best = costs.memory if config.gradient_checkpointing else costs.memory_other
    fixed = best.total - best.activations
    fits = int((limit - fixed) // (best.activations / stage.batch_size)) if limit > fixed else 0
    if best.total <= limit:
        fix = "set `gradient_checkpointing: true`"
    elif fits >= 1:
        beside = f" beside `global_batch: {stage.global_batch}`" if layout.processes > 1 else ""
        fix = f"set `batch_size` to {fits} or less{beside} (now {stage.batch_size} on each of {layout.processes} "
        fix += "processes)" + ("" if config.gradient_checkpointing else " and `gradient_checkpointing: true`")
    elif layout.shards == 1:
        fix = "shard the models over several devices (`--parallel fsdp --processes N`) or make them smaller"
    else:
        fix = f"use more than {layout.shards} shards, let processes share tokens (`--context`), or make the models or "
        fix += "windows smaller"
    needs = f"stage {stage.name!r} needs {costs.memory.total / 2**30:.1f} GiB on each device, which has {gpu_memory:g}"
    return Problem("memory", f"{needs}; {fix}")


def read_layout(processes: int, parallelism: str, node: int | None, context: int) -> Layout:
    """Return the layout that the command line asks for.

    Raises:
        ValueError: if its numbers do not fit.
    """
    if processes < 1 or (parallelism == "single" and processes > 1):
        raise ValueError(
            f"--processes is {processes} and --parallel {parallelism}; single is one process, others at least 1"
        )
    if context > 1 and parallelism not in ("fsdp", "hybrid"):
        raise ValueError(f"--context is {context} and --parallel {parallelism}; only shards share tokens: use fsdp")
    if node is not None and parallelism != "hybrid":
        raise ValueError(f"--node is {node} and --parallel {parallelism}; it belongs to hybrid")
    if parallelism not in ("fsdp", "hybrid"):
        return Layout(copies=processes)
    node = processes if parallelism == "fsdp" else node or DEVICES_OF_A_NODE
    if node < 1 or processes % node:
        raise ValueError(f"--processes is {processes}, which nodes of {node} do not divide; change --node")
    return Layout(processes // node, node, context)


def read_bandwidth(within: float | None, across: float | None) -> Bandwidth | None:
    """Return the bandwidth that the command line states in GB a second, if it does.

    Raises:
        ValueError: if a number is not positive, or the second one stands alone.
    """
    if within is None and across is None:
        return None
    if within is None or within <= 0 or (across is not None and across <= 0):
        raise ValueError(
            f"--bandwidth is {within} and --bandwidth-across {across}; give the first, or both, as numbers above 0"
        )
    return Bandwidth(within * 1e9, (across or within) * 1e9)


def main(arguments: list[str] | None = None) -> int:
    """Print the plan of a configuration; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, for example training/configs/mardini_s_st.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to it, such as stages.joint.steps=10"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="devices that train (default 1)")
    parser.add_argument(
        "--parallel",
        choices=PARALLELISMS,
        help="copies of all weights (ddp), shards over all processes (fsdp) or within each node (hybrid); default: single "
        "for one process, ddp for more",
    )
    parser.add_argument(
        "--node", type=int, metavar="N", help=f"processes of a node, for hybrid (default {DEVICES_OF_A_NODE})"
    )
    parser.add_argument(
        "--context", type=int, default=1, metavar="N", help="processes that share the tokens of a window (default 1)"
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="GB/S",
        help="1e9 bytes a second that each process receives from those of its copy of the weights; for the seconds of "
        "gathering and the most processes that make sense",
    )
    parser.add_argument(
        "--bandwidth-across",
        type=float,
        metavar="GB/S",
        help="the same from processes with other copies, such as other nodes under hybrid (default: --bandwidth)",
    )
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
    parser.add_argument("--no-data", action="store_true", help="open neither clips nor autoencoder nor `init_from`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    options = parser.parse_intermixed_args(arguments)  # overrides may stand anywhere
    parallelism = options.parallel or ("single" if options.processes == 1 else "ddp")
    try:
        layout = read_layout(options.processes, parallelism, options.node, options.context)
        bandwidth = read_bandwidth(options.bandwidth, options.bandwidth_across)
        config = load_config(options.config, options.overrides)
        plan = make_plan(
            config, layout, options.gpu_memory, options.flops_per_second, options.probe, not options.no_data, bandwidth
        )
    except ValueError as error:
        print(f"problem: {error}")
        return 1
    print(render(plan, f"{config.name}: {len(config.stages)} stages, {layout}"))
    if options.json:
        numbers = {**asdict(plan), "problems": [problem.text for problem in plan.problems], "hours": plan.hours}
        numbers["room"] = None if plan.room is None else plan.room.as_json()
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
