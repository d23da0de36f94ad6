"""Test how many cores programs take, and that a name which a log cannot show ends none."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from training import cores


def test_a_process_that_may_use_one_core_takes_one(monkeypatch):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [3], raising=False)
    assert cores.cores() == 1


def test_a_system_without_such_a_limit_takes_all(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "none")
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert cores.cores() == os.cpu_count()


@pytest.mark.parametrize(
    ("content", "expected"), [("400000 100000\n", 4), ("50000 100000\n", 1), ("max 100000\n", 8), (None, 8)]
)
def test_a_containers_share_is_a_limit(tmp_path, monkeypatch, content, expected):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    if content is not None:
        (tmp_path / "cpu.max").write_text(content)
    assert cores.cores() == expected


@pytest.mark.parametrize(("most", "expected"), [(None, 100), (61, 61)])
def test_a_pool_has_no_more_processes_than_the_system_waits_for(monkeypatch, most, expected):
    monkeypatch.setattr(cores, "_MOST_PROCESSES", most)
    assert cores.pool_size(100) == expected and cores.pool_size(2) == 2


def test_a_name_that_a_log_cannot_show_is_escaped():
    """As on Windows, when standard output goes to a file."""
    shown = subprocess.run(
        [sys.executable, "-c", "import training; print('\u043a.mp4')"],
        cwd=Path(cores.__file__).parents[1], env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == [b"\\u043a.mp4"]
