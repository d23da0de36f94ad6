"""A tiny checkpoint, and folders of good and of bad files, for the commands to work with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.video_io import write_video
from pipelines_tests.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """Pictures `a.png`, `b.png`, `c.png`, and `clip.mp4` of 4 frames."""
    folder = tmp_path_factory.mktemp("inputs")
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 60, 3), dtype=np.uint8)
    for name, frame in zip(("a.png", "b.png", "c.png"), frames):
        Image.fromarray(frame).save(folder / name)
    write_video(folder / "clip.mp4", frames, 10)
    return folder


@pytest.fixture(scope="session")
def room(checkpoint, tmp_path_factory) -> Path:
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("room")
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    for name, frame in zip(("a.png", "b.png"), frames):
        Image.fromarray(frame).save(folder / name)
    write_video(folder / "clip.mp4", frames, 10)
    write_video(folder / "fast.mp4", frames, 60)
    shutil.copy(folder / "clip.mp4", folder / "there.mp4")
    for name in ("text.png", "text.mp4", "text.txt", "text.json"):
        (folder / name).write_text("These are words.\n")
    for name in ("nothing.png", "nothing.mp4"):
        (folder / name).touch()
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "list.json").write_text("[1, 2]")
    for name in ("empty", "folder.mp4", "full", "mixed"):
        (folder / name).mkdir()
    (folder / "died.mp4.parts").mkdir()
    (folder / "died.mp4.parts/00000.json").write_text('{"frames": 3}')
    (folder / "full/mine.txt").write_text("precious")
    shutil.copy(folder / "a.png", folder / "mixed/0.png")
    (folder / "mixed/1.png").write_text("no picture")
    shutil.copytree(checkpoint, folder / "checkpoint")
    return folder


@pytest.fixture
def examples(checkpoint, tmp_path, monkeypatch):
    """A folder with the files that the examples of helps and pages name."""
    colours = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), dtype=np.uint8)
    frames = np.broadcast_to(colours, (6, 64, 64, 3))
    for name, frame in zip(("a", "b", "c", "left", "right"), frames):
        Image.fromarray(np.ascontiguousarray(frame)).save(tmp_path / f"{name}.png")
    write_video(tmp_path / "clip.mp4", frames, 8)
    for place in ("checkpoints/mardini-tiny-carracing", "outputs/mine"):
        shutil.copytree(checkpoint, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARDINI_CHECKPOINT", raising=False)
    return tmp_path
