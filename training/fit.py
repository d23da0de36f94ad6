"""Train a model of own clips with one command, and say whether it is any good: `python -m training.fit CLIPS OUT`.

    python -m training.fit my_clips runs/mine --hours 2

Looks at the clips, holds some out, measures what simple methods reach on them, chooses rate, size and models for the
hours that there are, trains, scores the model beside the simple methods and publishes it as a folder for
`from_pretrained`. Each step is a command that is printed and can be typed by itself. Typed again after an
interruption, it goes on where it was. Exit codes: 0 finished, 1 failed, 2 advised against (see `--anyway`), 75 stopped.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from training.files import read_json, write_whole
from training.locks import Owner
from training.stopping import SIGNALS, STOPPED


ADVISED_AGAINST = 2
FINISHED_BY = ("look", "probe", "choose", "autoencoder", "train", "judge", "publish")


class Ended(Exception):
    """A step has ended the command with an exit code, after its program has said why."""

    def __init__(self, code: int):
        super().__init__(str(code))
        self.code = code


class Record:
    """The record of a fit in `fit.json`: what was asked for, and the seconds of each step.

    Args:
        folder: of the fit.
        asked: the options that later starts must repeat.

    Raises:
        ValueError: if the folder was begun with other options, or holds something else.
    """

    def __init__(self, folder: Path, asked: dict):
        self.path = folder / "fit.json"
        if not self.path.exists():
            if folder.exists() and any(path.name != "fit.lock.json" for path in folder.iterdir()):
                raise ValueError(f"'{folder}' exists and was not made by training.fit; give another folder")
            self.content = {"asked": asked, "seconds": {}, "done": []}
            self.save()
        self.content = read_json(self.path, ("asked", "seconds", "done"))
        differ = {key for key in asked if self.content["asked"].get(key) != asked[key]}
        if differ:
            given = ", ".join(f"{key} {self.content['asked'].get(key)}" for key in sorted(differ))
            raise ValueError(
                f"'{folder}' was begun with {given}; repeat that, or give another folder for what you ask for now"
            )

    def save(self) -> None:
        """Write the file, whole."""
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")

    @property
    def spent(self) -> float:
        """Return the seconds that all steps have taken so far, interrupted ones included."""
        return sum(self.content["seconds"].values())

    def is_done(self, step: str) -> bool:
        """Return whether a step has been finished."""
        return step in self.content["done"]

    def add(self, step: str, seconds: float) -> None:
        """Count seconds of a step."""
        self.content["seconds"][step] = self.content["seconds"].get(step, 0.0) + seconds
        self.save()

    def finish(self, step: str) -> None:
        """Mark a step as done."""
        self.content["done"].append(step)
        self.save()


def run_program(record: Record, step: str, command: Sequence[str], threads: int | None = None) -> None:
    """Print a command, run it in a process of its own, and count its time as it goes.

    Raises:
        Ended: if it does not finish.
    """
    print(f"\n$ {shlex.join(['python', *command])}", flush=True)
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
        environment["ACCELERATE_USE_CPU"] = "true"
    counted = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], env=environment, preexec_fn=_ends_with_parent())
    handlers = {number: signal.signal(number, lambda number, _: _pass_on(process, number)) for number in SIGNALS}
    try:
        while True:
            try:
                code = process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                code = None
            now = time.monotonic()
            record.add(step, now - counted)
            counted = now
            if code is not None:
                break
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if process.poll() is None:
            process.terminate()
    if code == STOPPED or code in [-number for number in SIGNALS]:
        print("stopped; type the same command to go on")
        raise Ended(STOPPED)
    if code:
        raise Ended(code if code > 0 else 1)


def _pass_on(process: subprocess.Popen, number: int) -> None:
    """Pass a signal on to the program; Ctrl-C in a terminal has reached it already."""
    if number != signal.SIGINT and process.poll() is None:
        process.send_signal(number)


def _ends_with_parent() -> Callable[[], None] | None:
    """Return what makes a program end when this process is killed: on Linux the kernel does, elsewhere it goes on."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def fit(clips: str, out: Path, hours: float, anyway: bool = False, dry_run: bool = False) -> Path | None:
    """Go through all steps; those that are done are not done again.

    Args:
        clips: a source, as `open_source` takes it.
        out: folder of the fit.
        hours: for everything, from looking at the clips to the published model.
        anyway: train where the probe advises against it.
        dry_run: end when everything is chosen and planned.

    Returns:
        The folder of the published model; `None` after a dry run.

    Raises:
        ValueError: if the clips cannot be used, or `out` holds something else.
        Ended: if a step fails, is stopped, or advises against training.
    """
    out.mkdir(parents=True, exist_ok=True)
    with Owner(out / "fit.lock.json", f"the fit {out}"):
        record = Record(out, {"clips": clips, "hours": hours})
        look(record, clips, out)
        probe(record, out, anyway)
        choices = choose_all(record, out, hours)
        if dry_run:
            print(f"\nNothing is trained yet. Edit {out / 'config.yaml'} if you like, and type the command again.")
            return None
        with step(record, "autoencoder"):
            run_program(record, "autoencoder", ["-m", "training.train_autoencoder", str(out / "autoencoder.yaml")])
        train(record, choices, out)
        judge(record, choices, out)
        return publish(record, choices, clips, out)
