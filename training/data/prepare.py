"""Prepare a source of clips for runs, part by part: its manifest, and the latents that a configuration asks for.

    python -m training.data.prepare SOURCE OUT [--config FILE [key=value ...]] [--workers N] [--engine local|ray]

Start it as often as you like, on as many machines as share OUT: each takes parts that no other works on, and what is
done is not done again. A part that fails is reported and tried again by the next start; the others go on.
A run reads the result with `data.manifests=OUT/manifests data.cache=OUT/latents`.
"""

import argparse
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.config.layers import load_config
from training.cores import cores, pool_size
from training.data.buckets import heldout_window_request, window_request
from training.data.failures import shown
from training.data.parts import Job, Outcome, divide, done_part, is_free, merge, now, prepare_part, set_worker
from training.engine.models import load_vae
from training.stopping import STOP_FILE, STOPPED, Stopped, StopRequest


CLIPS = 1000  # of a part
_WAIT = 5.0  # seconds between two looks at parts on which others work
_KILLED = (
    "its process was ended from outside, mostly for lack of memory; fewer --workers need less, and the next start tries "
    "it again"
)

Stop = Callable[[], str | None]


def prepare(
    job: Job, numbers: Sequence[int], engine: str = "local", workers: int = 1, stop: Stop = lambda: None,
    say: Callable[[str], object] = print,
) -> list[Outcome]:  # fmt: skip
    """Prepare parts until each is done or has failed, here or in another process that shares the folder.

    Args:
        job: what is prepared.
        numbers: of the parts.
        engine: a key of `ENGINES`.
        workers: processes.
        stop: called often; returns a reason to stop, or `None`.
        say: is called with a line for each part.

    Returns:
        The outcomes in the order of the parts, `done` or `failed`.

    Raises:
        Stopped: if there was a reason to stop; what is prepared is kept.
    """
    found: dict[int, Outcome] = {}
    # Machines begin at different parts, so that they seldom ask for the same one.
    begin = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) % len(numbers)
    waiting = [*numbers[begin:], *numbers[:begin]]

    def tell(outcome: Outcome) -> None:
        if outcome.state in ("done", "failed"):
            found[outcome.number] = outcome
            what = f"{outcome.usable:,} of {outcome.clips:,} clips can be used"
            text = what if outcome.state == "done" else f"failed: {outcome.reason}"
            say(f"part {outcome.number} ({len(found):,} of {len(numbers):,}): {text}")

    while waiting:
        free = [number for number in waiting if is_free(job, number)]
        for number in free:
            if done := done_part(job, number):
                tell(done)
        if todo := [number for number in free if number not in found]:
            for outcome in ENGINES[engine](job, todo, workers, stop):
                tell(outcome)
        if reason := stop() or job.stop():
            raise Stopped(reason)
        waiting = [number for number in waiting if number not in found]
        if waiting and not todo:
            time.sleep(_WAIT)
    return [found[number] for number in sorted(found)]


def _locally(job: Job, numbers: Sequence[int], workers: int, stop: Stop) -> Iterator[Outcome]:
    """Yield the outcomes from a pool of processes; one worker is this process."""
    if workers == 1:
        for number in numbers:
            if stop():
                return
            yield prepare_part(job, number)
        return
    todo = list(numbers)
    while todo:
        broken = False
        for outcome in _pooled(job, todo, workers, stop):
            if outcome is None:
                broken = True
                continue
            todo.remove(outcome.number)
            yield outcome
        if not broken or stop():
            return
        # A process died and took the pool with it. The parts that were begun are tried alone, to find the one that
        # kills: their locks are left.
        for number in [number for number in todo if (job.part(number) / "lock.json").exists()] or todo[:1]:
            for outcome in _pooled(job, [number], 1, stop):
                yield outcome or Outcome(number, "failed", reason=_KILLED)
            todo.remove(number)


def _pooled(job: Job, numbers: Sequence[int], workers: int, stop: Stop) -> Iterator[Outcome | None]:
    """Yield outcomes as they come; `None` for a part whose process, or another one of the pool, died."""
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([prepare_part.__module__])  # the trainer is imported once
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(pool_size(workers), context, _begin_worker, (threads, context.Value("i", 0))) as pool:
        waiting = {pool.submit(prepare_part, job, number) for number in numbers}
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
            for future in finished:
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield None


def _begin_worker(threads: int, begun: Any) -> None:
    """Prepare a process: Ctrl-C is its parent's, it ends when its parent is killed, and it has its share of cores and
    of GPUs. `begun` counts the processes."""
    torch.set_num_threads(threads)
    with begun.get_lock():
        set_worker(begun.value)
        begun.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _by_ray(job: Job, numbers: Sequence[int], workers: int, stop: Stop) -> Iterator[Outcome]:
    """Yield the outcomes from Ray Data: on the cluster of RAY_ADDRESS, whose machines share the folder, or here."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError('--engine ray needs Ray: pip install ".[ray]" in the checkout') from error
    if not ray.is_initialized():
        ray.init(num_cpus=None if os.environ.get("RAY_ADDRESS") else workers, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a part that kills its process does not end the others
    rows = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    missing = set(numbers)
    # A task that asks for no GPU sees none.
    gpus = 1 if job.load_vae is not None and ray.cluster_resources().get("GPU") else None
    for row in rows.map(lambda row: vars(prepare_part(job, row["number"])), num_gpus=gpus).iter_rows():
        missing.discard(row["number"])
        yield Outcome(**row)
    yield from (Outcome(number, "failed", reason=_KILLED) for number in sorted(missing))


ENGINES = {"local": _locally, "ray": _by_ray}


def make_job(
    source: str, out: Path, fps: float | None = None, config: str | Path | None = None, overrides: Sequence[str] = (),
    held_out: bool = False,
) -> Job:  # fmt: skip
    """Return the job of a command line; see `main`."""
    if config is None:
        return Job(source, fps, out, began=now(out), name=uuid.uuid4().hex)
    run = load_config(config, list(overrides)).for_processes(1)
    request = heldout_window_request if held_out else window_request
    encodes = not run.data.from_pixels
    return Job(
        source, fps or run.data.picture_fps, out,
        tuple(request(run, stage) for stage in run.stages) if encodes else (),
        run.data.planner_downscale, f"{run.vae} {run.vae_subfolder}",
        partial(load_vae, run.vae, run.vae_subfolder) if encodes else None, now(out), uuid.uuid4().hex,
    )  # fmt: skip


@contextmanager
def _told_to_stop(job: Job, stop: Stop) -> Iterator[None]:
    """Pass a reason to stop on to whoever works on a part, within the block: a part that is begun does not go on to its
    end, whichever process or machine has it."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            if stop():
                job.stop_file.touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        job.stop_file.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a source; return the exit code: 1 if a part failed, 75 if it was stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="as `data.train` of a run")
    parser.add_argument("out", type=Path, help="folder for manifests, latents and parts; all machines share it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    parser.add_argument(
        "--config", type=Path, help="a run's YAML file: its stages' clips are encoded; else no latents"
    )
    parser.add_argument("--held-out", action="store_true", help="encode as for `data.validation` of the run")
    parser.add_argument(
        "--picture-fps", "--fps", dest="fps", type=float, help="frames per second of picture folders without metadata"
    )
    parser.add_argument("--workers", type=int, default=cores(), help="processes (default: all cores)")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="a pool of processes here, or Ray Data")
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"clips of a part, about (default {CLIPS:,})")
    options = parser.parse_intermixed_args(arguments)
    try:
        if options.clips < 1 or options.workers < 1:
            raise ValueError(f"--clips and --workers must be at least 1, got {options.clips} and {options.workers}")
        job = make_job(options.source, options.out, options.fps, options.config, options.overrides, options.held_out)
        source = job.open_source()
        with StopRequest(options.out) as request:
            numbers = divide(job, source, options.clips)
            with _told_to_stop(job, lambda: request.reason):
                outcomes = prepare(job, numbers, options.engine, options.workers, lambda: request.reason)
            done = any(outcome.state == "done" for outcome in outcomes)
            manifest = merge(job, numbers) if done else None
    except Stopped as stopped:
        first = f"delete {options.out / STOP_FILE}; " if (options.out / STOP_FILE).exists() else ""
        print(f"stopped ({stopped}); {first}the same command goes on with the parts that are not done yet")
        return STOPPED
    except (ValueError, OSError) as error:
        print(shown(str(error)), file=sys.stderr)
        return 2
    if manifest is not None:
        print(manifest.census())
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        print(f"part {outcome.number} failed and is missing: {outcome.reason} ({job.part(outcome.number)})")
    if manifest is not None:
        print(f"a run reads them with data.manifests={options.out / 'manifests'} data.cache={options.out / 'latents'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
