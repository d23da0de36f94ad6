import json

import pytest
from PIL import Image

from training.evaluation.altered_signals import DROPPED
from training.evaluation.methods import SamplerSettings
from training.reproduction import figure_6a as steps


def results(rows, **changed):
    windows = [{"clip": "a", "start": 0}, {"clip": "b", "start": 0}]
    facts = {"task": "interpolation", "checkpoint": "c", "stride": 2, "seeds": [0], "windows": windows}
    return json.dumps({**facts, **changed, "rows": rows})


def row(method, ssim, kind="ours"):
    scores = {"mid_ssim": ssim, "fd_window": 30.0, "motion": 0.9}
    intervals = {name: [value - 0.01, value + 0.01] for name, value in scores.items() if name != "fd_window"}
    return {"method": method, "kind": kind, **scores, "intervals": intervals}


@pytest.fixture
def two(tmp_path):
    ddim, solvers = tmp_path / "ddim", tmp_path / "solvers"
    for folder in (ddim, solvers):
        folder.mkdir()
    other = row("ours, 25 steps, planning signal dropped", 0.1)
    (ddim / "results.json").write_text(
        results([row("cross-fade", 0.5, "baseline"), row("ours, 25 steps", 0.8), row("ours, 1 step", 0.9), other])
    )
    (solvers / "results.json").write_text(results([row("ours, 25 steps, UniPCMultistepScheduler", 0.7)]))
    return [ddim, solvers]


def test_rows_of_several_results_become_one_table_and_a_curve_for_each_solver(two, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: begin -->\n<!-- table: end -->\n")
    steps.main([*map(str, two), "-o", str(tmp_path / "chart.png"), "--page", str(page)])
    table = page.read_text()
    assert table.count("| DDIM |") == 2 and table.count("| UniPC | 25 | 0.700 [0.690, 0.710] | 30.0 | 0.90") == 1
    assert "LPIPS" not in table and "0.100" not in table  # not measured; sampled without its planning signal
    assert table.splitlines()[1:-1] == capsys.readouterr().out.splitlines()[:5]
    assert Image.open(tmp_path / "chart.png").width > 800  # two panels

    ssim, motion = steps.panels(steps.read_rows(two))
    assert [(point.x, point.y, point.low) for point in ssim.curves["DDIM"]] == [(1, 0.9, 0.89), (25, 0.8, 0.79)]
    assert list(motion.curves) == ["DDIM", "UniPC"] and ssim.ticks == [1, 25]


def test_rows_that_name_their_guidance_are_read(two):
    """As `training.evaluate` calls them."""
    guided = SamplerSettings(guidance_scale=2.5)
    for folder, scheduler in zip(two, ("", "UniPCMultistepScheduler"), strict=True):
        named = [row(guided.label(10, scheduler), 0.8), row(guided.label(10, scheduler, DROPPED), 0.1)]
        (folder / "results.json").write_text(results(named, guidance_scale=2.5))
    assert {key: found["mid_ssim"] for key, found in steps.read_rows(two).items()} == {
        ("DDIM", 10): 0.8,
        ("UniPC", 10): 0.8,
    }


def test_results_of_other_windows_are_refused(two):
    (two[1] / "results.json").write_text(results([row("ours, 2 steps", 0.7)], windows=[{"clip": "a", "start": 5}]))
    with pytest.raises(
        ValueError, match="solvers has other windows, seeds, task, guidance, checkpoint or weights than .*ddim;"
    ):
        steps.read_rows(two)
    (two[1] / "results.json").write_text(results([row("ours, 2 steps", 0.7)], size=128))
    with pytest.raises(ValueError, match="solvers has other windows"):
        steps.read_rows(two)
    for changed in ({"sampled_by": {"checkpoint": "other weights"}}, {"guidance_scale": 2.5}):
        (two[1] / "results.json").write_text(results([row("ours, 2 steps", 0.7)], **changed))
        with pytest.raises(ValueError, match="guidance, checkpoint or weights"):
            steps.read_rows(two)
    (two[1] / "results.json").write_text(results([row("ours, 25 steps", 0.7)]))
    with pytest.raises(ValueError, match="DDIM with 25 steps is in two of the results"):
        steps.read_rows(two)
    (two[0] / "results.json").write_text(results([row("cross-fade", 0.5, "baseline")]))
    with pytest.raises(ValueError, match="no row of ours"):
        steps.read_rows(two[:1])
