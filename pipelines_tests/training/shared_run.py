"""Runs shared by real processes, for `test_shared_runs.py`: a program of its own, since it forks before any thread is
there.

    python -m pipelines_tests.training.shared_run '[{"clips": "clips", "folder": "a", "processes": 2, "fsdp": true, "until": 4}, …]'

trains the tiny run of `test_train_mardini.py`, as `make_shared_config` changes it, once for each entry, one after the
other: on `clips`, in `folder`, by `processes` gloo processes, each holding all weights (DDP) or its shards (`fsdp`),
asked to stop after `until` steps, with other changes to the configuration (`config`) and environment variables
(`environment`), or an adapter of the pipeline `base` in place of it, with an infinite loss in a step of one process
(`explodes`: step and process), with a record of what it sends and touches in `watched-<process>.json` (`watched`).
What the processes said lies in `log-<process>.txt`.
"""

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

import torch

from pipelines_tests.training.forked import fork_processes
from pipelines_tests.training.test_train_mardini import data_fields, explode, make_config, make_run
from pipelines_tests.training.test_train_mardini_lora import make_adapter_config
from training.loop import Run, Stopped
from training.losses import MarDiniTrainingModel
from training.stopping import StopRequest


STEPS = {"planner": 2, "transformer": 1, "joint": 3}


class StopAfter(StopRequest):
    """Asks the run to stop after so many steps."""

    def __init__(self, run: Run, steps: int):
        super().__init__(run.folder)
        self.run, self.steps = run, steps

    @property
    def reason(self) -> str | None:
        return f"{self.steps} steps" if self.run.global_step + 1 == self.steps else None


@contextlib.contextmanager
def watched(run: Run):
    """Record sums over processes, by global step, and files of the run's folder that the training thread looks for, in
    all steps that end no stage."""
    sums, touched, inside = {}, set(), [False]
    stat, reduce = os.stat, torch.distributed.all_reduce
    ends = [sum(list(STEPS.values())[: number + 1]) for number in range(len(STEPS))]

    def note(path) -> None:
        path = Path(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else None
        is_step = inside[0] and threading.current_thread() is threading.main_thread()
        if is_step and path is not None and path.is_relative_to(run.folder):
            touched.add(path.relative_to(run.folder).as_posix())

    def seen_stat(path, *arguments, **keywords):
        note(path)
        return stat(path, *arguments, **keywords)

    def seen_reduce(*arguments, **keywords):
        if inside[0]:
            sums[run.global_step + 1] = sums.get(run.global_step + 1, 0) + 1
        return reduce(*arguments, **keywords)

    waiting = run.monitor.waiting

    def steps(loader):
        for drawn in waiting(loader):
            inside[0] = run.global_step + 1 not in ends
            yield drawn
            inside[0] = False

    sys.addaudithook(
        lambda event, arguments: note(arguments[0]) if event in ("open", "os.listdir", "os.scandir") else None
    )
    os.stat, torch.distributed.all_reduce, run.monitor.waiting = seen_stat, seen_reduce, steps
    yield
    told = {"sums": sums, "touched": sorted(touched)}
    (run.folder / f"watched-{run.accelerator.process_index}.json").write_text(json.dumps(told))


def make_shared_config(clips: Path, stage: dict | None = None, base: str | None = None, **overrides):
    """The tiny run in float32 with four windows a step, whoever computes them, and rates at which rounding does not
    grow."""
    fields = {"data": data_fields(clips), "checkpoint_every": 100, "keep_checkpoints": 100, "validate_every": 100}
    config = make_config(**fields) if base is None else make_adapter_config(base, **fields)
    changes = {"batch_size": None, "global_batch": 4, "learning_rate": 1e-3, **(stage or {})}
    stages = [{**s.model_dump(), **changes, "steps": STEPS[s.name]} for s in config.stages]
    return type(config).model_validate({**config.model_dump(), "stages": stages, **overrides})


def train(entry: dict) -> None:
    if entry.get("fsdp"):  # as `accelerate launch` hands fsdp2.yaml on
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= entry.get("environment", {})
    config = make_shared_config(Path(entry["clips"]), base=entry.get("base"), **entry.get("config", {}))
    run = make_run(Path(entry["folder"]), config)
    step, process = entry.get("explodes", (None, None))
    if run.accelerator.process_index == process:
        MarDiniTrainingModel.forward = explode(run, {step})
    with contextlib.suppress(Stopped), watched(run) if entry.get("watched") else contextlib.nullcontext():
        run.train(StopAfter(run, entry["until"]) if "until" in entry else None)


def start(entry: dict) -> list[int]:
    """Forks the processes of a run; returns their ids."""
    folder = Path(entry["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    return fork_processes(entry["processes"], folder, lambda: train(entry))


def main(entries: list[dict]) -> None:
    torch.set_num_threads(1)
    for entry in entries:
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(entry)]
        if any(codes):
            logs = [path.read_text()[-3000:] for path in sorted(Path(entry["folder"]).glob("log-*.txt"))]
            raise SystemExit(f"{entry} ended with {codes}:\n" + "\n".join(logs))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
