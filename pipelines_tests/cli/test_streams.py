"""From file to file by `mardini`: the frames of the layer below, interruptions, what was killed, sound and cuts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cli import messages, streams
from diffusers_mardini.streaming import extension, retime_file, retiming, running
from diffusers_mardini.video_io import read_video, write_video
from pipelines_tests.cli.commands import outputs
from pipelines_tests.cli.test_outputs import write_with_sound


ROOT = Path(__file__).parents[2]
QUICK = ("--steps", 1, "--device", "cpu", "--dtype", "float32", "--cuts", "ignore")


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch) -> Path:
    """An empty folder with `clip.mp4`, a bright square that moves for 11 frames; parts are short."""
    frames = np.repeat(np.random.default_rng(0).integers(0, 60, (1, 64, 64, 3), np.uint8), 11, axis=0)
    for number, frame in enumerate(frames):
        frame[16:40, 2 * number : 2 * number + 20] = 200
    write_video(tmp_path / "clip.mp4", frames, 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(checkpoint))
    monkeypatch.setattr(retiming, "PART_GAPS", 3)
    monkeypatch.setattr(extension, "PART_FRAMES", 3)
    return tmp_path


def retime(output, *options) -> tuple[int, bytes, str]:
    return outputs("retime", "clip.mp4", "-o", output, "--fps", 25, *QUICK, *options)


def interrupt_after(frames: int, monkeypatch) -> None:
    """Let a signal arrive while the frame after so many is made, as if somebody pressed Ctrl-C."""
    add = running._Counter.add

    def stop(self) -> None:
        add(self)
        if self._done == frames:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(running._Counter, "add", stop)


def test_retime_gives_the_frames_of_the_layer(here, checkpoint):
    code, told, errors = retime("out.mp4", "--seed", 4, "--window", 5, "--json")
    assert code == 0, errors
    facts = json.loads(told)
    assert facts.pop("seconds") > 0
    assert facts == {
        "output": "out.mp4", "frames": 26, "height": 64, "width": 64, "fps": 25, "seed": 4, "sound": "none", "cuts": 0,
        "frames_resumed": 0, "whole": True,
    }  # fmt: skip
    pipe = MarDiniPipeline.from_pretrained(checkpoint)
    retime_file(pipe, "clip.mp4", "layer.mp4", 25, cuts="ignore", seed=4, window=5, num_inference_steps=1)
    assert Path("out.mp4").read_bytes() == Path("layer.mp4").read_bytes()


def test_ctrl_c_leaves_the_whole_windows_and_the_rest_follows(here, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(12, patch)
        code, told, errors = retime("out.mp4")
    assert code == 130 and errors.splitlines()[-1] == "interrupted", errors
    count = len(read_video("out.mp4")[0])
    assert 12 <= count < 26
    assert told.decode().strip() == (
        f"Wrote {count} frames of 64x64 to out.mp4, up to the last whole window; --resume goes on"
    )
    code, _, errors = retime("out.mp4")
    assert code == 1 and "--resume goes on with them" in errors
    code, told, errors = retime("out.mp4", "--resume", "--json")
    assert code == 0, errors
    facts = json.loads(told)
    assert facts["frames"] == 26 and facts["frames_resumed"] >= 8 and facts["whole"]
    assert retime("through.mp4")[0] == 0
    assert Path("out.mp4").read_bytes() == Path("through.mp4").read_bytes()
    assert sorted(path.name for path in here.iterdir()) == ["clip.mp4", "out.mp4", "through.mp4"]


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize("sent, code", [("SIGKILL", -9), ("SIGTERM", 143)])
def test_a_killed_command_goes_on(here, sent, code):
    script = f"""
import os, signal, sys
from diffusers_mardini import cli
from diffusers_mardini.streaming import retiming, running
retiming.PART_GAPS = 3
add = running._Counter.add
def die(self):
    add(self)
    if self._done == 19:
        os.kill(os.getpid(), signal.{sent})
running._Counter.add = die
cli.app(sys.argv[1:])
"""
    unipc = ("--scheduler", "unipc")  # whose configuration holds a set, which each process has in another order
    words = ["retime", "clip.mp4", "-o", "out.mp4", "--fps", "25", *map(str, QUICK), *unipc]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", script, *words], env=environment, check=False)
    assert done.returncode == code and not Path("out.mp4").exists() and Path("out.mp4.parts").is_dir()
    code, told, errors = retime("out.mp4", "--resume", "--json", *unipc)
    assert code == 0 and json.loads(told)["frames_resumed"] == 16, errors
    assert retime("through.mp4", *unipc)[0] == 0
    assert Path("out.mp4").read_bytes() == Path("through.mp4").read_bytes()


def test_the_scale_of_a_lora_belongs_to_the_settings(here, monkeypatch):
    from pipelines_tests.loaders.adapters import save_adapter

    save_adapter(here / "lora")
    with monkeypatch.context() as patch:
        interrupt_after(12, patch)
        assert retime("out.mp4", "--lora", "lora")[0] == 130
    code, _, errors = retime("out.mp4", "--lora", "lora=0.5", "--resume")
    assert code == 1 and "were made with other settings (model" in errors


@pytest.mark.parametrize(
    "command, options, said",
    [
        (["retime", "--fps", 12], [], "copied"),
        (["slow-motion"], [], "stretched"),
        (["extend", "--new-frames", 2], [], "copied"),
        (["extend", "--new-frames", 2, "--fps", 4], [], "stretched"),
        (["extend", "--new-frames", 2], ["--sound", "drop"], "dropped"),
    ],
)
def test_sound_goes_with_the_pictures(here, command, options, said):
    write_with_sound(here / "loud.mp4")
    quick = QUICK if command[0] != "extend" else QUICK[:-2]
    code, told, errors = outputs(command[0], "loud.mp4", *command[1:], "-o", "out.mp4", "--json", *options, *quick)
    assert code == 0, errors
    assert json.loads(told)["sound"] == said and "has sound" not in errors
    with av.open("out.mp4") as container:
        assert bool(container.streams.audio) == (said != "dropped")


@pytest.mark.parametrize("text", ("3 8", "3,\n8\n", "0.3s 00:00:00.8"))
def test_cuts_are_read_from_a_file(here, text):
    Path("cuts.txt").write_text(text)
    code, told, errors = retime("out.gif", "--cuts", "cuts.txt", "--json")
    assert code == 0 and json.loads(told)["cuts"] == 2, errors


def test_without_the_finder_of_cuts_a_line_says_that_none_are_looked_for(here, monkeypatch):
    monkeypatch.setattr(streams.importlib.util, "find_spec", lambda name: None)
    code, _, errors = outputs("slow-motion", "clip.mp4", "-o", "out.gif", *QUICK[:-2])
    assert code == 0 and "Cuts are not looked for" in errors


@pytest.mark.parametrize("suffix", (".mp4", ".mkv", ".webm", ".webp", ".apng", ".gif", ""))
def test_every_form_is_written(here, suffix):
    code, told, errors = retime(f"out{suffix}")
    assert code == 0 and "Wrote 26 frames" in told.decode(), errors
    assert sorted(path.name for path in here.iterdir()) == ["clip.mp4", f"out{suffix}"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has shorter names")
def test_the_longest_name_has_a_folder_of_parts_too(here):
    code, _, errors = retime("y" * 251 + ".mp4")
    assert code == 0, errors


def test_a_folder_has_the_rate_of_the_training_or_8(here):
    write_video("pictures", read_video("clip.mp4")[0], 10)
    code, told, errors = outputs("retime", "pictures", "-o", "out.gif", "--fps", 16, "--json", *QUICK)
    assert code == 0 and json.loads(told)["frames"] == 21, errors  # 11 pictures at 8 a second last 1.25 s

    assert "pictures states no rate and is taken as 8 frames per second; --source-fps says another" in errors
    code, told, errors = outputs(
        "retime", "pictures", "-o", "ntsc.mp4", "--fps", "30000/1001", "--source-fps", 10, "--json", *QUICK
    )
    facts = json.loads(told)
    assert code == 0 and (facts["frames"], facts["fps"]) == (30, pytest.approx(30000 / 1001)), errors
    assert errors == ""


def test_overwriting_replaces_the_parts_of_an_earlier_run(here, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(12, patch)
        assert retime("out.mp4")[0] == 130
    code, told, errors = retime("out.mp4", "--seed", 7, "--overwrite", "--json")
    assert code == 0 and json.loads(told)["frames_resumed"] == 0, errors
    assert sorted(path.name for path in here.iterdir()) == ["clip.mp4", "out.mp4"]
    assert retime("through.mp4", "--seed", 7)[0] == 0
    assert Path("out.mp4").read_bytes() == Path("through.mp4").read_bytes()


def test_progress_is_one_line_of_a_terminal(here, monkeypatch):
    monkeypatch.setattr(messages, "is_terminal", lambda: True)
    monkeypatch.setattr(messages, "SECONDS_BETWEEN", 0)
    code, _, errors = retime("out.mp4")
    assert code == 0
    shown = [line for line in errors.splitlines() if " of 26 frames, " in line]
    assert shown and "0:00:00 left" in shown[-1]
