"""Find the checkpoints and the clips of `diffusers-mardini-demo`, a package of data that the extra `demo` brings."""

from importlib.util import find_spec
from pathlib import Path


PACKAGE = "diffusers_mardini_demo"


def demo_checkpoints() -> list[Path]:
    """Return the folders of the installed checkpoints; empty if the package is not there."""
    return sorted(file.parent for file in _folder("checkpoints").glob("*/model_index.json"))


def demo_clips() -> list[Path]:
    """Return the clips to try things on: those of the checkout one stands in, else the installed ones."""
    here = sorted(Path("examples/clips").glob("*.mp4"))
    return here or sorted(_folder("clips").glob("*.mp4"))


def _folder(name: str) -> Path:
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0] if places else "/nonexistent") / name
