"""Divide recorded CarRacing clips by the speed of their drivers: a third slow, a third fast, and as many mixed.

    python -m training.reproduction.clips_by_speed TRAIN HELD_OUT -o runs/data/carracing/by-speed --page PAGE BLOCK

Writes clip lists `train-slow.jsonl`, `val-mixed.jsonl` and so on. The slow and the fast third are those of the settings
in `metadata.jsonl`; every third clip in the order of speed is mixed, so that it also holds clips of the other two. All
lists of one folder have equally many clips. The table has the motion that `training.fit` reports for own clips; it and
that of each held-out clip go to `motion.json`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.data.clip_lists import ClipRow, write_clip_list
from training.evaluation.tables import markdown_table
from training.files import write_whole
from training.own_clips.reading import DISTANCES, look_at_clip
from training.page_blocks import fill


KINDS = ("slow", "mixed", "fast")
MOTION = "motion.json"


def divide(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Return the rows of `metadata.jsonl` by kind.

    Raises:
        ValueError: if there are fewer than three, or one has no driver's speed.
    """
    if len(rows) < len(KINDS) or not all("speed" in row.get("driver", {}) for row in rows):
        raise ValueError(
            f"{len(rows)} clips, of which some may lack a driver's speed; record at least 3 with "
            "training.data.recipes.car_racing"
        )
    ordered = sorted(rows, key=lambda row: (row["driver"]["speed"], row["file_name"]))
    third = len(ordered) // 3
    return {"slow": ordered[:third], "mixed": ordered[1::3][:third], "fast": ordered[-third:]}


def motion_of(folder: Path, rows: Sequence[dict]) -> dict[str, dict[float, float]]:
    """Return the change in grey levels of each clip by its name, by seconds between two frames."""
    looks = {row["file_name"]: look_at_clip(folder / row["file_name"], row["fps"], row["num_frames"]) for row in rows}
    return {name: look.motion for name, look in looks.items() if look is not None}


def quantiles(motions: Sequence[Mapping[float, float]]) -> dict[float, list[float]]:
    """Return the 10th, 50th and 90th percentile over clips, by seconds between two frames."""
    return {
        distance: np.quantile(values, (0.1, 0.5, 0.9)).tolist()
        for distance in DISTANCES
        if (values := [motion[distance] for motion in motions if distance in motion])
    }


def read_rows(folder: Path) -> list[dict]:
    """Return the rows of the folder's `metadata.jsonl`."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.clips_by_speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("train", type=Path, help="folder of recorded clips")
    parser.add_argument("held_out", type=Path, help="another one")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the lists")
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    cells, motions, held_out = [], {}, {}
    try:
        for side, folder in (("train", options.train), ("val", options.held_out)):
            recorded = read_rows(folder)
            divided, each = divide(recorded), motion_of(folder, recorded)
            for kind, rows in divided.items():
                found = [ClipRow(folder.as_posix(), row["file_name"]) for row in rows]
                options.output.mkdir(parents=True, exist_ok=True)
                write_clip_list(options.output / f"{side}-{kind}.jsonl", found)
                speeds = [row["driver"]["speed"] for row in rows]
                motion = quantiles([each[row["file_name"]] for row in rows])
                motions[f"{side}-{kind}"] = {f"{distance:g}": values for distance, values in motion.items()}
                cells.append(
                    [kind, "trained on" if side == "train" else "held out", len(rows),
                     f"{min(speeds):.0f} to {max(speeds):.0f}",
                     *(f"{motion[d][1]:.1f} ({motion[d][0]:.1f} to {motion[d][2]:.1f})" for d in DISTANCES)]
                )  # fmt: skip
            held_out = each
        of_clips = {name: motion[0.1] for name, motion in held_out.items()}
        write_whole(options.output / MOTION, json.dumps({"lists": motions, "clips": of_clips}, indent=1) + "\n")
        columns = ["clips", "side", "number", "drivers' speeds", *(f"motion at {d:g} s" for d in DISTANCES)]
        table = markdown_table(columns, cells)
        print(table)
        if options.page:
            fill(Path(options.page[0]), options.page[1], table)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
