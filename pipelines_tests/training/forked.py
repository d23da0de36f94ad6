"""Real processes of one run on this machine, forked before any thread is there; used by programs of the tests."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch


def fork_processes(processes: int, folder: Path, work: Callable[[], None]) -> list[int]:
    """Forks processes that do `work`, as gloo processes of one group where there are several.

    Returns:
        Their ids; one that fails ends with 1. What a process says lies in `log-<process>.txt` of `folder`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            sys.stdout = sys.stderr = open(folder / f"log-{rank}.txt", "a", buffering=1)  # noqa: SIM115
            try:
                if processes > 1:
                    os.environ |= {
                        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
                    }  # fmt: skip
                work()
                if processes > 1:
                    torch.distributed.destroy_process_group()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    return children
