"""Put the scores of the released checkpoints and of simple methods (training/runs/evaluation.sh) into pages.

    python -m training.reproduction.released_models outputs/results docs/results/checkpoints.md README.md

A block `racing-stride-2` of a page gets all tables of that folder and the verdicts in sentences; `racing-stride-2,
short` gets a table of few columns, and `racing-stride-2 + racing-few-steps, short` also our rows of the second folder.
`--only carracing` fills the blocks of that folder alone. `--picture carracing=docs/images/results/carracing.png`
copies its first contact sheet, `figure-5-carracing/planning_0.png=...` another one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from training.evaluation.methods import BASELINE, OURS
from training.evaluation.results import read_results
from training.evaluation.tables import COLUMNS, difference_table, score_cell, score_table, spread_table
from training.page_blocks import block_names, fill
from training.reproduction.comparison import differing


SHORT = ("mid_ssim", "mid_lpips", "motion", "sharpness")
# Whether more is better; differences of these scores have intervals, those of the distances have none.
JUDGED = {"mid_ssim": True, "ssim": True, "mid_lpips": False, "lpips": False}
PACE = {1: "every frame", 2: "every second frame", 3: "every third frame"}
DISTANCES = ("fid", "fvd", "fd_efficientnet_lite0", "fd_window")


def setting_sentence(results: dict[str, Any]) -> str:
    """Return windows, pace and seeds in one sentence."""
    seeds, clips = results["seeds"], {window["clip"] for window in results["windows"]}
    sample = f"mean of the seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    pace = PACE.get(results["stride"], f"every {results['stride']}th frame")
    if results.get("fps") is not None:
        pace = f"{results['fps']:g} frames per second"
    return f"{len(results['windows'])} windows of {len(clips)} clips, {pace}, {sample}."


def judge(results: dict[str, Any]) -> str:
    """Return a line for each score that compares ours with simple methods; "ahead" needs an interval without zero."""
    rows = results["rows"]
    ours = next(row for row in rows if row["kind"] == OURS)
    simple = [row for row in rows if row["kind"] == BASELINE]
    names = {row["method"] for row in simple}
    found = [pair for pair in results["differences"] if pair["method"] == ours["method"] and pair["than"] in names]
    lines = []
    for column, more_is_better in JUDGED.items():
        if column in ours:
            sides: dict[str, list[str]] = {"ahead of": [], "not clearly different from": [], "behind": []}
            for difference in found:
                low, high = difference["intervals"][column]
                above = low > 0 if more_is_better else high < 0
                below = high < 0 if more_is_better else low > 0
                side = "ahead of" if above else "behind" if below else "not clearly different from"
                sides[side].append(difference["than"])
            lines.append(f"- {COLUMNS[column]}: {_sides(sides, len(found))}")
    for column in DISTANCES:
        if column in ours:
            sides = {"below": [], "**above**": []}
            for row in simple:
                side = "below" if ours[column] < row[column] else "**above**"
                sides[side].append(f"{row['method']} ({score_cell(row, column, with_interval=False)})")
            value = score_cell(ours, column, with_interval=False)
            lines.append(f"- {COLUMNS[column]}, less is better, no interval: {value}, {_sides(sides, len(simple))}")
    return "\n".join(lines)


def _sides(sides: dict[str, list[str]], total: int) -> str:
    parts = []
    for side, methods in sides.items():
        if len(methods) == total:
            parts.append(f"{side} every simple method")
        elif methods:
            parts.append(f"{side} {', '.join(methods)}")
    return "; ".join(parts)


def all_tables(results: dict[str, Any]) -> str:
    """Return all tables and the verdicts."""
    parts = [
        setting_sentence(results),
        score_table(results["rows"]),
        spread_table(results["rows"]),
        "Paired differences on the same windows:",
        difference_table(results["differences"]),
        judge(results),
    ]
    return "\n\n".join(part for part in parts if part)


def short_table(results: dict[str, Any]) -> str:
    """Return a table of few columns."""
    kept = ("method", "intervals", *SHORT)
    rows = [{name: row[name] for name in kept if name in row} for row in results["rows"]]
    return f"{setting_sentence(results)}\n\n{score_table(rows)}"


def joined(several: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the first results with the rows of ours of the others added.

    Raises:
        ValueError: if they are of other windows, seeds or weights.
    """
    first, *others = several
    for other in others:
        apart = differing(first, other) + [key for key in ("sampled_by", "seeds") if first.get(key) != other.get(key)]
        if apart:
            raise ValueError(f"results that are to share a table differ in {', '.join(apart)}; evaluate them alike")
    return {**first, "rows": first["rows"] + [row for other in others for row in other["rows"] if row["kind"] == OURS]}


def write_picture(sheet: Path, path: Path) -> Path:
    """Write a contact sheet as an optimized PNG.

    Raises:
        ValueError: if there is no such sheet.
    """
    if not sheet.is_file():
        raise ValueError(f"there is no {sheet}; run what makes it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(sheet) as image:
        image.save(path, optimize=True)
    return path


def _texts(folder: Path, pages: Sequence[Path], only: Sequence[str] | None = None) -> list[tuple[Path, str, str]]:
    """Return page, block and text of every block that is to be filled."""
    blocks = []
    for page in pages:
        for name in block_names(page):
            found = name.removesuffix(", short").split(" + ")
            if len(found) > 1 and not name.endswith(", short"):
                raise ValueError(
                    f"block {name!r} of {page}: only short tables are of several results; call it '{name}, short'"
                )
            blocks.append((page, name, found))
    known = {result for _, _, results in blocks for result in results}
    if unknown := set(only or ()) - known:
        raise ValueError(f"no page has a block for {', '.join(sorted(unknown))}; they have {', '.join(sorted(known))}")
    texts = []
    for page, name, found in blocks:
        if only is None or set(found) & set(only):
            results = joined([read_results(folder / result) for result in found])
            texts.append((page, name, short_table(results) if name.endswith(", short") else all_tables(results)))
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.released_models", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="the folder of all results (OUT of evaluation.sh)")
    parser.add_argument("pages", nargs="*", type=Path, help="markdown files with blocks to fill")
    parser.add_argument("--picture", nargs="+", default=[], metavar="NAME[/SHEET]=PNG", help="contact sheets to copy")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="folders whose blocks are filled; default: all")
    options = parser.parse_args(arguments)
    try:
        # All texts are made before any page is written, so that no page is left half new.
        texts = _texts(options.results, options.pages, options.only)
        for page, name, text in texts:
            fill(page, name, text)
            print(f"Filled {name!r} of {page}")
        for text in options.picture:
            name, _, path = text.partition("=")
            sheet = options.results / name
            print(f"Wrote {write_picture(sheet if sheet.suffix == '.png' else sheet / 'sheet_0.png', Path(path))}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
