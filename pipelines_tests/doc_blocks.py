"""Code blocks of the pages, and what can be known of a command without running it: whether its program takes it.

A block that no test can run or read carries its reason in the line above it: `<!-- not run: needs eight GPUs -->`.
"""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import typer.core
from typer.testing import CliRunner

from diffusers_mardini import cli
from training.config.layers import load_config
from training.train_autoencoder import AutoencoderTrainingConfig


ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>.*?) -->\n+)?^(?P<indent>[ ]*)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.M,
)
# Programs of others, whose arguments are not read here
OTHERS = {"cat", "cd", "cp", "diffusers-cli", "export", "git", "mkdir", "python3", "rm", "touch", "."}
# Scripts of other repositories
FOREIGN = {"evaluate_i2v.py"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts at, and why it is not run, if it says so."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page, those within lists and tabs too."""
    return [
        Block(
            found["language"].split(" ")[0], textwrap.dedent(found["code"]),
            text[: found.start("indent")].count("\n") + 1, found["reason"],
        )
        for found in _FENCE.finditer(text)
    ]  # fmt: skip


def commands_of(code: str) -> list[str]:
    """Return the commands of a block: a document in the shell (<<'END') and continued lines belong to one."""
    parts = re.findall(r"^.*<<'END'\n(?:.*\n)*?END$|^(?:.*\\\n)*.+$", code, re.M)
    return [part if "<<'END'" in part else part.replace("\\\n", " ").strip() for part in parts]


class _ArgumentsRead(BaseException):
    """Ends a program once it has read its arguments."""


def check_command(command: str) -> None:
    """Assert that the program of a command exists and takes these arguments; nothing is run.

    Raises:
        AssertionError: says what is wrong, or that the program is unknown here.
    """
    if "<<'END'" in command:
        first, _, document = command.partition("\n")
        if first.startswith("python"):
            compile(document.removesuffix("END"), first, "exec")
            return
        command = first
    command = re.sub(r"\$\{?\w+\}?", "1", command)  # a number fits wherever a loop of the pages puts one in
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if not words or words[0] in {"for", "done"}:
        return
    program = words[0].removeprefix(".venv/bin/")
    if program in {"accelerate", "torchrun"} or words[:2] == ["python", "-m"]:
        _check_module(words[words.index("-m") + 1 :])
        for flag, value in pairwise(words):
            assert flag != "--config_file" or (ROOT / value).is_file(), f"{value} is not there"
    elif program == "mardini":
        _check_mardini(words[1:])
    elif program == "make":
        known = re.findall(r"^([\w.-]+(?:/[\w.-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(known), f"the Makefile has not all of: {command}"
    elif program == "pip":
        text = (ROOT / "setup.py").read_text(encoding="utf-8")
        for extra in re.findall(r"\[([\w,]+)\]", command):
            assert all(f'"{name}": [' in text for name in extra.split(",")), f"setup.py has no extra {extra}"
    elif program in {"bash", "python"} or "/" in program:
        script = words[1] if program in {"bash", "python"} else program
        assert script in FOREIGN or (ROOT / script).is_file(), f"{script} is not there"
    else:
        assert program in OTHERS, f"{program!r} is unknown to pipelines_tests/doc_blocks.py, or a block is not marked"


def _check_mardini(words: Sequence[str]) -> None:
    with mock.patch.object(typer.core.TyperCommand, "invoke", side_effect=_ArgumentsRead):
        try:
            result = CliRunner().invoke(cli.app, list(words))
        except _ArgumentsRead:
            return
    assert result.exit_code == 0, f"mardini {shlex.join(words)}: {result.output}"  # --help ends so


def _check_module(words: Sequence[str]) -> None:
    """Let the program read its arguments, and its configuration where that is one of a run."""
    module, *arguments = words
    if not module.startswith(("training", "benchmarks", "examples", "docs")):
        return
    read: list[Any] = []

    def keep(parser, *args, **kwargs):
        read.append(original[kwargs.pop("_which")](parser, *args, **kwargs))
        raise _ArgumentsRead

    original = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_intermixed_args")}
    errors = io.StringIO()
    with contextlib.ExitStack() as stack:
        for name in original:

            def replacement(parser, *args, _which=name, **kwargs):
                return keep(parser, *args, _which=_which, **kwargs)

            stack.enter_context(mock.patch.object(argparse.ArgumentParser, name, replacement))
        stack.enter_context(mock.patch.object(sys, "argv", [module, *arguments]))
        stack.enter_context(contextlib.redirect_stderr(errors))
        with contextlib.suppress(_ArgumentsRead):
            try:
                main = getattr(importlib.import_module(module), "main", None)
                main() if main is not None else runpy.run_module(module, run_name="__main__")
            except SystemExit as ended:
                raise AssertionError(f"{shlex.join(words)}: {errors.getvalue() or ended}") from ended
    if read and "overrides" in read[0] and str(read[0].config).startswith("training/"):
        reader = AutoencoderTrainingConfig.from_yaml if module == "training.train_autoencoder" else load_config
        reader(ROOT / read[0].config, read[0].overrides)
