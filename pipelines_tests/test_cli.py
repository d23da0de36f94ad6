import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffusers_mardini import cli
from diffusers_mardini.video_io import read_images, read_video, write_video
from pipelines_tests.hub_server import running_hub
from pipelines_tests.tiny_pipeline import tiny_pipeline


COMMANDS = ("interpolate", "animate", "expand", "slow-motion", "extend", "info", "push")
SIZE = 64  # what the config of the tiny autoencoder names
QUICK = ["--steps", "2", "--device", "cpu", "--dtype", "float32"]


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 60, 3), dtype=np.uint8)
    for name, frame in zip(("a.png", "b.png"), frames):
        Image.fromarray(frame).save(folder / name)
    write_video(folder / "clip.mp4", frames, 10)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    code, output = run(command, "--help")
    assert code == 0 and f"Example: mardini {command} " in output


def test_interpolation_writes_an_mp4_and_says_where(checkpoint, inputs, tmp_path):
    output = tmp_path / "out.mp4"
    code, text = run("interpolate", inputs / "a.png", inputs / "b.png", "-o", output, "--num-frames", 5,
                     "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    lines = text.splitlines()
    assert lines[0].startswith("Sampling 3 frames between") and "float32" in lines[0]
    assert lines[-1] == f"Wrote 5 frames of {SIZE}x{SIZE} to {output}"
    frames, fps = read_video(output)
    assert frames.shape == (5, SIZE, SIZE, 3) and fps == 8


def test_animation_writes_a_gif_of_the_size_asked_for(checkpoint, inputs, tmp_path):
    code, text = run("animate", inputs / "a.png", "-o", tmp_path / "out.gif", "--size", "32x48", "--num-frames", 3,
                     "--checkpoint", checkpoint, "--fps", 5, *QUICK)  # fmt: skip
    assert code == 0, text
    frames, fps = read_video(tmp_path / "out.gif")
    assert frames.shape == (3, 32, 48, 3) and fps == pytest.approx(5)


def test_expansion_leads_with_the_last_frames_and_writes_pictures(checkpoint, inputs, tmp_path):
    code, text = run("expand", inputs / "clip.mp4", "-o", tmp_path / "out", "--use-frames", 2, "--num-frames", 4,
                     "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    assert "Cropping 40x60" in text
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"frame_{i:05d}.png" for i in range(4)]


def test_slow_motion_has_factor_times_the_frames(checkpoint, inputs, tmp_path):
    code, text = run("slow-motion", inputs / "clip.mp4", "-o", tmp_path / "out.mp4", "--factor", 2, "--window", 3,
                     "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    assert f"Wrote {(4 - 1) * 2 + 1} frames" in text


def test_extension_adds_the_frames_asked_for(checkpoint, inputs, tmp_path):
    code, text = run("extend", inputs / "clip.mp4", "-o", tmp_path / "out.mp4", "--num-new-frames", 3, "--window", 4,
                     "--overlap", 2, "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    frames, fps = read_video(tmp_path / "out.mp4")
    assert len(frames) == 4 + 3 and fps == 10


class Recorder:
    """In place of a pipeline: keeps what it was called with, and hands out black frames."""

    def __init__(self):
        self.calls = []

    def _record(self, name, *args, **kwargs):
        self.calls.append((name, args, kwargs))
        return SimpleNamespace(frames=[[Image.new("RGB", (SIZE, SIZE))] * 2])

    def __call__(self, *args, **kwargs):
        return self._record("window", *args, **kwargs)

    def __getattr__(self, name):
        return functools.partial(self._record, name)


@pytest.mark.parametrize(
    "arguments, name, expected",
    [
        (
            ["interpolate", "0.png", "1.png", "--num-frames", 7],
            "window",
            {"image": 0, "last_image": 1, "num_frames": 7},
        ),
        (["animate", "2.png", "--num-frames", 5], "window", {"image": 2, "num_frames": 5}),
        (["expand", "clip", "--use-frames", 3, "--num-frames", 6], "window", {"video": [1, 2, 3], "num_frames": 6}),
        (["expand", "clip"], "window", {"video": [0, 1, 2, 3], "num_frames": 9}),
        (
            ["slow-motion", "clip", "--factor", 3, "--window", 7],
            "slow_motion",
            {0: [0, 1, 2, 3], "factor": 3, "window": 7},
        ),
        (
            ["extend", "clip", "--num-new-frames", 5, "--window", 6, "--overlap", 2],
            "extend",
            {0: [0, 1, 2, 3], "num_new_frames": 5, "window": 6, "overlap": 2},
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_asked_for_reaches_the_pipeline(tmp_path, monkeypatch, checkpoint, arguments, name, expected):
    """Pictures are of one grey each, by which they are known again."""
    (tmp_path / "clip").mkdir()
    for grey in range(4):
        for path in (tmp_path / f"{grey}.png", tmp_path / "clip" / f"{grey}.png"):
            Image.new("RGB", (SIZE, SIZE), (60 * grey,) * 3).save(path)
    monkeypatch.chdir(tmp_path)
    recorder = Recorder()
    monkeypatch.setattr(cli, "load", lambda *_: recorder)
    code, text = run(
        *arguments, "-o", "out.gif", "--steps", 11, "--guidance", 1.75, "--seed", 5, "--checkpoint", checkpoint
    )
    assert code == 0, text
    ((called, args, kwargs),) = recorder.calls
    assert called == name
    assert (kwargs["num_inference_steps"], kwargs["guidance_scale"]) == (11, 1.75)
    assert kwargs["generator"].initial_seed() == 5

    def told(value):
        if isinstance(value, Image.Image):
            return value.getpixel((0, 0))[0] // 60
        return [told(item) for item in value] if isinstance(value, list) else value

    found = {**dict(enumerate(args)), **kwargs}
    assert {key: told(found[key]) for key in expected} == expected
    size = set() if args or "video" in found else {"height", "width"}
    assert found.keys() - expected.keys() == {"num_inference_steps", "guidance_scale", "generator", *size}


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(checkpoint, inputs, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        code, text = run("animate", inputs / "a.png", "-o", tmp_path / name, "--num-frames", 2, "--seed", seed,
                         "--checkpoint", checkpoint, *QUICK)  # fmt: skip
        assert code == 0, text
    one, again, two = (np.asarray(read_images(tmp_path / name)[0][1]) for name in ("one", "again", "two"))
    assert (one == again).all() and (one != two).any()


def test_an_existing_output_is_replaced_only_with_force(checkpoint, inputs, tmp_path):
    output = tmp_path / "out.gif"
    output.write_bytes(b"precious")
    arguments = ("animate", inputs / "a.png", "-o", output, "--num-frames", 2, "--checkpoint", checkpoint, *QUICK)
    code, text = run(*arguments)
    assert code == 1 and "--force" in text and output.read_bytes() == b"precious"
    code, text = run(*arguments, "--force")
    assert code == 0 and len(read_video(output)[0]) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["-o", "photos", "--force"], "holds other files"),
        (["-o", "taken", "--force"], "holds other files"),
        (["-o", "folder.mp4", "--force"], "is a folder"),
        (["-o", "new.mp4", "--fps", "0"], "fps must be positive, got 0"),
        (["-o", "new.mp4", "--fps", "-1"], "fps must be positive, got -1"),
        (["-o", "new", "--fps", "inf"], "fps must be positive, got inf"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_sampled(inputs, tmp_path, monkeypatch, options, message):
    shutil.copy(inputs / "a.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "load", lambda *_: pytest.fail("a model was loaded"))
    for folder in ("photos", "folder.mp4"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.png").write_bytes(b"precious")
    (tmp_path / "taken").write_bytes(b"precious")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, text = run("animate", "a.png", *options)
    assert code == 1 and message in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ("expand", "slow-motion", "extend"))
def test_a_gif_too_fast_for_its_clip_is_refused_before_anything_is_sampled(inputs, tmp_path, monkeypatch, command):
    write_video(tmp_path / "fast.mp4", np.zeros((4, 32, 32, 3), np.uint8), 60)
    monkeypatch.setattr(cli, "load", lambda *_: pytest.fail("a model was loaded"))
    code, text = run(command, tmp_path / "fast.mp4", "-o", tmp_path / "out.gif", "--size", 32)
    assert code == 1 and "a gif shows at most 50 frames per second, got 60" in text
    assert text.startswith(f"Reading {tmp_path / 'fast.mp4'}")


def test_large_frames_are_made_small_as_they_are_decoded(checkpoint, tmp_path, monkeypatch):
    write_video(tmp_path / "large.mp4", np.zeros((3, 120, 200, 3), np.uint8), 10)
    read, kept = cli.read_images, []

    def keep(path, prepare):
        frames, rate = read(path, prepare)
        kept.extend(frame.size for frame in frames)
        return frames, rate

    monkeypatch.setattr(cli, "read_images", keep)
    code, text = run("slow-motion", tmp_path / "large.mp4", "-o", tmp_path / "out.mp4", "--factor", 2, "--window", 3,
                     "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    assert kept == [(64, 64)] * 3 and text.count("Cropping 120x200") == 1


def test_a_folder_of_its_own_pictures_is_replaced_with_force(checkpoint, inputs, tmp_path):
    arguments = ("animate", inputs / "a.png", "-o", tmp_path / "out", "--checkpoint", checkpoint, *QUICK)
    for frames in (4, 2):
        assert run(*arguments, "--num-frames", frames, "--force")[0] == 0
        assert len(list((tmp_path / "out").iterdir())) == frames


def test_a_size_that_no_autoencoder_of_ours_learned_is_asked_for(inputs, tmp_path):
    pipe = tiny_pipeline(vae="kl")
    assert isinstance(pipe.vae.config.sample_size, int)  # the default of its class
    pipe.save_pretrained(tmp_path / "kl")
    for command in (("animate", inputs / "a.png", "-o", tmp_path / "out.mp4", "--num-frames", 2), ("info",)):
        models = ("--checkpoint", tmp_path / "kl", *QUICK) if command != ("info",) else (tmp_path / "kl",)
        code, text = run(*command, *models)
        assert code == 1 and "does not say which size it learned; give --size" in text
        code, text = run(*command, *models, "--size", "32")
        assert code == 0, text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["animate", "a.png", "-o", "out.webm"], "suffix '.webm' is unknown"),
        (["animate", "missing.png", "-o", "out.mp4"], "missing.png"),
        (["animate", "clip.mp4", "-o", "out.mp4"], "give one picture"),
        (["animate", "a.png", "-o", "out.mp4", "--size", "big"], '"64"'),
        (["animate", "a.png", "-o", "out.mp4", "--size", "30"], "divisible by 16"),
        (["animate", "a.png", "-o", "out.mp4", "--steps", "0"], "num_inference_steps"),
        (["animate", "a.png", "-o", "out.mp4", "--device", "abacus"], "abacus"),
        (["animate", "a.png", "-o", "out.mp4", "--dtype", "int3"], "int3"),
        (["expand", "clip.mp4", "-o", "out.mp4", "--num-frames", "4"], "raise --num-frames"),
        (["expand", "clip.mp4", "-o", "out.mp4", "--use-frames", "9"], "has 4 frames"),
        (["info", "mardini-xl"], "neither a preset"),
        (["info", "mardini-tiny", "--size", "60"], "divisible by 16"),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_line(checkpoint, inputs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(checkpoint))
    code, text = run(*arguments)
    assert code == 1 and message in text and "Traceback" not in text
    assert [line for line in text.splitlines() if line.startswith("error: ")]
    assert not (inputs / "out.mp4").exists()


def test_the_checkpoint_is_looked_for_in_three_places(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARDINI_CHECKPOINT", raising=False)
    with pytest.raises(ValueError, match="MARDINI_CHECKPOINT"):
        cli.resolve_checkpoint(None)
    (tmp_path / cli.DEFAULT_CHECKPOINT).mkdir(parents=True)
    (tmp_path / cli.DEFAULT_CHECKPOINT / "model_index.json").write_text("{}")
    assert cli.resolve_checkpoint(None) == str(cli.DEFAULT_CHECKPOINT)
    monkeypatch.setenv("MARDINI_CHECKPOINT", "elsewhere")
    assert cli.resolve_checkpoint(None) == "elsewhere"
    assert cli.resolve_checkpoint("given") == "given"


def test_info_of_a_preset_allocates_nothing():
    code, text = run("info", "mardini-s-t")
    assert code == 0
    assert "17 frames of 512x512, planned at 128x128" in text and "1.34 B" in text and "277.44 M" in text


def test_info_of_a_checkpoint_counts_its_parameters(checkpoint):
    code, text = run("info", checkpoint, "--num-frames", 5, "--steps", 4, "--dtype", "float32")
    assert code == 0, text
    config = json.loads((checkpoint / "planner" / "config.json").read_text())
    assert config["num_layers"] == 2 and "5 frames of 64x64, planned at 32x32" in text
    assert [line.split()[0] for line in text.splitlines()[3:]] == [
        "planner", "references", "transformer", "vae.decode", "together"
    ]  # fmt: skip


def test_info_of_quantized_parts_counts_them_as_they_were(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "quantized")
    file = tmp_path / "quantized/transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    (_, plain), (code, text) = (
        run("info", folder, "--num-frames", 5) for folder in (checkpoint, tmp_path / "quantized")
    )
    assert code == 0 and text.splitlines()[1:-1] == plain.splitlines()[1:]
    assert "counted as they were before" in text.splitlines()[-1]


def test_push_looks_first_and_sends_when_told_to(checkpoint, tmp_path):
    (tmp_path / "facts.json").write_text('{"limits": ["Small."]}')
    arguments = ("push", checkpoint, "somebody/tiny", "--facts", tmp_path / "facts.json")
    with running_hub(tmp_path / "cache") as hub:
        code, text = run(*arguments)
        assert code == 0 and hub.requests == []
        assert "transformer/diffusion_pytorch_model.safetensors" in text and "- Small." in text
        assert text.splitlines()[-1] == "Nothing was sent. --yes sends this to somebody/tiny."
        for index, flag in enumerate(("--yes", "--no-dry-run")):
            code, text = run(*arguments, flag, "--message", f"Number {index}", "--private")
            assert code == 0 and text.splitlines()[-1].startswith(
                f"Sent 14 files: {hub.address}/somebody/tiny/commit/"
            )
        assert hub.messages == ["Number 0", "Number 1"] and hub.private == {"somebody/tiny"}
        assert "- Small." in hub.repositories["somebody/tiny"]["README.md"].decode()


def test_push_names_what_it_refuses_and_asks_nobody(checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / "planner/config.json").unlink()
    with running_hub(tmp_path / "cache") as hub:
        code, text = run("push", folder, "somebody/tiny", "--yes")
        assert hub.requests == []
    assert code == 1 and "is not sent, for 2 reasons" in text
    assert "\n  optimizer.pt: can hold code" in text and "\n  planner/config.json: is missing" in text
