"""Measure memory and time of streams, each in its own process: `python -m benchmarks.long_stream`.

Frames come from a generator and are dropped as they leave, as in a conversion from file to file. Reported are the peak
memory above that of a process that only imports, and the processor's time for each frame of the result, loading left
out.

With `--file MINUTES` a file of so many minutes, made by repeating clips, goes through `mardini retime`, is killed half
way and resumed; its memory is recorded over time, and drawn.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .long_file import measure_file
from .long_video_costs import peak_bytes
from .sampling_speed import CHECKPOINT, Variant, make_pipeline
from .timing import clock_of, describe_machine, machine_line, write_json


CLIPS = Path(__file__).parents[1] / "examples" / "clips"
METHODS = ("none", "slow_motion", "retime", "extend")
WINDOW, FACTOR = 9, 2
SOURCE_FPS, TARGET_FPS = 24, 60


def camera(frames: int | None, size: int) -> Iterator[np.ndarray]:
    """Yield different frames, all of which exist one at a time."""
    picture = np.random.default_rng(0).integers(0, 256, (size, 2 * size, 3), np.uint8)
    number = 0
    while frames is None or number < frames:
        shift = number % size
        frame = picture[:, shift : shift + size].copy()
        frame[0, 0] = number % 251, number // 251 % 251, 0
        yield frame
        number += 1


def measure(method: str, frames: int, steps: int, size: int, checkpoint: str) -> dict[str, Any]:
    """Stream about `frames` frames in this process; "none" only imports."""
    if method == "none":
        return {"method": method, "frames": 0, "seconds": 0.0, "peak_bytes": peak_bytes()}
    pipe = make_pipeline(checkpoint, Variant(), "cpu")
    common = {"window": WINDOW, "num_inference_steps": steps, "output_type": "np", "stream": True}
    given = {"slow_motion": (frames - 1) // FACTOR + 1, "retime": (frames - 1) * SOURCE_FPS // TARGET_FPS + 1}
    source = camera(given.get(method, WINDOW // 2), size)
    if method == "slow_motion":
        stream = pipe.slow_motion(source, FACTOR, **common)
    elif method == "retime":
        stream = pipe.retime(source, TARGET_FPS, source_fps=SOURCE_FPS, **common)
    else:
        stream = pipe.extend(source, frames - WINDOW // 2, **common)
    clock = clock_of("cpu")
    start, count = clock(), sum(1 for _ in stream)
    return {"method": method, "frames": count, "seconds": clock() - start, "peak_bytes": peak_bytes()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_stream", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 100, 1000, 10000])
    parser.add_argument("--methods", nargs="+", choices=METHODS[1:], default=["slow_motion", "retime"])
    parser.add_argument("--checkpoint", default=str(CHECKPOINT), help="folder or Hub id of a pipeline")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FRAMES"), help="measure in this process; prints json")
    parser.add_argument("--file", type=float, metavar="MINUTES", help="retime a file of this length instead")
    parser.add_argument("--clips", type=Path, default=CLIPS, help="folder of clips that the file repeats")
    parser.add_argument("--rates", type=float, nargs=2, default=[12.5, 25.0], metavar="FPS", help="of file and result")
    parser.add_argument("--batch", type=int, default=1, help="windows of the file that run at once")
    parser.add_argument("--folder", type=Path, default=Path("outputs/long-file"), help="for the file and its result")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    if options.one:
        method, frames = options.one
        print(json.dumps(measure(method, int(frames), options.steps, options.size, options.checkpoint)))
        return {}

    def run(method: str, frames: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.long_stream", "--one", method, str(frames)]
        command += ["--steps", str(options.steps), "--size", str(options.size), "--checkpoint", options.checkpoint]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])

    machine = describe_machine()
    print(f"{Path(options.checkpoint).name}, {options.size} pixels, {options.steps} step(s), windows of {WINDOW}")
    print(machine_line(machine))
    imports = run("none", 0)["peak_bytes"]
    if options.file is not None:
        result = {"machine": machine, "steps": options.steps, "size": options.size, "imports": imports}
        result |= measure_file(
            options.file, *options.rates, options.size, options.steps, options.batch, options.checkpoint,
            options.clips, options.folder, imports,
        )  # fmt: skip
        _tell_of_file(result)
        write_json(options.output, result)
        return result
    print(f"{'':<12} {'frames':>7} {'s':>8} {'ms a frame':>10} {'MB above imports':>17}")
    rows = []
    for method in options.methods:
        for frames in options.frames:
            row = run(method, frames)
            row |= {"above_imports": row["peak_bytes"] - imports, "ms": 1000 * row["seconds"] / row["frames"]}
            rows.append(row)
            print(
                f"{method:<12} {row['frames']:7d} {row['seconds']:8.2f} {row['ms']:10.2f} "
                f"{row['above_imports'] / 1e6:17.0f}",
                flush=True,
            )
    result = {"machine": machine, "steps": options.steps, "size": options.size, "imports": imports, "rows": rows}
    write_json(options.output, result)
    return result


def _tell_of_file(result: dict[str, Any]) -> None:
    print(
        f"{result['minutes']:g} minutes: {result['source_frames']} frames became {result['frames']} "
        f"({result['expected_frames']} expected); killed after {result['killed_at_part']} parts"
    )
    for name, peak, growth, seconds in zip(
        ("killed", "resumed"), result["peak_above_imports"], result["bytes_a_minute"], result["seconds"], strict=True
    ):
        print(
            f"{name:<8} {seconds / 60:5.1f} minutes, at most {peak / 1e6:.0f} MB above the imports, "
            f"{growth / 1e6:+.2f} MB a minute at the end"
        )


if __name__ == "__main__":
    main()
