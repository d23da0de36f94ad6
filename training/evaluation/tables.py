"""Results as JSON, CSV, a table in markdown, and contact sheets."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from training.evaluation.altered_signals import DROPPED, OTHER
from training.evaluation.sampling import ADAPTED
from training.evaluation.windows import Windows, given_indices
from training.figures.contact_sheets import contact_sheet


# In the order of the table; a column that no row has is left out.
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
DIGITS = dict.fromkeys(("mid_psnr", "psnr", "motion", "evenness", "sharpness"), 2) | dict.fromkeys(
    ("fid", "fvd", "fd_efficientnet_lite0", "fd_window"), 1
)
SHOWN_INTERVALS = ("mid_ssim", "mid_lpips")  # in the table; all are in the files


def present_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that all rows have: results of evaluations with other metrics can stand in one table."""
    return [column for column in COLUMNS if rows and all(column in row for row in rows)]


def markdown_table(rows: Sequence[Mapping[str, Any]], intervals: Sequence[str] = SHOWN_INTERVALS) -> str:
    """The rows of `results.json` as a table, with 95% intervals of some columns."""
    columns = present_columns(rows)
    lines = ["| method | " + " | ".join(COLUMNS[c] for c in columns) + " |", "|---|" + "---|" * len(columns)]
    for row in rows:
        cells = []
        for column in columns:
            cell = _number(row[column], column)
            if column in intervals:
                low, high = row["intervals"][column]
                cell += f" [{_number(low, column)}, {_number(high, column)}]"
            cells.append(cell)
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread_table(rows: Sequence[Mapping[str, Any]], over: str = "seeds") -> str:
    """Standard deviation over the seeds, or what else `over` names, of rows that have several; empty where none has."""
    rows = [row for row in rows if row["spread"]]
    if not rows:
        return ""
    columns = present_columns(rows)
    lines = [f"| standard deviation over {over} | " + " | ".join(COLUMNS[c] for c in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for row in rows:
        cells = [f"{row['spread'][column]:.{DIGITS.get(column, 3) + 1}f}" for column in columns]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def difference_table(differences: Sequence[Mapping[str, Any]]) -> str:
    """Paired differences with their 95% intervals; empty where there is nothing to compare."""
    if not differences:
        return ""
    columns = present_columns([found["difference"] for found in differences])
    lines = ["| difference | " + " | ".join(COLUMNS[c] for c in columns) + " |", "|---|" + "---|" * len(columns)]
    for found in differences:
        cells = []
        for column in columns:
            low, high = found["intervals"][column]
            value = f"{found['difference'][column]:+.{DIGITS.get(column, 3)}f}"
            cells.append(f"{value} [{low:+.{DIGITS.get(column, 3)}f}, {high:+.{DIGITS.get(column, 3)}f}]")
        lines.append(f"| {found['method']} − {found['than']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_results(
    output: Path, facts: Mapping[str, Any], rows: Sequence[dict], differences: Sequence[dict], windows: Windows
) -> None:
    """Writes `results.json`, `results.csv` and `results.md` into the folder `output`.

    Args:
        output: is made.
        facts: how it was measured: `command`, `task`, `seeds`, and whatever else belongs into the JSON file.
        rows, differences: from `Evaluation.run`.
        windows: that were scored.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = [{"clip": clip, "start": start} for clip, start in zip(windows.clips, windows.starts)]
    record = {**facts, "skipped": windows.skipped, "windows": names, "windows_digest": windows.digest()}
    record |= {"rows": rows, "differences": differences}
    text = json.dumps(without_nan(record), indent=1, allow_nan=False)
    (output / "results.json").write_text(text + "\n", encoding="utf-8")

    with open(output / "results.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "kind", "score", "value", "low_95", "high_95", "spread_over_seeds"])
        for row in rows:
            for column in present_columns(rows):
                interval = row["intervals"].get(column, ("", ""))
                writer.writerow(
                    [row["method"], row["kind"], column, row[column], *interval, row["spread"].get(column, "")]
                )

    seeds = facts["seeds"]
    parts = [
        f"`{facts['command']}`",
        f"{len(names)} windows of {len(set(windows.clips))} clips, {facts['task']}; one sample each"
        f"{', mean of the seeds ' + ', '.join(map(str, seeds)) if len(seeds) > 1 else f', seed {seeds[0]}'}. In brackets: 95% bootstrap "
        "intervals over clips. Motion, evenness and sharpness are relative to the true clips'.",
        markdown_table(rows),
        spread_table(rows),
        "Paired differences on the same windows:" if differences else "",
        difference_table(differences),
        *(f"Not measured: {reason}." for reason in facts.get("not_measured", [])),
    ]
    (output / "results.md").write_text(
        "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n", encoding="utf-8"
    )


def read_results(folder: Path) -> dict[str, Any]:
    """What `write_results` wrote, a missing ratio as "not a number" again.

    Raises:
        ValueError: if there is nothing.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; run training.evaluate with -o {folder} first")
    results = json.loads(path.read_text(encoding="utf-8"))
    return results | {name: _with_nan(results[name]) for name in ("rows", "differences") if name in results}


def _with_nan(value: Any) -> Any:
    """The opposite of `without_nan`."""
    if isinstance(value, dict):
        return {name: _with_nan(found) for name, found in value.items()}
    if isinstance(value, list):
        return [_with_nan(found) for found in value]
    return math.nan if value is None else value


def write_sheets(
    output: Path,
    windows: Windows,
    sampled: Mapping[str, torch.Tensor],
    task: str,
    method: str,
    count: int,
    per_sheet: int = 4,
) -> list[Path]:
    """Draws `count` windows, evenly spaced over all of them (not chosen), into the folder `output`.

    On `sheet_*.png` a method stands beside a simple one, or without its adapter; where it was sampled with other plans too,
    `planning_*.png` have it beside these, from the same noise.
    """
    simple = "cross-fade" if "cross-fade" in sampled else "copy of the nearest given frame"
    rows = {"ours": sampled[method], simple.split(" of ")[0]: sampled[simple]}
    if method + ADAPTED in sampled:
        rows = {"adapted": sampled[method + ADAPTED], "not adapted": sampled[method]}
    sheets = {"sheet": rows}
    plans = {"not planned": method + DROPPED.suffix, "another's plan": method + OTHER.suffix}
    changed = {label: sampled[name] for label, name in plans.items() if name in sampled}
    if changed:
        sheets["planning"] = {"planned": sampled[method], **changed}
    output.mkdir(parents=True, exist_ok=True)
    given = given_indices(task, windows.frames.shape[1])
    total, paths = len(windows.frames), []
    count = min(count, total)
    picked = sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})
    for name, rows in sheets.items():
        rows = {"truth": windows.frames, **rows}
        for sheet in range(0, len(picked), per_sheet):
            groups = [
                (
                    f"{windows.clips[i]}, from frame {windows.starts[i]}",
                    {label: frames[i] for label, frames in rows.items()},
                )
                for i in picked[sheet : sheet + per_sheet]
            ]
            paths.append(output / f"{name}_{sheet // per_sheet}.png")
            contact_sheet(groups, given, title=f"{task}, {method}").save(paths[-1], optimize=True)
    return paths


def _number(value: float, column: str) -> str:
    return "–" if math.isnan(value) else f"{value:.{DIGITS.get(column, 3)}f}"


def without_nan(value: Any) -> Any:
    """JSON has no word for "not a number": a ratio to clips that stand still becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
