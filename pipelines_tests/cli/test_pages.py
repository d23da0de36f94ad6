"""The commands on the page about tasks work as they are printed."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines_tests.cli.commands import QUICK, SAMPLING, outputs


PAGE = (Path(__file__).resolve().parents[2] / "docs/tasks.md").read_text(encoding="utf-8")
IN_TABLES = re.findall(r"^\|.*`(mardini [^`]+ -o [^`]+)` \|$", PAGE, re.M)
IN_BLOCKS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.DOTALL) for line in block.splitlines()
]  # fmt: skip


@pytest.mark.parametrize("line", IN_TABLES + IN_BLOCKS)
def test_a_command_of_the_page_works(examples, line):
    source, _, line = line.rpartition("| ")
    line, _, target = line.partition(" > ")
    words = shlex.split(line)
    assert words[0] == "mardini" and words[1] in SAMPLING
    stdin = (examples / source.split()[1]).read_bytes() if source else None
    code, told, errors = outputs(*words[1:], *(QUICK if "--steps" not in words else ()), stdin=stdin)
    assert code == 0, errors
    output = words[words.index("-o") + 1]
    assert len(told) > 100 if target else (examples / output).exists()


def test_the_page_shows_every_command_that_samples():
    assert {line.split()[1] for line in IN_TABLES} == set(SAMPLING) and len(IN_BLOCKS) == 5
