"""The charts of a run, from its records: training losses, held-out losses, held-out quality beside simple methods.

`report.py` draws them; a `Panel` is one chart.
"""

from collections.abc import Callable, Mapping, Sequence

from training.config.schema import RunConfig
from training.figures.charts import Panel, Point
from training.monitoring.heldout_trend import TREND_OVER, mean_loss, trend


LOSSES = ("planner", "diffusion/0.2", "diffusion/0.6", "diffusion/0.95", "diffusion_unplanned/0.95")
QUALITY = {"mid_ssim": "SSIM of the middle frame", "motion": "Motion", "sharpness": "Sharpness"}
BEST, CEILING = "best so far", "autoencoder's ceiling"


def training_panels(config: RunConfig, records: Sequence[dict]) -> list[Panel]:
    """Return the chart of the training losses; none without points."""
    steps = [record for record in records if "loss" in record]
    curves = {name: _points(steps, lambda r, name=name: r.get(name)) for name in ("planner_loss", "diffusion_loss")}
    return _losses("Training losses", config, records, curves)


def heldout_panels(config: RunConfig, records: Sequence[dict]) -> list[Panel]:
    """Return the chart of the held-out losses; none without points."""
    curves = {name: _points(records, lambda r, name=name: r.get("heldout", {}).get(name)) for name in LOSSES}
    return _losses("Held-out losses", config, records, curves)


def trends(config: RunConfig, records: Sequence[dict]) -> list[str]:
    """Return a sentence for each stage that has several measurements: last and best mean loss, falling or flat."""
    sentences = []
    for stage in config.stages:
        means = [
            (record["step"], mean)
            for record in records
            if record["stage"] == stage.name
            and (mean := mean_loss(record.get("heldout", {}), stage.trains)) is not None
        ]
        way = trend([mean for _, mean in means][-TREND_OVER:])
        if way:
            best = min(means, key=lambda pair: pair[1])
            sentences.append(
                f"{stage.name}: the mean over all patterns is {means[-1][1]:.4f}, {way}; its best is {best[1]:.4f} at "
                f"step {best[0]}."
            )
    return sentences


def quality_panels(
    config: RunConfig, records: Sequence[dict], simple: Mapping[str, Mapping[str, Mapping[str, float | str]]]
) -> list[Panel]:
    """Return a chart for each score of `QUALITY` that has points, beside simple methods and the ceiling.

    Args:
        config: of the run.
        records: of `metrics.jsonl`.
        simple: scores by stage and method, see `simple_scores.py`; those of the last stage that has some are shown.
    """
    last = next((simple[stage.name] for stage in reversed(config.stages) if stage.name in simple), {})
    panels = []
    for score, title in QUALITY.items():
        points = _points(records, lambda r, score=score: r.get("heldout", {}).get(f"quality/{score}"))
        if not points:
            continue
        curves = {"ours": points}
        if score == "mid_ssim" and len(points) > 1:
            curves[BEST] = _best_so_far(points)
        levels = {name: own[score] for name, own in last.items() if isinstance(own.get(score), float)}
        levels[CEILING if score == "mid_ssim" else "the truth"] = 1.0
        panels.append(
            Panel(title, "global step", "", curves, levels=levels, bands=bands(config, records), dashed=(BEST,))
        )
    return panels


def bands(config: RunConfig, records: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Return the first and the last global step of each stage that has begun."""
    ends: dict[str, int] = {}
    for record in records:
        ends[record["stage"]] = record["global_step"]
    found, before = {}, 0
    for stage in config.stages:
        if stage.name in ends:
            found[stage.name] = (before, ends[stage.name])
            before = ends[stage.name]
    return found


def _losses(
    title: str, config: RunConfig, records: Sequence[dict], curves: Mapping[str, Sequence[Point]]
) -> list[Panel]:
    drawn = {label: points for label, points in curves.items() if points}
    log_y = all(point.y > 0 for points in drawn.values() for point in points)
    return [Panel(title, "global step", "", drawn, bands=bands(config, records), log_y=log_y)] if drawn else []


def _points(records: Sequence[dict], value: Callable[[dict], float | str | None]) -> list[Point]:
    """Return the finite values at their global steps; JSON has the others as text."""
    pairs = ((record["global_step"], value(record)) for record in records)
    return [Point(step, each) for step, each in pairs if isinstance(each, (int, float))]


def _best_so_far(points: Sequence[Point]) -> list[Point]:
    best, found = points[0].y, []
    for point in points:
        best = max(best, point.y)
        found.append(Point(point.x, best))
    return found
