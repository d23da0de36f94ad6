"""Record the memory of `mardini retime` on a long file, killed half way and resumed.

`benchmarks/long_stream.py` is the program.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from diffusers_mardini.streaming.parts import folder_of
from diffusers_mardini.streaming.retiming import PART_GAPS
from diffusers_mardini.video.encoding import ClipEncoder
from diffusers_mardini.video.reading import iterate_frames
from training.figures.charts import Panel, Point, draw


INTERVAL = 2  # seconds between two readings of the memory
LAST = 600  # seconds of a run whose slope is told, without the look through the source before


@dataclass(frozen=True)
class Reading:
    """Resident memory of a process at a moment.

    Attributes:
        seconds: since the process began.
        resident_bytes: of it.
        parts: of the result that were finished then.
    """

    seconds: float
    resident_bytes: int
    parts: int


@dataclass(frozen=True)
class Process:
    """Tell what became of one process: its readings, and how it ended (-9 is SIGKILL)."""

    readings: list[Reading]
    code: int

    @property
    def peak_bytes(self) -> int:
        """Return the largest reading."""
        return max(reading.resident_bytes for reading in self.readings)


def write_repeated(clips: Path, output: Path, frames: int, fps: float, size: int) -> None:
    """Write a video that repeats the clips of a folder, one after the other, for so many frames."""
    pictures: list[np.ndarray] = []
    for clip in sorted(clips.glob("*.mp4")):
        for _, frame in iterate_frames(clip):
            pictures.append(np.asarray(ImageOps.fit(Image.fromarray(frame), (size, size))))
    if not pictures:
        raise ValueError(f"{clips} holds no .mp4 to repeat; give a folder that does")
    with ClipEncoder(output, size, size, fps, 18) as encoder:
        for picture in islice(cycle(pictures), frames):
            encoder.add(picture)


def watch(command: list[str], output: Path, until: Callable[[int], bool]) -> Process:
    """Run a command, reading its memory; kill it with SIGKILL once `until` holds for the number of finished parts."""
    with open(f"{output}.log", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        begin, readings = time.monotonic(), []
        while process.poll() is None:
            parts = sum(1 for path in _listed(folder_of(output)) if path.suffix == ".json" and path.stem.isdigit())
            if resident := _resident_bytes(process.pid):
                readings.append(Reading(time.monotonic() - begin, resident, parts))
            if until(parts):
                process.kill()
            time.sleep(INTERVAL)
    return Process(readings, process.wait())


def slope(process: Process) -> float:
    """Return the growth over the last readings of a run, in bytes per minute: a least-squares line."""
    last = [r for r in process.readings if r.seconds >= process.readings[-1].seconds - LAST]
    if len(last) < 2:
        return float("nan")
    return 60 * float(np.polyfit([r.seconds for r in last], [r.resident_bytes for r in last], 1)[0])


def count_frames(path: Path) -> int:
    """Count the pictures of a file by its packets, without decoding them."""
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.pts is not None)


def measure_file(
    minutes: float, source_fps: float, fps: float, size: int, steps: int, batch: int, checkpoint: str, clips: Path,
    folder: Path, imports: int,
) -> dict[str, Any]:  # fmt: skip
    """Give a long file another rate by the command, killed half way and resumed; draw its memory over time.

    Args:
        minutes: length of the source, made of the clips of the folder `clips`.
        source_fps, fps: rates of source and result.
        size: side of a frame in pixels.
        steps: of UniPC.
        batch: windows that run at once.
        checkpoint: folder or Hub id.
        folder: where source, result and `memory.png` lie.
        imports: bytes of a process that only imports.

    Returns:
        Readings and what they say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, output = folder / "source.mp4", folder / "result.mp4"
    frames = round(60 * minutes * source_fps)
    if not source.exists():
        write_repeated(clips, source, frames, source_fps, size)
    command = [sys.executable, "-m", "diffusers_mardini.cli", "retime", str(source), "-o", str(output)]
    command += ["--fps", f"{fps:g}", "--steps", str(steps), "--scheduler", "unipc", "--checkpoint", checkpoint]
    command += ["--size", str(size), "--batch", str(batch), "--json"]
    half = -(-(frames - 1) // PART_GAPS) // 2
    processes = [watch(command, output, lambda parts: parts >= half)]
    if processes[0].code != -9:
        raise RuntimeError(f"the first run ended with {processes[0].code} before it was killed; see {output}.log")
    processes.append(watch([*command, "--resume"], output, lambda parts: False))
    if processes[1].code:
        raise RuntimeError(f"the resumed run ended with {processes[1].code}; see {output}.log")
    result = {
        "minutes": minutes,
        "source_frames": frames,
        "frames": count_frames(output),
        "expected_frames": int((frames - 1) / source_fps * fps) + 1,
        "peak_above_imports": [process.peak_bytes - imports for process in processes],
        "bytes_a_minute": [slope(process) for process in processes],
        "seconds": [process.readings[-1].seconds for process in processes],
        "killed_at_part": processes[0].readings[-1].parts,
        "told": json.loads(Path(f"{output}.log").read_text(errors="replace").splitlines()[-1]),
    }
    draw_memory(folder / "memory.png", processes, imports)
    return result | {"readings": [[asdict(reading) for reading in process.readings] for process in processes]}


def draw_memory(path: Path, processes: list[Process], imports: int) -> None:
    """Draw the memory of the killed process and of the resumed one."""
    names = ("from the start, killed with SIGKILL", "resumed")
    curves, begin = {}, 0.0
    for name, process in zip(names, processes, strict=True):
        curves[name] = [
            Point((begin + reading.seconds) / 60, (reading.resident_bytes - imports) / 1e6)
            for reading in process.readings
        ]
        begin += process.readings[-1].seconds
    panel = Panel("memory of `mardini retime`", "minutes of work", "MB above the imports", curves, {"goal": 400.0})
    draw(path, [panel], width=7)


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return


def _resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process; `None` if it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") or None
