"""Make what the page shows, as plain values: places of the strip, the comparison, a line about how things go."""

import base64
import html
import io
from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image

from .sampling import Progress


SHOWN_SIDE = 160  # pixels of a picture on the strip


def strip(
    num_frames: int, pictures: dict[int, Image.Image], given: Collection[int], kind: str = "made"
) -> list[dict[str, Any]]:
    """Return the places of the strip.

    Args:
        num_frames: of the window.
        pictures: to be shown, by place.
        given: places whose pictures are given; the others are `"made"`, or `"making"` as long as they are sampled.
        kind: of the pictures that are not given.
    """
    words = {"given": "given", "made": "made", "making": "making", "empty": "to make"}
    places = []
    for place in range(num_frames):
        is_given = place in given
        state = "given" if is_given else kind if place in pictures else "empty"
        source = data_uri(pictures[place], SHOWN_SIDE) if place in pictures else ""
        places.append(
            {
                "place": place,
                "number": place + 1,
                "kind": state,
                "what": words[state],
                "given": is_given,
                "src": source,
            }
        )
    return places


def comparison(ours: Sequence[Image.Image], simple: Sequence[Image.Image], fps: float, name: str) -> dict[str, Any]:
    """Return two clips for the picture with a line between them; `name` is that of the simple method."""
    return {
        "ours": [data_uri(frame) for frame in ours],
        "simple": [data_uri(frame) for frame in simple],
        "fps": min(fps, 12),
        "name": name,
    }


def status(text: str, progress: Progress | None = None, bad: bool = False) -> str:
    """Return a line, with a bar if work is going on, that screen readers read out."""
    bar = ""
    if progress is not None:
        bar = f'<progress max="{progress.total}" value="{progress.done}" aria-label="Progress"></progress>'
    role = "alert" if bad else "status"
    return (
        f'<div class="status" role="{role}"><span class="{"bad" if bad else ""}">{html.escape(text)}</span>{bar}</div>'
    )


def progress_line(kind: str, value: Any) -> str:
    """Return the line for what `Site.work` yields while it goes on."""
    if kind == "waiting":
        return status(f"Waiting for {'one other' if value == 1 else f'{value} others'} …")
    return status(f"Step {value.done} of {value.total}", value)


def data_uri(picture: Image.Image, side: int | None = None) -> str:
    """Return a picture as an address that holds it; made smaller than `side` if given."""
    if side is not None and max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
