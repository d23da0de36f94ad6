"""Run a visitor's work in its turn and in a thread, pass on what it reports, and end it when asked to or when its time is
up."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Ended(Exception):
    """Raised inside of work that is to end; the message is for the visitor."""


class Job:
    """One piece of work, which ends at its next `check` once it is cancelled or `seconds` have passed since `start`.

    Attributes:
        is_running: whether its work has begun and not ended, cancelled or not.
    """

    def __init__(self, seconds: float):
        self.is_running = False
        self._seconds = seconds
        self._cancelled = threading.Event()
        self._until = time.monotonic() + seconds

    def start(self) -> None:
        """Count the time from now on."""
        self._until = time.monotonic() + self._seconds

    @property
    def is_cancelled(self) -> bool:
        """Tell whether the work is to end, or has ended."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ask the work to end."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise `Ended` if the work is to end."""
        if self.is_cancelled:
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


class Turns:
    """One piece of work at a time, and a line of bounded length before it."""

    def __init__(self, most_waiting: int):
        self._most_waiting = most_waiting
        self._line: list[Job] = []
        self._changed = threading.Condition()

    @contextmanager
    def place(self, job: Job) -> Iterator[None]:
        """Stand in line inside the `with` block; raise `Ended` if too many do."""
        with self._changed:
            if self._ahead(None) > self._most_waiting:
                raise Ended(f"{self._most_waiting} others are waiting already; try again in a minute.")
            self._line.append(job)
        try:
            yield
        finally:
            with self._changed:
                self._line.remove(job)
                self._changed.notify_all()

    def ahead(self, job: Job, timeout: float = 0.5) -> int:
        """Return how many are ahead of a job in line; wait for it to be none for a while, and then start its time."""
        with self._changed:
            self._changed.wait_for(lambda: self._ahead(job) == 0, timeout)
            count = self._ahead(job)
        if job.is_cancelled:
            raise Ended("Cancelled.")
        if not count:
            job.start()
        return count

    def _ahead(self, job: Job | None) -> int:
        # Whoever left does not count, even if the server has not noticed everywhere; but work takes memory and time until
        # it ends at its next check, or for as long as `reports_of` waits for that.
        line = self._line if job is None else self._line[: self._line.index(job)]
        return sum(other.is_running or not other.is_cancelled for other in line)


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
        finally:
            job.is_running = False

    job.is_running = True
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
