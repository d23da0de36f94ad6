import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement

import diffusers_mardini


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src/diffusers_mardini"


@pytest.fixture(scope="module")
def metadata():
    """The arguments with which setup.py calls `setup`."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **arguments: calls.append(arguments))
        patch.chdir(ROOT)
        exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    (arguments,) = calls
    return arguments


def test_the_version_is_the_packages_own(metadata):
    assert metadata["version"] == diffusers_mardini.__version__
    assert re.search(
        rf"^## {re.escape(metadata['version'].split('.dev')[0])}", (ROOT / "CHANGELOG.md").read_text(), re.M
    )


def test_base_dependencies_are_those_of_a_published_model(metadata):
    names = {Requirement(line).name.lower() for line in metadata["install_requires"]}
    assert names == {
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "safetensors",
        "numpy",
        "pillow",
        "av",
        "typer",
    }
    extras = {"train", "cuts", "sim", "metrics", "xformers", "quantization", "ray", "remote", "demo", "docs", "dev"}
    assert extras == set(metadata["extras_require"])


def test_every_dependency_but_xformers_is_pinned_within_its_range(metadata):
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = {name: lines for name, lines in metadata["extras_require"].items() if name != "xformers"}
    for line in [*metadata["install_requires"], *(line for lines in extras.values() for line in lines)]:
        requirement = Requirement(line)
        if requirement.name not in ("setuptools", "diffusers-mardini-demo"):  # the last is of this repository
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), line


def test_every_folder_of_code_and_data_is_packaged(metadata):
    packages = set(metadata["packages"])
    for path in PACKAGE.rglob("*.py"):
        assert ".".join(path.parent.relative_to(ROOT / "src").parts) in packages, f"{path} is in no package"
    patterns = metadata["package_data"]["diffusers_mardini"]
    data = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert len(data) >= 6
    for path in data:
        assert any(path.relative_to(PACKAGE).match(pattern) for pattern in patterns), f"{path} is not packaged"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "app", "test", "test-slow", "test-web", "test-upstream", "style", "check", "docs", "bench", "train-tiny-racing",
                                    "train-tiny-carracing", "train-tiny-robot"])  # fmt: skip
def test_every_target_of_the_makefile_begins_with_an_environment(target, tmp_path):
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    # The make that runs these tests must not speak to this one.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PYTHON")
    }
    lines = subprocess.run(
        ["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment
    ).stdout.splitlines()
    assert lines[0] == "python3 -m venv .venv"
    assert "-c constraints.txt -e" in lines[1]
    commands = [
        word
        for line in lines[2:]
        for word in line.split()
        if word.startswith(("examples.", "benchmarks.", "training/"))
    ]
    for word in commands:
        path = ROOT / (word.replace(".", "/") + ".py" if "/" not in word else word)
        assert path.exists(), f"`make {target}` runs {word}, which is not there"


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, source], **run)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("presets/mardini-l-t.json", "templates/model_card.md", "py.typed", "app/static/drive.js"):
        assert f"diffusers_mardini/{name}" in names
    assert not [name for name in names if name.startswith(("training", "pipelines_tests", "examples"))]
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import sys; sys.path.insert(0, 'installed'); import diffusers_mardini as m; from diffusers_mardini import cards, cli; "
        "assert 'installed' in m.__file__; m.load_preset('mardini-tiny'); "
        "cards.render_model_card({'name': 'x', 'num_frames': 9}); cli.app(['info', 'mardini-tiny'])"
    )
    assert "transformer" in subprocess.run([sys.executable, "-c", code], **run).stdout


@pytest.mark.slow
def test_the_wheel_of_data_is_small_and_found_as_the_last_default(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "demo-files", source / "demo-files", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for name in ("checkpoints", "examples/clips", "src/diffusers_mardini/__init__.py", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).symlink_to(ROOT / name)
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, source / "demo-files"]
    subprocess.run(command, **run)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 70 * 2**20 and diffusers_mardini.__version__ in wheel.name
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        "import sys; sys.path.insert(0, 'installed'); from diffusers_mardini.cli.checkpoints import resolve_checkpoint; "
        "from diffusers_mardini.demo_files import demo_checkpoints, demo_clips; "
        "from diffusers_mardini import MarDiniPipeline; print(len(demo_clips()), len(demo_checkpoints())); MarDiniPipeline.from_pretrained(resolve_checkpoint(None))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MARDINI_CHECKPOINT"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    assert subprocess.run([sys.executable, "-c", code], env=environment, **run).stdout.strip() == "3 2"


def test_a_commit_is_checked_by_what_make_check_runs_and_without_a_network():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert [(hook["entry"], hook["language"]) for hook in config["repos"][0]["hooks"]] == [("make check", "system")]
