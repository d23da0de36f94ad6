"""Tables in markdown: the one function that lays them out, and the tables of scores made with it.

The rows come from `scores.py`; the files of an evaluation are written by `results.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


# In the order of the table; a column that not all rows have is left out.
COLUMNS = {
    "mid_ssim": "mid SSIM",
    "mid_psnr": "mid PSNR",
    "mid_lpips": "mid LPIPS",
    "mid_lpips_vgg": "mid LPIPS (VGG)",
    "ssim": "mean SSIM",
    "psnr": "mean PSNR",
    "lpips": "mean LPIPS",
    "lpips_vgg": "mean LPIPS (VGG)",
    "fid": "FID",
    "fvd": "FVD",
    "fd_efficientnet_lite0": "FD-EfficientNetLite0",
    "fd_window": "FD-window",
    "motion": "motion",
    "evenness": "evenness",
    "sharpness": "sharpness",
}
DIGITS = dict.fromkeys(COLUMNS, 3)
DIGITS |= dict.fromkeys(("mid_psnr", "psnr", "motion", "evenness", "sharpness"), 2)
DIGITS |= dict.fromkeys(("fid", "fvd", "fd_efficientnet_lite0", "fd_window"), 1)
SHOWN_INTERVALS = ("mid_ssim", "mid_lpips")  # in the table; the files have all


def markdown_table(columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in markdown, with bars in cells escaped and no line break at its end."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    head, *lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + "---|" * len(columns), *lines])


def present_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns that all rows have, so that evaluations with different metrics can share a table."""
    return [column for column in COLUMNS if rows and all(column in row for row in rows)]


def score_cell(row: Mapping[str, Any], column: str, with_interval: bool = True) -> str:
    """Return a score of a row of `results.json` as text, followed by its 95% interval where there is one."""
    digits, interval = DIGITS[column], row["intervals"].get(column) if with_interval else None
    value, *ends = ("–" if math.isnan(value) else f"{value:.{digits}f}" for value in (row[column], *(interval or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


def score_table(rows: Sequence[Mapping[str, Any]], intervals: Sequence[str] = SHOWN_INTERVALS) -> str:
    """Return the rows of `results.json` as a table, with the 95% intervals of some columns."""
    columns = present_columns(rows)
    cells = [[row["method"], *(score_cell(row, column, column in intervals) for column in columns)] for row in rows]
    return markdown_table(["method", *(COLUMNS[column] for column in columns)], cells)


def pace_table(tables: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Return the rows of several `results.json` below each other, each with the pace of its windows."""
    columns = present_columns([row for _, rows in tables for row in rows])
    cells = [
        [pace, row["method"], *(score_cell(row, column, column in SHOWN_INTERVALS) for column in columns)]
        for pace, rows in tables
        for row in rows
    ]
    return markdown_table(["pace", "method", *(COLUMNS[column] for column in columns)], cells)


def spread_table(rows: Sequence[Mapping[str, Any]], over: str = "seeds") -> str:
    """Return the standard deviations over seeds (or `over`) of rows that have several; empty if none has."""
    rows = [row for row in rows if row["spread"]]
    if not rows:
        return ""
    columns = present_columns(rows)
    cells = [[row["method"], *(f"{row['spread'][c]:.{DIGITS[c] + 1}f}" for c in columns)] for row in rows]
    return markdown_table([f"standard deviation over {over}", *(COLUMNS[column] for column in columns)], cells)


def difference_table(differences: Sequence[Mapping[str, Any]]) -> str:
    """Return paired differences with their 95% intervals as a table; empty if there is nothing to compare."""
    if not differences:
        return ""
    columns = present_columns([found["difference"] for found in differences])
    rows = []
    for found in differences:
        cells = []
        for column in columns:
            low, high = found["intervals"][column]
            value, low, high = (f"{v:+.{DIGITS[column]}f}" for v in (found["difference"][column], low, high))
            cells.append(f"{value} [{low}, {high}]")
        rows.append([f"{found['method']} − {found['than']}", *cells])
    return markdown_table(["difference", *(COLUMNS[column] for column in columns)], rows)
