import json

import pytest
from PIL import Image

from training.evaluation.results import read_results
from training.reproduction import released_models


def row(method, kind, ssim, distance, motion=0.5):
    scores = {"mid_ssim": ssim, "mid_lpips": 0.1, "motion": motion, "fd_window": distance}
    return {"method": method, "kind": kind, **scores, "intervals": dict.fromkeys(scores, [0.0, 1.0]), "spread": {}}


def difference(than, ssim, lpips):
    return {
        "method": "ours, 25 steps",
        "than": than,
        "difference": {"mid_ssim": sum(ssim) / 2, "mid_lpips": sum(lpips) / 2},
        "intervals": {"mid_ssim": ssim, "mid_lpips": lpips},
    }


@pytest.fixture
def folder(tmp_path):
    """Results of one evaluation: ahead of copying, behind optical flow."""
    results = {
        "stride": 2,
        "seeds": [0, 1],
        "windows": [{"clip": "a", "start": 0}, {"clip": "a", "start": 4}],
        "rows": [
            row("copy", "baseline", 0.3, 20.0, motion=None),
            row("flow", "baseline", 0.5, 40.0),
            row("autoencoder", "ceiling", 0.9, 1.0),
            row("ours, 25 steps", "ours", 0.4, 30.0),
        ],
        "differences": [
            difference("copy", [0.05, 0.15], [-0.2, -0.1]),
            difference("flow", [-0.2, -0.01], [-0.1, 0.1]),
            difference("ours, 25 steps, planning signal dropped", [-0.2, -0.1], [0.1, 0.2]),  # no simple method
        ],
    }
    (tmp_path / "laps").mkdir()
    (tmp_path / "laps/results.json").write_text(json.dumps(results))
    return tmp_path


def test_ahead_or_behind_is_said_only_where_the_interval_leaves_out_zero(folder):
    said = released_models.judge(read_results(folder / "laps"))
    assert "- mid SSIM: ahead of copy; behind flow\n" in said and "dropped" not in said
    assert "- mid LPIPS: ahead of copy; not clearly different from flow\n" in said  # less LPIPS is better
    assert said.endswith("30.0, below flow (40.0); **above** copy (20.0)")  # the ceiling is no simple method


def test_blocks_of_pages_are_filled_by_their_names(folder):
    page, readme = folder / "page.md", folder / "README.md"
    page.write_text("# Page\n<!-- laps: begin -->\n<!-- laps: end -->\nby hand\n")
    readme.write_text("<!-- laps, short: begin -->\n<!-- laps, short: end -->\n")
    released_models.main([str(folder), str(page), str(readme)])
    for text in (page.read_text(), readme.read_text()):
        assert "2 windows of 1 clips, every second frame, mean of the seeds 0, 1." in text
        assert "| copy | 0.300 [0.000, 1.000] |" in text and "| – |" in text  # a ratio to what stands still
    assert "FD-window" in page.read_text() and page.read_text().endswith("by hand\n")
    assert "FD-window" not in readme.read_text()


def test_a_page_is_filled_whole_or_only_where_it_is_asked_for(folder):
    page = folder / "page.md"
    page.write_text("<!-- laps: begin -->\n<!-- laps: end -->\n<!-- robot: begin -->\nolder\n<!-- robot: end -->\n")
    before = page.read_text()
    with pytest.raises(SystemExit, match="no .*robot/results.json; run training.evaluate with -o"):
        released_models.main([str(folder), str(page)])
    assert page.read_text() == before  # not the laps alone, unasked
    with pytest.raises(SystemExit, match="no page has a block for lap; they have laps, robot"):
        released_models.main([str(folder), str(page), "--only", "lap"])
    released_models.main([str(folder), str(page), "--only", "laps"])
    assert "| copy | 0.300 [0.000, 1.000] |" in page.read_text()
    assert page.read_text().endswith("<!-- robot: begin -->\nolder\n<!-- robot: end -->\n")


def test_a_contact_sheet_keeps_every_pixel(folder):
    sheet = Image.radial_gradient("L").convert("RGB").rotate(45)
    sheet.save(folder / "laps/sheet_0.png")
    released_models.main([str(folder), "--picture", f"laps={folder / 'small.png'}"])
    sheet.crop((0, 0, 64, 64)).save(folder / "laps/planning_0.png")
    released_models.main([str(folder), "--picture", f"laps/planning_0.png={folder / 'plan.png'}"])
    assert Image.open(folder / "plan.png").size == (64, 64)
    with pytest.raises(SystemExit, match="there is no .*robot/sheet_0.png"):
        released_models.main([str(folder), "--picture", f"robot={folder / 'small.png'}"])
    small = Image.open(folder / "small.png")
    assert small.mode == "RGB" and small.tobytes() == sheet.tobytes()


def other_sampling(folder, **changed):
    """Beside `laps`, the same windows sampled in another way, with the `changed` facts."""
    results = {**read_results(folder / "laps"), **changed}
    results["rows"] = [row("copy", "baseline", 0.3, 20.0), row("ours, 25 steps, guidance 2", "ours", 0.45, 25.0)]
    (folder / "guided").mkdir()
    (folder / "guided/results.json").write_text(json.dumps(results))


def test_a_short_table_may_hold_ours_sampled_in_another_way(folder):
    other_sampling(folder)
    page = folder / "page.md"
    for only in ([], ["--only", "guided"], ["--only", "laps"]):
        page.write_text("<!-- laps + guided, short: begin -->\n<!-- laps + guided, short: end -->\n")
        released_models.main([str(folder), str(page), *only])
        found = [line.split(" | ")[0].strip("| ") for line in page.read_text().splitlines() if line.startswith("|")]
        assert found[2:] == ["copy", "flow", "autoencoder", "ours, 25 steps", "ours, 25 steps, guidance 2"]


@pytest.mark.parametrize(
    "changed, told",
    [({"stride": 3}, "stride"), ({"seeds": [0]}, "seeds"), ({"sampled_by": {"checkpoint": "b"}}, "sampled_by")],
)
def test_results_of_other_windows_seeds_or_weights_share_no_table(folder, changed, told):
    other_sampling(folder, **changed)
    page = folder / "page.md"
    page.write_text("<!-- laps + guided, short: begin -->\n<!-- laps + guided, short: end -->\n")
    with pytest.raises(SystemExit, match=told):
        released_models.main([str(folder), str(page)])


def test_only_a_short_table_is_of_several_results(folder):
    other_sampling(folder)
    page = folder / "page.md"
    page.write_text("<!-- laps + guided: begin -->\n<!-- laps + guided: end -->\n")
    with pytest.raises(SystemExit, match="call it 'laps . guided, short'"):
        released_models.main([str(folder), str(page)])
