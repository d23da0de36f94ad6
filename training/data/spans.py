"""Clips that are spans of frames of other clips: the rows of a clip list, the episodes within one video.

`clip_lists.py` and `lerobot.py` are the sources made of them; `manifest.py` finds the frames of each span, by their
times, in the facts about the whole clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from training.data.sources import Clip, Source


@dataclass(frozen=True)
class Span:
    """A span of frames of a clip of another source.

    Attributes:
        source: of the whole clip.
        clip: its key there.
        first_frame: index of the first frame.
        num_frames: number of frames; `None` for all up to the end.
        seconds: where the span begins and ends on the clip's own clock; `first_frame` is then found by the beginning.
        place: where the span is written, to begin an error with, such as "line 3 of 'train.jsonl'".
    """

    source: Source
    clip: str
    first_frame: int = 0
    num_frames: int | None = None
    seconds: tuple[float, float] | None = None
    place: str = ""

    def stamp(self, of_clip: str | None) -> str | None:
        """Return the stamp of the span, given the one of its clip."""
        begin = self.first_frame if self.seconds is None else self.seconds
        return None if of_clip is None else f"{of_clip}, from {begin}, {self.num_frames} frames"

    def reason(self, text: str) -> str:
        """Return a reason to leave the span out, with the place where it is written."""
        return f"{self.place}: {text}" if self.place else text


class WholeClips:
    """Give the answers of sources whose clips are files of their own."""

    def spans(self) -> Mapping[str, Span]:
        """Return no spans: every clip is whole."""
        return {}

    def rows(self, key: str, columns: Sequence[str]) -> None:
        """Return `None`: numbers for each frame lie in a table beside the clip."""
        return None

    def recording(self, key: str) -> str | None:
        """Return `None`: nothing says which clips belong together."""
        return None


class SpanSource:
    """A source whose clips are spans; `open`, `stamp` and `fps` are those of the whole clips."""

    def __init__(self, spec: str, spans: Mapping[str, Span]):
        self.spec = spec
        self._spans = dict(spans)

    def keys(self) -> Iterator[str]:
        """Yield the keys of all spans."""
        yield from self._spans

    def spans(self) -> Mapping[str, Span]:
        """Return the spans by key."""
        return self._spans

    def open(self, key: str) -> Clip:
        """Return the whole clip, of which only the frames at the times of the manifest are this span's."""
        return self._span(key).source.open(self._span(key).clip)

    def stamp(self, key: str) -> str | None:
        """Return a text that changes with the clip or with the span."""
        span = self._span(key)
        return span.stamp(span.source.stamp(span.clip))

    def fps(self, key: str) -> float | None:
        """Return the frames per second of a folder of pictures; `None` for videos, which state it themselves."""
        return self._span(key).source.fps(self._span(key).clip)

    def rows(self, key: str, columns: Sequence[str]) -> Mapping[str, Sequence] | None:
        """Return those columns of the whole clip's rows that belong to this span; `None` if its source has no rows."""
        span = self._span(key)
        rows = span.source.rows(span.clip, columns)
        if rows is None:
            return None
        end = None if span.num_frames is None else span.first_frame + span.num_frames
        return {name: cells[span.first_frame : end] for name, cells in rows.items()}

    def recording(self, key: str) -> str | None:
        """Return the recording that the whole clip is part of."""
        return self._span(key).source.recording(self._span(key).clip)

    def left_out(self) -> dict[str, str]:
        """Return nothing: spans that cannot be used are found by the manifest."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Return nothing: only what is named is looked at."""
        return ()

    def _span(self, key: str) -> Span:
        if key not in self._spans:
            raise ValueError(f"there is no clip '{key}' in '{self.spec}'; it has changed since the manifest was made")
        return self._spans[key]
