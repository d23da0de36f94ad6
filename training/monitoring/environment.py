"""Record the environment of each start of a run in a line of `starts.jsonl`, for its report."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator

from training.engine.sharding import layout_of
from training.files import append_line


PACKAGES = ("diffusers-mardini", "torch", "diffusers", "accelerate", "safetensors", "numpy", "av")


def record_start(folder: Path, accelerator: Accelerator) -> None:
    """Append this start to `starts.jsonl` in the run's folder."""
    append_line(folder / "starts.jsonl", describe_start(accelerator))


def describe_start(accelerator: Accelerator) -> dict:
    """Return time, command, processes and their layout, processors, versions and git revision, but no names of machine or user."""
    device = accelerator.device
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "processes": accelerator.num_processes,
        "layout": layout_of(accelerator).as_json(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "mixed_precision": accelerator.mixed_precision,
        "distributed": str(accelerator.distributed_type).rpartition(".")[2],
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "git": git_revision(Path(__file__).parent),
    }


def processor_name() -> str:
    """Return the processor's name as Linux gives it; elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def git_revision(folder: Path) -> str | None:
    """Return the commit and the number of changed files; `None` outside of a repository or without git."""

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if not revision:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{revision}, {len(changed.splitlines())} files changed since" if changed else revision
