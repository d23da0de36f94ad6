"""The page on what became of a run."""

import json
import re

import pytest
import yaml
from accelerate import Accelerator
from PIL import Image

from pipelines_tests.training.test_train_mardini import explode, make_config, make_run
from training import report
from training.config.schema import RunConfig
from training.losses import MarDiniTrainingModel
from training.monitoring.environment import describe_start, git_revision, record_start
from training.report import write_report
from training.train_mardini import write_status


def record(folder, run, state="finished", reason=None):
    """What `train` leaves beside what the loop writes."""
    (folder / "config.json").write_text(run.config.model_dump_json())
    record_start(folder, run.accelerator)
    write_status(folder, {"state": state, "reason": reason, "global_step": run.global_step})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder, make_config(quality_windows=2, sample_every=100, sample_windows=1, sample_steps=1, seed=7))
    run.train()
    record(folder, run)
    return folder


def test_a_finished_run_is_told_whole(finished):
    page = write_report(finished).read_text()
    assert page.startswith("# test\n\n**Finished** at step 8")
    for title in ("## Curves", "## Held-out", "## Samples", "## Time", "## Seed and environment", "## Configuration"):
        assert title in page
    assert "Seed 7:" in page and "No step was left out as not finite." in page
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert {"report/training.png", "report/heldout.png", "report/quality.png"} <= set(links)
    assert "samples/00000008-joint/interpolation.png" in links and "samples/00000008-joint/image-to-video.mp4" in links
    assert all((finished / link).is_file() for link in links)
    for curve in (finished / "report").iterdir():
        with Image.open(curve) as picture:
            assert picture.width > 500 and len(picture.convert("RGB").getcolors(2**24)) > 3  # something is drawn


def test_stages_are_told_with_their_time_and_last_heldout_losses(finished):
    page = write_report(finished).read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    times = [row for row in rows if row[0] in ("planner", "transformer", "joint") and row[3].endswith(" s")]
    assert [row[:3] for row in times] == [["planner", "3", "6"], ["transformer", "2", "4"], ["joint", "3", "6"]]
    assert all(float(row[4]) > 0 and row[5].endswith("%") for row in times)
    heldout = next(row for row in rows if row[0] == "joint")
    told = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [line["heldout"] for line in told if "heldout" in line][-1]
    assert heldout[2] == str(last["planner"]) and heldout[5] == str(last["quality/mid_psnr"])


def test_the_configuration_of_the_page_is_the_runs(finished):
    page = write_report(finished).read_text()
    config = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert RunConfig.model_validate(config).seed == 7 and config["stages"][2]["planner_loss_weight"] == 0.5


def test_it_is_made_again_from_the_folder_alone(finished, capsys):
    first = write_report(finished).read_text()
    (finished / "report.md").unlink()
    report.main([str(finished)])
    assert (finished / "report.md").read_text() == first and "report.md" in capsys.readouterr().out


def test_a_run_that_stopped_or_failed_says_why(tmp_path, monkeypatch):
    run = make_run(tmp_path, make_config(max_skipped_steps=1))
    monkeypatch.setattr(MarDiniTrainingModel, "forward", explode(run, steps={4}, attempts=(0, 1)))
    with pytest.raises(RuntimeError) as error:
        run.train()
    record(tmp_path, run, "failed", f"RuntimeError: {error.value}")
    page = write_report(tmp_path).read_text()
    assert "**Failed** at step 4" in page and "Why: RuntimeError: 1 steps in a row were not finite" in page
    assert "## 2 steps left out" in page and "| 5 | transformer | 0 |" in page and ".mp4 from frame" in page
    record(tmp_path, run, "stopped", "signal SIGTERM")
    page = write_report(tmp_path).read_text()
    assert "**Stopped** at step 4" in page and "Why: signal SIGTERM" in page and "Started 2 times" in page


def test_a_run_that_was_killed_at_once_has_a_page_too(tmp_path):
    (tmp_path / "config.json").write_text(make_config().model_dump_json())
    (tmp_path / "metrics.jsonl").write_text('{"global_step": 1, "stage": "pl')
    assert "**Never begun**" in write_report(tmp_path).read_text()
    write_status(tmp_path, {"state": "running", "reason": None, "global_step": 0})
    page = write_report(tmp_path).read_text()
    assert "**Running** at step 0" in page and "the run was killed" in page and "## Curves" not in page


def test_a_folder_that_is_no_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json; give runs/NAME"):
        write_report(tmp_path)
    with pytest.raises(SystemExit, match="error: .*no config.json"):
        report.main([str(tmp_path)])


def test_a_start_tells_versions_and_processors(tmp_path):
    start = describe_start(Accelerator(cpu=True))
    assert start["processes"] == 1 and start["device"] == "cpu" and start["torch"] and start["processor"]
    assert json.loads(json.dumps(start)) == start
    assert git_revision(tmp_path) is None
