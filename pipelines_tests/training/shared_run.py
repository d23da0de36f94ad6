"""Runs shared by real processes, for `test_shared_runs.py`: a program of its own, since it forks before any thread is
there.

    python -m pipelines_tests.training.shared_run '[{"clips": "clips", "folder": "a", "processes": 2, "fsdp": true, "until": 4}, …]'

trains the tiny run of `test_train_mardini.py`, as `make_shared_config` changes it, once for each entry, one after the
other: on `clips`, in `folder`, by `processes` gloo processes, each holding all weights (DDP) or its shards (`fsdp`),
asked to stop after `until` steps, with other changes to the configuration (`config`) and environment variables
(`environment`), or an adapter of the pipeline `base` in place of it, with an infinite loss in a step of one process
(`explodes`: step and process). What the processes said lies in `log-<process>.txt`.
"""

import contextlib
import json
import os
import sys
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
    with contextlib.suppress(Stopped):
        run.train(StopAfter(run, entry.get("until", 0)))


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
