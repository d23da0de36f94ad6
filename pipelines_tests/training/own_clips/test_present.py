"""Test what a fit leaves beside its model: commands that work, with the words of the verdict."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video_io import read_video
from pipelines_tests.cli.commands import QUICK, run
from pipelines_tests.tiny_pipeline import tiny_pipeline
from training.own_clips.present import write_how_to_use


@pytest.fixture
def model(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    for name in ("first", "last"):
        Image.fromarray(np.full((32, 32, 3), 100, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_that_is_written_down_was_run(model):
    codes = []

    def once(command):
        code, text = run(*command, *QUICK)
        assert code == 0, text
        codes.append(code)

    path = write_how_to_use(model, once, ["It is better than a cross-fade."])
    text = path.read_text(encoding="utf-8")
    written = [shlex.split(line) for line in re.findall(r"^mardini (?!push).+$", text, re.M)]
    assert len(written) == len(codes) == 3 and all(command[-2:] == ["--checkpoint", "."] for command in written)
    assert "It is better than a cross-fade." in text
    assert len(read_video(model / "longer.mp4")[0]) == len(read_video(model / "between.mp4")[0]) + 16


def test_nothing_is_written_if_a_command_fails(model):
    def fail(command):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_how_to_use(model, fail, [])
    assert not (model / "how-to-use.md").exists()
