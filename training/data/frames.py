"""Draw frames evenly from all clips of a source, as many as memory allows, for what learns from pictures alone.

`windows.py` draws windows of several frames of a clip.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import iterate_frames
from training.data.clips import fit
from training.data.entries import Entry
from training.data.failures import reason_lines, sentence, shown
from training.data.manifest import open_unchanged
from training.data.sources import Clip, Source
from training.progress import Progress
from training.stopping import Stopped


SEEK_FROM = 250  # frames between two wanted ones from which seeking is faster: x264 writes a key frame that often


def evenly_spaced(total: int, count: int) -> torch.Tensor:
    """Return at most `count` of the numbers below `total`, evenly spaced from the first to the last."""
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()


def draw_frames(
    source: Source,
    entries: Sequence[Entry],
    size: tuple[int, int],
    count: int,
    workers: int = 1,
    stop: Callable[[], str | None] = lambda: None,
) -> torch.Tensor:
    """Return at most `count` frames, evenly spaced over those of all clips, in the order of the clips.

    Clips that cannot be read any more are printed, and their frames are missing.

    Args:
        source: opens the clips.
        entries: the usable clips.
        size: height and width to which frames are cropped and resized.
        count: most frames; they are the only ones that are held in memory.
        workers: threads that decode.
        stop: called between clips; returns a reason to stop, or `None`.

    Returns:
        `uint8` shaped `(frames, 3, height, width)`.

    Raises:
        ValueError: if no clip can be read.
        Stopped: if there was a reason to stop.
    """
    ends = np.cumsum([entry.num_frames for entry in entries])
    wanted = evenly_spaced(int(ends[-1]), count).numpy()
    frames = torch.empty((len(wanted), 3, *size), dtype=torch.uint8)
    missing: list[slice] = []
    failed: dict[str, str] = {}
    waiting: deque[tuple[Entry, slice, Future]] = deque()
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        Progress(f"reading frames of '{shown(source.spec)}'", len(wanted)) as progress,
    ):

        def take() -> None:
            entry, rows, future = waiting.popleft()
            try:
                future.result()
            except FILE_ERRORS as error:
                failed[entry.key] = sentence(error)
                missing.append(rows)
            progress.update(rows.stop, 0, f"{len(failed):,} clips left out")

        try:
            for entry, end in zip(entries, ends.tolist()):
                rows = slice(*np.searchsorted(wanted, [end - entry.num_frames, end]).tolist())
                if rows.start == rows.stop:
                    continue
                if reason := stop():
                    raise Stopped(reason)
                indices = (wanted[rows] - (end - entry.num_frames)).tolist()
                waiting.append((entry, rows, _submit(pool, source, entry, indices, frames[rows], size)))
                while len(waiting) > 4 * max(1, workers):
                    take()
            while waiting:
                take()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        print(f"{len(failed)} clips of '{shown(source.spec)}' cannot be read any more:")
        print("\n".join(f"  {line}" for line in reason_lines(failed)))
        kept = torch.ones(len(frames), dtype=torch.bool)
        for rows in missing:
            kept[rows] = False
        if not kept.any():
            raise ValueError(f"none of the clips of '{source.spec}' can be read; the reasons are printed above")
        frames = frames[kept]
    return frames


def _submit(
    pool: ThreadPoolExecutor, source: Source, entry: Entry, indices: list[int], into: torch.Tensor,
    size: tuple[int, int],
) -> Future:  # fmt: skip
    """Open a clip here, since streams are read in order, and decode it in the pool."""
    failed: Future = Future()
    try:
        return pool.submit(_fill, open_unchanged(source, entry), source.fps(entry.key), entry, indices, into, size)
    except FILE_ERRORS as error:
        failed.set_exception(error)
        return failed


def _fill(
    opened: Clip, fps: float | None, entry: Entry, indices: list[int], into: torch.Tensor, size: tuple[int, int]
) -> None:
    rows = iter(into)
    for group in _groups(indices):
        for _, frame in iterate_frames(opened, fps, entry.times(group).tolist()):
            next(rows).copy_(fit(frame[None], *size)[0])


def _groups(indices: list[int]) -> Iterator[list[int]]:
    """Yield the frames that are decoded in one go."""
    group: list[int] = []
    for index in indices:
        if group and index - group[-1] > SEEK_FROM:
            yield group
            group = []
        group.append(index)
    yield group
