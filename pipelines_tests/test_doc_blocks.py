"""Hold that every code block of the pages is run or read; a block that is not says why in the line above it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusers_mardini.video_io import write_video
from pipelines_tests.doc_blocks import Block, blocks_of, check_command, commands_of
from pipelines_tests.tiny_pipeline import clip, tiny_pipeline


ROOT = Path(__file__).resolve().parent.parent
GENERATED = {"messages.md", "tree.md", "config.md"}
PAGES = sorted(
    [page for page in (ROOT / "docs").rglob("*.md") if page.name not in GENERATED]
    + [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)
CODE = {"python", "bash", "console", "yaml", "json"}
# Pages whose Python is run by a test of their own, which knows what has to be there first.
RUN_ELSEWHERE = {
    "README.md": "test_docs.py",
    "docs/hub.md": "test_docs.py",
    "docs/diffusers.md": "test_native.py",
    "docs/lora.md": "test_native.py",
}
CONDITIONS = {"action": 3, "rate": 1}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    found = blocks_of(page.read_text(encoding="utf-8"))
    return [block for block in found if block.language in languages and not block.reason]


PYTHON = [page for page in PAGES if blocks(page, "python") and name_of(page) not in RUN_ELSEWHERE]
SHELL = [page for page in PAGES if blocks(page, "bash", "console")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny pipeline with conditions, saved where the carried checkpoint is elsewhere."""
    pipe = tiny_pipeline()
    for model in (pipe.planner, pipe.transformer):
        model.add_conditions(CONDITIONS)
    path = tmp_path_factory.mktemp("checkpoint")
    pipe.save_pretrained(path)
    return path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_names_its_language_and_one_that_is_not_run_says_why(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(text):
        assert block.language in CODE | {"text"}, f"{name_of(page)}:{block.line} has language {block.language!r}"
        assert block.reason is None or len(block.reason.split()) > 2, f"{name_of(page)}:{block.line}: say why"
    prose = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.M)
    assert not re.search(r"(?<=\n\n) {4}(?![ -])\S", prose), f"{name_of(page)} has code that is only indented"


@pytest.mark.parametrize("page", PYTHON, ids=name_of)
def test_python_blocks_run_from_top_to_bottom(page, folder, tmp_path, monkeypatch):
    """In one namespace a page, with a tiny pipeline that takes `action` and `rate`.

    What pages are about begins anew in each block, because one block may show several ways.
    """
    for name in ("examples", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    from diffusers_mardini import MarDiniPipeline

    pipe = MarDiniPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    frames = clip(5)
    write_video("clip.mp4", (255 * frames.permute(0, 2, 3, 1).numpy()).astype("uint8"), fps=12)
    given = {
        "pipe": pipe, "frames": frames, "first": frames[0], "last": frames[-1], "folder": folder, "steps": 2,
        "a": frames[0], "b": frames[1], "c": frames[2], "left": frames[0], "middle": frames[2], "right": frames[4],
        "actions": [np.zeros((4, 3))] * 2, "seconds_of_each_frame": [0, 0.05, 0.08, 0.12, 0.2],
        "camera": lambda: iter(frames), "show": lambda frame: None,
    }  # fmt: skip
    names: dict = {}
    for block in blocks(page, "python"):
        names |= given
        code = block.code.replace("checkpoints/mardini-tiny-carracing", folder.as_posix())
        exec(compile("\n" * block.line + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", SHELL, ids=name_of)
def test_commands_are_taken_by_their_programs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(page, "bash", "console"):
        for command in commands_of(block.code):
            try:
                check_command(command)
            except (AssertionError, ValueError) as error:
                raise AssertionError(f"{name_of(page)}:{block.line}: {error}") from error


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml", "json")], ids=name_of)
def test_data_blocks_can_be_read(page):
    for block in blocks(page, "yaml", "json"):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), (dict, list)), f"{name_of(page)}:{block.line}"
        else:
            for line in block.code.strip().splitlines():
                json.loads(line)


@pytest.mark.parametrize("command", [
    "mardini interpolate a.png b.png -o c.mp4 --stepps 3",
    "python -m training.plan training/configs/golden.yaml --procesess 2",
    "python -m training.train_mardini training/configs/golden.yaml nmae=x",
    "make no-such-target",
    "pip install '.[no_such_extra]'",
    "bash training/runs/no-such-script.sh",
    "no-such-program --flag",
])  # fmt: skip
def test_a_command_with_a_mistake_is_noticed(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError)):
        check_command(command)


def test_blocks_are_found_in_lists_and_with_reasons():
    text = "- x\n\n    ```bash\n    make test\n    ```\n\n<!-- not run: needs a GPU -->\n```python\nrun()\n```\n"
    first, second = blocks_of(text)
    assert first == Block("bash", "make test\n", 3, None)
    assert second == Block("python", "run()\n", 8, "needs a GPU")
