"""Measure a manifest of many clips: `python -m benchmarks.manifest --clips 1e3 1e6 1e8`.

Manifests of invented clips are written in batches. Each is opened in a process of its own, as a trainer does: read,
the clips of a stage assigned to its buckets, rows of steps drawn. Memory is that above the imports.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from training.data.buckets import Bucket, WindowRequest
from training.data.entries import SCHEMA, read_entries_file, write_entries_file
from training.data.order import StepRows
from training.data.windows import ClipWindows
from training.randomness import step_generator

from .long_video_costs import peak_bytes
from .timing import describe_machine, machine_line, write_json


BATCH = 1 << 19  # clips that are invented at once
BUCKETS = (Bucket(256, 256, 9), Bucket(192, 320, 9), Bucket(320, 192, 9))
SIZES = np.array([(1280, 720), (1920, 1080), (640, 480), (720, 1280), (512, 512), (320, 240)], np.int32)
RATES = np.array([24.0, 25.0, 30000 / 1001, 30.0, 60.0])


def invent(count: int) -> Iterator[pa.RecordBatch]:
    """Yield invented clips: a thousand in a shard, 3% unusable, of six sizes, five rates and any length."""
    rng = np.random.default_rng(0)
    for first in range(0, count, BATCH):
        number = np.arange(first, min(first + BATCH, count))
        rows = len(number)
        name, shard = (
            pc.utf8_lpad(pc.cast(pa.array(values), pa.string()), 9, "0") for values in (number, number // 1000)
        )
        usable = rng.random(rows) >= 0.03
        sizes, fps = SIZES[rng.integers(len(SIZES), size=rows)], RATES[rng.integers(len(RATES), size=rows)]
        frames = rng.integers(24, 900, rows).astype(np.int32)
        place = pc.cast(pa.array(number % 1000 * 1_500_000), pa.string())
        empty = pa.array(np.zeros(rows, np.int64))
        columns = {
            "key": pc.binary_join_element_wise(shard, ".tar/", name, ".mp4", ""),
            "usable": pa.array(usable),
            "reason": pc.if_else(pa.array(usable), "", "the file is empty (0 bytes)"),
            "stamp": pc.binary_join_element_wise("1536000000 1764442120123456789", place, " "),
            "sha256": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(32), rows, [None, pa.py_buffer(rng.bytes(32 * rows))]
            ),
            "size": pa.array(rng.integers(10**5, 10**7, rows)),
            "num_frames": pa.array(frames),
            "fps": pa.array(fps),
            "width": pa.array(sizes[:, 0]),
            "height": pa.array(sizes[:, 1]),
            "start": pa.array(np.zeros(rows)),
            "duration": pa.array(frames / fps),
            "codec": pa.array(["h264"]).take(empty),
            "timestamps": pa.nulls(rows, SCHEMA.field("timestamps").type),
            "first_frame": empty,
            "clip_frames": empty,
        }
        yield pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def measure(path: Path, steps: int, rows: int, shards_at_once: int | None) -> dict[str, float]:
    """Open a manifest, draw steps, and return seconds and bytes; to be called in a process of its own."""
    request = WindowRequest("stage", BUCKETS, fps=((8.0, 1.0),), shards_at_once=shards_at_once)
    process = psutil.Process()
    before = process.memory_full_info()
    started, processor = time.perf_counter(), time.process_time()
    windows = ClipWindows(read_entries_file(path)[1], [bucket.size for bucket in BUCKETS])
    census = windows.census(request)
    found = {
        "clips": len(windows.entries),
        "used": sum(map(len, census.clips)),
        "open": time.perf_counter() - started,
        "open, processor": time.process_time() - processor,
        "peak": peak_bytes() - before.rss,
    }
    seconds = []
    for step in range(steps):
        # A process's rows of a batch of 1,024 windows.
        place = StepRows(0, step, 1024, tuple(range(rows)))
        generators = [step_generator(0, "sample", step, row) for row in range(rows)]
        processor = time.process_time()
        windows.draw(request, place, generators)
        seconds.append(time.process_time() - processor)
    after = process.memory_full_info()
    return found | {
        "first step": seconds[0],
        "step": statistics.median(seconds),
        "own": after.uss - before.uss,
        "resident": after.rss - before.rss,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Write and measure manifests; print a table; return the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manifest", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=float, nargs="+", default=[1e3, 1e6], help="clips of each manifest")
    parser.add_argument("--steps", type=int, default=20, help="steps that are drawn (default 20)")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step of this process (default 8)")
    parser.add_argument("--shards-at-once", type=int, help="as `data.shards_at_once` (default: all clips are mixed)")
    parser.add_argument("--folder", type=Path, help="for the manifests, 6 GB for 1e8 clips; they are deleted")
    parser.add_argument("-o", "--output", type=Path, help="json file for the results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure, options.steps, options.rows, options.shards_at_once)))
        return []
    results = []
    print(machine_line(describe_machine()))
    print(
        "| clips | written | open | most memory | step | private, resident after the steps |\n|---|---|---|---|---|---|"
    )
    for count in map(int, options.clips):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path, started = Path(folder) / "clips.parquet", time.perf_counter()
            write_entries_file(path, {}, invent(count))
            written = {"write": time.perf_counter() - started, "bytes": path.stat().st_size}
            command = [sys.executable, "-m", "benchmarks.manifest", "--measure", path, "--steps", options.steps]
            command += ["--rows", options.rows]
            command += ["--shards-at-once", options.shards_at_once] if options.shards_at_once else []
            output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1]) | written
        results.append(found)
        print(
            f"| {count:,} | {found['bytes'] / 1e6:,.1f} MB in {found['write']:.0f} s | {found['open']:.2f} s "
            f"({found['open, processor']:.2f} s of the processor) | {found['peak'] / 1e6:.0f} MB | "
            f"{1000 * found['step']:.1f} ms | {found['own'] / 1e6:.0f}, {found['resident'] / 1e6:.0f} MB |",
            flush=True,
        )
    if options.output:
        write_json(options.output, {"machine": describe_machine(), "results": results})
    return results


if __name__ == "__main__":
    main()
