"""Find which clips belong together: pieces of one recording, episodes of one laboratory, scenes of one film.

Columns of the metadata say so, or the source itself, else folders, else names such as `drive1_part03`. `hold_out.py`
keeps them on one side.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.data.folders import METADATA_FILES, list_folder, natural_path_key
from training.data.metadata import read_metadata
from training.own_clips.look import Clip, without_common_folder


# Columns that name what several clips have in common, and how a sentence calls one of its values.
COLUMNS = {
    "lab": "laboratory", "author": "author", "user": "user", "subject": "subject", "person": "person",
    "session": "session", "recording": "recording", "scene": "scene", "episode": "episode",
    "episode_index": "episode", "source": "source", "video": "video", "original": "original",
}  # fmt: skip
_NUMBERED = re.compile(r"[\s_.\-]*(?:part|clip|seg|segment|chunk|piece|scene|shot)?[\s_.\-]*\d+$", re.IGNORECASE)


@dataclass(frozen=True)
class Grouping:
    """One way to say which clips belong together.

    Attributes:
        kind: what a group is, in a word.
        names: the group of each clip.
    """

    kind: str
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """Return the number of groups."""
        return len(set(self.names))


def groupings(clips: Iterable[Clip]) -> list[Grouping]:
    """Return the ways to group some clips, the coarsest first; only those that join at least two clips."""
    clips = list(clips)
    rows = _metadata_rows({clip.source for clip in clips})
    found = []
    for column, kind in COLUMNS.items():
        values = [rows.get((clip.source, clip.entry.key), {}).get(column) for clip in clips]
        # A clip without a value stands alone.
        names = [clip.name if value in (None, "") else str(value) for clip, value in zip(clips, values)]
        found.append(Grouping(kind, tuple(names)))
    found.append(Grouping("recording", tuple(clip.recording or clip.name for clip in clips)))
    short = without_common_folder(clip.entry.key for clip in clips)
    keys = [_within_side(short[clip.entry.key], clip) for clip in clips]
    found.append(Grouping("folder", tuple(_outermost(key) or clip.name for key, clip in zip(keys, clips))))
    found.append(Grouping("recording", tuple(map(_recording, keys))))
    return sorted((each for each in found if each.count < len(clips)), key=lambda each: each.count)


def order_key(clip: Clip) -> list:
    """Return a sorting key that puts the pieces of a recording in the order of their numbers."""
    return natural_path_key(clip.name)


def _within_side(key: str, clip: Clip) -> str:
    """Return a key without the folder of the clip's side, if it has one."""
    return key.split("/", 1)[1] if clip.split and "/" in key else key


def _outermost(key: str) -> str:
    """Return the outermost folder of a key; "" if there is none."""
    return key.split("/", 1)[0] if "/" in key else ""


def _recording(key: str) -> str:
    """Return a key without its suffix and the number at its end."""
    folder, _, name = key.rpartition("/")
    stem = name.rsplit(".", 1)[0] if "." in name else name
    return "/".join(filter(None, (folder, _NUMBERED.sub("", stem)))) or "numbered clips"


def _metadata_rows(specs: Iterable[str]) -> dict[tuple[str, str], dict]:
    """Return the rows of metadata by source and clip, also those of subfolders; none unless a source is a folder."""
    found = {}
    for spec in specs:
        if not Path(spec).is_dir():
            continue
        listing = list_folder(spec)
        inner = {path.rpartition("/")[0] for path in listing.metadata if path.rpartition("/")[2] in METADATA_FILES}
        for folder in ("", *inner):
            for key, row in _read_leniently(Path(spec) / folder).items():
                found[spec, f"{folder}/{key}" if folder else key] = row
    return found


def _read_leniently(folder: Path) -> dict[str, dict]:
    try:
        metadata = read_metadata(list_folder(folder))
    except ValueError:  # in a subfolder nothing else reads it; in the folder itself, the source has refused it
        return {}
    return {} if metadata is None else metadata.rows
