"""Hold what all tabs share: checkpoints, limits, running work, and the room for results; and how errors reach a visitor."""

import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..hardware import is_lack_of_memory
from ..video_io import MAX_GIF_FPS, write_video
from .checkpoints import Checkpoints
from .jobs import Ended, Job, Jobs, Turns, reports_of
from .limits import Limits
from .sampling import at_rate


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """One served page.

    Attributes:
        checkpoints: what visitors may use.
        limits: what they may ask for.
        jobs: their running work.
        turns: the line before the models.
        room: folder of their results, one folder for each session; whoever made it removes it.
    """

    checkpoints: Checkpoints
    limits: Limits
    jobs: Jobs
    turns: Turns
    room: Path

    def work(self, job: Job, work: Callable[[Callable[[Any], None]], Any]) -> Iterator[tuple[str, Any]]:
        """Wait for the turn of a job and do it; yield `("waiting", how many are ahead)`, and then as `reports_of` does."""
        with self.turns.place(job):
            while ahead := self.turns.ahead(job):
                yield "waiting", ahead
            yield from reports_of(work, job)

    def write_results(self, session: str, frames: list[Image.Image], fps: float) -> tuple[Path, Path]:
        """Write mp4 and gif for one session, in place of its results before; return their paths."""
        shutil.rmtree(self._folder(session), ignore_errors=True)
        folder = self._folder(session) / uuid.uuid4().hex
        return (
            write_video(folder / "mardini.mp4", frames, fps),
            write_video(folder / "mardini.gif", at_rate(frames, fps, MAX_GIF_FPS), min(fps, MAX_GIF_FPS)),
        )

    def leave(self, session: str) -> None:
        """End the work of a session that is over, and remove its results."""
        self.jobs.cancel(session)
        shutil.rmtree(self._folder(session), ignore_errors=True)

    def _folder(self, session: str) -> Path:
        # The browser makes up the name of its session.
        return self.room / uuid.uuid5(uuid.NAMESPACE_OID, session).hex


def told(updates: Iterator[Any], tell: Any) -> Iterator[Any]:
    """Pass updates on; end with `tell(message)` if the work fails."""
    try:
        yield from updates
    except Exception as error:  # whatever happens to one visitor, the page stays
        yield tell(for_visitors(error))


def for_visitors(error: Exception) -> str:
    """Return what to tell a visitor of an error; what is not their fault is logged."""
    if isinstance(error, Ended):
        return str(error)
    if is_lack_of_memory(error):
        return "There is too little memory for this; try fewer or smaller frames."
    if isinstance(error, ValueError) and str(error):
        return str(error)
    logger.exception("a visitor's work failed", exc_info=error)
    return "Something went wrong on the server; try again, or reload the page."
