"""Select the clips of mardini-tiny-robot from a checkout of github.com/droid-dataset/droid-dataset.github.io.

    git clone https://github.com/droid-dataset/droid-dataset.github.io
    python -m training.data.recipes.droid droid-dataset.github.io runs/data/robot_droid

The checkout holds previews of DROID (Khazatsky et al. 2024, arXiv 2403.12945; CC-BY-4.0): a Franka arm before a fixed
camera, 320x180, a folder for each laboratory. Writes `train` and `val`, copies of the published files, with
`metadata.jsonl`. The clips are third-party: do not commit them or pictures of them.
"""

import argparse
import re
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path

from diffusers_mardini.video_io import read_video
from training.data.metadata import write_metadata
from training.data.recipes.laps import MOTION_DISTANCE, motion


VIDEOS = Path("visualizer/videos")
TRAIN_LABS = frozenset(["20d7e5d4", "36906660", "5030472d", "5ed85189", "bc15b34b", "beccf0c9", "e872bbe4"])
HELDOUT_LAB = "764db432"
MIN_FRAMES, MAX_FRAMES = 33, 160  # of a training clip; nine frames at stride 4 span 33
MIN_MOTION = 2.5  # of a training clip: mean absolute difference of frames 8 apart, 0 to 255
SOURCE = "github:droid-dataset/droid-dataset.github.io"
LICENSE = "CC-BY-4.0"


def clip_name(video: Path) -> str:
    """Return `droid_<lab>_<date>_<time>_<camera>.mp4` for `<lab>/<date>/<weekday_month_day_time_year>/<camera>.mp4`.

    Raises:
        ValueError: if the path is not of this form.
    """
    try:
        lab, day, moment, camera = video.parts
        day = datetime.strptime(
            day, "%Y-%m-%d"
        )  # date of the folder; around midnight `moment` may lie on the next day
        time = datetime.strptime(re.sub("[_:]+", "_", moment), "%a_%b_%d_%H_%M_%S_%Y")
    except ValueError as error:
        raise ValueError(
            f"'{video}' is not <lab>/<date>/<weekday_month_day_time_year>/<camera>.mp4; give a checkout of "
            "droid-dataset/droid-dataset.github.io"
        ) from error
    return f"droid_{lab}_{day:%Y%m%d}_{time:%H%M%S}_{camera}"


def prepare(checkout: Path, out: Path) -> dict[str, list[dict]]:
    """Copy the selected clips to `out/train` and `out/val`; return their metadata and print what was left out and why.

    Raises:
        ValueError: if `out` already holds clips, or the checkout has no videos.
    """
    if any((out / split / "metadata.jsonl").exists() for split in ("train", "val")):
        raise ValueError(f"'{out}' already holds clips; give another folder or delete it first")
    videos = sorted((checkout / VIDEOS).rglob("*.mp4"))
    if not videos:
        raise ValueError(
            f"'{checkout / VIDEOS}' holds no videos; give a checkout of droid-dataset/droid-dataset.github.io"
        )
    rows: dict[str, list[dict]] = {"train": [], "val": []}
    left_out: Counter[str] = Counter()
    for video in videos:
        path = video.relative_to(checkout / VIDEOS)
        lab = path.parts[0]
        if lab not in TRAIN_LABS and lab != HELDOUT_LAB:
            left_out["of other laboratories"] += 1
            continue
        frames, fps = read_video(video)
        if lab != HELDOUT_LAB and not MIN_FRAMES <= len(frames) <= MAX_FRAMES:
            left_out[f"not of {MIN_FRAMES} to {MAX_FRAMES} frames"] += 1
            continue
        if len(frames) <= MOTION_DISTANCE:
            left_out[f"of {MOTION_DISTANCE} frames or fewer"] += 1
            continue
        amount = motion(frames)
        if lab != HELDOUT_LAB and amount < MIN_MOTION:
            left_out["still"] += 1
            continue
        split, name = "val" if lab == HELDOUT_LAB else "train", clip_name(path)
        (out / split).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, out / split / name)
        rows[split].append(
            {
                "file_name": name,
                "source": f"{SOURCE}:{(VIDEOS / path).as_posix()}",
                "license": LICENSE,
                "fps": round(fps, 3),
                "num_frames": len(frames),
                "width": frames.shape[2],
                "height": frames.shape[1],
                "lab": lab,
                "motion": round(amount, 2),
            }
        )
    for split, lines in rows.items():
        write_metadata(out / split, lines)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none"
    print(f"{len(rows['train'])} clips to train on, {len(rows['val'])} held out; left out: {reasons}")
    return rows


def main() -> None:
    """Select the clips that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of droid-dataset/droid-dataset.github.io")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        prepare(arguments.checkout, arguments.out)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
