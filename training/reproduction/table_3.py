"""Fill the page of Table 3 with what `benchmarks.asymmetry` measured and counted (training/runs/table_3.sh).

    python -m training.reproduction.table_3 outputs/results/table-3 --beside AMD=outputs/amd --page docs/results/table_3.md

`--beside` adds the ratios of another machine, whose folder holds `timed-64.json` and `timed-256.json`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.tables import markdown_table
from training.files import read_json
from training.page_blocks import fill_all


SIZES = (64, 256)
PAPER_SIZES = (256, 512, 768, 1024)
ROWS = {
    "planner at low resolution, once (MarDini)": "",
    "the same, spatio-temporal attention": "spatio-temporal attention (the same as {}/ST)",
    "planner at low resolution, at every step": "planner at every step",
    "planner at full resolution, once": "planner at full resolution",
    "the same, spatio-temporal attention (symmetric)": "symmetric",
    "planner at full resolution, at every step": "planner at full resolution in every step",
}
FIRST = next(iter(ROWS))
# Of the small model, whose transformer is the same: the ends of the scale.
PAPER_PRESETS = {"L": ("mardini-l-t", tuple(ROWS)), "S": ("mardini-s-t", tuple(ROWS)[:2] + tuple(ROWS)[4:])}
# Table 3 of the paper: of temporal attention, in bf16.
PAPER_SECONDS = [
    "the paper's seconds for its asymmetric model, one A100 (Table 3, not ours)",
    "2.63 s",
    "6.05 s",
    "",
    "",
]
# Memory does not depend on how often the planner runs.
MEMORY = {name.replace(", once", ""): name for name in ROWS if "every step" not in name}


def read(folder: Path, name: str, part: str) -> list[dict[str, Any]]:
    """Return the rows of a part of a result."""
    return read_json(folder / f"{name}.json", (part,))[part]


def timed(folder: Path, beside: Mapping[str, Path]) -> str:
    """Return seconds of a window and their ratios to MarDini's, in markdown."""
    columns, units, cells = [""], [""], {name: [name] for name in ROWS}
    for size in SIZES:
        columns += [f"{size}x{size}", ""]
        units += ["seconds", "of MarDini's"]
        found = {row["variant"]: row for row in read(folder, f"timed-{size}", "timed")}
        for name, line in cells.items():
            line += [_seconds(found[name]), "1" if name == FIRST else _ratio(found[name])]
    for machine, other in beside.items():
        for size in SIZES:
            columns.append(f"{machine}, {size}x{size}" if size == SIZES[0] else f"{size}x{size}")
            units.append("of MarDini's")
            found = {row["variant"]: row for row in read(other, f"timed-{size}", "timed")}
            for name, line in cells.items():
                row = found.get(name)
                line.append("" if row is None else f"1 ({_seconds(row)} s)" if name == FIRST else _ratio(row))
    return markdown_table(columns, [units, *cells.values()])


def operations(folder: Path) -> str:
    """Return the operations of a window at our size, in markdown."""
    columns, cells = [""], {name: [name] for name in ROWS}
    counted = read(folder, "counted-tiny", "counted")
    for size in SIZES:
        columns += [f"{size}x{size}", ""]
        found = {row["variant"]: row["operations"] for row in counted if row["size"] == size}
        for name, line in cells.items():
            times = found[name] / found[FIRST]
            line += [f"{found[name] / 1e9:,.0f}", "1" if name == FIRST else f"{times:.2f}"]
    return markdown_table(columns, cells.values())


def memory(folder: Path) -> str:
    """Return the peak memory above the imports, in markdown."""
    cells = {label: [label] for label in MEMORY}
    for size in SIZES:
        found = {row["variant"]: row for row in read(folder, f"memory-{size}", "memory")}
        for label, line in cells.items():
            row = found[MEMORY[label]]
            line.append(f"{(row['peak_bytes'] - row['imported_bytes']) / 1e6:.0f}")
    return markdown_table(["", *(f"{size}x{size}, MB" for size in SIZES)], cells.values())


def paper_sizes(folder: Path) -> str:
    """Return the operations of a window at the paper's sizes, in markdown."""
    counted = read(folder, "counted", "counted")
    lines = []
    for letter, (preset, variants) in PAPER_PRESETS.items():
        found = {(row["variant"], row["size"]): row["operations"] for row in counted if row["preset"] == preset}
        for name in variants:
            line = [f"{letter}/T" + (f", {ROWS[name].format(letter)}" if ROWS[name] else "")]
            for size in PAPER_SIZES:
                value, times = found[name, size] / 1e12, found[name, size] / found[FIRST, size]
                shown = f"{value:.1f}" if value < 100 else f"{value:,.0f}"
                line.append(shown if name == FIRST else f"{shown} ({times:.{int(times < 9.95)}f}x)")
            lines.append(line)
    return markdown_table(["", *map(str, PAPER_SIZES)], [*lines, PAPER_SECONDS])


def _seconds(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']['median']:#.3g}".rstrip(".")


def _ratio(row: Mapping[str, Any]) -> str:
    return "{median:.2f} ({least:.2f} to {largest:.2f})".format(**row["of_mardini"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.table_3", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="folder of table_3.sh")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME=FOLDER", help="the same of other machines")
    parser.add_argument("--page", type=Path, help="markdown file with the blocks")
    options = parser.parse_args(arguments)
    try:
        beside = {name: Path(folder) for name, _, folder in (text.partition("=") for text in options.beside)}
        tables = {
            "timed": timed(options.results, beside), "operations": operations(options.results),
            "memory": memory(options.results), "paper sizes": paper_sizes(options.results),
        }  # fmt: skip
        print("\n\n".join(tables.values()))
        if options.page:
            fill_all(options.page, tables)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
