import pytest
from PIL import Image

from training.figures.charts import Panel, Point, draw


def panel(title, curves, **more):
    return Panel(title, "steps", "loss", curves, **more)


def test_panels_stand_side_by_side_and_intervals_are_drawn(tmp_path):
    bare = {"a": [Point(1, 0.5), Point(10, 0.2)]}
    one = Image.open(draw(tmp_path / "one.png", [panel("one", bare)]))
    two = Image.open(draw(tmp_path / "two.png", [panel("one", bare), panel("two", bare, log_x=True, ticks=(1, 10))]))
    assert two.width > 1.7 * one.width

    sure = {"a": [Point(1, 0.5, 0.4, 0.6), Point(10, 0.2, 0.1, 0.3)]}
    light = sum(
        count
        for count, color in Image.open(draw(tmp_path / "three.png", [panel("one", sure)]))
        .convert("RGB")
        .getcolors(1 << 20)
        if color[2] - color[0] > 10 and color[0] > 200
    )
    assert light > 2000


def test_a_curve_of_one_point_shows_its_interval(tmp_path):
    bare, sure = (
        {"a": [point], "b": [Point(2, 0.2), Point(3, 0.8)]} for point in (Point(1, 0.5), Point(1, 0.5, 0.3, 0.7))
    )
    pictures = [
        Image.open(draw(tmp_path / name, [panel("one", curves)]))
        for name, curves in (("a.png", bare), ("b.png", sure))
    ]
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[1].tobytes()


def test_a_panel_without_points_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'two' has no points"):
        draw(tmp_path / "no.png", [panel("one", {"a": [Point(0, 0)]}), panel("two", {"a": []})])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "more",
    [
        {"levels": {"copy": 0.3}},
        {"marks": {"joint": 5.0}},
        {"bands": {"solo": (1.0, 5.0), "joint": (5.0, 10.0)}},
        {"dashed": ("a",)},
        {"log_y": True},
        {"log_x": True},
        {"ticks": (1, 7)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_a_panel_is_given_is_drawn(tmp_path, more):
    curves = {"a": [Point(1, 0.5), Point(10, 0.2)]}
    plain, drawn = (
        Image.open(draw(tmp_path / f"{len(each)}.png", [panel("one", curves, **each)])).convert("RGB")
        for each in ({}, more)
    )
    assert plain.size != drawn.size or plain.tobytes() != drawn.tobytes()


def test_a_wider_panel_is_a_wider_picture(tmp_path):
    curves = {"a": [Point(1, 0.5), Point(10, 0.2)]}
    narrow, wide = (Image.open(draw(tmp_path / f"{w}.png", [panel("one", curves)], width=w)) for w in (5, 8))
    assert wide.width > 1.4 * narrow.width
