"""Hold the pages to what they promise: commands run, links lead somewhere, and generated pages are current."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from diffusers_mardini import cli
from pipelines_tests.doc_blocks import commands_of
from pipelines_tests.hub_server import running_hub
from pipelines_tests.tiny_pipeline import clip
from training import card


ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
_spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings can be linked by, as the site and GitHub make them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


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
    python = f"{shlex.quote(sys.executable)} " if words[:1] == ["python"] else ""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "ACCELERATE_USE_CPU": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    result = subprocess.run(
        ["bash", "-euc", python + line.removeprefix("python ") if python else line],
        capture_output=True,
        text=True,
        env=environment,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_somewhere(page):
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    links = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name_of(page)} links to {link}, which is not there"
        if page.is_relative_to(DOCS):
            assert target.resolve().is_relative_to(DOCS), f"{name_of(page)} links to {link}, which the site lacks"
        if anchor and target.suffix == ".md":  # that of a picture says for which colour scheme it is
            assert anchor in anchors(target), f"{name_of(page)} links to {link}, and no heading there is called so"


def test_every_page_is_in_the_navigation_of_the_site_and_linked_from_the_index():
    def leaves(entry):
        if isinstance(entry, str):
            return [entry]
        return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]

    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(pages)
    for folder in ("", "decisions/", "results/"):
        index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
        for page in (path.name for path in (DOCS / folder).glob("*.md") if path.name != "index.md"):
            assert f"({page}" in index, f"docs/{folder}index.md does not link to {page}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_every_program_and_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for module in set(re.findall(r"-m ((?:training|benchmarks|examples)(?:\.\w+)+)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), (
            f"{name_of(page)} names {module}, which is not there"
        )
    for path in set(re.findall(r"\b(?:training|pipelines_tests)/[\w/-]+\.(?:py|sh|yaml|json|jsonl)\b", text)):
        assert (ROOT / path).is_file(), f"{name_of(page)} names {path}, which is not there"


@pytest.mark.parametrize("page", ["tree", "messages"])
def test_pages_made_from_the_sources_are_current(page):
    if page == "tree" and not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    made = getattr(generate, page)()
    assert (DOCS / f"{page}.md").read_text(encoding="utf-8") == made, "run `python docs/generate.py`"


def test_the_api_page_shows_docstrings_without_the_marks_of_diffusers():
    pytest.importorskip("griffe")  # with the extra `docs`
    from docs.docstrings import plain

    text = (
        "Also: [`~A.extend`] and [`B`].\n\n    Args:\n        size (`int`, *optional*, defaults to `4`): Of a `x`.\n"
    )
    assert plain(text) == (
        "Also: `A.extend` and `B`.\n\n    Args:\n        size (int, optional, defaults to 4): Of a `x`.\n"
    )


def test_symptoms_of_troubleshooting_are_words_of_the_sources():
    sources = [path for folder in ("src", "training") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    texts = {" ".join(generate.text_of(node).split()) for node in nodes if isinstance(node, ast.expr)} - {"…"}
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## Messages of other packages")[0]
    symptoms = [phrase for cell in re.findall(r"^\| (.*?) \|", page, re.M) for phrase in re.findall(r"`(.+?)`", cell)]
    assert len(symptoms) > 100
    for symptom in symptoms:
        parts = re.compile(".*".join(re.escape(part.strip()) for part in symptom.split("…") if part.strip()))
        assert any(map(parts.search, texts)), f"no text of the sources has {symptom!r}"


def test_the_readme_is_short_and_names_every_room():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 150
    rooms = {path.parent.name for path in (ROOT / "training").glob("*/__init__.py")}
    rooms |= {path.parent.name for path in (ROOT / "src/diffusers_mardini").glob("*/__init__.py")} - {"cli", "app"}
    for room in rooms - {"__pycache__"}:
        assert room in text, f"README.md does not name {room}"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/results/{path.name}" for path in sorted((ROOT / "docs/results").glob("*.md")))]
)
def test_what_commands_fill_is_filled_or_said_to_be_not_run(page):
    for name, block in re.findall(
        r"^<!-- (.+): begin -->\n(.*?)^<!-- \1: end -->$", (ROOT / page).read_text(), re.DOTALL | re.M
    ):
        said = block == "Not run yet.\n" and "not run yet" in (ROOT / "docs/results/index.md").read_text()
        drawn = name.startswith("curves") and block.startswith("![")  # filled before it had a table
        assert said or drawn or block.count("\n| ") + block.startswith("| ") > 2, f"{page} has no table in {name}"


@pytest.mark.skipif(not (ROOT / "checkpoints/mardini-tiny-carracing").is_dir(), reason="the checkpoint is not here")
def test_the_lines_of_the_readme_sample(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
    # Fewer steps, and everything else as it is printed
    few = block.replace("num_frames=9)", "num_frames=9, num_inference_steps=2)").replace(
        "factor=4)", "factor=4, num_inference_steps=2)"
    )
    few = few.replace("num_new_frames=16)", "num_new_frames=16, num_inference_steps=2)")
    assert few.count("num_inference_steps=2") == 3
    names = {}
    exec(compile(few, "README.md", "exec"), names)
    assert (tmp_path / "between.mp4").is_file()
    assert [len(names[name]) for name in ("between", "slower", "longer")] == [9, 33, 25]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "checkpoints/mardini-tiny-carracing").is_dir(), reason="the checkpoint is not here")
def test_the_page_about_adapters_works_from_top_to_bottom(tmp_path, monkeypatch):
    """Every block in its order, in a folder like a checkout: a training, the adapter in use, its evaluation and its card."""
    (tmp_path / "training").symlink_to(ROOT / "training")
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/lora.md").read_text()
    names, told = {"frames": clip(2), "steps": 2}, ""
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```$", page, re.DOTALL | re.M):
        if language == "python":
            exec(compile(block, "docs/lora.md", "exec"), names)
            continue
        for line in commands_of(block):
            code, output = type_command(line)
            assert code == 0, f"{line}\n{output}"
            told += output
    assert "transformer: 72 layers adapted" in told and "the finished adapter lies in runs/lora-shapes/adapter" in told
    assert "conditions that the adapter adds: motion (" in told
    assert "| ours, 2 steps, with the adapter |" in told and "base_model: checkpoints/mardini-tiny-racing" in told


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
            for line in commands_of(block):
                meant_to_fail = line.startswith("mardini push outputs/broken")
                if "--yes" not in line:
                    assert hub.requests == [], line
                code, output = type_command(line)
                assert code == meant_to_fail, f"{line}\n{output}"
                told += output
        arrived = hub.repositories["you/mardini-mine"]
        assert "vae/diffusion_pytorch_model.safetensors" in arrived
        assert "Knows CarRacing alone" in arrived["README.md"].decode()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "checkpoints/mardini-tiny-carracing").is_dir(), reason="the checkpoint is not here")
def test_the_first_pages_work_from_top_to_bottom(tmp_path, monkeypatch):
    """Every block headed `bash`, in a folder like a checkout; the training is cut short."""
    for folder in ("training", "checkpoints", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    page = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("quickstart.md", "step-by-step.md"))
    page = page.replace("stages.task.steps=1500", "stages.task.steps=10")
    for block in re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.M):
        for line in commands_of(block):
            code, output = type_command(line)
            assert code == 0, f"{line}\n{output}"
    for name in (
        "between.mp4",
        "slower.mp4",
        "longer.mp4",
        "shapes.gif",
        "runs/shapes/report.md",
        "outputs/shapes/results.md",
    ):
        assert (tmp_path / name).is_file()
