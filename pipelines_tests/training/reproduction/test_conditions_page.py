"""Test what fills the page of conditions: painted motion over told motion, one checkpoint for all rates, copied results."""

import json

import pytest
from PIL import Image

from pipelines_tests.training.reproduction.test_comparison import results
from training.evaluation.methods import TIMES
from training.reproduction import copied_result, rates, told_motion


PAGE = "above\n<!-- told: begin -->\nNot run yet.\n<!-- told: end -->\nbelow\n"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def told(folder, factors):
    """An evaluation whose painted motion is half of what was told."""
    results(folder, 0.0)
    record = json.loads((folder / "results.json").read_text())
    ours = next(row for row in record["rows"] if row["kind"] == "ours")
    record["rows"] = [ours | {"motion": 0.5}]
    for factor in factors:
        told = {"told": {"factor": min(factor, 1.5), "clamped": 0.25 * (factor > 1.5)}, "motion": factor / 2}
        record["rows"].append(ours | {"method": f"{ours['method']}, motion{TIMES}{factor:g}", **told})
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_painted_motion_is_shown_over_the_told_one_in_order(tmp_path, page):
    folder = told(tmp_path / "told", [2, 0.25])
    told_motion.main([str(folder), "--chart", str(tmp_path / "chart.png"), "--page", str(page), "told"])
    lines = [line.split(" | ")[:4] for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines] == ["| times its own motion", "| 0.25", "| 1", "| 2"]
    assert [line[1:3] for line in lines[1:]] == [["0.25", "0%"], ["1.00", "0%"], ["1.50", "25%"]]
    assert [line[3].split()[0] for line in lines[1:]] == ["0.12", "0.50", "1.00"]
    assert "](chart.png)" in page.read_text() and Image.open(tmp_path / "chart.png").width > 100


def test_clips_that_were_told_their_own_motion_alone_make_no_curve(tmp_path):
    with pytest.raises(SystemExit, match="evaluate with --condition-scale"):
        told_motion.main([str(told(tmp_path / "told", [])), "--chart", str(tmp_path / "chart.png")])


@pytest.mark.parametrize("behind, near", [(0.005, "yes"), (0.02, "no")])
def test_a_rate_is_well_served_up_to_a_hundredth_behind(tmp_path, page, behind, near):
    one, alone = results(tmp_path / "one", 0.1), results(tmp_path / "alone", 0.1 + behind)
    rates.main([f"0.08={one},{alone}", "--page", str(page), "told"])
    row = page.read_text().splitlines()[4].strip("| ").split(" | ")
    assert row[0] == "0.08" and row[-2:] == [f"-{behind:.3f} [-{behind:.3f}, -{behind:.3f}]", near]


@pytest.mark.parametrize("text", ["0.08", "fast=a,b", "0=a,b", "0.08=a", "0.08=a,"])
def test_a_rate_that_cannot_be_read_is_refused(text):
    with pytest.raises(SystemExit, match="is not of the form SECONDS=FOLDER,FOLDER"):
        rates.main([text])


def test_rates_of_different_windows_are_refused(tmp_path):
    one, other = results(tmp_path / "one", 0.1), results(tmp_path / "other", 0.1, clips=("a", "b"))
    with pytest.raises(SystemExit, match="which differ"):
        rates.main([f"0.08={one},{other}"])


def test_a_result_is_copied_without_its_command_and_with_its_picture(tmp_path, page):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "found.png")
    (tmp_path / "found.md").write_text("`python -m training.drives /my/folder`\n\nSetting.\n\n| a |\n|---|\n| 1 |\n")
    copy = tmp_path / "pictures" / "found.png"
    copied_result.main(
        [str(tmp_path / "found.md"), "--picture", str(copy), "a red square", "--page", str(page), "told"]
    )
    text = page.read_text()
    assert "![a red square](pictures/found.png)\n\nSetting.\n\n| a |\n|---|\n| 1 |\n<!--" in text
    assert "/my/folder" not in text and copy.read_bytes() == (tmp_path / "found.png").read_bytes()


def test_what_is_no_result_is_not_copied(tmp_path, page):
    with pytest.raises(SystemExit, match="run the program that writes it first"):
        copied_result.main([str(tmp_path / "none.md"), "--page", str(page), "told"])
    (tmp_path / "other.md").write_text("# A page\n\nText.\n")
    with pytest.raises(SystemExit, match="does not begin with the command"):
        copied_result.main([str(tmp_path / "other.md"), "--page", str(page), "told"])
    assert page.read_text() == PAGE
