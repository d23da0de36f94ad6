"""Errors that a user can mend are one line: damaged checkpoints, too little memory, interruptions."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from diffusers_mardini import cli, hardware
from diffusers_mardini.cli import checkpoints
from pipelines_tests.cli.commands import run


QUICK = ("--frames", 2, "--steps", 1, "--device", "cpu", "--dtype", "float32")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000]),
        lambda folder: (folder / WEIGHTS).write_bytes(b""),
        lambda folder: (folder / "model_index.json").write_text("{"),
        lambda folder: (folder / "model_index.json").write_text("{}"),
        lambda folder: (folder / "model_index.json").write_text("[]"),
        lambda folder: (folder / "model_index.json").write_bytes("{}".encode("utf-16")),
        lambda folder: shutil.rmtree(folder / "vae"),
        lambda folder: shutil.rmtree(folder / "planner"),
        lambda folder: edit(folder / "transformer/config.json", num_layers="many"),
        lambda folder: edit(folder / "model_index.json", transformer=["diffusers", "NoSuchModel"]),
    ],
    ids=["cut weights", "empty weights", "cut index", "empty index", "index is a list", "index in UTF-16", "no vae",
         "no planner", "number as text", "unknown class"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_line_with_its_name(checkpoint, tmp_path, monkeypatch, damage):
    damage(Path(shutil.copytree(checkpoint, tmp_path / "damaged")))
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    monkeypatch.chdir(tmp_path)
    code, text = run("animate", "p.png", "-o", "out.mp4", "--checkpoint", "damaged", *QUICK)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 1 and errors == text.splitlines()[-1:]
    assert errors[0].startswith("error: 'damaged' cannot be read as a checkpoint (")


def test_a_size_that_is_no_number_is_asked_for(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "odd"))
    for value in ("big", [64], [64, 0], 0):
        edit(folder / "vae/config.json", sample_size=value)
        with pytest.raises(ValueError, match="give --size"):
            checkpoints.window_to_sample(str(folder), None)


def test_the_home_of_a_user_is_found(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    shutil.copytree(checkpoint, tmp_path / "mine")
    monkeypatch.setenv("MARDINI_CHECKPOINT", "~/mine")
    for given in (None, "~/mine"):
        assert Path(checkpoints.resolve_checkpoint(given)) == tmp_path / "mine"


def too_much_for_a_cpu():
    torch.empty(2**60, dtype=torch.uint8)


def more_than_can_be_counted():
    torch.empty(2**62, 2**62)


def a_picture_without_end():
    Image.new("RGB", (2**30, 2**30))


def caused_by_memory():
    try:
        raise MemoryError
    except MemoryError as error:
        raise ValueError("'clip.mp4' cannot be read as a video (MemoryError)") from error


@pytest.mark.parametrize(
    "what", (too_much_for_a_cpu, more_than_can_be_counted, a_picture_without_end, caused_by_memory)
)
def test_too_little_memory_is_one_line_that_says_what_helps(capsys, what):
    with pytest.raises(typer.Exit) as ended, cli.plain_errors():
        what()
    told = capsys.readouterr().err
    assert ended.value.exit_code == 1 and len(told.splitlines()) == 1
    assert told.startswith("error: there is too little memory (") and "fewer or smaller frames" in told


def test_other_errors_are_no_lack_of_memory():
    assert hardware.is_lack_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert hardware.is_lack_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("DefaultCPUAllocator"), None):
        assert not hardware.is_lack_of_memory(error)


@pytest.mark.parametrize("debug", (False, True))
def test_a_fault_of_ours_is_one_line_too_and_debug_shows_where(capsys, debug):
    with pytest.raises(typer.Exit) as ended, cli.plain_errors(debug):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    told = capsys.readouterr().err
    assert ended.value.exit_code == 1 and "error: this was not foreseen (RuntimeError: mat1 and mat2" in told
    assert ("Traceback" in told) == debug and (len(told.splitlines()) == 1 or debug)


def test_an_interruption_ends_without_a_traceback(capsys):
    with pytest.raises(typer.Exit) as ended, cli.plain_errors():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
def test_sigterm_ends_a_command_in_order(tmp_path):
    before, cleaned = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as ended, cli.plain_errors():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
    assert ended.value.code == 143 and cleaned and signal.getsignal(signal.SIGTERM) is before


def test_a_device_without_numbers_is_no_device():
    with pytest.raises(ValueError, match="device 'meta' cannot be used"):
        hardware.choose_device("meta")
