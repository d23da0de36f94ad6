"""Answer on one GPU what only a GPU can answer: `make gpu-check`, or `python -m benchmarks.gpu.check -o outputs/gpu`.

Four parts, each in a process of its own with a time limit, eight minutes together; each writes its results as it
measures them. Nothing is fetched. At most eight files of less than 16 MB lie in the folder afterwards.

1. tests: those that need a GPU, ours and, with `DIFFUSERS_CHECKOUT`, diffusers' own.
2. sampling: MarDini-L/T at 512 pixels, by attention backend, compiled, with CUDA graphs; denoisers of diffusers.
3. training_step: MarDini-S and L at 256 and 512 pixels: tokens a second, MFU, memory beside the plan's.
4. carracing: a model from nothing, its scores, a sheet and its weights.

`--dry` (`make gpu-check DRY=1`) runs every part at toy size on any machine.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_mardini.hardware import choose_device
from training.evaluation.tables import markdown_table

from .rows import shown


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        command: without the interpreter.
        limit: seconds after which it is stopped.
        budget: seconds after which it begins nothing new, for parts that ask.
    """

    command: tuple[str, ...]
    limit: float
    budget: float | None = None


TESTS = (
    "-m", "pytest", "-q", "-rs", "-n0", "-p", "no:cacheprovider", "pipelines_tests/test_accelerator.py",
    "pipelines_tests/training/engine/test_writing.py::test_a_gpu_copies_into_pinned_memory_that_is_kept",
)  # fmt: skip
PARTS = {
    "tests": Part(TESTS, 50),
    "training_step": Part(("-m", "benchmarks.gpu.training_step"), 70, 50),
    "sampling": Part(("-m", "benchmarks.gpu.sampling"), 130, 100),
    "carracing": Part(("-m", "benchmarks.gpu.carracing"), 230, 100),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the parts one after the other, and write a page with all results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/gpu"), help="folder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--clips", type=Path, help="folder with train and val, for carracing, instead of recording")
    parser.add_argument("--dry", action="store_true", help="every part at toy size")
    options = parser.parse_args(arguments)
    device = choose_device()
    if device.type != "cuda" and not options.dry:
        raise SystemExit(f"error: no CUDA GPU was found (the device is {device}); try the parts with --dry")
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in options.parts:
        results[name] = run(name, PARTS[name], options)
        page = f"# GPU check\n\n```bash\n{command_of(options)}\n```\n\n" + "\n\n".join(map(section, results.items()))
        (options.output / "check.md").write_text(page + "\n", encoding="utf-8")
    print(f"Wrote check.md and the results of {len(results)} parts to {options.output}")
    return results


def command_of(options: argparse.Namespace) -> str:
    """Return the command as it can be typed again."""
    given = f" CLIPS={shlex.quote(str(options.clips))}" if options.clips else ""
    return f"make gpu-check OUT={shlex.quote(str(options.output))}{given}" + (" DRY=1" if options.dry else "")


def run(name: str, part: Part, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part; return its rows and facts, its seconds, and how it ended."""
    path = options.output / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, *part.command]
    if name == "tests":
        command += ["pipelines_tests/upstream"] if os.environ.get("DIFFUSERS_CHECKOUT") else []
    else:
        command += ["-o", str(path)] + (["--dry"] if options.dry else [])
        command += [] if part.budget is None else ["--seconds", str(part.budget)]
        command += ["--clips", str(options.clips)] if name == "carracing" and options.clips else []
    print(f"== {name}: at most {part.limit:g} s", flush=True)
    started = time.monotonic()
    ended, output = _within(command, part.limit)
    seconds = time.monotonic() - started
    if name == "tests":  # pytest writes no json
        path.write_text(json.dumps({"rows": [], "output": output[-30:]}, indent=1) + "\n", encoding="utf-8")
    elif ended != "0" and not path.exists():
        path.write_text(json.dumps({"rows": [], "output": output[-15:]}, indent=1) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    print(f"== {name}: {seconds:.0f} s, ended with {ended}", flush=True)
    return {**found, "seconds": seconds, "ended": ended}


def _within(command: list[str], limit: float) -> tuple[str, list[str]]:
    """Run a command; return its exit code or "time limit" and its lines, which are printed as they come."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=os.name == "posix"
    )
    try:
        output, _ = process.communicate(timeout=limit)
        ended = str(process.returncode)
    except subprocess.TimeoutExpired:
        _stop(process)
        output, _ = process.communicate()
        ended = "time limit"
    print(output, end="", flush=True)
    return ended, output.splitlines()


def _stop(process: subprocess.Popen) -> None:
    """End a process and those that it has started."""
    if os.name == "posix":
        import signal

        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def section(item: tuple[str, dict[str, Any]]) -> str:
    """Return the results of one part in markdown."""
    name, result = item
    lines = [f"## {name}", f"{result['seconds']:.0f} s, ended with {result['ended']}."]
    lines += [f"Peak: {result['peak']}."] if "peak" in result else []
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    if columns:
        rows = [
            [shown(row[key]) if key in row and row[key] is not None else "" for key in columns]
            for row in result["rows"]
        ]
        lines.append(markdown_table(columns, rows))
    if result.get("scores"):
        names = list(result["scores"][0])
        lines.append(markdown_table(names, [[shown(row.get(key, "")) for key in names] for row in result["scores"]]))
    if result.get("output"):
        lines.append("```\n" + "\n".join(result["output"]) + "\n```")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
