"""Real processes, really killed: what is left is whole, and the same command ends with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.test_train_mardini import data_fields, make_config, write_clips
from training.engine.checkpoint import list_checkpoints, load_checkpoint
from training.monitoring.panel import TIMES
from training.stopping import StopRequest


ROOT = Path(__file__).resolve().parents[2]


def run_with_kills(folder: Path, processes: int, kills: int, seed: int = 0, base: Path | None = None) -> list[dict]:
    if not (folder.parent / "clips").exists():
        write_clips(folder.parent / "clips")
    arguments = [folder, processes, kills, seed, *([] if base is None else [base])]
    result = subprocess.run(
        [sys.executable, "-m", "pipelines_tests.training.interrupted_run", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def state(folder: Path) -> tuple[dict, dict, dict, list[dict]]:
    last = list_checkpoints(folder / "checkpoints")[-1]
    assert last.name == "step-00000024"
    tensors = [dict(each) for each in load_checkpoint(last).tensors().values()]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return *tensors, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same(one: Path, other: Path) -> None:
    for a, b in zip(state(one)[:3], state(other)[:3]):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert state(one)[3] == state(other)[3]
    for path in (one / "pipeline").rglob("*.safetensors"):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def test_a_run_that_was_killed_three_times_ends_like_one_that_ran_through(tmp_path):
    run_with_kills(tmp_path / "through", 1, 0)
    told = run_with_kills(tmp_path / "killed", 1, 3)
    assert all(kill["running"] for kill in told)
    assert_same(tmp_path / "through", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_killed_twelve_times_ends_like_one_that_ran_through(tmp_path, processes):
    run_with_kills(tmp_path / "through", processes, 0)
    told = run_with_kills(tmp_path / "killed", processes, 12, seed=processes)
    assert sum(kill["running"] for kill in told) >= 10
    assert any(name.startswith(".step-") for kill in told for name in kill["half_written"])  # in the thread, too
    assert_same(tmp_path / "through", tmp_path / "killed")


def test_signals_files_and_hours_are_reasons_to_stop(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from training.stopping import StopRequest\n"
        "with StopRequest(Path(sys.argv[1])) as stop:\n"
        "    assert stop.reason is None; os.kill(os.getpid(), signal.SIGTERM); print(stop.reason, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('once more', flush=True)  # as a launcher passes it on\n"
        "    stop._signalled -= 5; os.kill(os.getpid(), signal.SIGTERM); print('not reached', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "signal SIGTERM\nonce more\n" and result.returncode == 128 + 15
    request = StopRequest(tmp_path)
    (tmp_path / "stop").touch()
    assert "stop" in request.reason
    request.done()
    assert request.reason is None and not (tmp_path / "stop").exists()
    assert StopRequest(tmp_path, max_hours=1e-12).reason == "max_hours 1e-12"
    assert StopRequest(tmp_path, max_hours=1).reason is None


def test_the_program_says_that_it_stopped_and_goes_on_when_typed_again(tmp_path):
    """The command itself, with clips and an autoencoder of its own; `stop` lies in the folder while clips are
    prepared."""
    AutoencoderPatchBasis().save_pretrained(tmp_path / "vae")
    config = make_config(data=data_fields(write_clips(tmp_path / "clips")), vae=str(tmp_path / "vae"))
    (tmp_path / "run.yaml").write_text(config.model_dump_json())  # JSON is YAML
    folder = tmp_path / "runs" / "test"
    folder.mkdir(parents=True)
    (folder / "stop").touch()

    def launch(*overrides):
        return subprocess.run(
            [sys.executable, "-m", "training.train_mardini", str(tmp_path / "run.yaml"), *overrides], cwd=tmp_path, capture_output=True,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "ACCELERATE_USE_CPU": "true"},
        )  # fmt: skip

    stopped = launch()
    assert stopped.returncode == 75 and "the same command goes on" in stopped.stdout, stopped.stderr[-2000:]
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped" and status["global_step"] == 0 and not (folder / "stop").exists()
    finished = launch()
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "pipeline" / "model_index.json").is_file()
    told = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert {"status.json", "config.json", "starts.jsonl", "report.md"} <= set(told)
    refused = launch("stages.planner.learning_rate=0.5")
    assert refused.returncode == 1 and "learning_rate: 0.01 then, 0.5 now" in refused.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == told
