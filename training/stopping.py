"""Requests to stop a run before its end: by a signal, by a file, or at a limit of time.

A run that is asked to stop saves at the next step or, while clips are prepared, keeps the finished ones.
"""

import os
import signal
import threading
import time
from pathlib import Path


STOPPED = 75  # EX_TEMPFAIL: the run is not finished, and the same command resumes it
FORCED_AFTER = 5.0  # seconds after a signal, within which more of them change nothing
STOP_FILE = "stop"
SAMPLE_FILE = "sample"  # asks a run for pictures; the run goes on
# A cluster's preemption, Ctrl-C, Slurm's warning, Ctrl-Break; not every system has all of them.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class StopRequest:
    """Notice that this process is asked to stop, and say why.

    Used as a context, it handles signals until the block ends. Another signal ends the process at once, unless it comes
    within `FORCED_AFTER`: a cluster signals every process, and launchers then pass the same signal on to their own.
    Outside of the main thread, where Python allows no handlers, it ignores signals.

    Args:
        folder: of the run; a file called `stop` in it is a request.
        max_hours: time limit of this process, counted from now; `None` for no limit.
    """

    def __init__(self, folder: Path, max_hours: float | None = None):
        self.file = folder / STOP_FILE
        self.max_hours = max_hours
        self.started = time.monotonic()
        self.signal: signal.Signals | None = None
        self._signalled = 0.0  # when
        self._previous: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one that is not Python's

    @property
    def reason(self) -> str | None:
        """Return the reason to stop in words, or `None`."""
        return f"the file {self.file}" if self.signal is None and self.file.exists() else self.own_reason

    @property
    def own_reason(self) -> str | None:
        """Return the reason without a look into the run's folder, which processes may share."""
        if self.signal is not None:
            return f"signal {self.signal.name}"
        if self.max_hours is not None and time.monotonic() - self.started >= self.max_hours * 3600:
            return f"max_hours {self.max_hours:g}"
        return None

    def done(self) -> None:
        """Delete the file after the run has stopped, so that it does not stop the next start."""
        self.file.unlink(missing_ok=True)

    def _handle(self, number: int, _frame) -> None:
        if self.signal is None:
            self.signal, self._signalled = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._signalled >= FORCED_AFTER:
            os._exit(128 + number)
