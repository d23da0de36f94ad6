"""`make gpu-check`: every part ends in time, says what failed, and leaves what it had measured."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import carracing, check, sampling, training_step
from benchmarks.gpu.check import Part
from benchmarks.gpu.rows import Rows


ROOT = Path(__file__).resolve().parents[1]


def test_rows_are_on_disk_as_soon_as_they_are_measured(tmp_path):
    rows = Rows(tmp_path / "part.json", torch.device("cpu"), 60)
    rows.add(model="a", seconds=1.5)
    rows.know(size=64)
    found = json.loads((tmp_path / "part.json").read_text())
    assert found["rows"] == [{"model": "a", "seconds": 1.5}] and found["size"] == 64
    assert 50 < rows.time_left <= 60


def test_a_training_step_is_measured_beside_the_plan(tmp_path):
    (row,) = training_step.main(["--dry", "-o", str(tmp_path / "step.json"), "--device", "cpu"])["rows"]
    assert row["seconds"] > 0 and row["mfu"] > 0 and row["predicted_gib"] > 0 and "failed" not in row
    # A window of 3 frames of 8x8 latents: 8 rows of 8 tokens and [NEXT] each.
    assert row["transformer_tokens_per_second"] * row["seconds"] == pytest.approx(3 * 8 * 9)


def test_a_step_that_fails_says_so_and_the_others_go_on(tmp_path, monkeypatch):
    def lacking(*args):
        raise torch.OutOfMemoryError("no memory\nmore lines")

    monkeypatch.setattr(training_step, "probe", lacking)
    (row,) = training_step.main(["--dry", "-o", str(tmp_path / "step.json"), "--device", "cpu"])["rows"]
    assert row["failed"] == "OutOfMemoryError: no memory" and "seconds" not in row


def test_sampling_is_measured_by_form_and_beside_others(tmp_path, monkeypatch):
    forms = sampling.forms
    monkeypatch.setattr(
        sampling,
        "forms",
        lambda *args: (form for form in forms(*args) if form[1] == "eager"),  # compiling takes long
    )
    rows = sampling.main(["--dry", "-o", str(tmp_path / "sampling.json"), "--device", "cpu"])["rows"]
    ours, others = rows[:2], rows[2:]
    assert [row["backend"] for row in ours] == ["own choice", "_native_math"] and all(
        row["seconds_per_frame"] > 0 for row in ours
    )
    assert [row["model"] for row in others] == ["SVD", "Wan 2.1, 1.3 B", "LTX-Video, 2 B"]
    assert all("failed" not in row and row["seconds_per_frame"] > 0 for row in others)


def test_no_form_is_begun_when_time_is_up(tmp_path):
    arguments = ["--dry", "-o", str(tmp_path / "sampling.json"), "--device", "cpu", "--seconds", "0"]
    rows = sampling.main(arguments)["rows"]
    assert [row.get("failed") for row in rows[1:]] == ["no time was left"] * (len(rows) - 1)


def test_a_part_is_stopped_at_its_limit_and_keeps_what_it_wrote(tmp_path, monkeypatch, capfd):
    write = 'import pathlib, sys, time; pathlib.Path(sys.argv[2]).write_text(\'{"rows": [{"a": 1}]}\'); time.sleep(60)'
    monkeypatch.setattr(
        check, "PARTS",
        {"slow": Part(("-c", write), 5), "broken": Part(("-c", "import sys; sys.exit('no such thing')"), 20)},
    )  # fmt: skip
    results = check.main(["--dry", "-o", str(tmp_path), "--parts", "slow", "broken"])
    assert results["slow"]["ended"] == "time limit" and results["slow"]["rows"] == [{"a": 1}]
    assert results["broken"]["ended"] == "1" and results["broken"]["output"] == ["no such thing"]
    page = (tmp_path / "check.md").read_text()
    assert "ended with time limit" in page and "| 1 |" in page and "no such thing" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_begins(tmp_path):
    with pytest.raises(SystemExit, match="no CUDA GPU was found .* try the parts with --dry"):
        check.main(["-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_tests_of_the_first_part_exist():
    named = [argument.partition("::") for argument in check.TESTS if argument.startswith("pipelines_tests/")]
    assert any(name for _, _, name in named)
    for file, _, name in named:
        assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file()


def test_the_parts_fit_into_eight_minutes():
    assert sum(part.limit for part in check.PARTS.values()) <= 480
    assert set(check.PARTS) == {"tests", "training_step", "sampling", "carracing"}


@pytest.mark.slow
def test_carracing_is_trained_scored_and_kept(tmp_path):
    pytest.importorskip("gymnasium")
    carracing.main(["--dry", "-o", str(tmp_path / "out/carracing.json"), "--work", str(tmp_path / "work")])
    found = json.loads((tmp_path / "out/carracing.json").read_text())
    assert [row["step"] for row in found["rows"]] == [
        "record train", "record val", "autoencoder", "train", "evaluate",
    ]  # fmt: skip
    assert any(row["method"].startswith("ours") and 0 < row["mid_ssim"] <= 1 for row in found["scores"])
    files = {file.name: file.stat().st_size for file in (tmp_path / "out").iterdir()}
    assert files.keys() == {"carracing.json", "carracing.png", "planner.safetensors", "transformer.safetensors"}
    assert max(files.values()) < 16e6


def test_a_step_of_carracing_that_fails_ends_the_part_with_its_last_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(carracing, "commands", lambda *args: [("train", ["-c", "import sys; sys.exit('broken')"])])
    with pytest.raises(SystemExit):
        carracing.main(["--dry", "-o", str(tmp_path / "carracing.json"), "--work", str(tmp_path)])
    found = json.loads((tmp_path / "carracing.json").read_text())
    assert found["failed"] == "train" and found["output"] == ["broken"]
