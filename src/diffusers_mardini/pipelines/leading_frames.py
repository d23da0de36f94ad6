"""Which frames lead the next window of an extension. Knows no pictures and no models.

`rollout.py` keeps their latents.
"""

from dataclasses import dataclass
from typing import Any

from .inputs import whole_number


@dataclass(frozen=True)
class LeadingFrames:
    """The frames of a video that lead its next window: the last ones, and anchors far back.

    With anchors, the first frame of the video leads every window, then come frames that lie ever further apart, then
    the last ones: of 4 with 2 anchors, the frames 0, -4, -2 and -1. In the window they lie side by side, because the
    models know no larger distances than those within a window.

    Args:
        overlap: most frames that lead a window.
        anchors: how many of them lie far back.
    """

    overlap: int
    anchors: int = 0

    @property
    def num_recent(self) -> int:
        """Number of leading frames that are the last of the video."""
        return self.overlap - self.anchors

    @property
    def span(self) -> int:
        """Number of last frames that a window may be led by, the first frame of the video left out."""
        return self.num_recent * 2 ** (self.anchors - 1) if self.anchors else self.overlap

    def kept(self, num_frames: int) -> list[int]:
        """Return the places of the frames that this window or a later one needs, of so many frames so far; rising."""
        first = max(0, num_frames - self.span)
        return [*([0] if self.anchors and first else []), *range(first, num_frames)]

    def leading(self, num_kept: int) -> list[int]:
        """Return which of the kept frames lead the next window; rising."""
        distances = [*range(1, self.num_recent + 1), *(self.num_recent * 2**i for i in range(1, self.anchors))]
        places = {num_kept - distance for distance in distances} | ({0} if self.anchors else set())
        places = {place for place in places if place >= 0}
        others = (place for place in reversed(range(num_kept)) if place not in places)
        # A short video has no frames far back: all that it has lead the window.
        places.update([*others][: max(0, min(self.overlap, num_kept) - len(places))])
        return sorted(places)


def read_leading_frames(window: int, overlap: Any, anchors: Any) -> LeadingFrames:
    """Check the arguments of an extension.

    Raises:
        ValueError: if its windows add no frame, or the last frame does not lead them.
    """
    overlap = window // 2 if overlap is None else whole_number(overlap, "overlap", least=1)
    if overlap >= window:
        raise ValueError(
            f"`overlap` is {overlap} and `window` {window}, so that a window adds no frame; lower `overlap` below "
            "`window`"
        )
    anchors = whole_number(anchors, "anchors", least=0)
    if anchors >= overlap:
        raise ValueError(
            f"`anchors` is {anchors} and `overlap` {overlap}, so that no window would begin at the last frame; lower "
            "`anchors` below `overlap`"
        )
    return LeadingFrames(overlap, anchors)
