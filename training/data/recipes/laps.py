"""Cut the clips of mardini-tiny-racing from a checkout of github.com/criscola/donkeycar (MIT).

    git clone https://github.com/criscola/donkeycar
    python -m training.data.recipes.laps donkeycar runs/data/rc_racing

The checkout holds pictures from a radio-controlled car on an indoor track: folders ("tubs") of numbered pictures, 20 a
second, with time stamps. Writes `train` and `val`: clips of 64 frames, 160x120, with `metadata.jsonl`. The pictures
are third-party: do not commit them or clips of them.
"""

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffusers_mardini.video_io import write_video
from training.data.metadata import write_metadata


FPS = 20
NUM_FRAMES = 64
MAX_GAP_MS = 120  # a longer gap between two pictures means that some are missing
MIN_MOTION = 6.0  # mean absolute difference of frames 8 apart, 0 to 255; below it the car stands still
MOTION_DISTANCE = 8
SOURCE = "github:criscola/donkeycar"
LICENSE = "MIT"


@dataclass(frozen=True)
class Tub:
    """One recorded session of the checkout.

    Clips that end before picture `train_until` are for training, those that begin at `heldout_from` or later are
    held-out, those between are used for neither. `None`: all are for training, none are held-out.
    """

    name: str
    folder: str
    train_until: int | None = None
    heldout_from: int | None = None


TUBS = (
    Tub("s1111", "mycar/data", train_until=19_746, heldout_from=20_770),  # held out: the end of 2022-11-11's session
    Tub("s1112t1", "mycar/tubs/track_1/training_1/data", train_until=17_838),
)


def read_times(folder: Path) -> dict[int, int]:
    """Return time stamps in milliseconds by picture number, from the `*.catalog` files (JSON lines); empty without
    them.

    Catalogs accumulate rows of several sessions; only those of the last session in `manifest.json` describe the
    pictures.
    """
    manifest, session = folder / "manifest.json", None
    if manifest.is_file():
        for line in manifest.read_text().splitlines():
            row = json.loads(line)
            if isinstance(row, dict) and "sessions" in row:
                session = row["sessions"].get("last_full_id")
    times = {}
    for catalog in sorted(folder.glob("*.catalog")):
        for line in catalog.read_text().splitlines():
            row = json.loads(line)
            if session is None or row.get("_session_id") == session:
                times[int(row["_index"])] = int(row["_timestamp_ms"])
    return times


def find_runs(numbers: list[int], times: dict[int, int]) -> list[list[int]]:
    """Group ascending picture numbers into runs without a missing or late one; without time stamps none is late."""
    runs: list[list[int]] = []
    for number in numbers:
        last = runs[-1][-1] if runs else None
        late = last in times and number in times and times[number] - times[last] > MAX_GAP_MS
        if last is None or late or number != last + 1:
            runs.append([])
        runs[-1].append(number)
    return runs


def motion(frames: np.ndarray) -> float:
    """Return the mean absolute difference of frames 8 apart, 0 to 255, of `(frames, height, width, 3)`."""
    frames = frames.astype(np.int16)
    return float(np.abs(frames[MOTION_DISTANCE:] - frames[:-MOTION_DISTANCE]).mean())


def cut_tub(checkout: Path, tub: Tub, out: Path, seen: set[str]) -> dict[str, list[dict]]:
    """Write the clips of one tub; return their metadata by split and print what was left out and why.

    Args:
        checkout: of the repository.
        tub: the session.
        out: folder of the clips.
        seen: hashes of the pictures of all clips so far, which grows: a clip that shares a picture with an earlier
            one, as in a copied tub, is left out.

    Raises:
        ValueError: if the tub has no pictures.
    """
    folder = checkout / tub.folder
    images = folder / "images" if (folder / "images").is_dir() else folder
    pictures = {
        int(match[1]): path
        for path in images.glob("*_cam_image_array_.jpg")
        if (match := re.fullmatch(r"(\d+)_cam_image_array_\.jpg", path.name))
    }
    if not pictures:
        raise ValueError(
            f"'{images}' holds no pictures NNN_cam_image_array_.jpg; give a checkout of criscola/donkeycar"
        )
    rows: dict[str, list[dict]] = {"train": [], "val": []}
    still = between = repeated = short = 0
    for run in find_runs(sorted(pictures), read_times(folder)):
        starts = range(0, len(run) - NUM_FRAMES + 1, NUM_FRAMES)
        short += len(run) - NUM_FRAMES * len(starts)
        for start in starts:
            numbers = run[start : start + NUM_FRAMES]
            split = _split(numbers, tub)
            if split is None:
                between += 1
                continue
            hashes = {hashlib.sha256(pictures[number].read_bytes()).hexdigest() for number in numbers}
            if hashes & seen:
                repeated += 1
                continue
            seen |= hashes
            frames = np.stack([np.asarray(Image.open(pictures[number]).convert("RGB")) for number in numbers])
            amount = motion(frames)
            if amount < MIN_MOTION:
                still += 1
                continue
            name = f"rc_{tub.name}_{numbers[0]:05d}.mp4"
            write_video(out / split / name, frames, FPS, crf=20)
            rows[split].append(
                {
                    "file_name": name,
                    "source": f"{SOURCE}:{tub.folder}/images/{numbers[0]}..{numbers[-1]}_cam_image_array_.jpg",
                    "license": LICENSE,
                    "fps": FPS,
                    "num_frames": NUM_FRAMES,
                    "width": frames.shape[2],
                    "height": frames.shape[1],
                    "motion": round(amount, 2),
                }
            )
    print(
        f"{tub.folder}: {len(rows['train'])} clips to train on, {len(rows['val'])} held out; left out: {still} still, "
        f"{between} between training and held-out laps, {repeated} with a picture of an earlier clip, "
        f"{short} pictures in runs or rests shorter than {NUM_FRAMES}"
    )
    return rows


def prepare(checkout: Path, out: Path, tubs: tuple[Tub, ...] = TUBS) -> dict[str, list[dict]]:
    """Cut all tubs into `out/train` and `out/val`; return the metadata.

    Raises:
        ValueError: if `out` already holds clips, or a tub is missing.
    """
    if any((out / split / "metadata.jsonl").exists() for split in ("train", "val")):
        raise ValueError(f"'{out}' already holds clips; give another folder or delete it first")
    seen: set[str] = set()
    rows: dict[str, list[dict]] = {"train": [], "val": []}
    for tub in tubs:
        for split, new in cut_tub(checkout, tub, out, seen).items():
            rows[split] += new
    for split, lines in rows.items():
        write_metadata(out / split, lines)
    print(f"{len(rows['train'])} and {len(rows['val'])} clips lie in {out / 'train'} and {out / 'val'}")
    return rows


def _split(numbers: list[int], tub: Tub) -> str | None:
    if tub.train_until is None or numbers[-1] < tub.train_until:
        return "train"
    return "val" if tub.heldout_from is not None and numbers[0] >= tub.heldout_from else None


def main() -> None:
    """Cut the clips that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a checkout of criscola/donkeycar")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        prepare(arguments.checkout, arguments.out)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
