"""Checks of values of the command line, before any file is read; what is wrong is a `UsageError`."""

import contextlib
import math
from collections.abc import Iterator

from ..hardware import DTYPES
from .errors import UsageError
from .options import ModelOptions, TaskOptions


MOST_FRAMES = 2**31 - 1  # some counters of frames have 32 bits
SEEDS = -(2**63), 2**64 - 1  # the range of torch's generators


@contextlib.contextmanager
def as_usage_errors() -> Iterator[None]:
    """Turn errors of reading a value into `UsageError`."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_count(name: str, number: int | None, least: int = 1, most: int = MOST_FRAMES) -> None:
    """Refuse a number that is too small to do anything, or too large to count frames with; `None` passes.

    Raises:
        UsageError: in both cases, with the name and the range.
    """
    if number is not None and not least <= number <= most:
        raise UsageError(f"{name} is {number}; give {least} to {most}")


def check_model_options(options: ModelOptions) -> None:
    """Raise `UsageError` for a number format that is none."""
    if options.dtype not in ("auto", *DTYPES):
        raise UsageError(f"dtype {options.dtype!r} is unknown; use auto, {', '.join(DTYPES)}")


def check_sampling_options(options: TaskOptions) -> None:
    """Raise `UsageError` for the first option that cannot be used, whatever checkpoint and files are."""
    check_model_options(options)
    check_count("--steps", options.steps)
    check_count("--blend", options.blend, 0)
    if options.blend and not options.paste_given:
        raise UsageError(f"--blend is {options.blend}, but no pixels are pasted; give --paste-given too")
    if not SEEDS[0] <= options.seed <= SEEDS[1]:
        raise UsageError(f"--seed is {options.seed}; give a number from {SEEDS[0]} to {SEEDS[1]} (2**64 - 1)")
    if options.fps is not None and not (options.fps > 0 and math.isfinite(options.fps)):
        raise UsageError(f"--fps is {options.fps:g}; give a positive number of frames per second")
    if options.guidance_scale is not None and not math.isfinite(options.guidance_scale):
        raise UsageError(f"--guidance-scale is {options.guidance_scale}; give a finite number")
    for text in options.lora or []:
        lora_weight(text)


def lora_weight(text: str) -> tuple[str, float]:
    """Return the place of LoRA weights and how strongly they count, from "place" or "place=0.5".

    Raises:
        UsageError: if there is no place, or the number is not finite.
    """
    place, equals, number = text.rpartition("=")
    try:
        weight = float(number) if equals else 1.0
    except ValueError:  # the name holds the sign
        place, weight = text, 1.0
    place = place if equals else text
    if not place or not math.isfinite(weight):
        raise UsageError(f"--lora is {text!r}; give a folder, a file or a Hub id, or one with a number: mine=0.5")
    return place, weight


def read_places(texts: list[str]) -> dict[int, str]:
    """Return the file for each place, from texts such as "5=b.png".

    Raises:
        UsageError: for another form, places that are no numbers of frames, and a place twice.
    """
    files: dict[int, str] = {}
    for text in texts:
        number, equals, file = text.partition("=")
        if not (equals and file and number.isascii() and number.isdigit() and len(number) <= 10):
            raise UsageError(f"{text!r} is no picture with its place; write PLACE=FILE, such as 0=a.png, from 0 on")
        check_count(f"the place of {file}", int(number), 0)
        if int(number) in files:
            raise UsageError(f"place {int(number)} is given twice; give each place one picture")
        files[int(number)] = file
    return files


def check_one_standard_input(*files: str) -> None:
    """Refuse standard input for two files: it can be read only once."""
    if files.count("-") > 1:
        raise UsageError("- is standard input, which can be only one of the files; give the others by name")
