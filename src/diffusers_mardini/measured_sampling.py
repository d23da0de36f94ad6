"""Hold how a checkpoint is sampled best, as measured and as its `model_index.json` records it: fewer steps that are as good
as 25, and anchors against drift.

`mardini` samples so by default, and its page takes the anchors; `pipe(...)` does as its arguments say.
`benchmarks/few_steps.py` and `training/drift.py` measure it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


USUAL_STEPS = 25  # Fig. 6a


@dataclass(frozen=True)
class MeasuredSampling:
    """Hold what was measured for a checkpoint; `None` where nothing was.

    Attributes:
        num_inference_steps: as good as `USUAL_STEPS` of the checkpoint's own scheduler.
        solver: the class of diffusers' scheduler that needs so few.
        anchors: how many of the frames that lead a window of `extend` lie far back, the first frame of the clip among
            them.
    """

    num_inference_steps: int | None = None
    solver: str | None = None
    anchors: int | None = None

    def __post_init__(self) -> None:
        steps, solver = self.num_inference_steps, self.solver
        if (steps is None) != (solver is None):
            raise ValueError(f"`num_inference_steps` is {steps!r} and `solver` {solver!r}; give both or neither")
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(f"`num_inference_steps` is {steps!r}; give a whole number of at least 1")
        if solver is not None and not isinstance(solver, str):
            raise ValueError(f"`solver` is {solver!r}; give the name of a scheduler's class")
        if self.anchors is not None and (type(self.anchors) is not int or self.anchors < 1):
            raise ValueError(f"`anchors` is {self.anchors!r}; give a whole number of at least 1, or none")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MeasuredSampling":
        """Read it from a pipeline's configuration."""
        return cls(config.get("num_inference_steps"), config.get("solver"), config.get("anchors"))

    @property
    def config(self) -> dict[str, Any]:
        """The keys of the pipeline's configuration."""
        return asdict(self)

    def anchors_of(self, overlap: int) -> int:
        """Return the anchors for windows that `overlap` frames lead, one of which is the last frame; 0 if none help."""
        return min(self.anchors or 0, overlap - 1)
