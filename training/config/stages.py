"""The configuration of one stage of training, a row of Fig. 4.

`curriculum.py` says what a stage does with it, `plan.py` what it costs; the whole configuration is in `schema.py`.
"""

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from diffusers_mardini.sizes import Size
from training.config.strict import LEAST_SIDE, Name, SizedModel, StrictModel


# Pairs of which a stage gives one (of `size` and `buckets` at most one). A later layer (child file, override) that
# names one drops the other. Of `batch_size` and `global_batch` it gives one or both.
ALTERNATIVES = {
    "steps": "clips",
    "clips": "steps",
    "strides": "fps",
    "fps": "strides",
    "size": "buckets",
    "buckets": "size",
}


def check_pace(strides: dict[int, float] | None, fps: float | dict[float, float] | None) -> None:
    """Raise `ValueError` for distances or rates that make no windows."""
    if strides is not None and (
        any(stride < 1 or weight < 0 for stride, weight in strides.items()) or sum(strides.values()) <= 0
    ):
        raise ValueError(
            f"strides is {strides}; it must map distances of at least 1 to weights of at least 0, not all 0"
        )
    rates = fps if isinstance(fps, dict) else {1.0 if fps is None else fps: 1.0}
    if any(rate <= 0 or weight < 0 for rate, weight in rates.items()) or sum(rates.values()) <= 0:
        raise ValueError(
            f"fps is {fps}; give a number above 0, or map such numbers to weights of at least 0, not all 0"
        )


class TaskMixture(StrictModel):
    """Weights of the masking patterns; a batch has one pattern, so that all rows have equally many given frames."""

    random: float = Field(
        1.0, ge=0, description="Weight of given frames at random positions, as many as `reference_ratio` says."
    )
    interpolation: float = Field(0.0, ge=0, description="Weight of giving the first and the last frame.")
    leading: float = Field(0.0, ge=0, description="Weight of giving the leading frames (image-to-video, expansion).")

    @model_validator(mode="after")
    def _some_weight(self):
        if self.random + self.interpolation + self.leading <= 0:
            raise ValueError("all task weights are 0; raise at least one of random, interpolation, leading")
        return self


class StageConfig(SizedModel):
    """One row of Fig. 4."""

    name: Name = Field(
        description="Name of the stage, used in logs and checkpoints; its result is written to `stages/<name>`."
    )
    trains: Literal["planner", "transformer", "joint"] = Field(
        description="`planner`: reconstruction (Sec. 2.4.1); `transformer`: diffusion with the unconditional signal; "
        "`joint`: both models by diffusion."
    )
    steps: int | None = Field(None, ge=1, description="Optimizer steps; or give `clips`.")
    clips: int | None = Field(
        None,
        ge=1,
        description="Clips seen (Fig. 4), instead of `steps`: as many steps as the global batch needs to see them.",
    )
    num_frames: int = Field(9, ge=2, description="Frames of a window.")
    strides: dict[int, float] | None = Field(
        {2: 1.0},
        description="Weights of the distances between window frames, counted in clip frames; or give `fps`. If a stage "
        "gives neither, it has those of the run.",
    )
    fps: float | dict[float, float] | None = Field(
        None,
        description="Frames per second of a window (Fig. 4), or weights of several (`{4: 0.3, 8: 0.7}`), instead of "
        "`strides`: frames are chosen by time; lowering it shows more motion.",
    )
    size: Size | None = Field(
        None, description="Size of the windows, `64` or `64x128` (height x width). None: `data.size`."
    )
    buckets: list[tuple[int, ...]] | None = Field(
        None,
        min_length=1,
        description="Shapes of batches, `64x128` or `64x128x9` (with frames), instead of `size`: a clip goes "
        "to the nearest aspect ratio. Held-out losses are measured in the first.",
    )
    reference_ratio: tuple[float, float] = Field(
        (0.35, 1.0), description="Smallest and largest share of given frames (Fig. 4)."
    )
    tasks: TaskMixture = Field(TaskMixture(), description="Mixture of masking patterns.")
    leading_frames: tuple[int, int] = Field(
        (1, 3), description="Smallest and largest number of frames that the `leading` pattern gives."
    )
    off_centre: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of windows cropped at an end of the longer side, or half-way to it, instead of the "
        "centre, against over-fitting; above 0 the latent cache is five times as large.",
    )
    temporal_attention: Literal["temporal", "spatiotemporal"] = Field(
        "temporal",
        description="The transformer's attention across frames; a later stage may change it and keeps the weights "
        "(Sec. 2.4.2).",
    )
    batch_size: int | None = Field(
        8,
        ge=1,
        description="Windows per process and step; raising it makes gradients steadier and costs memory; or give "
        "`global_batch`. With both, the most windows of a process at once: `gradient_accumulation` then follows from "
        "them and from the number of processes.",
    )
    global_batch: int | None = Field(
        None,
        ge=1,
        description="Windows per step over all processes, dealt out to them, whether their number divides it or not; "
        "instead of `batch_size`, or with it.",
    )
    gradient_accumulation: int = Field(
        1,
        ge=1,
        description="Batches per process and step, one after the other: a larger step in the memory of one batch. "
        "Fewer where a process has fewer windows of a `global_batch`.",
    )
    learning_rate: float = Field(1.4e-4, gt=0, description="Peak learning rate (the paper: 1.4e-4).")
    final_learning_rate: float = Field(0.0, ge=0, description="Learning rate at the end of the cosine decay.")
    warmup_steps: int = Field(
        100, ge=0, description="Steps of linear warm-up; raise it if the loss spikes at the start."
    )
    planning_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of windows whose planning signals are dropped (Sec. 2.4.1)."
    )
    conditions_dropout: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Ours: share of windows that lose all conditions together, so that sampling without any is learned; "
        "`drop` of a condition is beside it, and leaves out that one alone.",
    )
    planner_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Ours: weight of the planner's reconstruction loss in a joint stage; the paper drops it (0).",
    )
    timestep_shift: float = Field(
        1.0, gt=0, description="Above 1, high noise is drawn more often: u -> s u / (1 + (s - 1) u)."
    )
    reference_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Ours, against drift of long videos: half of the windows get noise on their given frames, for both "
        "models, at a level from 0 to this share of the timesteps; the transformer is told the level.",
    )
    stop_when_flat: int | None = Field(
        None,
        ge=4,
        description="End the stage early once its mean held-out loss has not fallen, beyond noise, over so many "
        "measurements: its learning rate then decays over a tenth more of its steps. Raising it waits longer. None: "
        "never.",
    )
    compile: Literal[False, True, "step"] = Field(
        False,
        description="`true`: compile the repeated blocks; the first steps take a minute or more, later ones are "
        "faster. `step`: compile the whole forward pass with its loss as one graph, for small models on a GPU, which "
        "wait for the launches of kernels; the first steps take longer, and longer the deeper the models are.",
    )

    @field_validator("buckets", mode="before")
    @classmethod
    def _buckets_of_text(cls, value: Any) -> Any:
        """Read `64x128` and `64x128x9`; anything else is left to the checks."""
        if not isinstance(value, list | tuple):
            return value
        return [
            [int(side) for side in each.split("x")]
            if isinstance(each, str) and re.fullmatch(r"\d+(x\d+)+", each)
            else each
            for each in value
        ]

    @model_validator(mode="before")
    @classmethod
    def _one_of_each_pair(cls, values: Any) -> Any:
        """Refuse both keys of a pair; where one is given, drop the default of the other."""
        if not isinstance(values, dict) or values.keys() - cls.model_fields.keys():
            return values  # an unknown key may be the missing one misspelt; report that instead
        values = dict(values)
        for first, second in (("steps", "clips"), ("strides", "fps"), ("batch_size", "global_batch")):
            given = [key for key in (first, second) if values.get(key) is not None]
            if len(given) == 2 and first != "batch_size":
                raise ValueError(
                    f"`{first}` ({values[first]!r}) and `{second}` ({values[second]!r}) are both given; keep one of "
                    "them"
                )
            none_left = not given and (first in values or cls.model_fields[first].default is None)
            if none_left:
                raise ValueError(f"neither `{first}` nor `{second}` is given; give one of them")
            if given == [second]:
                values[first] = None
        if values.get("size") is not None and values.get("buckets") is not None:
            raise ValueError(
                f"`size` ({values['size']!r}) and `buckets` ({values['buckets']!r}) are both given; keep one of them"
            )
        return values

    @model_validator(mode="after")
    def _consistent(self):
        for bucket in self.buckets or []:
            if len(bucket) not in (2, 3) or min(bucket[:2]) < LEAST_SIDE or min(bucket[2:], default=2) < 2:
                raise ValueError(
                    f"bucket {'x'.join(map(str, bucket))} must be like 64x128 (height x width) or 64x128x9 (with "
                    f"frames), with sides of at least {LEAST_SIDE} pixels and at least 2 frames"
                )
        shapes = [(*bucket, self.num_frames)[:3] for bucket in self.buckets or []]
        if len(set(shapes)) != len(shapes):
            raise ValueError(f"buckets is {self.buckets}; each shape must be given once")
        low, high = self.reference_ratio
        if not 0 <= low <= high <= 1:
            raise ValueError(f"reference_ratio is {self.reference_ratio}; it must be 0 <= low <= high <= 1")
        least, largest = self.leading_frames
        shortest = min((frames for _, _, frames in shapes), default=self.num_frames)
        if self.tasks.leading > 0 and not 1 <= least <= largest < shortest:
            raise ValueError(f"leading_frames is {self.leading_frames}; it must lie within 1 to {shortest - 1}")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate:g}, above learning_rate {self.learning_rate:g}; the "
                "rate falls from the one to the other"
            )
        check_pace(self.strides, self.fps)
        return self

    @property
    def rates(self) -> dict[float, float]:
        """Weights of the frames per second, `fps`; empty if `strides` are given."""
        return self.fps if isinstance(self.fps, dict) else {} if self.fps is None else {self.fps: 1.0}

    def for_processes(self, num_processes: int) -> "StageConfig":
        """Return the same stage in `steps`, and in all three of `global_batch`, `batch_size` and
        `gradient_accumulation`.

        The global batch stays the same for any number of processes. The other two are what the process with the most
        windows needs: so many at once at most, so many times.

        Args:
            num_processes: those that have windows of their own (`Layout.data_ranks`).
        """
        together = self.global_batch or self.batch_size * self.gradient_accumulation * num_processes
        most = -(-together // num_processes)  # windows of one process
        at_once = self.batch_size if self.batch_size and self.global_batch else -(-most // self.gradient_accumulation)
        parts = -(-most // at_once)
        return self.model_copy(
            update={
                "steps": self.steps or math.ceil(self.clips / together),
                "clips": None,
                "global_batch": together,
                "batch_size": -(-most // parts),
                "gradient_accumulation": parts,
            }
        )

    @property
    def windows_per_step(self) -> int:
        """Return the windows of a step over all processes; of a stage that `for_processes` has resolved."""
        assert self.global_batch is not None, f"stage {self.name!r} is not resolved for its processes"
        return self.global_batch
