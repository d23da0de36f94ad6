"""The degraded plan at toy size: what is measured, against what, and that it goes on."""

import json

import pytest
from PIL import Image

from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline
from training.data.recipes import moving_shapes
from training.reproduction import degraded_signals


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("degraded_signals")
    tiny_pipeline().save_pretrained(folder / "checkpoint")
    moving_shapes.record(folder / "clips", clips=2, num_frames=6, size=SIZE)
    small = ["--size", str(SIZE), "--num-frames", "3", "--stride", "1", "--steps", "1", "--dtype", "float32"]
    return [
        str(folder / "checkpoint"),
        str(folder / "clips"),
        "--squares",
        "2",
        "--noise",
        "1",
        "--dropped",
        "0.5",
        "--reach",
        "1",
        "--sides",
        "4",
        *small,
    ]


def test_every_changed_plan_is_held_against_the_planners_own_on_the_same_windows(arguments, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Plans\n<!-- scores: begin -->\n<!-- scores: end -->\n<!-- information: begin -->\n<!-- information: end -->\n<!-- of others: begin -->\nkept\n<!-- of others: end -->\n"
    )
    degraded_signals.main([*arguments, "-o", str(tmp_path), "--page", str(page)])
    record = json.loads((tmp_path / "results.json").read_text())
    suffixes = [alteration.suffix for alteration in degraded_signals.alterations([1.0], [0.5], [2], [1], [4])]
    rows = {row["method"]: row for row in record["rows"]}
    assert [row["method"] for row in record["rows"] if row["kind"] == "ours"] == [
        "ours, 1 step" + suffix for suffix in ["", *suffixes]
    ]
    found = {pair["than"]: pair["difference"]["ssim"] for pair in record["differences"]}
    for suffix in suffixes:
        expected = rows["ours, 1 step"]["ssim"] - rows["ours, 1 step" + suffix]["ssim"]
        assert found["ours, 1 step" + suffix] == pytest.approx(expected, abs=1e-6)
    assert len(record["windows"]) == 4 and len(record["weights"]) == 64
    assert Image.open(tmp_path / "chart.png").width > 1200 and Image.open(tmp_path / "summary.png").width > 300
    assert set(record["information"]) == set(suffixes) and all(0 <= v <= 1 for v in record["information"].values())
    assert "](summary.png)\n\n| plan | information left |" in page.read_text()
    assert page.read_text().count("| ours, 1 step") == 1 + len(suffixes) and "\nkept\n" in page.read_text()

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    degraded_signals.main([*arguments, "-o", str(tmp_path), "--page", str(page)])
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    assert json.loads((tmp_path / "results.json").read_text()) == record


def test_the_chart_has_the_loss_of_altered_signals_with_its_interval():
    """Differences are of the own signals to the altered ones, so losses lie below zero."""
    altered = degraded_signals.alterations([1.0], [0.5], [2], [1])
    differences = {
        "ours" + alteration.suffix: {
            "difference": {degraded_signals.SCORE: 0.01 * number},
            "intervals": {degraded_signals.SCORE: (0.01 * number - 0.002, 0.01 * number + 0.004)},
        }
        for number, alteration in enumerate(altered, start=1)
    }
    noise, dropped, means, attention = degraded_signals.panels(differences, "ours", [1.0], [0.5], [2], [1])

    def told(points):
        return [pytest.approx((p.x, p.y, p.low, p.high)) for p in points]

    assert told(noise.curves[""])[1] == (1.0, -0.01, -0.014, -0.008)
    assert told(dropped.curves[""])[1:] == [(0.5, -0.02, -0.024, -0.018), (1, -0.07, -0.074, -0.068)]
    assert told(means.curves["of each frame"])[1] == (2, -0.03, -0.034, -0.028)
    assert told(means.curves["of all sampled frames"]) == [(1, -0.04, -0.044, -0.038)]
    assert told(attention.curves[""]) == [(1, -0.05, -0.054, -0.048)]
    assert noise.levels == {"signals dropped": pytest.approx(-0.07)}


def test_a_change_that_is_none_is_refused_before_anything_is_sampled(arguments, tmp_path):
    with pytest.raises(SystemExit, match="share of dropped tokens is 1"):
        degraded_signals.main([*arguments, "--dropped", "1", "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
