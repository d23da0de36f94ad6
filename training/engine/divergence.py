"""Notice a run that diverges: its loss is far above its start, or above that of a model that predicts zeros.

Held-out losses decide where there are any, else the median of the last training losses. The steps at which a loss was
good are kept in checkpoints, so that the last good checkpoint is known, and stays.
"""

import math
from collections import deque
from pathlib import Path
from statistics import median

from training.engine.checkpoint import CheckpointError, good_checkpoint, newest_checkpoint, set_aside_after


FAR_ABOVE = 5.0  # times the start of the stage
RECENT = 8  # training losses, of which one may be large by itself


class DivergenceGuard:
    """Compare the losses of a stage with its first one; all processes give it the same losses.

    Attributes:
        good_until: the last global step at which the loss was good.
    """

    def __init__(self):
        self.good_until = 0
        self.first: float | None = None
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # global steps and training losses

    def begin_stage(self) -> None:
        """Forget the losses of the stage before: those of another one differ."""
        self.first = None
        self.recent.clear()

    def accepts(self, loss: float, zeros: float, global_step: int) -> bool:
        """Return whether a loss is finite and near enough to the start of its stage.

        Args:
            loss: held-out, or the median of training losses.
            zeros: the loss of a model that predicts zeros, which a start is never much above.
            global_step: at which it was measured.
        """
        if self.first is None:
            self.first = min(loss, zeros) if math.isfinite(loss) else zeros
        if not (math.isfinite(loss) and loss <= FAR_ABOVE * self.first):
            return False
        self.good_until = global_step
        return True

    def accepts_training(self, loss: float, zeros: float, global_step: int) -> bool:
        """Return the same of training losses, by their median; the first few are too few to refuse one.

        Where the median is good, the newer half of the losses may be bad: the run was good before them.
        """
        self.recent.append((global_step, loss))
        if len(self.recent) < RECENT:
            return True
        return self.accepts(median(loss for _, loss in self.recent), zeros, self.recent[RECENT // 2 - 1][0])

    def state(self) -> dict:
        """Return what a checkpoint keeps, as JSON."""
        return {"good_until": self.good_until, "first": self.first, "recent": list(self.recent)}

    def load_state(self, state: dict) -> None:
        """Restore what `state` returned."""
        self.good_until, self.first = state["good_until"], state["first"]
        self.recent = deque(map(tuple, state["recent"]), maxlen=RECENT)


def where_to_go_on(folder: Path, good_until: int, rename: bool) -> str:
    """Name the last good checkpoint; set those after it aside, so that the run goes on from it.

    Args:
        folder: of the checkpoints.
        good_until: the last global step at which the loss was good.
        rename: whether this process sets checkpoints aside.
    """
    good = good_checkpoint(folder, good_until)
    if good is not None:
        aside = set_aside_after(good) if rename else []
        renamed = f" (later ones are set aside: {', '.join(path.name for path in aside)})" if aside else ""
        return f"the last good checkpoint is {good}, which goes on so with --allow-change{renamed}"
    try:
        newest = newest_checkpoint(folder)
    except CheckpointError:
        newest = None
    if newest is None:
        return "there is no checkpoint"
    return f"the newest checkpoint is {newest}, of which no loss has shown yet whether it is good"
