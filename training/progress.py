"""Show how far a long preparation is and how long it still takes: a line that is renewed on a terminal, else lines.

`monitoring/panel.py` shows the training itself.
"""

import sys
import time
from collections.abc import Callable
from typing import TextIO


LINE_SECONDS = 10.0  # between two lines; a shorter preparation prints none
TERMINAL_SECONDS = 0.5  # between two renewals on a terminal


class Progress:
    """The progress of one preparation, to be used as a context.

    Args:
        what: what is done, such as "encoding clips".
        total: how much there is to do; 0 if that is unknown.
        stream: by default the standard output.
        clock: returns rising seconds.
    """

    def __init__(
        self, what: str, total: int = 0, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.what, self.total, self.clock = what, total, clock
        self.stream = stream or sys.stdout
        self.on_terminal = self.stream.isatty()
        self.began = self.shown = clock()
        self.width = 0  # of the line on the terminal

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.width:
            self._write("\r" + " " * self.width + "\r")

    def update(self, done: int, without_work: int = 0, note: str = "") -> None:
        """Show that so much is done, if it is time for a line.

        Args:
            done: out of `total`.
            without_work: how much of it took no time because it was done before.
            note: added to the line, such as how many clips were left out.
        """
        now = self.clock()
        if now - self.shown < (TERMINAL_SECONDS if self.on_terminal else LINE_SECONDS):
            return
        self.shown = now
        line = self._line(done, without_work, note, now - self.began)
        if self.on_terminal:
            self._write("\r" + line.ljust(self.width))
            self.width = len(line)
        else:
            self._write(line + "\n")

    def _line(self, done: int, without_work: int, note: str, seconds: float) -> str:
        share = f" of {self.total:,} ({done / self.total:.0%})" if self.total else ""
        worked = done - without_work
        left = f", about {duration(seconds / worked * (self.total - done))} left" if self.total and worked > 0 else ""
        return f"{self.what}: {done:,}{share}{note and ', ' + note}; {duration(seconds)}{left}"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def duration(seconds: float) -> str:
    """Return a duration in two units, such as `1 h 05 min` or `2 min 07 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
