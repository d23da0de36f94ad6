"""Tables and charts of `long_video_quality.py`, from its `results.json`."""

from collections.abc import Sequence
from typing import Any

from training.evaluation.methods import BASELINE
from training.evaluation.tables import (
    COLUMNS,
    difference_table,
    markdown_table,
    present_columns,
    score_cell,
    score_table,
)
from training.figures.charts import Panel, Point


INTERVALS = ("ssim", "lpips", "motion", "sharpness")  # shown in the tables


def tables_of(record: dict[str, Any]) -> dict[str, str]:
    """Return all tables in markdown by name.

    "slow motion" covers the frames that are sampled at every distance; "far extension" is relative to the mean of the
    true clips.
    """
    slow, extended, far = record["slow_motion"], record["extension"], record["far"]
    return {
        "slow motion": score_table([found for found in slow["rows"] if found["level"] is None], INTERVALS),
        "slow motion, paired": difference_table(slow["differences"]),
        "slow motion, levels": score_table([found for found in slow["rows"] if found["level"] is not None], INTERVALS),
        "extension": extension_table(extended["rows"]),
        "extension, all scores": score_table(extended["rows"], INTERVALS),
        "extension, paired": difference_table(extended["differences"]),
        "far extension": far_table(far),
    }


def extension_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a row for each window: SSIM of the simple methods, all scores of ours."""
    windows = [
        {found["name"]: found for found in rows if found["window"] == number}
        for number in dict.fromkeys(found["window"] for found in rows)
    ]
    simple = [name for name, found in windows[0].items() if found["kind"] == BASELINE]
    columns = [column for column in present_columns([windows[0]["ours"]]) if column in INTERVALS]
    header = ["frames (window)", *(f"{name}: {COLUMNS['ssim']}" for name in simple)]
    header += [f"ours: {COLUMNS[column]}" for column in columns]
    lines = []
    for number, window in enumerate(windows, start=1):
        ours = window["ours"]
        frames = ours["method"].removeprefix("frames ").removesuffix(", ours")
        cells = [score_cell(window[name], "ssim", with_interval=False) for name in simple]
        lines.append([f"{frames} ({number})", *cells, *(score_cell(ours, column) for column in columns)])
    return markdown_table(header, lines)


def far_table(far: dict[str, Any]) -> str:
    """Return a row for each block of frames, followed by the range of the true clips."""
    header = ["frames", *(f"{score}, {clip}" for score in ("motion", "sharpness") for clip in far["clips"])]
    rows = [
        [
            f"{block['first']} to {block['last']}",
            *(f"{value:.2f}" for value in (*block["motion"], *block["sharpness"])),
        ]
        for block in far["blocks"]
    ]
    spread = "; ".join(f"{name} {values[0]:.2f} to {values[-1]:.2f}" for name, values in far["true_clips"].items())
    return f"{markdown_table(header, rows)}\n\nThe true clips lie from {spread}."


def slow_motion_panels(slow: dict[str, Any]) -> list[Panel]:
    """Return the charts of part 1: scores on the common frames by distance."""
    rows = [found for found in slow["rows"] if found["level"] is None]
    ticks = tuple(sorted({found["distance"] for found in rows}))
    columns = {"ssim": "SSIM", "lpips": "LPIPS", "motion": "motion, true clips' = 1"}
    return [
        Panel(
            "slow motion",
            "distance of given frames",
            label,
            {
                name: [_point(found, "distance", column) for found in rows if found["name"] == name]
                for name in dict.fromkeys(found["name"] for found in rows)
            },
            log_x=True,
            ticks=ticks,
        )
        for column, label in columns.items()
        if column in rows[0]
    ]


def extension_panels(extended: dict[str, Any], far: dict[str, Any]) -> list[Panel]:
    """Return the charts of parts 2 and 3: scores by frame."""
    frames = extended["frames"]
    names = [name for name in dict.fromkeys(found["name"] for found in frames) if name != "autoencoder"]
    ours = [found for found in frames if found["name"] == "ours"]
    columns = ("motion", "sharpness")
    blocks = {
        column: [
            Point((block["first"] + block["last"]) / 2, *_mean_and_range(block[column])) for block in far["blocks"]
        ]
        for column in columns
    }
    return [
        Panel(
            "extension",
            "frame",
            "SSIM",
            {name: [_point(found, "place", "ssim") for found in frames if found["name"] == name] for name in names},
        ),
        Panel(
            "extension, ours",
            "frame",
            "relative to the true clips",
            {column: [_point(found, "place", column) for found in ours] for column in columns},
            levels={"": 1.0},
        ),
        Panel(
            f"far extension, {len(far['clips'])} clips and their range",
            "frame",
            "relative to the true clips",
            blocks,
            levels={"": 1.0},
        ),
    ]


def _point(found: dict[str, Any], x: str, column: str) -> Point:
    return Point(found[x], found[column], *found["intervals"][column])


def _mean_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), min(values), max(values)
