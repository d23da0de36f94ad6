"""Errors and interruptions of a command, as one line for the user."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from io import TextIOWrapper

import typer

from ..hardware import is_lack_of_memory


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Show errors that a user can mend (`ValueError`, `OSError`, too little memory) as one line, without a traceback.

    An interruption and SIGTERM end the command in order, so that no unfinished file stays on the disk.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may have letters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    with _exit_on_sigterm():
        try:
            yield
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(128 + signal.SIGINT) from error
        except Exception as error:
            if is_lack_of_memory(error):
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                message = (
                    f"there is too little memory ({reason}); ask for fewer frames, a smaller --size or "
                    "--dtype bfloat16. `mardini info` counts what a model needs, docs/install.md says what else helps"
                )
            elif isinstance(error, (ValueError, OSError)):
                message = str(error) or type(error).__name__
            else:
                raise
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(1) from error


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an exit that runs every `finally`; by default it kills at once."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
