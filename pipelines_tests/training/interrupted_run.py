"""A run that is killed again and again, for `test_interruptions.py`: a program of its own, since it forks before any thread is there.

    python -m pipelines_tests.training.interrupted_run FOLDER PROCESSES KILLS SEED [BASE]

trains the tiny run of `test_train_mardini.py` or, with BASE, an adapter of that pipeline with dropout, with more steps and data workers, on the clips in `FOLDER/../clips`, by `PROCESSES` processes, kills
all of them with SIGKILL at random moments, `KILLS` times, starting the same run again each time, lets it end, and prints how far it had got
at every kill. Manifest and latents lie in `FOLDER`, so that kills fall into their making too; the disk is slow, so that they fall into the writing of checkpoints.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from pipelines_tests.training.forked import fork_processes
from pipelines_tests.training.test_train_mardini import data_fields, make_config, make_run
from pipelines_tests.training.test_train_mardini_lora import make_adapter_config
from training.engine import checkpoint, tensor_files
from training.engine.checkpoint import list_checkpoints
from training.files import flush


def slow_disk() -> None:
    """Make every flush of a checkpoint's files take a while, so that kills fall into the thread that writes them."""

    def flush_slowly(path: Path) -> None:
        time.sleep(0.02)
        flush(path)

    checkpoint.flush = tensor_files.flush = flush_slowly


def start(folder: Path, processes: int, base: Path | None) -> list[int]:
    """Forks the processes of the run; returns their ids."""

    def train() -> None:
        slow_disk()
        make_run(folder, make_long_config(folder, base)).train()

    return fork_processes(processes, folder, train)


def make_long_config(folder: Path, base: Path | None):
    """The tiny run, or an adapter's, with eight steps in each of its stages, a checkpoint after every step, two workers, and flips."""
    kept = {"cache": folder / "latents", "manifests": folder / "manifests"}
    data = data_fields(folder.parent / "clips", workers=2, flip=0.5, **kept)
    fields = {"data": data, "checkpoint_every": 1, "keep_checkpoints": 2}
    config = make_config(**fields) if base is None else make_adapter_config(base, {"dropout": 0.3}, **fields)
    return config.model_copy(update={"stages": [stage.model_copy(update={"steps": 8}) for stage in config.stages]})


def wait_somewhere(folder: Path, chance: random.Random) -> None:
    """Until one or two more checkpoints are there and a moment longer, or for up to a second while there is none."""
    checkpoints = folder / "checkpoints"
    before, wanted = steps_of(checkpoints), chance.choice((0, 0, 1, 1, 2))
    deadline = time.monotonic() + (chance.uniform(0, 1) if wanted == 0 else 120)
    while time.monotonic() < deadline and steps_of(checkpoints) < before + max(1, wanted):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))


def steps_of(checkpoints: Path) -> int:
    """Steps behind the newest checkpoint."""
    whole = list_checkpoints(checkpoints)
    return int(whole[-1].name.removeprefix("step-")) if whole else 0


def main(folder: Path, processes: int, kills: int, seed: int, base: Path | None = None) -> None:
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    told = []
    for _ in range(kills):
        children = start(folder, processes, base)
        wait_somewhere(folder, chance)
        ended = [os.waitpid(child, os.WNOHANG)[0] for child in children]
        for child, done in zip(children, ended):
            if not done:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        half_written = [path.name for path in (folder / "checkpoints").glob(".*")]
        told.append(
            {"running": not any(ended), "steps": steps_of(folder / "checkpoints"), "half_written": half_written}
        )
    for child in start(folder, processes, base):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            raise SystemExit(f"the last start ended with {code}: {(folder / 'log-0.txt').read_text()[-2000:]}")
    print(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), *map(Path, sys.argv[5:6]))
