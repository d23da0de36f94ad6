"""Figures of the pages, drawn by code from the facts of the sources: `python -m docs.figures` writes them.

Each is an SVG in two colour schemes, without fonts or libraries of others, so that a test can hold that the committed
files are current. Charts with intervals of single runs are `training/figures/charts.py`.
"""

from pathlib import Path

from .asymmetry import asymmetry
from .curriculum import curriculum
from .drawing import SCHEMES
from .models import architecture, identity_attention, once_per_window
from .scores import scores
from .windows import long_videos, tasks


FOLDER = Path(__file__).resolve().parents[1] / "images/figures"
DRAWN = {
    "architecture": architecture,
    "tasks": tasks,
    "identity-attention": identity_attention,
    "once-per-window": once_per_window,
    "long-videos": long_videos,
    "curriculum": curriculum,
    "scores": scores,
    "asymmetry": asymmetry,
}


def figures() -> dict[str, str]:
    """Return every figure by the name of its file."""
    return {f"{name}-{scheme}.svg": draw(scheme) for name, draw in DRAWN.items() for scheme in SCHEMES}
