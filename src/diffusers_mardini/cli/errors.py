"""Errors and interruptions of a command: one sentence for the user, and an exit code.

0: done. 1: failed. 2: the command line itself is wrong, whatever the files are. 130: interrupted. 143: SIGTERM.
"""

import contextlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from ..hardware import is_lack_of_memory


FAILED, WRONG_USAGE = 1, 2
EXIT_CODES = (0, FAILED, WRONG_USAGE, 128 + signal.SIGINT, 128 + signal.SIGTERM)


class UsageError(ValueError):
    """A value of the command line that is wrong whatever the files are."""


@contextlib.contextmanager
def plain_errors(debug: bool = False) -> Iterator[None]:
    """Show every error as one sentence without a traceback, which `debug` adds.

    An interruption and SIGTERM end the command in order, so that no unfinished file stays on the disk.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may have letters that the terminal lacks
            stream.reconfigure(errors="backslashreplace")
    with _exit_on_sigterm():
        try:
            yield
        except KeyboardInterrupt as error:
            print("interrupted", file=sys.stderr, flush=True)
            raise typer.Exit(128 + signal.SIGINT) from error
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if debug:
                traceback.print_exc()
            print(f"error: {_sentence(error)}", file=sys.stderr, flush=True)
            raise typer.Exit(WRONG_USAGE if isinstance(error, UsageError) else FAILED) from error


class OneLineGroup(TyperGroup):
    """Commands whose usage errors, such as an unknown option, are one line too."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command and end the process with its exit code."""
        if not standalone_mode:
            return super().main(args, *rest, standalone_mode=False, **extra)
        try:
            code = super().main(args, *rest, standalone_mode=False, **extra)
        except typer.Abort:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            # Typer's own copy of click, and click itself, have different classes for it.
            if not hasattr(error, "format_message"):
                raise
            context: Any = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":
                print(context.get_help())
                sys.exit(WRONG_USAGE)
            path = context.command_path if context is not None else "mardini"
            message = " ".join(error.format_message().split()).rstrip(".")
            print(f"error: {message}; `{path} --help` shows what it takes", file=sys.stderr, flush=True)
            sys.exit(WRONG_USAGE)
        sys.exit(code or 0)


def _sentence(error: Exception) -> str:
    # Some libraries break lines; ours do before an item of a list, which is indented.
    told = re.sub(r"\s*\n(?!  \S)\s*", " ", str(error).strip())
    if is_lack_of_memory(error):
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (
            f"there is too little memory ({reason}); ask for fewer or smaller frames, or --dtype bfloat16. "
            "`mardini info` counts what a model needs, docs/install.md says what else helps"
        )
    if isinstance(error, (ValueError, OSError)):
        return told or type(error).__name__
    return (
        f"this was not foreseen ({type(error).__name__}: {told or 'without a message'}); type the command again with "
        "--debug, and report what it shows"
    )


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
