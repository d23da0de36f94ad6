import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusers_mardini.cli import checkpoints, files, messages, tasks
from diffusers_mardini.measured_sampling import MeasuredSampling
from diffusers_mardini.streaming import extend_file
from diffusers_mardini.video_io import read_images, read_video, write_video
from pipelines_tests.cli.commands import outputs, run
from pipelines_tests.hub_server import running_hub
from pipelines_tests.tiny_pipeline import tiny_pipeline


SIZE = 64  # what the config of the tiny autoencoder names
QUICK = ("--steps", "2", "--device", "cpu", "--dtype", "float32")


def test_interpolation_writes_an_mp4_and_says_where(checkpoint, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(messages, "is_terminal", lambda: True)
    output = tmp_path / "out.mp4"
    code, text = run("interpolate", inputs / "a.png", inputs / "b.png", "-o", output, "--frames", 5,
                     "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    lines = text.splitlines()
    assert any(line.startswith("Sampling 3 frames between") and "float32" in line for line in lines)
    assert lines[-1] == f"Wrote 5 frames of {SIZE}x{SIZE} to {output}"
    frames, fps = read_video(output)
    assert frames.shape == (5, SIZE, SIZE, 3) and fps == 8


def test_animation_writes_a_gif_of_the_size_asked_for(checkpoint, inputs, tmp_path):
    code, text = run("animate", inputs / "a.png", "-o", tmp_path / "out.gif", "--size", "32x48", "--frames", 3,
                     "--checkpoint", checkpoint, "--fps", 5, *QUICK)  # fmt: skip
    assert code == 0, text
    frames, fps = read_video(tmp_path / "out.gif")
    assert frames.shape == (3, 32, 48, 3) and fps == pytest.approx(5)


def test_expansion_leads_with_the_last_frames_and_writes_pictures(checkpoint, inputs, tmp_path):
    code, text = run("expand", inputs / "clip.mp4", "-o", tmp_path / "out", "--use-frames", 2, "--frames", 4,
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
    code, text = run("extend", inputs / "clip.mp4", "-o", tmp_path / "out.mp4", "--new-frames", 3, "--window", 4,
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
            ["interpolate", "0.png", "1.png", "--frames", 7],
            "window",
            {"image": 0, "last_image": 1, "num_frames": 7},
        ),
        (["animate", "2.png", "--frames", 5], "window", {"image": 2, "num_frames": 5}),
        (["expand", "clip", "--use-frames", 3, "--frames", 6], "window", {"video": [1, 2, 3], "num_frames": 6}),
        (["expand", "clip"], "window", {"video": [0, 1, 2, 3], "num_frames": 9}),
        (
            ["slow-motion", "clip", "--factor", 3, "--window", 7],
            "slow_motion",
            {0: [0, 1, 2, 3], "factor": 3, "window": 7, "window_batch_size": 1},
        ),
        (
            ["fill", "4=2.png", "0=1.png", "--frames", 7, "--window", 5, "--batch", 3],
            "fill",
            {0: {4: 2, 0: 1}, 1: 7, "window": 5, "window_batch_size": 3},
        ),
        (["fill", "3=2.png"], "fill", {0: {3: 2}, 1: 4, "window": None, "window_batch_size": 1}),
        (["fill", "0=2.png"], "fill", {0: {0: 2}, 1: 9, "window": None, "window_batch_size": 1}),
        (
            ["views", "2.png", "3.png", "--frames", 20],
            "views",
            {0: 2, 1: 3, 2: 20, "window": None, "window_batch_size": 1},
        ),
        (
            ["loop", "clip", "--new-frames", 6, "--overlap", 1],
            "loop",
            {0: [0, 1, 2, 3], 1: 6, "overlap": 1, "new_frames_only": False, "window": None, "window_batch_size": 1},
        ),
        (
            ["extend", "clip", "--new-frames", 5, "--window", 6, "--overlap", 2],
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
    monkeypatch.setattr(
        checkpoints, "load", lambda options, _: (recorder, checkpoints.sampling_arguments(options, MeasuredSampling()))
    )
    code, text = run(
        *arguments, "-o", "out.gif", "--steps", 11, "--guidance-scale", 1.75, "--seed", 5, "--checkpoint", checkpoint,
        "--paste-given", "--blend", 2,
    )  # fmt: skip
    assert code == 0, text
    ((called, args, kwargs),) = recorder.calls
    assert called == name
    assert (kwargs["num_inference_steps"], kwargs["guidance_scale"]) == (11, 1.75)
    assert kwargs["generator"].initial_seed() == 5

    def told(value):
        if isinstance(value, Image.Image):
            return value.getpixel((0, 0))[0] // 60
        if isinstance(value, dict):
            return {key: told(item) for key, item in value.items()}
        return [told(item) for item in value] if isinstance(value, list) else value

    found = {**dict(enumerate(args)), **kwargs}
    assert {key: told(found[key]) for key in expected} == expected
    shared = {"num_inference_steps", "guidance_scale", "generator", "paste_given", "blend"}
    shared |= {"anchors", "keyframe_interval"} if called == "extend" else set()
    assert found.keys() - expected.keys() == shared | ({"height", "width"} & found.keys())
    assert (found["paste_given"], found["blend"]) == (True, 2)


def test_the_same_seed_gives_the_same_frames_and_another_seed_others(checkpoint, inputs, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        code, text = run("animate", inputs / "a.png", "-o", tmp_path / name, "--frames", 2, "--seed", seed,
                         "--checkpoint", checkpoint, *QUICK)  # fmt: skip
        assert code == 0, text
    one, again, two = (np.asarray(read_images(tmp_path / name)[0][1]) for name in ("one", "again", "two"))
    assert (one == again).all() and (one != two).any()


def test_an_existing_output_is_replaced_only_with_force(checkpoint, inputs, tmp_path):
    output = tmp_path / "out.gif"
    output.write_bytes(b"precious")
    arguments = ("animate", inputs / "a.png", "-o", output, "--frames", 2, "--checkpoint", checkpoint, *QUICK)
    code, text = run(*arguments)
    assert code == 1 and "--overwrite" in text and output.read_bytes() == b"precious"
    code, text = run(*arguments, "--overwrite")
    assert code == 0 and len(read_video(output)[0]) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["-o", "photos", "--overwrite"], "holds other files"),
        (["-o", "taken", "--overwrite"], "holds other files"),
        (["-o", "folder.mp4", "--overwrite"], "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_sampled(inputs, tmp_path, monkeypatch, options, message):
    shutil.copy(inputs / "a.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("a model was loaded"))
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
    monkeypatch.setattr(checkpoints, "load", lambda *_: pytest.fail("a model was loaded"))
    code, text = run(command, tmp_path / "fast.mp4", "-o", tmp_path / "out.gif", "--size", 32)
    assert code == 1 and "a gif shows at most 50 frames per second, got 60" in text


def test_large_frames_are_made_small_as_they_are_decoded(checkpoint, tmp_path, monkeypatch):
    write_video(tmp_path / "large.mp4", np.zeros((3, 120, 200, 3), np.uint8), 10)
    read, kept = files.read_images, []

    def keep(path, prepare):
        frames, rate = read(path, prepare)
        kept.extend(frame.size for frame in frames)
        return frames, rate

    monkeypatch.setattr(files, "read_images", keep)
    code, text = run("loop", tmp_path / "large.mp4", "-o", tmp_path / "out.mp4", "--new-frames", 2, "--window", 5,
                     "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    assert kept == [(64, 64)] * 3 and text.count("Cropping 120x200") == 1


def test_a_loop_may_be_written_without_its_clip(checkpoint, tmp_path):
    write_video(tmp_path / "clip.mp4", np.zeros((3, 64, 64, 3), np.uint8), 10)
    code, text = run("loop", tmp_path / "clip.mp4", "-o", tmp_path / "out", "--new-frames", 2, "--window", 5,
                     "--new-frames-only", "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0, text
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_folder_of_its_own_pictures_is_replaced_with_force(checkpoint, inputs, tmp_path):
    arguments = ("animate", inputs / "a.png", "-o", tmp_path / "out", "--checkpoint", checkpoint, *QUICK)
    for frames in (4, 2):
        assert run(*arguments, "--frames", frames, "--overwrite")[0] == 0
        assert len(list((tmp_path / "out").iterdir())) == frames


def test_a_size_that_no_autoencoder_of_ours_learned_is_asked_for(inputs, tmp_path):
    pipe = tiny_pipeline(vae="kl")
    assert isinstance(pipe.vae.config.sample_size, int)  # the default of its class
    pipe.save_pretrained(tmp_path / "kl")
    for command in (("animate", inputs / "a.png", "-o", tmp_path / "out.mp4", "--frames", 2), ("info",)):
        models = ("--checkpoint", tmp_path / "kl", *QUICK) if command != ("info",) else (tmp_path / "kl",)
        code, text = run(*command, *models)
        assert code == 1 and "does not say which size it learned; give --size" in text
        code, text = run(*command, *models, "--size", "32")
        assert code == 0, text


def test_the_checkpoint_is_looked_for_in_three_places(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARDINI_CHECKPOINT", raising=False)
    monkeypatch.setattr(checkpoints, "demo_checkpoints", lambda: [])  # the extra `demo` may be installed
    with pytest.raises(ValueError, match="MARDINI_CHECKPOINT"):
        checkpoints.resolve_checkpoint(None)
    (tmp_path / checkpoints.DEFAULT_CHECKPOINT).mkdir(parents=True)
    (tmp_path / checkpoints.DEFAULT_CHECKPOINT / "model_index.json").write_text("{}")
    assert checkpoints.resolve_checkpoint(None) == str(checkpoints.DEFAULT_CHECKPOINT)
    monkeypatch.setenv("MARDINI_CHECKPOINT", "elsewhere")
    assert checkpoints.resolve_checkpoint(None) == "elsewhere"
    assert checkpoints.resolve_checkpoint("given") == "given"


def test_info_of_a_preset_allocates_nothing():
    code, text = run("info", "mardini-s-t")
    assert code == 0
    assert "17 frames of 512x512, planned at 128x128" in text and "1.34 B" in text and "277.44 M" in text


def test_info_of_a_checkpoint_counts_its_parameters(checkpoint):
    code, text = run("info", checkpoint, "--frames", 5, "--steps", 4, "--dtype", "float32")
    assert code == 0, text
    config = json.loads((checkpoint / "planner" / "config.json").read_text())
    assert config["num_layers"] == 2 and "5 frames of 64x64, planned at 32x32" in text
    assert [line.split()[0] for line in text.splitlines()[2:]] == [
        "planner", "references", "transformer", "vae.decode", "together"
    ]  # fmt: skip


def test_info_of_a_checkpoint_on_the_hub_fetches_no_weights(checkpoint, tmp_path):
    with running_hub(tmp_path / "cache", token=None) as hub:
        hub.add_folder("somebody/tiny", checkpoint)
        code, text = run("info", "--checkpoint", "somebody/tiny", "--frames", 5, "--steps", 4, "--dtype", "float32")
        assert code == 0, text
        assert not [request for request in hub.requests if "safetensors" in request]
        _, local = run("info", checkpoint, "--frames", 5, "--steps", 4, "--dtype", "float32")
        assert text.splitlines()[1:] == local.splitlines()[1:]
        code, text = run("info", "--checkpoint", "somebody/else")
        assert code == 1 and "somebody/else" in text


def test_info_of_quantized_parts_counts_them_as_they_were(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "quantized")
    file = tmp_path / "quantized/transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    (_, plain), (code, text) = (run("info", folder, "--frames", 5) for folder in (checkpoint, tmp_path / "quantized"))
    assert code == 0 and text.splitlines()[:-1] == plain.splitlines()
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


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory) -> Path:
    """A checkpoint that says 3 steps of UniPC are as good as 25, and that an anchor helps."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("measured") / "pipeline"))
    file = folder / "model_index.json"
    facts = {"num_inference_steps": 3, "solver": "UniPCMultistepScheduler", "anchors": 1}
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return folder


@pytest.mark.parametrize(
    "options, steps, scheduler",
    [
        ([], 3, "UniPCMultistepScheduler"),
        (["--steps", 5], 5, "UniPCMultistepScheduler"),
        (["--scheduler", "dpm++"], 25, "DPMSolverMultistepScheduler"),
        (["--scheduler", "MarDiniScheduler", "--steps", 4], 4, "MarDiniScheduler"),
    ],
)
def test_steps_and_solver_are_the_checkpoints_unless_asked_for(measured, inputs, tmp_path, options, steps, scheduler):
    seen = []

    class Spy:
        def __init__(self, pipe):
            self.pipe = pipe

        def __call__(self, **arguments):
            seen.append((arguments["num_inference_steps"], type(self.pipe.scheduler).__name__))
            return self.pipe(**arguments)

    load = checkpoints.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "load", lambda *given: (lambda pipe, rest: (Spy(pipe), rest))(*load(*given)))
        code, text = run("animate", inputs / "a.png", "-o", tmp_path / "out", "--frames", 2, "--checkpoint", measured,
                         "--device", "cpu", "--dtype", "float32", *options)  # fmt: skip
    assert code == 0, text
    assert seen == [(steps, scheduler)]


@pytest.mark.parametrize(
    "options, anchors",
    [([], 1), (["--anchors", 0], 0), (["--anchors", 2, "--overlap", 3], 2), (["--overlap", 1], 0)],
)
def test_anchors_are_the_checkpoints_unless_asked_for(measured, inputs, tmp_path, monkeypatch, options, anchors):
    seen = []
    monkeypatch.setattr(
        tasks, "extend_file", lambda *_, **given: seen.append(given["anchors"]) or extend_file(*_, **given)
    )
    write_video(tmp_path / "clip.mp4", np.zeros((3, 64, 64, 3), np.uint8), 10)
    code, text = run("extend", tmp_path / "clip.mp4", "-o", tmp_path / "out.mp4", "--new-frames", 2, "--window", 5,
                     "--checkpoint", measured, "--device", "cpu", "--dtype", "float32", *options)  # fmt: skip
    assert code == 0, text
    assert seen == [anchors]


def test_a_checkpoint_without_measured_steps_samples_as_ever(checkpoint):
    assert (
        MeasuredSampling.from_config(json.loads((checkpoint / "model_index.json").read_text())) == MeasuredSampling()
    )


def test_json_is_one_object_on_a_line_of_standard_output(checkpoint, inputs, tmp_path):
    code, told, _ = outputs("animate", inputs / "a.png", "-o", tmp_path / "out.gif", "--frames", 3, "--fps", 5, "--json",
                            "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    (line,) = told.decode().splitlines()
    facts = json.loads(line)
    assert code == 0 and facts.pop("seconds") >= 0
    assert facts == {
        "output": str(tmp_path / "out.gif"), "frames": 3, "height": SIZE, "width": SIZE, "fps": 5, "seed": 0,
    }  # fmt: skip
    told = json.loads(outputs("info", "mardini-tiny", "--json")[1])
    assert told["parts"][0]["name"] == "planner" and told["steps"] == 25
    told = json.loads(outputs("push", checkpoint, "you/mine", "--json")[1])
    assert told["sent"] is False and "vae/config.json" in told["files"]


def test_standard_input_and_output_are_files_like_others(checkpoint, inputs, tmp_path):
    rest = ("--checkpoint", checkpoint, "--steps", 1, "--device", "cpu", "--dtype", "float32")
    code, made, _ = outputs("slow-motion", "-", "-o", "-", *rest, stdin=(inputs / "clip.mp4").read_bytes())
    assert code == 0
    (tmp_path / "piped.mp4").write_bytes(made)
    assert run("slow-motion", inputs / "clip.mp4", "-o", tmp_path / "named.mp4", *rest)[0] == 0
    piped, named = (read_video(tmp_path / name) for name in ("piped.mp4", "named.mp4"))
    assert (piped[0] == named[0]).all() and piped[1] == named[1] == 10
    code, made, _ = outputs("fill", "0=-", f"3={inputs / 'b.png'}", "-o", "-", "--format", "gif", *rest,
                            stdin=(inputs / "a.png").read_bytes())  # fmt: skip
    assert code == 0 and made[:4] == b"GIF8"


@pytest.mark.parametrize("suffix", (".mp4", ".mov", ".webm", ".mkv", ".gif", ".webp", ".apng", ""))
def test_the_suffix_decides_the_form(checkpoint, inputs, tmp_path, suffix):
    output = tmp_path / f"out{suffix}"
    code, text = run("animate", inputs / "a.png", "-o", output, "--frames", 2, "--checkpoint", checkpoint, *QUICK)
    assert code == 0, text
    assert len(list(output.iterdir())) == 2 if not suffix else output.stat().st_size > 100
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_lora_changes_the_frames_and_half_of_it_changes_them_less(checkpoint, inputs, tmp_path):
    from pipelines_tests.loaders.adapters import save_adapter

    save_adapter(tmp_path / "lora")
    pictures = {}
    for name, options in {"plain": [], "half": [f"{tmp_path / 'lora'}=0.01"], "whole": [tmp_path / "lora"]}.items():
        lora = [word for option in options for word in ("--lora", option)]
        code, text = run("animate", inputs / "a.png", "-o", tmp_path / name, "--frames", 2, "--checkpoint", checkpoint,
                         *QUICK, *lora)  # fmt: skip
        assert code == 0, text
        pictures[name] = np.asarray(read_images(tmp_path / name)[0][1]).astype(int)
    half, whole = (np.abs(pictures[name] - pictures["plain"]).mean() for name in ("half", "whole"))
    assert 0 < half < whole


def test_without_a_terminal_only_results_and_losses_are_told(checkpoint, inputs, tmp_path):
    code, told, errors = outputs("animate", inputs / "a.png", "-o", tmp_path / "out.gif", "--frames", 2,
                                 "--checkpoint", checkpoint, *QUICK)  # fmt: skip
    assert code == 0 and told.decode().splitlines() == [f"Wrote 2 frames of {SIZE}x{SIZE} to {tmp_path / 'out.gif'}"]
    assert [line for line in errors.splitlines() if "torchao" not in line] == [
        "Cropping 40x60 around the centre to the aspect of 64x64"
    ]


def test_shells_get_completion(monkeypatch):
    for shell in ("bash", "zsh", "fish"):
        monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
        code, text = run("--show-completion", shell)
        assert (code == 0 and "mardini" in text.lower()) or "_COMPLETE" in text
