"""The chart of Table 3 at our size: what planning small and once saves, from the measured table of its page."""

import re

from .drawing import Sheet
from .scores import RESULTS


NAMES = {
    "planner at low resolution, once (MarDini)": "MarDini",
    "the same, spatio-temporal attention": "spatio-temporal attention",
    "planner at low resolution, at every step": "planner at every step",
    "planner at full resolution, once": "planner at full resolution",
    "the same, spatio-temporal attention (symmetric)": "full resolution, spatio-temporal (symmetric)",
    "planner at full resolution, at every step": "planner at full resolution, every step",
}


def read_ratios() -> dict[str, tuple[float, float]]:
    """Return how many times MarDini's seconds each form takes at 64x64 and at 256x256."""
    text = (RESULTS / "table_3.md").read_text(encoding="utf-8")
    table = text.partition("## Our size, measured")[2].partition("Operations of the same windows")[0]
    found: dict[str, tuple[float, float]] = {}
    for line in re.findall(r"^\| \w.*", table, re.M):
        name, _, small, _, large, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        found[NAMES[name]] = (float(small.split(" ")[0]), float(large.split(" ")[0]))
    return found


def asymmetry(scheme: str) -> str:
    """Draw a bar for each form at both sizes."""
    ratios = read_ratios()
    sheet = Sheet(980, 70 + 34 * len(ratios), "Seconds of a window, in times MarDini's, at two sizes", scheme)
    left, width = 340, 280
    most = max(ratio for pair in ratios.values() for ratio in pair)
    for number, size in enumerate(("64x64", "256x256")):
        x = left + number * (width + 40)
        sheet.text(x, 26, f"{size}: times MarDini's seconds", 13, "soft")
        for line, (name, pair) in enumerate(ratios.items()):
            y = 44 + 34 * line
            ours = "model" if name == "MarDini" else "line"
            if number == 0:
                sheet.text(left - 14, y + 16, name, 13, align="right", bold=name == "MarDini")
            length = round(width * pair[number] / (most + 0.6), 1)
            sheet.box(x, y, length, 22, ours, "model-fill" if name == "MarDini" else "faint", radius=3)
            sheet.text(x + length + 8, y + 16, f"{pair[number]:g}", 13)
    return sheet.svg()
