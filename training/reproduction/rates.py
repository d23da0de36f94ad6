"""Compare one checkpoint for all distances between frames with checkpoints that know one distance each.

    python -m training.reproduction.rates 0.04=outputs/all-1,outputs/alone-1 0.08=outputs/all-2,outputs/alone-2 \
        --page PAGE BLOCK

Each argument is a distance in seconds and two folders of `training.evaluate`, which scored the same windows: of the
checkpoint for all distances, and of the one for this distance alone. The table tells where the first is within
`NEAR` of mid SSIM.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.evaluation.tables import COLUMNS, markdown_table, score_cell
from training.page_blocks import fill
from training.reproduction.comparison import compare, read_method


NEAR = 0.01
SHOWN = ("mid_ssim", "mid_lpips", "motion")


def compared(text: str) -> tuple[float, list[dict[str, Any]], dict[str, Any]]:
    """Read `SECONDS=FOLDER,FOLDER`: the distance, the rows of both checkpoints, and how much more the first scores.

    Raises:
        ValueError: if the argument is of another form, or the two scored different windows.
    """
    seconds, _, folders = text.partition("=")
    found = folders.split(",")
    try:
        distance = float(seconds)
    except ValueError:
        distance = 0.0
    if distance <= 0 or len(found) != 2 or not all(found):
        raise ValueError(f"{text!r} is not of the form SECONDS=FOLDER,FOLDER, such as 0.08=outputs/all,outputs/alone")
    (alone, all_distances), (more,) = compare([read_method(f"alone={found[1]}"), read_method(f"all={found[0]}")])
    return distance, [all_distances, alone], more


def rate_table(arguments: Sequence[str]) -> str:
    """Return a row for each distance in markdown, with the 95% interval of the difference.

    Raises:
        ValueError: see `compared`.
    """
    found = [compared(text) for text in arguments]
    shown = [name for name in SHOWN if all(name in row for _, rows, _ in found for row in rows)]
    cells = []
    for distance, rows, more in found:
        scores = [score_cell(row, name, with_interval=False) for name in shown for row in rows]
        difference = more["difference"]["mid_ssim"]
        low, high = more["intervals"]["mid_ssim"]
        near = "yes" if difference >= -NEAR else "no"
        cells.append([f"{distance:g}", *scores, f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]", near])
    heads = [f"{COLUMNS[name]}, {which}" for name in shown for which in ("all distances", "this alone")]
    columns = ["seconds between frames", *heads, "difference of mid SSIM", f"at most {NEAR:g} behind"]
    return markdown_table(columns, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m training.reproduction.rates", description=__doc__.splitlines()[0])
    parser.add_argument("distances", nargs="+", metavar="SECONDS=FOLDER,FOLDER")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "BLOCK"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        text = rate_table(options.distances)
        if options.page:
            fill(Path(options.page[0]), options.page[1], text)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(text)


if __name__ == "__main__":
    main()
