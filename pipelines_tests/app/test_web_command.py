"""`mardini app` and `mardini play` say what is missing before they serve, and leave nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from diffusers_mardini.cli import app


def type_command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def _gradio():
    pytest.importorskip("gradio")


def test_without_the_extra_the_command_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("diffusers_mardini.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = type_command("app")
    assert result.exit_code == 1 and "which the extra `demo` brings: pip install" in result.output


@pytest.mark.usefixtures("_gradio")
def test_what_cannot_be_driven_is_refused_before_serving(worlds, tmp_path):
    assert "still cannot be driven" in type_command("play", worlds[0]).output
    assert "cannot be read as a checkpoint" in type_command("play", tmp_path).output
    assert "there is no file" in type_command("play", worlds[1], "--start", tmp_path / "none.mp4").output
    (tmp_path / "notes.png").write_text("hello")
    assert "'notes.png' is no picture" in type_command("play", worlds[1], "--start", tmp_path / "notes.png").output


@pytest.mark.usefixtures("_gradio")
def test_a_port_that_is_taken_is_named(worlds):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = type_command("app", "--checkpoint", worlds[0], "--port", port)
    assert result.exit_code == 1 and f"cannot listen at 127.0.0.1:{port}" in result.output
    result = type_command("app", "--checkpoint", worlds[0], "--port", 0)
    assert result.exit_code == 1 and "the port is 0; give one from 1 to 65535" in result.output


@pytest.mark.slow
@pytest.mark.usefixtures("_gradio")
def test_a_server_that_is_ended_leaves_no_files(worlds, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "diffusers_mardini.cli", "play", worlds[1], "--port", str(port), "--no-browser"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE) as process:
        address = f"http://127.0.0.1:{port}/drive"
        assert address in process.stdout.readline().decode()
        for _ in range(200):
            try:
                assert b"Drive inside the model" in urllib.request.urlopen(address).read()
                break
            except OSError:
                time.sleep(0.1)
        assert list(tmp_path.glob("mardini-app-*"))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    assert not list(tmp_path.glob("mardini-app-*"))
