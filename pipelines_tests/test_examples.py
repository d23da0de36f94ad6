"""The scripts and the notebook of `examples/`, run as users run them."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from diffusers_mardini.video_io import read_video


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("script", "output", "written"),
    [
        ("interpolate.py", "out.mp4", {"out.mp4": 9}),
        ("extend.py", "out.mp4", {"out.mp4": 25}),
        ("plan_once_sample_often.py", "out", {f"out/{number}.mp4": 9 for number in range(4)}),
    ],
)
def test_a_script_writes_its_videos(script, output, written, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STEPS", "1")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path / output)])
    runpy.run_path(str(EXAMPLES / script))
    text = capsys.readouterr().out
    for name, num_frames in written.items():
        frames, fps = read_video(tmp_path / name)
        assert len(frames) == num_frames and fps == 12.5 and f"Wrote {tmp_path / name}" in text


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "demo.py"))
def test_a_script_is_short_and_imports_the_plugin_alone(script):
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 20
    assert "training" not in [line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith("from ")]


def test_the_notebook_runs_from_top_to_bottom_and_holds_no_outputs(monkeypatch):
    monkeypatch.setenv("STEPS", "1")
    monkeypatch.setenv("TRAIN_STEPS", "1")
    monkeypatch.chdir(EXAMPLES)
    notebook = json.loads((EXAMPLES / "mardini.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 6 and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    namespace = {}
    for cell in cells:
        exec("".join(cell["source"]), namespace)
    assert len(namespace["filled"]) == 9 and len(namespace["extended"]) == 18 and len(namespace["videos"]) == 3
    assert "action" in namespace["pipe"].conditions and set(namespace["steered"]) == {"left", "right"}
    assert namespace["loss_after"] != namespace["loss_before"]
