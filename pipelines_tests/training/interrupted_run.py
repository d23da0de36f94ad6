"""A run that is killed again and again, for `test_interruptions.py`: a program of its own, since it forks before any thread is there.

    python -m pipelines_tests.training.interrupted_run FOLDER PROCESSES KILLS SEED

trains the tiny run of `test_train_mardini.py` in `FOLDER` by `PROCESSES` processes, kills all of them with SIGKILL at random moments,
`KILLS` times, starting the same run again each time, lets it end, and prints how far it had got at every kill.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from pipelines_tests.training.test_train_mardini import make_config, make_run
from training.checkpoint import list_checkpoints


def start(folder: Path, processes: int) -> list[int]:
    """Forks the processes of the run; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            try:
                if processes > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
                    }  # fmt: skip
                sys.stdout = sys.stderr = open(folder / f"log-{rank}.txt", "a")
                make_run(folder, make_config(checkpoint_every=1, keep_checkpoints=2)).train()
                if processes > 1:
                    torch.distributed.destroy_process_group()
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    return children


def main(folder: Path, processes: int, kills: int, seed: int) -> None:
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    told = []
    while len(told) < kills:
        children = start(folder, processes)
        time.sleep(chance.uniform(0.3, 4.0))
        ended = [os.waitpid(child, os.WNOHANG) for child in children]
        for child, (done, _) in zip(children, ended):
            if not done:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        whole = list_checkpoints(folder / "checkpoints")
        told.append({
            "running": all(not done for done, _ in ended),
            "checkpoint": whole[-1].name if whole else None,
            "half_written": [path.name for path in (folder / "checkpoints").glob(".step-*")],
        })  # fmt: skip
    for child in start(folder, processes):
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            raise SystemExit(f"the last start ended with {code}: {(folder / 'log-0.txt').read_text()[-2000:]}")
    print(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
