"""The files of an evaluation: `results.json`, `results.csv`, `results.md` and contact sheets.

The tables in them are laid out by `tables.py`.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini.masking import task_indices
from training.evaluation.altered_signals import DROPPED, OTHER
from training.evaluation.evaluation_windows import EvaluationWindows
from training.evaluation.methods import WITHOUT_CONDITIONS, is_changed
from training.evaluation.sampling import ADAPTED
from training.evaluation.tables import difference_table, present_columns, score_table, spread_table
from training.evaluation.verdict import verdict
from training.figures.contact_sheets import contact_sheet


def write_results(
    output: Path,
    facts: Mapping[str, Any],
    rows: Sequence[dict],
    differences: Sequence[dict],
    windows: EvaluationWindows,
) -> None:
    """Write `results.json`, `results.csv` and `results.md` into the folder `output`.

    Args:
        output: created if needed.
        facts: the settings: `command`, `task`, `seeds`, and others for the JSON file.
        rows: from `Evaluation.run`.
        differences: from `Evaluation.run`.
        windows: that were scored.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = [{"clip": clip, "start": start} for clip, start in zip(windows.clips, windows.starts)]
    record = {**facts, "skipped": windows.skipped, "windows": names, "windows_digest": windows.digest()}
    sentences = verdict(rows, differences)
    record |= {"rows": rows, "differences": differences, "verdict": sentences}
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
    sample = f"mean of the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    parts = [
        f"`{facts['command']}`",
        f"{len(names)} windows of {len(set(windows.clips))} clips, {facts['task']}; one sample each, {sample}. "
        "In brackets: 95% bootstrap intervals over clips. "
        "Motion, evenness and sharpness are relative to the true clips'.",
        *sentences,
        "\n".join(f"- given with each window, {line}" for line in facts.get("conditions", {}).values()),
        score_table(rows),
        spread_table(rows),
        "Paired differences on the same windows:" if differences else "",
        difference_table(differences),
        *(f"Not measured: {reason}." for reason in facts.get("not_measured", [])),
    ]
    (output / "results.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def read_results(folder: Path) -> dict[str, Any]:
    """Read the `results.json` of a folder; ratios that were saved as null are "not a number" again.

    Raises:
        ValueError: if there is none.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; run training.evaluate with -o {folder} first")
    results = json.loads(path.read_text(encoding="utf-8"))
    return with_nan(results)


def with_nan(results: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of `results.json` with "not a number" again where `without_nan` took it from the scores."""
    return results | {name: _nan_for_none(results[name]) for name in ("rows", "differences") if name in results}


def _nan_for_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nan_for_none(found) for name, found in value.items()}
    if isinstance(value, list):
        return [_nan_for_none(found) for found in value]
    return math.nan if value is None else value


def write_sheets(
    output: Path,
    windows: EvaluationWindows,
    sampled: Mapping[str, torch.Tensor],
    task: str,
    method: str,
    count: int,
    per_sheet: int = 4,
) -> list[Path]:
    """Draw `count` windows, evenly spaced over all of them (not chosen), into the folder `output`.

    `sheet_*.png` compare a method with a simple one, or with and without its adapter. If it was also sampled with
    altered planning signals, `planning_*.png` compare these, from the same noise; `conditions_*.png` do so if it was
    sampled with changed conditions.
    """
    simple = "cross-fade" if "cross-fade" in sampled else "copy of the nearest given frame"
    rows = {"ours": sampled[method], simple.split(" of ")[0]: sampled[simple]}
    if method + ADAPTED in sampled:
        rows = {"adapted": sampled[method + ADAPTED], "not adapted": sampled[method]}
    sheets = {"sheet": rows}
    labels = {
        "not planned": method + DROPPED.suffix,
        "neither planned nor told": method + DROPPED.suffix + WITHOUT_CONDITIONS,
        "another's signals": method + OTHER.suffix,
    }
    altered = {label: sampled[name] for label, name in labels.items() if name in sampled}
    if altered:
        sheets["planning"] = {"planned": sampled[method], **altered}
    for told in (method, method + ADAPTED):  # whose conditions were changed
        changed = {
            name.removeprefix(f"{told}, "): frames
            for name, frames in sampled.items()
            if name.startswith(f"{told}, ") and is_changed(name) and name not in labels.values()
        }
        if changed:
            sheets["conditions"] = {"as they were": sampled[told], **changed}
    output.mkdir(parents=True, exist_ok=True)
    given = task_indices(task, windows.frames.shape[1])
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


def without_nan(value: Any) -> Any:
    """Replace "not a number" by None, which JSON can hold: a ratio to clips that stand still."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
