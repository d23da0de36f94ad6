"""Hold that no arguments and no damaged file give a traceback, a partial file or an undocumented exit code."""

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


# Values of each option: good ones, edges, and nonsense.
COUNTS = ["0", "1", "2", "3", "4", "5", "9", "-1", "2147483648", "1.5", "x", ""]
VALUES = {
    "--checkpoint": ["checkpoint", "empty", "a.png", "missing", "./none", "a/b/c", ""],
    "--seed": ["0", "7", "-5", "99999999999999999999", "x"],
    "--steps": ["1", "2", "3", "0", "1001", "x"],
    "--scheduler": ["unipc", "ddim", "dpm++", "euler", "deis", "MarDiniScheduler", "HeunDiscreteScheduler", "none", ""],
    "--guidance-scale": ["1", "2.5", "0", "-3", "nan", "inf", "1e300", "x"],
    "--lora": ["empty", "a.png", "missing", "=1", "a=b=2", "clip.mp4=0.5", ""],
    "--device": ["cpu", "auto", "cuda:7", "meta", ""],
    "--dtype": ["float32", "bfloat16", "auto", "int8", ""],
    "--size": ["32", "48x32", "16", "31", "0", "64x", "1000000", ""],
    "--fps": ["8", "24", "0.5", "0", "-1", "51", "1e9", "1e-9", "nan"],
    "--cuts": ["keep", "ignore", "text.mp4", "missing", "empty", ""],
    "--sound": ["drop", "keep", "stretch", "loud", ""],
    "--format": ["gif", "mp4", "avi", ""],
    "-o": ["out.gif", "out.mp4", "out.webm", "out.apng", "out.webp", "out.mkv", "out", "there.gif", "a.png/x.gif", "-",
           "empty", "mixed", "out.avi", "nowhere/out.gif", ".gif", ""],
    **dict.fromkeys(("--frames", "--window", "--overlap", "--new-frames", "--factor", "--use-frames", "--batch", "--blend"),
                    COUNTS),
}  # fmt: skip
FLAGS = ["--overwrite", "--json", "--paste-given", "--new-frames-only", "--resume"]
OWN_FLAGS = {"--new-frames-only": ["loop"], "--resume": ["slow-motion", "retime", "extend"]}
OWN = {"fill": ["--frames", "--window", "--batch"], "views": ["--frames", "--window", "--batch"],
       "interpolate": ["--frames"], "animate": ["--frames"], "expand": ["--frames", "--use-frames"],
       "slow-motion": ["--factor", "--window", "--batch", "--cuts", "--sound"],
       "retime": ["--window", "--batch", "--cuts", "--sound"],
       "extend": ["--new-frames", "--window", "--overlap", "--sound"],
       "loop": ["--new-frames", "--window", "--overlap", "--batch"]}  # fmt: skip
SHARED = [name for name in VALUES if not any(name in own for own in OWN.values())]
FILES = ["a.png", "b.png", "clip.mp4", "text.mp4", "cut.png", "mixed", "empty", "missing", "-", ""]


@st.composite
def typed(draw) -> list[str]:
    """A command with options that it has, whose values are mostly of the right kind."""
    command = draw(st.sampled_from(list(SAMPLING)))
    words = [command]
    for file in SAMPLING[command]:
        place, equals, name = file.rpartition("=")
        other = draw(st.sampled_from([name] * 4 + FILES))
        words.append(f"{draw(st.sampled_from([place] * 3 + COUNTS))}{equals}{other}" if equals else other)
    allowed = ["-o", *OWN[command] * 3, *SHARED]
    chosen = draw(st.lists(st.sampled_from(allowed), max_size=4, unique=True))
    for option in ["-o", *QUICK[::2]]:
        if option not in chosen:
            words += [option, {"-o": "made.gif", **dict(zip(QUICK[::2], QUICK[1::2]))}[option]]
    for option in chosen:
        values = VALUES[option]
        # Most values are good, or nothing but the first check of one would ever be reached.
        words += [option, draw(st.one_of(st.sampled_from(values[:3]), st.sampled_from(values)))]
    flags = [flag for flag in FLAGS if command in OWN_FLAGS.get(flag, [command])]
    return words + draw(st.lists(st.sampled_from(flags), max_size=2, unique=True))


@st.composite
def nonsense(draw) -> list[str]:
    """Any words in any order."""
    command = draw(st.sampled_from([*SAMPLING, "info", "push", "doctor"]))
    word = st.one_of(
        st.sampled_from(
            [*FILES, *VALUES, *FLAGS, *COUNTS, "--debug=", "--help", "--", "0=a.png", "2=-", "mardini-tiny"]
        ),
        st.text(max_size=6).filter(lambda text: not text.startswith(("--d", "-o"))),
    )
    return [command, *draw(st.lists(word, max_size=7))]


@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=True)
@given(words=st.one_of(typed(), typed(), nonsense()))
def test_no_arguments_give_a_traceback_or_a_partial_file(room, loaded, words):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        for name in ("a.png", "b.png", "clip.mp4", "text.mp4", "cut.png"):
            shutil.copy(room / name, here)
        shutil.copytree(room / "mixed", here / "mixed")
        shutil.copy(room / "clip.mp4", here / "there.gif")
        (here / "empty").mkdir()
        before = listing(here)
        patch.chdir(here)
        patch.setenv("MARDINI_CHECKPOINT", str(room / "checkpoint"))
        patch.setattr(checkpoints.MarDiniPipeline, "from_pretrained", lambda *_, **__: loaded)
        scheduler = loaded.scheduler
        code, told, errors = outputs(*words, stdin=b"")
        loaded.scheduler = scheduler
        event(f"exit code {code}")  # counted by pytest --hypothesis-show-statistics
        assert code in EXIT_CODES, (code, errors)
        assert "Traceback" not in errors and "not foreseen" not in errors, errors
        assert code == 0 or told == b"" or words[0] == "doctor", errors
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
