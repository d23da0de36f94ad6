"""Every command's help ends with an example, and every example works as it is printed."""

import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini import cli
from diffusers_mardini.cli.options import SamplingOptions
from diffusers_mardini.video_io import read_images, write_video
from pipelines_tests.cli.commands import QUICK, run


COMMANDS = {
    (info.name or info.callback.__name__).replace("_", "-"): info.callback for info in cli.app.registered_commands
}
FRAMES = {
    "interpolate": 9, "animate": 9, "expand": 9, "fill": 17, "views": 9, "slow-motion": 21, "extend": 38, "loop": 11,
}  # fmt: skip
SIZE = 64


def example_of(command: str) -> list[str]:
    code, text = run(command, "--help")
    assert code == 0
    (example,) = re.findall(r"^ *Example: mardini (.+?)\n\n", text, re.M | re.DOTALL)
    words = shlex.split(" ".join(example.split()))
    assert words[0] == command
    return words


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch):
    """A folder with the files that the examples name."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), dtype=np.uint8)
    frames = np.broadcast_to(colours, (6, SIZE, SIZE, 3))
    for name, frame in zip(("a", "b", "c", "left", "right"), frames):
        Image.fromarray(np.ascontiguousarray(frame)).save(tmp_path / f"{name}.png")
    write_video(tmp_path / "clip.mp4", frames, 8)
    for place in ("checkpoints/mardini-tiny-carracing", "outputs/mine"):
        shutil.copytree(checkpoint, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARDINI_CHECKPOINT", raising=False)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_the_help_works(here, command):
    words = example_of(command)
    samples = "--seed" in run(command, "--help")[1]
    code, text = run(*words, *(QUICK if samples else ()))  # a step, for the time
    assert code == 0, text
    if samples:
        output = here / words[words.index("-o") + 1]
        assert len(read_images(output)[0]) == FRAMES[command]


def test_options_have_the_same_names_and_help_everywhere():
    shared = {name: f"--{name.replace('_', '-')}" for name in SamplingOptions.__dataclass_fields__}
    for command in FRAMES:
        text = run(command, "--help")[1]
        for option in shared.values():
            assert re.search(rf"^  (?:-\w, )?{option}\b", text, re.M), f"{command} has no {option}"
    for command in COMMANDS:
        text = run(command, "--help")[1]
        assert "--json" in text and "--debug" in text
