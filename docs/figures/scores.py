"""The chart of the results page: three models beside simple methods, from the tables of the result pages."""

import math
import re
from pathlib import Path

from .drawing import Sheet


RESULTS = Path(__file__).resolve().parents[1] / "results"
WORLDS = (
    ("CarRacing", "checkpoints.md", "carracing"),
    ("real laps of a known track", "checkpoints.md", "racing-stride-2"),
    ("robot arm, unseen rooms", "robot.md", "interpolation"),
)
METHODS = {
    "copy of the nearest given frame": "copy",
    "cross-fade": "cross-fade",
    "DIS optical flow": "optical flow",
    "best match among training windows": "best match",
    "ours, 25 steps": "ours",
}
SCORES = {"mid SSIM": "more is better", "mid LPIPS": "less is better"}


def read_scores(page: str, block: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return mean, low and high end of the interval by score and method, as the first table of a block has them."""
    text = (RESULTS / page).read_text(encoding="utf-8")
    inside = re.search(rf"<!-- {re.escape(block)}: begin -->\n(.*?)<!-- {re.escape(block)}: end", text, re.S)
    table = re.search(r"^\| method .*?\n\n", inside[1] + "\n\n", re.S | re.M)
    head, _, *rows = (
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in table[0].strip().splitlines()
    )
    found: dict[str, dict[str, tuple[float, float, float]]] = {score: {} for score in SCORES}
    for row in rows:
        for score in SCORES:
            if row[0] in METHODS:
                mean, low, high = map(float, re.findall(r"[\d.]+", row[head.index(score)]))
                found[score][METHODS[row[0]]] = (mean, low, high)
    return found


def scores(scheme: str) -> str:
    """Draw the middle frame's SSIM and LPIPS of every method in every world, with 95% intervals."""
    sheet = Sheet(980, 396, "The checkpoints beside simple methods: SSIM and LPIPS of the middle frame", scheme)
    left, width, gap, top = 124, 250, 34, 76
    names = list(METHODS.values())
    for number, (world, page, block) in enumerate(WORLDS):
        x = left + number * (width + gap)
        sheet.text(x, 24, world, 15, bold=True)
        for half, (score, by_method) in enumerate(read_scores(page, block).items()):
            y = top + 172 * half
            # LPIPS differ so much that each world has its own scale
            most = 1.0 if score == "mid SSIM" else math.ceil(10 * max(high for _, _, high in by_method.values())) / 10
            sheet.text(x, y - 22, f"{score}: {SCORES[score]}", 13, "soft")
            for share in (0, 0.5, 1):
                place = x + width * share
                sheet.line([(place, y - 12), (place, y + 24 * len(names) - 10)], "faint", 1)
                sheet.text(place, y + 24 * len(names) + 4, f"{most * share:g}", 11, "soft", "middle")
            for line, name in enumerate(names):
                colour = "new" if name == "ours" else "line"
                middle = y + 24 * line
                if number == 0:
                    sheet.text(left - 12, middle + 4, name, 13, align="right", bold=name == "ours")
                if name not in by_method:
                    sheet.text(x + 6, middle + 4, "not measured", 11, "soft", italic=True)
                    continue
                mean, low, high = (round(x + width * value / most, 1) for value in by_method[name])
                sheet.line([(x, middle), (mean, middle)], "new-fill" if name == "ours" else "faint", 9)
                sheet.line([(low, middle), (high, middle)], colour, 2)
                sheet.dot(mean, middle, 4.5, colour)
    return sheet.svg()
