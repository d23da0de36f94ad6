"""Keep what a visitor has given: pictures at places of a window, or a clip that is laid onto them by a pattern."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ..masking import task_indices


PATTERNS = {
    "first and last": "interpolation",
    "first": "image-to-video",
    "first half": "expansion",
    "every fourth": "every fourth",
}


@dataclass(frozen=True)
class Given:
    """Pictures by place, and the clip they come from, if any, so that another pattern can be tried on it.

    Attributes:
        pictures: by place.
        clip: its first frames, at the rate of the checkpoint.
        file: of the clip, to read it at the rate of another checkpoint.
    """

    pictures: dict[int, Image.Image] = field(default_factory=dict)
    clip: tuple[Image.Image, ...] = ()
    file: Path | None = None

    def within(self, num_frames: int) -> "Given":
        """Leave out what lies beyond a shorter window."""
        return replace(self, pictures={place: p for place, p in self.pictures.items() if place < num_frames})

    def put(self, place: int, picture: Image.Image) -> "Given":
        """Give one more picture."""
        return replace(self, pictures={**self.pictures, place: picture})

    def take_off(self, place: int) -> "Given":
        """Give one less."""
        return replace(self, pictures={p: picture for p, picture in self.pictures.items() if p != place})


def of_pictures(pictures: Sequence[Image.Image], num_frames: int) -> Given:
    """Spread pictures: one is the first frame, two are the first and the last, more lie evenly between.

    Raises:
        ValueError: if as many are given as there are frames, or more.
    """
    if len(pictures) >= num_frames:
        raise ValueError(
            f"{len(pictures)} pictures fill the window of {num_frames} frames; give fewer, or make the window longer"
        )
    if len(pictures) == 1:
        return Given({0: pictures[0]})
    last = num_frames - 1
    return Given({round(i * last / (len(pictures) - 1)): picture for i, picture in enumerate(pictures)})


def of_clip(clip: Sequence[Image.Image], num_frames: int, pattern: str, file: Path | None = None) -> Given:
    """Give the frames of a clip that a pattern names, from its beginning on.

    Args:
        clip: frames at the rate of the checkpoint.
        num_frames: of the window.
        pattern: one of `PATTERNS`.
        file: of the clip.

    Raises:
        ValueError: if the clip has too few frames for that.
    """
    task = PATTERNS[pattern]
    places = (
        [*range(0, num_frames - 1, 4), num_frames - 1] if task == "every fourth" else task_indices(task, num_frames)
    )
    if max(places) >= len(clip):
        raise ValueError(
            f"the clip has {len(clip)} frames at the rate of this checkpoint, too few for '{pattern}' in a window of "
            f"{num_frames}; give a longer clip, fewer frames, or another pattern"
        )
    return Given({place: clip[place] for place in places}, tuple(clip), file)
