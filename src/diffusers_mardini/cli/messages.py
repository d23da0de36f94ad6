"""Say what a command has to say: plans and progress on a terminal, losses always, results on standard output."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from ..streaming import FileProgress
from .options import CommandOptions


SECONDS_BETWEEN = 0.2  # from one line of progress to the next


def is_terminal() -> bool:
    """Return whether somebody watches: plans and progress are for them alone."""
    return sys.stderr is not None and sys.stderr.isatty()


def note(text: str) -> None:
    """Say what will be done, on a terminal."""
    if is_terminal():
        warn(text)


def warn(text: str) -> None:
    """Say what is lost, left out or changed."""
    if sys.stderr is not None:  # closed
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[FileProgress], None] | None]:
    """Yield what shows how far a file is, on one line of a terminal; `None` where there is none."""
    if not is_terminal():
        yield None
        return
    shown = 0.0

    def show(progress: FileProgress) -> None:
        nonlocal shown
        done, total, left = progress.frames_done, progress.frames_total, progress.seconds_left
        if done != total and time.monotonic() - shown < SECONDS_BETWEEN:
            return
        shown = time.monotonic()
        of = "" if total is None else f" of {total}"
        rest = "" if left is None else f", {timedelta(seconds=round(left))} left"
        print(f"\r{done}{of} frames{rest}\033[K", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print(file=sys.stderr, flush=True)


def tell(options: CommandOptions, text: str, **facts: Any) -> None:
    """Tell a result on standard output, as text or, with --json, as one object on a line."""
    print(json.dumps(facts, ensure_ascii=False, default=str) if options.json else text, flush=True)
