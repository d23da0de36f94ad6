"""Charts of lines with intervals, for the report of a run and for the pages of `docs/results/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, NullLocator


PNG = {"dpi": 100, "bbox_inches": "tight"}


@dataclass(frozen=True)
class Point:
    """A point of a curve with its interval, if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One chart of a picture.

    Attributes:
        title: above the chart.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        curves: points by the label of their curve.
        levels: heights by label, drawn as thin lines, such as a simple method's score.
        marks: places of the horizontal axis by label, drawn as thin lines, such as the end of a stage.
        bands: first and last place of the horizontal axis by label, every other one shaded, such as stages.
        dashed: labels of curves that are drawn thin and dashed, such as the best so far.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the vertical axis is logarithmic.
        ticks: labelled places of the horizontal axis; matplotlib's choice if empty.
    """

    title: str
    x_label: str
    y_label: str
    curves: Mapping[str, Sequence[Point]]
    levels: Mapping[str, float] | None = None
    marks: Mapping[str, float] | None = None
    bands: Mapping[str, tuple[float, float]] | None = None
    dashed: Sequence[str] = ()
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[float] = ()


def draw(path: Path, panels: Sequence[Panel], width: float = 5.2) -> Path:
    """Draw panels side by side into one PNG.

    Args:
        path: the file; its folder is created.
        panels: at least one.
        width: of a panel in inches.

    Raises:
        ValueError: if there is no panel, or one without points.
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
            style = {"linewidth": 0.9, "linestyle": "--", "color": "0.4"} if label in panel.dashed else marker
            (line,) = axes.plot(x, [point.y for point in points], label=label, **{"linewidth": 1.4, **style})
            ranges = [(p.x, p.low, p.high) for p in points if p.low is not None and p.high is not None]
            if len(ranges) > 1:
                axes.fill_between(*zip(*ranges), color=line.get_color(), alpha=0.15, linewidth=0)
            elif ranges:  # a single point has no area to fill
                axes.vlines(*ranges[0], color=line.get_color(), alpha=0.5, linewidth=1.4)
        for label, height in (panel.levels or {}).items():
            axes.axhline(height, color="0.6", linewidth=0.8, linestyle="--", zorder=1.8)
            place = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom"}
            axes.text(0.01, height, label, color="0.45", fontsize=7, **place)
        for label, x in (panel.marks or {}).items():
            axes.axvline(x, color="0.8", linewidth=0.8, zorder=0)
            place = {"transform": axes.get_xaxis_transform(), "ha": "right", "va": "top", "rotation": 90}
            axes.text(x, 0.98, label, color="0.5", fontsize=7, **place)
        for number, (label, (first, last)) in enumerate((panel.bands or {}).items()):
            axes.axvspan(first, last, facecolor="0.95" if number % 2 else "none", edgecolor="none", zorder=-1)
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text((first + last) / 2, 1.005, label, color="0.5", fontsize=7, **place)
        if panel.log_x:
            axes.set_xscale("log")
        if panel.log_y:
            axes.set_yscale("log")
            # Losses span about one decade, so label round numbers and not powers of ten.
            axes.yaxis.set_major_locator(AutoLocator())
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if panel.ticks:
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
        axes.set_title(panel.title, pad=14 if panel.bands else None)
        axes.grid(axis="y", color="0.92")
        if len(panel.curves) > 1 or "" not in panel.curves:
            axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **PNG)
    return path
