"""Whatever the arguments and however damaged the files: no traceback, no partial file, a documented exit code."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from diffusers_mardini.cli import checkpoints
from diffusers_mardini.cli.errors import EXIT_CODES
from pipelines_tests.cli.commands import QUICK, SAMPLING, listing, outputs


EXAMPLES = int(os.environ.get("MARDINI_EXAMPLES", "40"))  # of each test; more take minutes


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """The pipeline, loaded once for all cases."""
    return checkpoints.MarDiniPipeline.from_pretrained(checkpoint)


WORDS = st.one_of(
    st.sampled_from([
        "a.png", "b.png", "clip.mp4", "text.mp4", "cut.png", "mixed", "empty", "-", "", ".", "0=a.png", "3=b.png", "2=-",
        "missing", "nan", "inf", "-1", "0", "1", "2", "3", "1e400", "99999999999999999999", "64", "32x32", "x", "auto",
        "-o", "--output", "out.mp4", "out.gif", "out", "out.apng", "a.png/x.gif", "--", "--help",
    ]),
    st.sampled_from([
        "--checkpoint", "--seed", "--steps", "--scheduler", "--guidance-scale", "--lora", "--device", "--dtype", "--batch",
        "--frames", "--size", "--fps", "--overwrite", "--json", "--debug=", "--window", "--overlap", "--new-frames",
        "--factor", "--use-frames", "--paste-given", "--blend", "--format", "--new-frames-only",
    ]),
    st.text(max_size=6).filter(lambda text: not text.startswith(("--d", "-o"))),
    st.integers(-3, 40).map(str),
)  # fmt: skip


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    command=st.sampled_from([*SAMPLING, "info", "push", "doctor"]),
    words=st.lists(WORDS, max_size=7),
    use=st.booleans(),
)
def test_no_arguments_give_a_traceback_or_a_partial_file(room, loaded, command, words, use):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name in ("a.png", "b.png", "clip.mp4", "text.mp4", "cut.png"):
            shutil.copy(room / name, here)
        shutil.copytree(room / "mixed", here / "mixed")
        (here / "empty").mkdir()
        before = listing(here)
        patch.chdir(here)
        patch.setenv("MARDINI_CHECKPOINT", str(room / "checkpoint"))
        patch.setattr(checkpoints.MarDiniPipeline, "from_pretrained", lambda *_, **__: loaded)
        # Half of them get what they need, so that bad words meet good ones.
        needed = [*SAMPLING.get(command, []), *(["-o", "made.gif", *QUICK] if command in SAMPLING else [])]
        code, told, errors = outputs(command, *(needed if use else []), *words, stdin=b"")
        event(f"exit code {code}")  # counted by pytest --hypothesis-show-statistics
        assert code in EXIT_CODES, (code, errors)
        assert "Traceback" not in errors and "not foreseen" not in errors, errors
        assert code == 0 or told == b"" or command == "doctor", errors
        after = listing(here)
        assert {name: after.get(name) for name in before} == before or "--overwrite" in words
        new = {name.split("/")[0] for name in after.keys() - before.keys()}
        assert not any(name.startswith(".") or name.endswith(".part") for name in new)
        assert len(new) == (code == 0 and bool(new)), (code, new)


@pytest.fixture(scope="module")
def originals(room) -> dict[str, bytes]:
    """Good files of every kind that a command reads, by the name that it is given."""
    weights = room / "checkpoint/transformer/diffusion_pytorch_model.safetensors"
    return {
        "clip.mp4": (room / "clip.mp4").read_bytes(),
        "picture.png": (room / "a.png").read_bytes(),
        "weights.safetensors": weights.read_bytes(),
        "model_index.json": (room / "checkpoint/model_index.json").read_bytes(),
        "config.json": (room / "checkpoint/planner/config.json").read_bytes(),
    }


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    name=st.sampled_from(["clip.mp4", "picture.png", "weights.safetensors", "model_index.json", "config.json"]),
    data=st.data(),
)
def test_damaged_files_give_no_traceback_and_no_partial_file(room, originals, name, data):
    content = bytearray(originals[name])
    if data.draw(st.booleans(), "cut off"):
        del content[data.draw(st.integers(0, len(content))) :]
    # The beginning holds what readers trust: sizes, names, types.
    most = data.draw(st.sampled_from([64, 1000, len(content)]))
    for _ in range(data.draw(st.integers(0, 8), "bytes changed")):
        if content:
            content[data.draw(st.integers(0, min(most, len(content)) - 1))] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        patch.chdir(here)
        patch.setenv("MARDINI_CHECKPOINT", "checkpoint")
        shutil.copytree(room / "checkpoint", here / "checkpoint")
        shutil.copy(room / "a.png", here)
        places = {
            "weights.safetensors": "checkpoint/transformer/diffusion_pytorch_model.safetensors",
            "model_index.json": "checkpoint/model_index.json",
            "config.json": "checkpoint/planner/config.json",
        }
        (here / places.get(name, name)).write_bytes(content)
        arguments = {
            "clip.mp4": ["extend", "clip.mp4", "--new-frames", 1, "--window", 4],
            "picture.png": ["animate", name],
        }
        command = arguments.get(name, ["animate", "a.png"])
        frames = ["--frames", 2] if command[0] == "animate" else []
        code, _, errors = outputs(*command, *frames, "-o", "made.gif", *QUICK)
        event(f"exit code {code}")  # counted by pytest --hypothesis-show-statistics
        assert code in EXIT_CODES, (code, errors)
        assert "Traceback" not in errors and "not foreseen" not in errors, errors
        made = {path.name for path in here.iterdir()} - {"checkpoint", "a.png", name}
        assert made == ({"made.gif"} if code == 0 else set()), (code, made, errors)
