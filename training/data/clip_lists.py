"""Clip lists: a `.jsonl` file as a source, each row a span of frames of a clip of any other source.

Cuts, held-out splits and parts of long videos are written as such lists, so that no video is ever cut on disk.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.failures import sentence
from training.data.metadata import utf8_text
from training.data.spans import Span, SpanSource
from training.files import write_whole


if TYPE_CHECKING:
    from training.data.sources import Source


SUFFIX = ".jsonl"


@dataclass(frozen=True)
class ClipRow:
    """A row of a clip list.

    Attributes:
        source: the argument of `open_source`; a relative path is relative to the working directory, as elsewhere.
        clip: key of the clip in that source.
        first_frame: index of the span's first frame.
        num_frames: number of its frames; `None` for all up to the end.
        fps: frames per second of a folder of pictures whose metadata do not state it; videos state their own.
        recording: a name; clips of one recording belong on one side of a split.
    """

    source: str
    clip: str
    first_frame: int = 0
    num_frames: int | None = None
    fps: float | None = None
    recording: str | None = None

    def key(self, with_source: bool) -> str:
        """Return the clip's name in messages: the clip and, unless it is whole, the span."""
        end = "" if self.num_frames is None else self.first_frame + self.num_frames
        span = f"[{self.first_frame}:{end}]" if self.first_frame or self.num_frames is not None else ""
        return (f"{self.source} " if with_source else "") + self.clip + span


class ClipList(SpanSource):
    """The clips that a list names, in its order; keys are `clip.mp4[0:64]`, after the source if there are several."""

    def __init__(self, spec: str | Path, opening: "Callable[[str, float | None], Source]"):
        """Read the list; `opening` opens the sources that it names, given the frames per second of pictures.

        Raises:
            ValueError: if the list cannot be read, a row is wrong or repeats another, or a source cannot be opened.
        """
        path = Path(spec)
        rows = _read(path)
        sources: dict[str, Source] = {}
        for number, row in rows.items():
            if row.source in sources:
                continue
            try:
                sources[row.source] = opening(row.source, row.fps)
            except ValueError as error:
                raise ValueError(f"line {number} of '{path}': {sentence(error)}") from error
        spans, self._recordings, lines = {}, {}, {}
        for number, row in rows.items():
            place = f"line {number} of '{path}'"
            rate = sources[row.source].fps(row.clip)
            if row.fps is not None and rate is not None and not math.isclose(row.fps, rate):
                raise ValueError(
                    f"{place} gives the pictures of '{row.clip}' {row.fps:g} frames per second, but they have "
                    f"{rate:g} by their metadata or an earlier line; give one rate"
                )
            key = row.key(len(sources) > 1)
            if key in spans:
                raise ValueError(f"{place} repeats line {lines[key]}: '{key}'; delete one of them")
            spans[key] = Span(sources[row.source], row.clip, row.first_frame, row.num_frames, place=place)
            lines[key], self._recordings[key] = number, row.recording
        super().__init__(str(spec), spans)

    def recording(self, key: str) -> str | None:
        """Return the recording that the row gives, else the one that the clip's source knows."""
        return self._recordings.get(key) or super().recording(key)


def write_clip_list(path: str | Path, rows: Iterable[ClipRow]) -> None:
    """Write a clip list, complete or not at all."""
    lines = [json.dumps({key: value for key, value in asdict(row).items() if value is not None}) for row in rows]
    write_whole(Path(path), "".join(f"{line}\n" for line in lines))


def _read(path: Path) -> dict[int, ClipRow]:
    """Return the rows by line."""
    if not path.exists():
        raise ValueError(f"there is no clip list at '{path}'")
    rows = {}
    for number, line in enumerate(utf8_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of '{path}' is no JSON ({sentence(error)}): {line[:80]!r}") from error
        if problem := _problem(given):
            raise ValueError(
                f"line {number} of '{path}' {problem}; a clip list has rows such as "
                '{"source": "my_clips", "clip": "a.mp4", "first_frame": 0, "num_frames": 64}'
            )
        rows[number] = ClipRow(**given)
    if not rows:
        raise ValueError(f"clip list '{path}' has no rows")
    return rows


def _problem(given: Any) -> str:
    """Return what is wrong with a row, "" if nothing is."""
    names = [field.name for field in fields(ClipRow)]
    if not isinstance(given, dict):
        return f"is no object, but {str(given)[:40]}"
    if "file_name" in given:
        return "has a file_name, as the metadata of a folder have; give that folder as the source"
    if unknown := sorted(given.keys() - set(names)):
        return f"has {', '.join(map(repr, unknown))}; it may have {', '.join(names)}"
    for name in ("source", "clip", "recording"):
        if not (isinstance(given.get(name), str) and given[name]) and (name != "recording" or given.get(name)):
            return f"must have a text as its {name}, got {given.get(name)!r}"
    if given["source"].lower().endswith(SUFFIX):
        return f"names another clip list, '{given['source']}'; write the rows of that one here"
    for name, least in (("first_frame", 0), ("num_frames", 1)):
        value = given.get(name)
        if name in given and (type(value) is not int or value < least) and not (value is None and least):
            return f"must have a whole number of at least {least} as its {name}, got {value!r}"
    fps = given.get("fps")
    if fps is not None and (type(fps) not in (int, float) or not 0 < fps < math.inf):
        return f"must have a positive number as its fps, got {fps!r}"
    return ""
