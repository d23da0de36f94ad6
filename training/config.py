"""The configuration of a training run: one YAML file, read into models that refuse what they do not know.

Fields say what happens if they are raised. The stages mirror Fig. 4; what a stage does with them is in `curriculum.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """Clips and how they are read."""

    train: Path = Field(description="Folder of training clips (Hugging Face VideoFolder layout).")
    validation: Path | None = Field(None, description="Folder of held-out clips; none means no held-out losses.")
    size: int = Field(
        64, ge=16, description="Side of the square centre crop, pixels; raising it costs quadratically more."
    )
    planner_downscale: int = Field(2, ge=1, description="How many times smaller the planner's frames are (Sec. 2.2).")
    cache: Path = Field(Path("runs/latents"), description="Where latents are kept between runs.")


class TaskMixture(_Strict):
    """How often each masking pattern is drawn; one pattern per batch, so that all rows keep the same number of frames."""

    random: float = Field(
        1.0, ge=0, description="Weight of positions drawn at random, as many as `reference_ratio` says."
    )
    interpolation: float = Field(0.0, ge=0, description="Weight of keeping the first and the last frame.")
    leading: float = Field(
        0.0, ge=0, description="Weight of keeping a run of leading frames (image-to-video, expansion)."
    )

    @model_validator(mode="after")
    def _some_weight(self):
        if self.random + self.interpolation + self.leading <= 0:
            raise ValueError("all task weights are 0; raise at least one of random, interpolation, leading")
        return self


class StageConfig(_Strict):
    """One row of Fig. 4."""

    name: str = Field(description="Name of the stage, used in logs and checkpoints.")
    trains: Literal["planner", "transformer", "joint"] = Field(
        description="`planner`: reconstruction (Sec. 2.4.1); `transformer`: diffusion with the unconditional signal; `joint`."
    )
    steps: int = Field(ge=1, description="Optimizer steps.")
    num_frames: int = Field(9, ge=2, description="Frames of a window.")
    strides: dict[int, float] = Field(
        {2: 1.0}, description="Weights of the distances between frames, in frames of the clip."
    )
    reference_ratio: tuple[float, float] = Field(
        (0.35, 1.0), description="Least and largest share of kept frames (Fig. 4)."
    )
    tasks: TaskMixture = Field(TaskMixture(), description="Mixture of masking patterns.")
    leading_frames: tuple[int, int] = Field((1, 3), description="Least and largest run kept by the `leading` pattern.")
    temporal_attention: Literal["temporal", "spatiotemporal"] = Field(
        "temporal", description="The transformer's attention across frames; weights survive a swap (Sec. 2.4.2)."
    )
    batch_size: int = Field(
        8, ge=1, description="Windows per process and step; raising it steadies gradients, costs memory."
    )
    gradient_accumulation: int = Field(
        1,
        ge=1,
        description="Batches per process and step, one after the other: a larger step at the memory of one batch.",
    )
    learning_rate: float = Field(1.4e-4, gt=0, description="Peak learning rate (the paper: 1.4e-4).")
    final_learning_rate: float = Field(0.0, ge=0, description="Where the cosine ends.")
    warmup_steps: int = Field(
        100, ge=0, description="Steps of linear warm-up; raise it where the loss spikes at the start."
    )
    planning_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of rows whose planning signal is dropped (Sec. 2.4.1)."
    )
    planner_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Ours: weight of the planner's reconstruction loss in a joint stage; the paper drops it (0).",
    )
    timestep_shift: float = Field(
        1.0, gt=0, description="Above 1, more training at high noise: u -> s u / (1 + (s - 1) u)."
    )
    compile: bool = Field(
        False, description="Compile the repeated blocks: first steps of a minute or more, faster ones after."
    )

    @model_validator(mode="after")
    def _consistent(self):
        low, high = self.reference_ratio
        if not 0 <= low <= high <= 1:
            raise ValueError(f"reference_ratio is {self.reference_ratio}; it must be 0 <= low <= high <= 1")
        least, largest = self.leading_frames
        if not 1 <= least <= largest < self.num_frames:
            raise ValueError(f"leading_frames is {self.leading_frames}; it must lie within 1 to {self.num_frames - 1}")
        if not self.strides or any(stride < 1 or weight < 0 for stride, weight in self.strides.items()):
            raise ValueError(
                f"strides is {self.strides}; it must map distances of at least 1 to weights of at least 0"
            )
        return self


class OptimizerConfig(_Strict):
    """AdamW (Appendix B), or Muon on the matrices of the blocks, and the average of the weights."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`muon` (ours): Muon for the matrices of the blocks, AdamW for the rest, at the same rates.",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the gradient's average.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the squared gradient's average.")
    weight_decay: float = Field(0.01, ge=0, description="Raising it shrinks weights, against over-fitting.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Raising it averages over more steps (about 1 / (1 - decay))."
    )


class RunConfig(_Strict):
    """A whole run."""

    name: str = Field(description="Name of the run; its folder is `runs/<name>`.")
    seed: int = Field(
        0, ge=0, description="Everything random is a function of this seed, the stage, the step and the process."
    )
    data: DataConfig
    vae: str = Field(description="Folder or Hub id of the autoencoder, loaded by `from_pretrained`.")
    preset: str = Field(
        "mardini-tiny", description="Sizes of planner, transformer and scheduler (`diffusers_mardini.presets`)."
    )
    init_from: str | None = Field(
        None,
        description="Folder or Hub id of a pipeline whose planner and transformer the run starts from; none: scratch.",
    )
    planner: dict[str, Any] = Field({}, description="Overrides of the preset's planner.")
    transformer: dict[str, Any] = Field({}, description="Overrides of the preset's transformer.")
    scheduler: dict[str, Any] = Field({}, description="Overrides of the preset's scheduler.")
    optimizer: OptimizerConfig = OptimizerConfig()
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto", description="`auto`: bf16 autocast where the device multiplies bf16 matrices fast, else float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute blocks in the backward pass: less memory, slower."
    )
    log_every: int = Field(10, ge=1, description="Steps between lines of `metrics.jsonl`.")
    validate_every: int = Field(200, ge=1, description="Steps between held-out losses.")
    validation_windows: int = Field(32, ge=1, description="Held-out windows; raising it steadies the held-out losses.")
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(
        2, ge=1, description="Checkpoints kept; older ones are deleted after a new one is whole."
    )
    max_skipped_steps: int = Field(
        3,
        ge=1,
        description="Steps in a row that may be left out as not finite before the run goes back to its last checkpoint.",
    )
    max_hours: float | None = Field(
        None, gt=0, description="Save and stop after this long; the same command goes on. None: no limit."
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="Dtype of the exported weights."
    )
    stages: list[StageConfig] = Field(min_length=1, description="The curriculum, in order (Fig. 4).")

    @model_validator(mode="after")
    def _unique_names(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stage names are {names}; each must be given once")
        return self


# What may differ when a run goes on: it says what is told, kept and read from where, not what is learned.
_NOT_SHAPING = {
    "name", "log_every", "validate_every", "validation_windows", "checkpoint_every", "keep_checkpoints", "max_hours", "save_dtype",
    "stages", "data.cache", "data.validation", "data.train", "vae", "init_from",
}  # fmt: skip


def shaping_fields(config: RunConfig, stages: Sequence[str]) -> dict[str, Any]:
    """What the weights after the named stages depend on, by dotted key, as JSON values.

    Paths are left out (folders may move; the latents carry a fingerprint of their own), and so are `batch_size` and
    `gradient_accumulation`: the windows of a step count, and not how they are shared.
    """
    dump = config.model_dump(mode="json")
    fields = _flat({key: value for key, value in dump.items() if key not in _NOT_SHAPING})
    for stage in dump["stages"]:
        if stage["name"] in stages:
            fields |= _flat(
                {k: v for k, v in stage.items() if k not in ("batch_size", "gradient_accumulation")},
                f"stages.{stage['name']}.",
            )
    return {key: value for key, value in fields.items() if key not in _NOT_SHAPING}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def load_config(path: str | Path) -> RunConfig:
    """Reads a YAML file; raises `ValueError` that names file, key, what was given and what is accepted."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no configuration at {path}; see training/configs/ for examples")
    try:
        return RunConfig.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']} (given: {e['input']!r})" for e in error.errors()
        ]
        raise ValueError("\n".join([f"{path} is not a valid training configuration:", *lines])) from error
