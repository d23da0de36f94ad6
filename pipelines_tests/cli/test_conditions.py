"""Conditions by the command line: a table with a row for each frame of the result."""

from pathlib import Path

import pytest

from diffusers_mardini.cli.conditions import read_table
from pipelines_tests.cli.commands import outputs
from pipelines_tests.loaders.adapters import save_conditioned
from pipelines_tests.pipelines.test_conditions import told_pipeline


QUICK = ("--steps", 1, "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def told(inputs, tmp_path, monkeypatch):
    told_pipeline().save_pretrained(tmp_path / "told")
    for name in ("a.png", "b.png", "clip.mp4"):
        (tmp_path / name).write_bytes((inputs / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARDINI_CHECKPOINT", "told")
    return tmp_path


def table(rows: int, value: float) -> str:
    Path("told.csv").write_text("steering,gas\n" + f"{value},{value}\n" * rows)
    return "told.csv"


@pytest.mark.parametrize(
    "command, rows",
    [
        (["animate", "a.png", "--frames", 5], 5),
        (["interpolate", "a.png", "b.png", "--frames", 5], 5),
        (["fill", "0=a.png", "4=b.png"], 5),
        (["extend", "clip.mp4", "--new-frames", 3], 3),
        (["slow-motion", "clip.mp4", "--cuts", "ignore"], 7),
        (["retime", "clip.mp4", "--fps", 20, "--cuts", "ignore"], 7),
        (["loop", "clip.mp4", "--new-frames", 3], 7),
    ],
)
def test_the_tasks_obey_a_table(told, command, rows):
    made = []
    for name, value in (("one.gif", 0.0), ("two.gif", 1.0)):
        code, _, errors = outputs(*command, "-o", name, *QUICK, "--conditions", table(rows, value))
        assert code == 0, errors
        made.append(Path(name).read_bytes())
    assert made[0] != made[1]
    code, _, errors = outputs(*command, "-o", "few.gif", *QUICK, "--conditions", table(rows - 2, 0.0))
    assert code and "`conditions" in errors and not Path("few.gif").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no row"),
        ("steering,gas\n", "holds no row"),
        ("steering\n0\n", "has no column gas; action: 2 channels"),
        (
            "steering,speed\n0,0\n",
            "has the column 'speed', which is no condition; this checkpoint takes steering, gas",
        ),
        ("steering,gas\n0,fast\n", "holds 'fast' as gas of frame 0; give a number, or nothing"),
        ("steering,gas\n0,0\n0\n", "the row of frame 1 in .* has another number of cells"),
        ('steering,gas\n0,"0\n', "cannot be read as a table of conditions"),
    ],
)
def test_a_bad_table_is_refused_in_a_sentence(tmp_path, text, message):
    (tmp_path / "told.csv").write_text(text)
    known = told_pipeline().conditions
    with pytest.raises(ValueError, match=message):
        read_table(str(tmp_path / "told.csv"), known)


def test_an_empty_cell_is_not_known_and_conditions_may_be_left_out(tmp_path):
    (tmp_path / "told.csv").write_text("rate\n\n1.5\n".replace("\n\n", '\n""\n'))
    found = read_table(str(tmp_path / "told.csv"), told_pipeline().conditions)
    assert list(found) == ["rate"] and found["rate"][1] == [1.5] and found["rate"][0][0] != found["rate"][0][0]


def test_a_table_tells_an_adapter_its_conditions(told, checkpoint):
    info = {"action": {"names": ["steering", "gas"], "range": [0, 1]}}
    save_conditioned("drive", {"action": 2}, info)
    made = []
    for name, value in (("one.gif", 0.0), ("two.gif", 1.0)):
        options = ("--checkpoint", checkpoint, "--lora", "drive", "--conditions", table(5, value))
        code, _, errors = outputs("animate", "a.png", "--frames", 5, "-o", name, *QUICK, *options)
        assert code == 0, errors
        made.append(Path(name).read_bytes())
    assert made[0] != made[1]


def test_a_checkpoint_without_conditions_says_so(told, checkpoint):
    code, _, errors = outputs(
        "animate", "a.png", "-o", "a.gif", *QUICK, "--checkpoint", checkpoint, "--conditions", table(5, 0.0)
    )
    assert code and "this checkpoint takes none" in errors
