"""Every command's help ends with an example, and every example works as it is printed."""

import re
import shlex

import pytest

from diffusers_mardini import cli
from diffusers_mardini.cli.options import TaskOptions
from diffusers_mardini.video_io import read_images
from pipelines_tests.cli.commands import QUICK, run


SERVERS = {"app", "play"}  # run until they are stopped, and need the extra `demo`; see pipelines_tests/app
COMMANDS = {
    name: info.callback
    for info in cli.app.registered_commands
    if (name := (info.name or info.callback.__name__).replace("_", "-")) not in SERVERS
}
FRAMES = {
    "interpolate": 9, "animate": 9, "expand": 9, "fill": 17, "views": 9, "slow-motion": 21, "retime": 13,
    "extend": 38, "loop": 11,
}  # fmt: skip


def example_of(command: str) -> list[str]:
    code, text = run(command, "--help")
    assert code == 0
    (example,) = re.findall(r"^ *Example: mardini (.+?)\n\n", text, re.M | re.DOTALL)
    words = shlex.split(" ".join(example.split()))
    assert words[0] == command
    return words


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_the_help_works(examples, command):
    words = example_of(command)
    samples = "--seed" in run(command, "--help")[1]
    code, text = run(*words, *(QUICK if samples else ()))  # a step, for the time
    assert code == 0, text
    if samples:
        output = examples / words[words.index("-o") + 1]
        assert len(read_images(output)[0]) == FRAMES[command]


def test_options_have_the_same_names_and_help_everywhere():
    shared = {name: f"--{name.replace('_', '-')}" for name in TaskOptions.__dataclass_fields__}
    for command in FRAMES:
        text = run(command, "--help")[1]
        for option in shared.values():
            assert re.search(rf"^  (?:-\w, )?{option}\b", text, re.M), f"{command} has no {option}"
    for command in COMMANDS:
        text = run(command, "--help")[1]
        assert "--json" in text and "--debug" in text
