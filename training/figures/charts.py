"""One kind of chart for the report of a run and for the pages of `docs/results/`: lines over an axis, each with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, NullLocator


PNG = {"dpi": 100, "bbox_inches": "tight"}


@dataclass(frozen=True)
class Point:
    """A value at a place of the axis, and where its interval begins and ends, if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One of the charts side by side in a picture.

    Attributes:
        title, x_label, y_label: what is shown.
        curves: by their label, points in the order of the axis.
        levels: by its label, a height that a thin line marks, such as a simple method's.
        marks: by its label, a place of the axis that a thin line marks, such as the end of a stage.
        log_x, log_y: whether an axis is logarithmic.
        ticks: places of the axis that are labelled; all that matplotlib chooses if empty.
    """

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, Sequence[Point]]
    levels: Mapping[str, float] | None = None
    marks: Mapping[str, float] | None = None
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] = ()


def draw(path: Path, panels: Sequence[Panel], width: float = 5.2) -> Path:
    """Draws the panels from left to right into one PNG.

    Args:
        path: its folder is made.
        panels: at least one.
        width: of a panel, inches.

    Raises:
        ValueError: if there is no panel, or one without a point.
    """
    empty = [panel.title for panel in panels if not any(panel.curves.values())]
    if not panels or empty:
        raise ValueError(f"nothing to draw: {'panel ' + repr(empty[0]) + ' has no points' if empty else 'no panels'}")
    figure = Figure(figsize=(width * len(panels), 3.8))
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        for label, points in panel.curves.items():
            x = [point.x for point in points]
            marker = {"marker": "o", "markersize": 3} if len(points) < 40 else {}
            (line,) = axes.plot(x, [point.y for point in points], label=label, linewidth=1.4, **marker)
            ranges = [(p.x, p.low, p.high) for p in points if p.low is not None and p.high is not None]
            if len(ranges) > 1:
                axes.fill_between(*zip(*ranges), color=line.get_color(), alpha=0.15, linewidth=0)
            elif ranges:  # nothing lies between the points of a curve that has one
                axes.vlines(*ranges[0], color=line.get_color(), alpha=0.5, linewidth=1.4)
        for label, height in (panel.levels or {}).items():
            axes.axhline(height, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            place = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom"}
            axes.text(0.01, height, label, color="0.45", fontsize=7, **place)
        for label, x in (panel.marks or {}).items():
            axes.axvline(x, color="0.8", linewidth=0.8, zorder=0)
            place = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "top", "rotation": 90}
            axes.text(x, 0.98, label, color="0.5", fontsize=7, **place)
        if panel.log_x:
            axes.set_xscale("log")
        if panel.log_y:
            axes.set_yscale("log")
            # Losses span about a decade: round numbers, not powers of ten.
            axes.yaxis.set_major_locator(AutoLocator())
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if panel.ticks:
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.grid(axis="y", color="0.92")
        if len(panel.curves) > 1 or "" not in panel.curves:
            axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **PNG)
    return path
