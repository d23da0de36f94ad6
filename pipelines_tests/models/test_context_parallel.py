"""diffusers' context parallelism: a window shared out over processes is what one process computes."""

import subprocess
import sys
from pathlib import Path


def test_two_processes_with_half_the_tokens_each_compute_the_same(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "pipelines_tests.models.parallel_window", str(tmp_path)], cwd=Path(__file__).parents[2],
        capture_output=True, text=True,
    )  # fmt: skip
    logs = [(tmp_path / f"log-{rank}.txt").read_text() for rank in range(2)]
    assert result.returncode == 0, result.stderr + "".join(logs)
    for log in logs:
        assert log.count("is the same") == 6
