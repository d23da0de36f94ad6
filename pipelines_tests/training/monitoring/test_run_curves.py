"""The data behind a run's charts."""

from pathlib import Path

import pytest

from pipelines_tests.training.test_train_mardini import make_config, make_run, records
from training.figures.charts import Point, draw
from training.monitoring.run_curves import (
    BEST,
    CEILING,
    bands,
    heldout_panels,
    quality_panels,
    training_panels,
    trends,
)
from training.monitoring.simple_scores import read_simple_scores


def heldout(step, global_step, stage="joint", **values):
    return {"global_step": global_step, "windows_seen": 1, "stage": stage, "step": step, "heldout": values}


RECORDS = [
    {"global_step": 3, "stage": "planner", "step": 3, "loss": 1.0, "planner_loss": 1.0},
    heldout(3, 3, "planner", **{"planner": 0.5, "planner/masked/3": 0.5}),
    *(
        heldout(2 * n, 3 + 2 * n, **{"quality/mid_ssim": ssim, "quality/motion": 0.5, "quality/sharpness": "nan",
                                     "diffusion/masked/3": 1 - 0.1 * n, "diffusion/0.6": 0.3})
        for n, ssim in enumerate((0.3, 0.5, 0.4, 0.6), 1)
    ),
]  # fmt: skip
SIMPLE = {
    "joint": {"cross-fade": {"mid_ssim": 0.52, "motion": 0.4}, "optical flow": {"mid_ssim": 0.55, "motion": "nan"}}
}


def test_quality_has_a_chart_for_each_score_with_simple_methods_and_ceiling_as_levels(tmp_path):
    ssim, motion = quality_panels(make_config(), RECORDS, SIMPLE)
    assert ssim.levels == {"cross-fade": 0.52, "optical flow": 0.55, CEILING: 1.0}
    assert motion.levels == {"cross-fade": 0.4, "the truth": 1.0}
    assert ssim.curves["ours"][0] == Point(5, 0.3) and [point.y for point in ssim.curves[BEST]] == [0.3, 0.5, 0.5, 0.6]
    assert ssim.dashed == (BEST,) and set(motion.curves) == {"ours"}
    assert ssim.bands == bands(make_config(), RECORDS) == {"planner": (0, 3), "joint": (3, 11)}
    assert draw(tmp_path / "quality.png", [ssim, motion]).stat().st_size > 1000


def test_losses_have_stages_as_bands_and_their_trend_in_words():
    config = make_config()
    (training,), (losses,) = training_panels(config, RECORDS), heldout_panels(config, RECORDS)
    assert set(training.curves) == {"planner_loss"} and set(losses.curves) == {"planner", "diffusion/0.6"}
    assert training.bands == losses.bands == bands(config, RECORDS) and losses.log_y
    assert trends(config, RECORDS) == [
        "joint: the mean over all patterns is 0.6000, falling; its best is 0.6000 at step 8."
    ]
    flat = [heldout(n, n, **{"diffusion/masked/3": 0.5 + 0.001 * (n % 2)}) for n in range(1, 7)]
    assert "flat; its best is 0.5000 at step 2" in trends(config, flat)[0]
    assert heldout_panels(config, []) == [] == quality_panels(config, [], {})


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run in which pictures were asked for."""
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder, make_config(quality_windows=2, sample_windows=1, sample_steps=1))
    (folder / "sample").touch()
    run.train()
    return run


def test_simple_methods_are_scored_once_for_each_stage_that_samples(sampled):
    scores = read_simple_scores(sampled.folder)
    assert list(scores) == ["transformer", "joint"]
    for own in scores.values():
        assert set(own) == {"cross-fade", "optical flow"} and 0 < own["cross-fade"]["mid_ssim"] < 1
        assert own["cross-fade"]["motion"] < 1
    assert "cross-fade 0." in sampled.monitor.readings()["held out"]
    panels = quality_panels(sampled.config, records(sampled.folder), scores)
    assert len(panels) == 3 and all({"cross-fade", "optical flow"} <= panel.levels.keys() for panel in panels)


def test_a_file_in_the_folder_asks_for_pictures_at_the_next_step(sampled):
    assert not (sampled.folder / "sample").exists()
    drawn = [record for record in records(sampled.folder) if "samples" in record]
    assert [(record["stage"], record["step"]) for record in drawn] == [("planner", 1)]
    assert (sampled.folder / Path(drawn[0]["samples"]["interpolation"]["sheet"])).is_file()
