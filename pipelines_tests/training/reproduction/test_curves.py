"""Curves of several runs, seeds together."""

import json

import pytest
from PIL import Image

from training.reproduction.curves import main, mean_and_range, panel_of, read_curve, stage_ends, title_of


def run(folder, losses, heldout):
    folder.mkdir()
    lines = [
        {"windows_seen": 10 * (i + 1), "stage": "first" if i < 2 else "second", "diffusion_loss": loss}
        for i, loss in enumerate(losses)
    ]
    lines.insert(2, {"windows_seen": 20, "stage": "first", "heldout": {"diffusion/0.6": heldout}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_training_losses_are_averaged_and_heldout_ones_are_not(tmp_path):
    folder = run(tmp_path / "a", [4.0, 2.0, 1.0, 3.0], 0.5)
    assert read_curve(folder, "loss:diffusion_loss", 2) == [(20, 3.0), (40, 2.0)]
    assert read_curve(folder, "loss:diffusion_loss", 3) == [(40, 2.5)]  # not a last point of one step
    assert read_curve(folder, "loss:diffusion_loss", 9) == [(40, 2.5)]
    assert read_curve(folder, "heldout:diffusion/0.6", 2) == [(20, 0.5)]
    with pytest.raises(ValueError, match="has no loss:planner_loss"):
        read_curve(folder, "loss:planner_loss", 1)
    with pytest.raises(ValueError, match="neither heldout:NAME nor loss:NAME"):
        read_curve(folder, "planner_loss", 1)


def test_stages_are_marked_where_they_end(tmp_path):
    folder = run(tmp_path / "a", [4.0, 2.0, 1.0, 3.0], 0.5)
    assert stage_ends(folder) == {"first": 20, "second": 40}
    panel = panel_of("loss:diffusion_loss", {"a": [folder]}, 1, True, stage_ends(folder))
    assert panel.marks == {"first": 20, "second": 40} and panel.log_y and panel.y_label == "training loss"


def test_half_a_line_of_a_killed_run_is_not_read(tmp_path):
    folder = run(tmp_path / "a", [4.0, 2.0], 0.5)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"windows_seen": 90, "diffusion_')
    assert read_curve(folder, "loss:diffusion_loss", 1) == [(10, 4.0), (20, 2.0)]


def test_a_loss_that_was_not_finite_is_left_out(tmp_path):
    folder = run(tmp_path / "a", [4.0, "nan", 2.0], 0.5)
    assert read_curve(folder, "loss:diffusion_loss", 1) == [(10, 4.0), (30, 2.0)]
    with pytest.raises(ValueError, match="mean of 0 lines"):
        read_curve(folder, "loss:diffusion_loss", 0)
    # Points of the other seeds stand where they would without it, to the end.
    one = run(tmp_path / "b", [4.0, "nan", 2.0, 1.0, "nan", "nan"], 0.5)
    two = run(tmp_path / "c", [2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 0.5)
    points = mean_and_range([read_curve(folder, "loss:diffusion_loss", 2) for folder in (one, two)])
    assert [(point.x, point.y) for point in points] == [(20, 3.0), (40, 1.75)]


def test_seeds_become_their_mean_and_range():
    points = mean_and_range([[(10, 1.0), (20, 2.0)], [(10, 3.0), (20, 2.0)], [(10, 2.0)]])
    assert [(point.x, point.y, point.low, point.high) for point in points] == [(10, 2.0, 1.0, 3.0)]
    (single,) = mean_and_range([[(10, 1.0)]])
    assert single.low is None
    with pytest.raises(ValueError, match="no place in common"):
        mean_and_range([[(10, 1.0)], [(20, 1.0)]])


def test_the_program_draws_a_panel_for_each_value_and_prints_the_ends(tmp_path, capsys):
    one, two = run(tmp_path / "a", [4.0, 2.0], 0.5), run(tmp_path / "b", [6.0, 4.0], 0.7)
    main(
        [f"both={one},{two}", f"one={one}", "--values", "loss:diffusion_loss", "heldout:diffusion/0.6", "--every", "1"]
        + ["--stages", "-o", str(tmp_path / "curves.png")]
    )
    told = capsys.readouterr().out
    assert "diffusion_loss, both: 3.0000 (2.0000 to 4.0000) after 20 windows" in told
    assert "diffusion/0.6, one: 0.5000 after 20 windows" in told
    assert Image.open(tmp_path / "curves.png").width > 900
    page = tmp_path / "page.md"
    page.write_text("<!-- c: begin -->\n<!-- c: end -->\n")
    main([f"both={one},{two}", "--values", "loss:diffusion_loss", "--every", "1", "-o", str(tmp_path / "p/c.png"),
          "--page", str(page), "c"])  # fmt: skip
    assert "](p/c.png)" in page.read_text() and "| both | 3.0000 (2.0000 to 4.0000) |" in page.read_text()
    with pytest.raises(SystemExit, match="two curves are called 'a'"):
        main([f"a={one}", f"a={two}", "--values", "loss:diffusion_loss", "-o", str(tmp_path / "no.png")])


@pytest.mark.parametrize(
    "value, title",
    [
        ("heldout:diffusion/0.95", "velocity, interpolation, t = 0.95"),
        ("heldout:diffusion_unplanned/0.95", "velocity without planning signals, interpolation, t = 0.95"),
        ("heldout:diffusion/task/image-to-video", "velocity, image-to-video"),
        ("heldout:diffusion/masked/4", "velocity, 4 frames sampled"),
        ("heldout:planner", "reconstruction, interpolation"),
        ("heldout:quality/mid_ssim", "quality/mid_ssim"),
        ("loss:diffusion_loss", "velocity, all tasks"),
    ],
)
def test_titles_say_what_is_drawn(value, title):
    assert title_of(value) == title
