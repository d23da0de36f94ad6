"""What a command says: plans and progress on a terminal, losses always, results on standard output."""

import json
import sys
from typing import Any

from .options import CommandOptions


def is_terminal() -> bool:
    """Return whether somebody watches: plans and progress are for them alone."""
    return sys.stderr.isatty()


def note(text: str) -> None:
    """Say what will be done, on a terminal."""
    if is_terminal():
        warn(text)


def warn(text: str) -> None:
    """Say what is lost, left out or changed."""
    print(text, file=sys.stderr, flush=True)


def tell(options: CommandOptions, text: str, **facts: Any) -> None:
    """Tell a result on standard output, as text or, with --json, as one object on a line."""
    print(json.dumps(facts, ensure_ascii=False, default=str) if options.json else text, flush=True)
