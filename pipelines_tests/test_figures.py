"""The drawn figures and the moving pictures of the pages: current, small, and of the facts that they claim."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from docs import moving_pictures
from docs.figures import FOLDER, figures
from docs.figures.scores import WORLDS, read_scores


DOCS = Path(__file__).resolve().parent.parent / "docs"
MOVING = sorted((DOCS / "images/moving").glob("*.webp"))


@pytest.fixture(scope="module")
def drawn():
    return figures()


def test_the_drawn_figures_are_current(drawn):
    assert {path.name for path in FOLDER.iterdir()} == set(drawn), "run `python -m docs.figures`"
    for name, text in drawn.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run `python -m docs.figures`"


def test_a_figure_differs_between_light_and_dark_in_its_colours_alone(drawn):
    for name in (name for name in drawn if name.endswith("-light.svg")):
        pair = [drawn[name], drawn[name.replace("-light", "-dark")]]
        assert pair[0] != pair[1]
        assert len({re.sub(r"#[0-9a-f]{6}", "", text) for text in pair}) == 1


def test_nothing_of_a_figure_sticks_out(drawn):
    """Letters are taken to be as wide as those of a wide font."""
    for name, text in drawn.items():
        root = ElementTree.fromstring(text)
        width, height = (float(root.attrib[side]) for side in ("width", "height"))
        for node in root.iter("{http://www.w3.org/2000/svg}text"):
            size, anchor = float(node.attrib["font-size"]), node.attrib["text-anchor"]
            length = len(node.text) * size * (0.61 if "font-family" in node.attrib else 0.55)
            left = float(node.attrib["x"]) - {"start": 0, "middle": length / 2, "end": length}[anchor]
            assert 0 <= left and left + length <= width, f"{name}: {node.text!r} is too long"
            assert float(node.attrib["y"]) <= height, f"{name}: {node.text!r} is too low"


def test_pages_show_every_figure_in_both_schemes_and_every_moving_picture():
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for path in FOLDER.iterdir():
        scheme = path.stem.rpartition("-")[2]
        assert f"images/figures/{path.name}#gh-{scheme}-mode-only" in text, f"no page shows {path.name}"
    for path in MOVING:
        assert f"images/moving/{path.name}" in text, f"no page shows {path.name}"


def test_the_chart_of_scores_has_ours_and_simple_methods_in_every_world():
    for _, page, block in WORLDS:
        found = read_scores(page, block)
        assert {"ours", "cross-fade", "optical flow", "copy"} <= set(found["mid SSIM"])
        for by_method in found.values():
            assert all(low <= mean <= high for mean, low, high in by_method.values())


def test_the_comparison_has_the_numbers_of_the_tables():
    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    for _, page, block in WORLDS[:2]:
        found = read_scores(page, block)["mid SSIM"]
        assert all(f"{found[method][0]:.3f}" in text for method in ("ours", "optical flow")), block


def test_moving_pictures_move_and_are_small():
    assert len(MOVING) == 6
    assert all(path.stat().st_size < 300_000 for path in MOVING) and sum(p.stat().st_size for p in MOVING) < 1_500_000
    for path in MOVING:
        with Image.open(path) as picture:
            assert picture.n_frames >= moving_pictures.FRAMES and picture.info["loop"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not moving_pictures.CHECKPOINT.is_dir(), reason="the checkpoint is not here")
def test_moving_pictures_are_made_by_their_program(tmp_path):
    moving_pictures.main(["--steps", "1", "-o", str(tmp_path)])
    for path in MOVING:
        with Image.open(path) as committed, Image.open(tmp_path / path.name) as made:
            assert (made.n_frames, made.size) == (committed.n_frames, committed.size)
