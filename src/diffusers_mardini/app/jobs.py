"""Run a visitor's work in a thread, pass on what it reports, and end it when asked to or when its time is up."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Ended(Exception):
    """Raised inside of work that is to end; the message is for the visitor."""


class Job:
    """One piece of work, which ends at its next `check` once it is cancelled or `seconds` have passed."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the work to end."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise `Ended` if the work is to end."""
        if self._cancelled.is_set():
            raise Ended("Cancelled.")
        if time.monotonic() > self._until:
            raise Ended(f"Stopped after {self._seconds:g} seconds; ask for fewer frames or steps.")


class Jobs:
    """The work of all visitors, one piece for each session: a new one ends the one before it."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def begin(self, session: str) -> Job:
        """Return a new job of a session."""
        job = Job(self._seconds)
        with self._lock:
            before, self._jobs[session] = self._jobs.get(session), job
        if before is not None:
            before.cancel()
        return job

    def cancel(self, session: str) -> None:
        """End the work of a session, if there is any."""
        with self._lock:
            job = self._jobs.pop(session, None)
        if job is not None:
            job.cancel()


def reports_of(work: Callable[[Callable[[Any], None]], Any], job: Job) -> Iterator[tuple[str, Any]]:
    """Run `work(report)` in a thread; yield `("report", value)` for its newest reports and `("result", value)` last.

    Errors of the work are raised here. If the reader goes away, the work ends.
    """
    reports: queue.Queue[tuple[str, Any]] = queue.Queue()

    def run() -> None:
        try:
            reports.put(("result", work(lambda value: reports.put(("report", value)))))
        except BaseException as error:  # passed on to the reader
            reports.put(("error", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = reports.get()
            while kind == "report" and not reports.empty():  # the reader is slower: skip to the newest
                kind, value = reports.get()
            if kind == "error":
                raise value
            yield kind, value
            if kind == "result":
                return
    finally:
        job.cancel()
        thread.join(timeout=60)
