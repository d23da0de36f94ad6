"""Runs shared by real processes, for `test_sharing.py`: a program of its own, since it forks before any thread is there.

    python -m pipelines_tests.training.shared_run '[{"folder": "a", "processes": 2, "fsdp": true, "config": {…}, "train": {…}}, …]'

trains the tiny run of `test_train_mardini.py`, with the global batch and the rates of `make_shared_config`, once for each entry, one after the other:
in `folder`, by `processes` gloo processes, each holding all weights (DDP) or its shards (`fsdp`), with changes to the configuration
(`config`) and arguments of `Run.train` (`train`). What the processes said lies in `log-<process>.txt`.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch

from pipelines_tests.training.test_train_mardini import make_config, make_run


def make_shared_config(stage: dict | None = None, **overrides):
    """The tiny run in float32 with four windows a step, whoever computes them, and rates at which rounding does not grow."""
    config = make_config(checkpoint_every=100, keep_checkpoints=100, validate_every=100)
    stages = [
        {**s.model_dump(), "batch_size": None, "global_batch": 4, "learning_rate": 1e-3, **(stage or {})}
        for s in config.stages
    ]
    return type(config).model_validate({**config.model_dump(), "stages": stages, **overrides})


def start(entry: dict) -> list[int]:
    """Forks the processes of a run; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, processes = Path(entry["folder"]), entry["processes"]
    folder.mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            try:
                sys.stdout = sys.stderr = open(folder / f"log-{rank}.txt", "a")
                if processes > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
                    }  # fmt: skip
                if entry.get("fsdp"):  # as `accelerate launch` hands fsdp2.yaml on
                    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **entry.get("environment", {})}
                config = make_shared_config(**entry.get("config", {})).for_processes(processes)
                make_run(folder, config).train(**entry.get("train", {}))
                if processes > 1:
                    torch.distributed.destroy_process_group()
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return children


def main(entries: list[dict]) -> None:
    torch.set_num_threads(1)
    for entry in entries:
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in start(entry)]
        if any(codes):
            logs = [path.read_text()[-3000:] for path in sorted(Path(entry["folder"]).glob("log-*.txt"))]
            raise SystemExit(f"{entry} ended with {codes}:\n" + "\n".join(logs))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
