"""The window that a pipeline was trained on: saved with it, and the default of everything that samples."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from diffusers_mardini import MarDiniModularPipeline, MarDiniPipeline, cli
from diffusers_mardini.cards import card_of_folder, read_facts
from diffusers_mardini.costs import read_configs
from diffusers_mardini.sizes import parse_size, sides, size_text
from diffusers_mardini.trained_window import TrainedWindow
from diffusers_mardini.video_io import read_video, write_video
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


WINDOW = {"height": 32, "width": 64, "num_frames": 5, "fps": 12.5}
QUICK = ["--steps", "1", "--device", "cpu", "--dtype", "float32"]


def trained(**window) -> MarDiniPipeline:
    pipe = tiny_pipeline()
    parts = {**pipe.components, "planner_downscale": pipe.config.planner_downscale}
    made = MarDiniPipeline(**parts, **(window or WINDOW))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of 64x128 pixels and 17 frames."""
    folder = tmp_path_factory.mktemp("checkpoint")
    trained(height=64, width=128, num_frames=17, fps=12.5).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 60, 3), dtype=np.uint8)
    for name, frame in zip(("a.png", "b.png"), frames):
        Image.fromarray(frame).save(folder / name)
    write_video(folder / "clip.mp4", frames, 30)
    return folder


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_window_is_saved_and_loaded_with_the_pipeline(checkpoint, tmp_path):
    window = TrainedWindow(64, 128, 17, 12.5)
    pipe = MarDiniPipeline.from_pretrained(checkpoint)
    assert pipe.trained_window == window
    pipe.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again/model_index.json").read_text())
    assert {key: index[key] for key in WINDOW} == window.config
    assert DiffusionPipeline.from_pretrained(checkpoint, trust_remote_code=True).trained_window == window
    assert MarDiniPipeline.from_pipe(pipe).trained_window == window
    assert MarDiniPipeline.from_pretrained(checkpoint, num_frames=9).trained_window.num_frames == 9


def test_a_folder_without_a_window_samples_as_before(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = {key: value for key, value in json.loads(file.read_text()).items() if key not in WINDOW}
    file.write_text(json.dumps(index))
    pipe = MarDiniPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.trained_window == TrainedWindow()
    frames = pipe(image=clip(1)[0], num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, 9, 3, 32, 32)


def test_a_call_without_a_size_or_a_number_of_frames_samples_the_trained_window():
    pipe = trained()
    first, last = clip(2, size=32)
    for given in ({"image": first}, {"image": first, "last_image": last}):
        frames = pipe(**given, num_inference_steps=1, output_type="pt").frames
        assert frames.shape == (1, 5, 3, 32, 64)
    # A clip has a size of its own, and arguments decide over all
    assert pipe(video=clip(2), num_inference_steps=1, output_type="pt").frames.shape == (1, 5, 3, 32, 32)
    asked = pipe(image=first, num_frames=3, height=32, width=32, num_inference_steps=1, output_type="pt").frames
    assert asked.shape == (1, 3, 3, 32, 32)


def test_long_videos_are_made_of_trained_windows():
    pipe = trained()
    lengths = []
    pipe.planner.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    options = {"num_inference_steps": 1, "output_type": "latent"}
    pipe.extend(clip(2), num_new_frames=6, **options)
    pipe.slow_motion(clip(2), factor=4, **options)
    assert set(lengths) == {5}


def test_the_modular_pipeline_samples_the_trained_window_too(checkpoint, tmp_path):
    small = tmp_path / "small"
    pipe = trained()
    pipe.save_pretrained(small)
    modular = MarDiniModularPipeline.from_pretrained(str(small))
    modular.load_components()
    options = {"image": clip(1)[0], "num_inference_steps": 1, "output_type": "pt"}
    expected = pipe(**options, generator=seeded()).frames
    assert torch.equal(modular(**options, generator=seeded(), output="videos"), expected)
    modular.save_pretrained(tmp_path / "modular")
    again = MarDiniModularPipeline.from_pretrained(str(tmp_path / "modular"))
    assert {key: again.config[key] for key in WINDOW} == WINDOW


@pytest.mark.parametrize("command", ("interpolate", "animate"))
def test_a_model_of_64x128_and_17_frames_samples_that_from_the_command_line(checkpoint, inputs, tmp_path, command):
    """Without `--size` and `--frames`; it was used at 64x64 and 9 frames."""
    pictures = [inputs / "a.png", inputs / "b.png"][: 2 if command == "interpolate" else 1]
    output = tmp_path / "out.mp4"
    code, text = run(command, *pictures, "-o", output, "--checkpoint", checkpoint, *QUICK)
    assert code == 0 and f"Wrote 17 frames of 64x128 to {output}" in text, text
    frames, fps = read_video(output)
    assert frames.shape == (17, 64, 128, 3) and fps == 12.5
    code, text = run(command, *pictures, "-o", output, "--checkpoint", checkpoint, "--size", "32", "--frames", 4,
                     "--overwrite", *QUICK)  # fmt: skip
    assert code == 0 and "Wrote 4 frames of 32x32" in text, text


def test_other_commands_read_the_window_too(checkpoint, inputs, tmp_path):
    for command, frames in ((["expand"], 17), (["extend", "--new-frames", 2], 6), (["slow-motion"], 7)):
        output = tmp_path / f"{command[0]}.mp4"
        code, text = run(*command, inputs / "clip.mp4", "-o", output, "--checkpoint", checkpoint, *QUICK)
        assert code == 0 and f"Wrote {frames} frames of 64x128" in text, text
        # Given 30 frames a second, a continuation at 12.5 would move at another pace
        assert ("has 30 frames a second, but the model was trained on 12.5" in text) == (command[0] != "slow-motion")
    assert "17 frames of 64x128, planned at 32x64" in run("info", checkpoint)[1]
    assert TrainedWindow.from_config(read_configs(str(checkpoint))) == TrainedWindow(64, 128, 17, 12.5)


def test_a_window_far_from_the_trained_one_is_sampled_with_a_warning(caplog):
    pipe = trained()
    pipe(video=clip(2), num_frames=6, num_inference_steps=1, output_type="latent")
    assert "far" not in caplog.text
    for far in ({"num_frames": 11}, {"num_frames": 5, "height": 96, "width": 192}):
        caplog.clear()
        pipe(video=clip(2), num_inference_steps=1, output_type="latent", **far)
        assert "trained on 5 frames of 32x64 pixels, 12.5 a second" in caplog.text
    caplog.clear()
    pipe(image=clip(1)[0], num_inference_steps=1, output_type="latent")
    assert "stretched to 32x64" in caplog.text


def test_the_card_repeats_the_window(checkpoint, tmp_path):
    facts = read_facts(checkpoint)
    assert (facts["num_frames"], facts["size"], facts["fps"]) == (17, "64x128", 12.5)
    card = card_of_folder(checkpoint, {"name": "x"})
    assert "num_frames=17, height=64, width=128)" in card and "fps=12.5)" in card
    assert "Trained on windows of 17 frames of 64x128 pixels, 12.5 a second." in card


@pytest.mark.parametrize(
    "window, message",
    [
        ({"height": 64}, "give both or neither"),
        ({"height": 0, "width": 64}, "`height` is 0"),
        ({"num_frames": 1}, "`num_frames` is 1"),
        ({"fps": 0}, "`fps` is 0"),
        ({"fps": float("nan")}, "`fps` is nan"),
        ({"fps": "8"}, "`fps` is '8'"),
    ],
)
def test_a_window_that_is_none_is_refused(window, message):
    with pytest.raises(ValueError, match=message):
        trained(**window)


def test_a_damaged_window_is_one_line_on_the_command_line(checkpoint, inputs, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "height": "big"}))
    code, text = run("animate", inputs / "a.png", "-o", tmp_path / "o.mp4", "--checkpoint", folder, *QUICK)
    assert code == 1 and text.startswith("error: ") and "`height` is 'big'" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("text, size", [("64", 64), ("64x64", 64), ("64x128", (64, 128)), (" 32X64 ", (32, 64))])
def test_a_size_is_a_side_or_height_and_width(text, size):
    assert parse_size(text) == size
    assert size_text(size) == "{}x{}".format(*sides(size))


@pytest.mark.parametrize("text", ["", "0", "64x", "x64", "64x0", "64x64x64", "-1", "6.4", "64*128"])
def test_what_is_no_size_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match='"64x128" for height x width'):
        parse_size(text)
