"""Measure time and memory of long videos, each in its own process: `python -m benchmarks.long_video_costs`.

Runs on the CPU with few steps, because memory does not grow with the number of steps. The base is the memory of the
process after a short video; the memory above it is what the video takes, including its finished frames.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .sampling_speed import CHECKPOINT, Variant, make_pipeline
from .timing import clock_of, describe_machine, machine_line, write_json


METHODS = ("extend", "slow_motion")
WINDOW, OVERLAP, FACTOR = 9, 4, 8


def peak_bytes() -> int:
    """Return the peak resident memory of this process.

    On Linux `ru_maxrss` includes the memory of the parent process, so the process's own high-water mark is read
    instead.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.M)[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure(method: str, frames: int, steps: int, size: int, checkpoint: str) -> dict[str, Any]:
    """Sample one video of about `frames` frames in this process; `slow_motion` rounds up to whole gaps."""
    pipe = make_pipeline(checkpoint, Variant(), "cpu")
    given = WINDOW - OVERLAP if method == "extend" else max(2, -(-(frames - 1) // FACTOR) + 1)
    video = torch.rand(given, 3, size, size, generator=torch.Generator().manual_seed(0))
    run = {
        "extend": lambda count: pipe.extend(
            video, count - given, window=WINDOW, overlap=OVERLAP, num_inference_steps=steps, output_type="pil"
        ),
        "slow_motion": lambda count: pipe.slow_motion(
            video[: -(-(count - 1) // FACTOR) + 1], FACTOR, window=WINDOW, num_inference_steps=steps, output_type="pil"
        ),
    }[method]
    run(WINDOW)  # allocates what all videos share
    clock = clock_of("cpu")
    base, start = peak_bytes(), clock()
    made = len(run(frames).frames[0])
    seconds = clock() - start
    new = made - given if method == "extend" else made - (-(-(frames - 1) // FACTOR) + 1)
    return {
        "method": method,
        "frames": made,
        "seconds": seconds,
        "seconds_per_new_frame": seconds / new,
        "base_bytes": base,
        "bytes_above_base": peak_bytes() - base,
        "bytes_of_frames": made * size * size * 3,
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_video_costs", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 33, 129, 1000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--checkpoint", default=str(CHECKPOINT), help="folder or Hub id of a pipeline")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="measure in this process and print only json")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    if options.one:
        print(
            json.dumps(measure(options.methods[0], options.frames[0], options.steps, options.size, options.checkpoint))
        )
        return {}
    machine = describe_machine()
    print(
        f"{Path(options.checkpoint).name}, {options.size} pixels, {options.steps} step(s), windows of {WINDOW} frames"
    )
    print(machine_line(machine))
    print(f"{'':<12} {'frames':>6} {'s':>8} {'ms a new frame':>14} {'base MB':>8} {'above MB':>8} {'frames MB':>9}")
    rows = []
    for method in options.methods:
        for frames in options.frames:
            command = [sys.executable, "-m", "benchmarks.long_video_costs", "--one", "--methods", method]
            command += ["--frames", str(frames), "--steps", str(options.steps), "--size", str(options.size)]
            command += ["--checkpoint", options.checkpoint]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            row = json.loads(output.splitlines()[-1])
            rows.append(row)
            print(
                f"{method:<12} {row['frames']:6d} {row['seconds']:8.2f} {1000 * row['seconds_per_new_frame']:14.1f} "
                f"{row['base_bytes'] / 1e6:8.0f} {row['bytes_above_base'] / 1e6:8.1f} "
                f"{row['bytes_of_frames'] / 1e6:9.1f}",
                flush=True,
            )
    result = {"machine": machine, "steps": options.steps, "size": options.size, "rows": rows}
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
