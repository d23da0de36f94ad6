"""Tables and charts of `long_video.py`, from what it writes into `results.json`."""

from collections.abc import Sequence
from typing import Any

from ..chart import Panel, Point
from ..evaluation.tables import difference_table, markdown_table


INTERVALS = ("ssim", "lpips", "motion", "sharpness")  # shown in the tables


def tables_of(record: dict[str, Any]) -> str:
    """All of it in markdown."""
    slow, extended, far = record["slow_motion"], record["extension"], record["far"]
    lines = ["| frames | " + " | ".join(f"motion, {clip}" for clip in far["clips"]) + " | "]
    lines[0] += " | ".join(f"sharpness, {clip}" for clip in far["clips"]) + " |"
    lines.append("|---|" + "---|" * 2 * len(far["clips"]))
    for block in far["blocks"]:
        cells = [f"{value:.2f}" for value in (*block["motion"], *block["sharpness"])]
        lines.append(f"| {block['first']} to {block['last']} | " + " | ".join(cells) + " |")
    spread = "; ".join(f"{name} {values[0]:.2f} to {values[-1]:.2f}" for name, values in far["true_clips"].items())
    parts = [
        "Slow motion, on the frames that are painted at every distance:",
        markdown_table([found for found in slow["rows"] if found["level"] is None], INTERVALS),
        "Slow motion by level of the recursion:",
        markdown_table([found for found in slow["rows"] if found["level"] is not None], INTERVALS),
        difference_table(slow["differences"]),
        "Extension, by window of the chain:",
        markdown_table(extended["rows"], INTERVALS),
        difference_table(extended["differences"]),
        f"Far extension, relative to the mean of the true clips (which lie from {spread}):",
        "\n".join(lines),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def slow_motion_panels(slow: dict[str, Any]) -> list[Panel]:
    """Charts of part 1: scores on the common frames by distance."""
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
    """Charts of parts 2 and 3: scores by frame."""
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
