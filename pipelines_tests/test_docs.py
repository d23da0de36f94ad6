"""Pages that promise to work from top to bottom do."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusers_mardini import cli
from pipelines_tests.hub_server import running_hub
from training import card


ROOT = Path(__file__).resolve().parent.parent


def type_command(line: str) -> tuple[int, str]:
    """One line as a shell would run it; our own programs within this process, because each start imports torch."""
    words = shlex.split(line, comments=True) if "<<" not in line else []
    if words[:1] == ["mardini"]:
        result = CliRunner().invoke(cli.app, words[1:])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output
    if words[:3] == ["python", "-m", "training.card"]:
        card.main(words[3:])
        return 0, ""
    result = subprocess.run(["bash", "-euc", line], capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.skipif(not (ROOT / "checkpoints/mardini-tiny-carracing").is_dir(), reason="the checkpoint is not here")
def test_the_page_about_the_hub_works_from_top_to_bottom(tmp_path, monkeypatch):
    """Every block in its order, in a folder like a checkout; the upload goes to a stand-in of the Hub."""
    (tmp_path / "training").symlink_to(ROOT / "training")
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(bash|python|text)\n(.*?)^```$", (ROOT / "docs/hub.md").read_text(), re.DOTALL | re.M)
    assert {language for language, _ in blocks} == {"bash", "python", "text"}
    session, told = {}, ""
    with running_hub(tmp_path / "cache") as hub:
        for language, block in blocks:
            if language == "text":
                assert told == block
                continue
            told = ""
            if language == "python":
                exec(compile(block, "docs/hub.md", "exec"), session)
                continue
            # A document in the shell (cat > … <<'END') is one command of many lines.
            for line in re.findall(r"^.*<<'END'\n(?:.*\n)*?END$|^.+$", block, re.M):
                meant_to_fail = line.startswith("mardini push outputs/broken")
                if "--yes" not in line:
                    assert hub.requests == [], line
                code, output = type_command(line)
                assert code == meant_to_fail, f"{line}\n{output}"
                told += output
        arrived = hub.repositories["you/mardini-mine"]
        assert "vae/diffusion_pytorch_model.safetensors" in arrived
        assert "Knows CarRacing alone" in arrived["README.md"].decode()
