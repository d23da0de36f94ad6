"""Damaged records of a run: lines are left out and reported, and errors name the file."""

import json
from pathlib import Path

import pytest

from pipelines_tests.training.test_train_mardini import make_config, make_run
from training.engine.checkpoint import CheckpointError, list_checkpoints
from training.report import write_report


GOOD = {"global_step": 1, "stage": "planner", "step": 1, "windows_seen": 2}


@pytest.mark.parametrize("line", [b"\0\0\0\n", b"\xff\n", b"{}\n", b'{"global_step": 2, "st'])
def test_a_run_with_a_damaged_record_goes_on(tmp_path, capsys, line):
    make_run(tmp_path).train(stop_after="planner")
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + line)
    make_run(tmp_path).train(stop_after="planner")
    assert path.read_bytes() == before
    reported = capsys.readouterr().out
    assert (f"{path}, line {before.count(10) + 1}: damaged" in reported) == line.endswith(b"\n")


def test_a_report_leaves_damaged_records_out_and_names_damaged_files(tmp_path, capsys):
    (tmp_path / "config.json").write_text(make_config().model_dump_json())
    (tmp_path / "metrics.jsonl").write_bytes(
        b"\0\0\n" + json.dumps({**GOOD, "loss": 1.0, "planner_loss": 1.0}).encode() + b"\n"
    )
    (tmp_path / "starts.jsonl").write_bytes(b"{}\n")
    assert "Training losses" in write_report(tmp_path).read_text()
    reported = capsys.readouterr().out
    assert "metrics.jsonl, line 1: damaged" in reported and "starts.jsonl, line 1: damaged" in reported
    for name, content in (("status.json", b"\0\0"), ("nonfinite/a.json", b"[]"), ("config.json", b"{")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{Path(name).name}' cannot be read"):
            write_report(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\xff", b"[]", b"3", b'{"files": {}}', b'{"files": {"a": 1}, "optimizers": []}',
                                     b'{"files": {}, "optimizers": []}'])  # fmt: skip
def test_a_damaged_state_of_a_checkpoint_is_named(tmp_path, content):
    make_run(tmp_path).train(stop_after="planner")
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    (newest / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{newest} is damaged: its state.json"):
        make_run(tmp_path).train()
