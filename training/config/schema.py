"""The configuration of a training run: models that refuse what they do not know. `config_layers.py` reads files into them.

Fields say what happens if they are raised; `docs/config.md` is generated from them. The stages mirror Fig. 4; what a stage
does with them is in `curriculum.py`, what it costs says `plan.py`.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticUndefined, to_jsonable_python

from diffusers_mardini.presets import list_presets, load_preset
from training.config.strict import Name, StrictModel


# Two ways to say one thing: a stage gives one of each pair (of `size` and `buckets` at most one). A later layer (child file, override) that names one drops the other.
ALTERNATIVES = {
    "steps": "clips",
    "clips": "steps",
    "strides": "fps",
    "fps": "strides",
    "batch_size": "global_batch",
    "global_batch": "batch_size",
    "size": "buckets",
    "buckets": "size",
}


class ConditionConfig(StrictModel):
    """One condition: what both models are told about each frame (ours, not the paper's)."""

    columns: list[str] | None = Field(
        None,
        min_length=1,
        description="Columns of the table beside each clip, `<clip>.csv` or `<clip>.parquet`, a row for each frame; or give `derive`.",
    )
    derive: Literal["rate", "motion"] | None = Field(
        None,
        description="`rate`: seconds since the frame before in the window; `motion`: mean absolute difference of the latents to it.",
    )
    range: list[tuple[float, float]] = Field(
        min_length=1,
        description="Lowest and highest value of each channel, scaled to -1 and 1; one pair for all channels, or one for each.",
    )
    unit: str = Field("", description="Unit of the values, for errors and cards.")
    interval: Literal["mean", "sum"] = Field(
        "mean",
        description="How the values of frames that a window skips become one: their mean (actions), or their sum.",
    )
    drop: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Share of windows that are told nothing of it; raising it helps sampling without.",
    )

    @model_validator(mode="after")
    def _consistent(self):
        if (self.columns is None) == (self.derive is None):
            raise ValueError("give `columns` of the tables beside the clips, or `derive`, and not both")
        if len(self.range) not in (1, self.channels):
            raise ValueError(
                f"range has {len(self.range)} pairs for {self.channels} channels; give one pair, or one for each"
            )
        for low, high in self.range:
            if not low < high:
                raise ValueError(f"range has [{low}, {high}]; the lowest value must be below the highest")
        return self

    @property
    def channels(self) -> int:
        """Numbers that each frame has."""
        return len(self.columns) if self.columns else 1

    @property
    def info(self) -> dict[str, Any]:
        """What the models' configuration says of it (`condition_info`)."""
        pairs = [list(pair) for pair in self.range] * (self.channels if len(self.range) == 1 else 1)
        description = {
            "rate": "seconds since the frame before in the window",
            "motion": "mean absolute difference of the latents to the frame before in the window",
            None: "from a table beside each clip; belongs to the interval that leads to its frame",
        }[self.derive]
        names = {"names": list(self.columns)} if self.columns else {}
        interval = "sum" if self.derive == "rate" else self.interval
        return {**names, "unit": self.unit, "range": pairs, "interval": interval, "description": description}


class DataConfig(StrictModel):
    """Clips and how they are read."""

    train: str = Field(
        description="Source of training clips: a folder of videos, of picture folders or of .tar shards, a shard or `train-{000..009}.tar`, "
        "`datasets:NAME#SPLIT` or, streamed, `datasets-stream:NAME#SPLIT`."
    )
    validation: str | None = Field(
        None, description="Source of held-out clips, of any of these kinds; none means no held-out losses."
    )
    picture_fps: float | None = Field(
        None, gt=0, description="Frames per second of picture folders whose metadata does not say it."
    )
    size: int = Field(
        64, ge=16, description="Side of the square centre crop, pixels; raising it costs quadratically more."
    )
    planner_downscale: int | None = Field(
        None, ge=1, description="How many times smaller the planner's frames are (Sec. 2.2). None: the preset's."
    )
    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of windows mirrored left to right; above 0 the latent cache is twice as large. Leave it at 0 where left and right differ.",
    )
    conditions: dict[str, ConditionConfig] = Field(
        {},
        description="What the models are told about each frame, by name, such as `action`; see below. None: the paper's models.",
    )
    from_pixels: bool = Field(
        False,
        description="Decode and encode windows when they are drawn, instead of keeping the latents of all frames: no disk, slower steps.",
    )
    workers: int = Field(
        1,
        ge=0,
        description="Steps that are prepared ahead while one is computed and, with `from_pixels`, threads that decode; 0: read in the loop.",
    )
    manifests: Path = Field(
        Path("runs/manifests"), description="Where it is kept what decoding said of every clip; shared by all runs."
    )
    cache: Path = Field(Path("runs/latents"), description="Where latents are kept between runs.")

    @model_validator(mode="after")
    def _told_what_is_shown(self):
        if self.flip > 0 and any(condition.columns for condition in self.conditions.values()):
            raise ValueError(
                "flip mirrors windows, and what the tables beside the clips say would stay as it is: a turn to the left would be shown "
                "as one to the right; set flip to 0"
            )
        return self


class TaskMixture(StrictModel):
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


class StageConfig(StrictModel):
    """One row of Fig. 4."""

    name: Name = Field(
        description="Name of the stage, used in logs and checkpoints; its result lies in `stages/<name>`."
    )
    trains: Literal["planner", "transformer", "joint"] = Field(
        description="`planner`: reconstruction (Sec. 2.4.1); `transformer`: diffusion with the unconditional signal; `joint`."
    )
    steps: int | None = Field(None, ge=1, description="Optimizer steps; or give `clips`.")
    clips: int | None = Field(
        None,
        ge=1,
        description="Clips seen (Fig. 4), instead of `steps`: as many steps as the global batch needs for them.",
    )
    num_frames: int = Field(9, ge=2, description="Frames of a window.")
    strides: dict[int, float] | None = Field(
        {2: 1.0}, description="Weights of the distances between frames, in frames of the clip; or give `fps`."
    )
    fps: float | None = Field(
        None,
        gt=0,
        description="Frames per second of a window (Fig. 4), instead of `strides`: clips are sampled by time; lowering it shows more motion.",
    )
    size: int | tuple[int, int] | None = Field(
        None,
        description="Side of the square windows in pixels, or [height, width]; none: `data.size`. Raising it costs quadratically more.",
    )
    buckets: list[tuple[int, ...]] | None = Field(
        None,
        min_length=1,
        description="Shapes of batches, [height, width] or [height, width, frames], instead of `size`: a clip goes to the nearest aspect ratio. "
        "Held-out losses are those of the first.",
    )
    reference_ratio: tuple[float, float] = Field(
        (0.35, 1.0), description="Least and largest share of kept frames (Fig. 4)."
    )
    tasks: TaskMixture = Field(TaskMixture(), description="Mixture of masking patterns.")
    leading_frames: tuple[int, int] = Field((1, 3), description="Least and largest run kept by the `leading` pattern.")
    off_centre: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of windows cropped off the centre (at an end, or half-way to it, of what the centre crop leaves out), against "
        "over-fitting; above 0 the latent cache is five times as large.",
    )
    temporal_attention: Literal["temporal", "spatiotemporal"] = Field(
        "temporal", description="The transformer's attention across frames; weights survive a swap (Sec. 2.4.2)."
    )
    batch_size: int | None = Field(
        8,
        ge=1,
        description="Windows per process and step; raising it steadies gradients, costs memory; or give `global_batch`.",
    )
    global_batch: int | None = Field(
        None,
        ge=1,
        description="Windows per step of all processes together, instead of `batch_size`; they share it equally.",
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

    @model_validator(mode="before")
    @classmethod
    def _one_of_each_pair(cls, values: Any) -> Any:
        """Refuses both of a pair; where one is given, the default of the other does not hold."""
        if not isinstance(values, dict) or values.keys() - cls.model_fields.keys():
            return values  # an unknown key may be the missing one misspelt, and is told instead
        values = dict(values)
        for first, second in (("steps", "clips"), ("strides", "fps"), ("batch_size", "global_batch")):
            given = [key for key in (first, second) if values.get(key) is not None]
            if len(given) == 2:
                raise ValueError(
                    f"`{first}` ({values[first]!r}) and `{second}` ({values[second]!r}) are both given; keep one of them"
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
        sides = self.size if isinstance(self.size, tuple) else (self.size or 16,)
        if min(sides) < 16:
            raise ValueError(f"size is {self.size}; every side must be at least 16 pixels")
        for bucket in self.buckets or []:
            if len(bucket) not in (2, 3) or min(bucket[:2]) < 16 or min(bucket[2:], default=2) < 2:
                raise ValueError(
                    f"bucket {list(bucket)} must be [height, width] or [height, width, frames], sides of at least 16 pixels and at "
                    "least 2 frames"
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
        if self.strides is not None and (
            any(stride < 1 or weight < 0 for stride, weight in self.strides.items()) or sum(self.strides.values()) <= 0
        ):
            raise ValueError(
                f"strides is {self.strides}; it must map distances of at least 1 to weights of at least 0, not all 0"
            )
        return self

    def for_processes(self, num_processes: int) -> "StageConfig":
        """The same stage in `steps` and `batch_size`, whichever way it was written.

        Raises:
            ValueError: if the processes, or the parts of `gradient_accumulation`, cannot share the global batch equally.
        """
        shares = num_processes * self.gradient_accumulation
        batch = self.global_batch or self.batch_size * shares
        if batch % shares:
            parts = f" in {self.gradient_accumulation} parts each" if self.gradient_accumulation > 1 else ""
            raise ValueError(
                f"stage {self.name!r} has a global batch of {batch}, which {num_processes} processes{parts} cannot share equally; "
                f"use a number of processes that divides it, or set `stages.{self.name}.global_batch` to "
                f"{max(1, round(batch / shares)) * shares}"
            )
        steps = self.steps or math.ceil(self.clips / batch)
        return self.model_copy(
            update={"steps": steps, "clips": None, "batch_size": batch // shares, "global_batch": None}
        )

    def windows_per_step(self, num_processes: int) -> int:
        """Windows of a step, over all processes and accumulated parts; of a stage that has a `batch_size` (`for_processes`)."""
        return self.batch_size * self.gradient_accumulation * num_processes


class OptimizerConfig(StrictModel):
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


class AdapterConfig(StrictModel):
    """LoRA weights to be trained on a pipeline whose own weights stay as they are (`training.train_mardini_lora`)."""

    targets: str = Field(
        "both-attention",
        description="Which linear layers are adapted: `planner-`, `transformer-` or `both-`, followed by `attention` (queries, keys, values, "
        "outputs) or `linear` (every linear layer of the blocks), or a regular expression for whole names such as "
        "`transformer.transformer_blocks.0.attn.to_q`. More layers learn more and cost more.",
    )
    rank: int = Field(
        16, ge=1, description="Inner size of each adapted layer; raising it learns more, in a larger file."
    )
    alpha: int | None = Field(
        None,
        ge=1,
        description="The adapter counts alpha / rank; raising it is like a higher learning rate. None: the rank.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the adapted layers' inputs dropped in training, against over-fitting."
    )
    rslora: bool = Field(
        False, description="Count alpha / sqrt(rank) instead, so that high ranks do not learn more slowly."
    )
    dora: bool = Field(
        False, description="DoRA: learn the length of each output's weights apart from their direction; slower steps."
    )
    base_dtype: Literal["float32", "bf16", "int8"] = Field(
        "float32",
        description="How the frozen weights are held: `bf16` needs half the memory, `int8` (by torchao) a quarter; both need bf16 autocast.",
    )

    @model_validator(mode="after")
    def _consistent(self):
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"targets is {self.targets!r}, which is no regular expression: {error}") from error
        if self.dora and self.base_dtype == "int8":
            raise ValueError("dora needs the base's own weights; set base_dtype to float32 or bf16, or leave dora out")
        return self


class RunConfig(StrictModel):
    """A whole run."""

    name: Name = Field(description="Name of the run; its folder is `runs/<name>`.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**64,
        description="Everything random is a function of this seed, the stage, the step and the process.",
    )
    data: DataConfig = Field(description="Clips and how they are read; see below.")
    vae: str = Field(description="Folder or Hub id of the autoencoder, loaded by `from_pretrained`.")
    vae_subfolder: str | None = Field(
        None, description="Folder of the autoencoder within `vae`, as in `from_pretrained`."
    )
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
    lora: AdapterConfig | None = Field(
        None,
        description="Trains an adapter of `init_from`, from which sizes, scheduler and, where `vae` is not given, the autoencoder come, too; "
        "see below.",
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="The rule of learning; see below.")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto", description="`auto`: bf16 autocast where the device multiplies bf16 matrices fast, else float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute blocks in the backward pass: less memory, slower."
    )
    log_every: int = Field(10, ge=1, description="Steps between lines of `metrics.jsonl`.")
    validate_every: int = Field(300, ge=1, description="Steps between held-out losses.")
    validation_windows: int = Field(
        16, ge=1, description="Held-out windows; raising it steadies the held-out losses, whose time grows with it."
    )
    quality_windows: int = Field(
        8,
        ge=0,
        description="Held-out windows that are sampled between their first and last frame and scored beside the held-out losses; 0: none.",
    )
    sample_every: int = Field(
        1000,
        ge=0,
        description="Steps between pictures of held-out windows, sampled; also before the first step and at the end of a stage. 0: none.",
    )
    sample_windows: int = Field(4, ge=1, description="Held-out windows in the pictures.")
    sample_steps: int = Field(
        10,
        ge=1,
        description="Denoising steps of pictures and scores; raising it costs time and sharpens them (Fig. 6a: up to 25).",
    )
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        ["tensorboard"], description="Where losses and pictures go beside `metrics.jsonl` and `samples/`."
    )
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

    @model_validator(mode="before")
    @classmethod
    def _autoencoder_of_the_base(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("lora") is not None
            and values.get("init_from")
            and "vae" not in values
        ):
            return {**values, "vae": values["init_from"], "vae_subfolder": "vae"}
        return values

    @model_validator(mode="before")
    @classmethod
    def _downscale_of_the_preset(cls, values: Any) -> Any:
        data = values.get("data") if isinstance(values, dict) else None
        preset = values.get("preset", cls.model_fields["preset"].default) if data else None
        if isinstance(data, dict) and data.get("planner_downscale") is None and preset in list_presets():
            return {**values, "data": {**data, "planner_downscale": load_preset(preset)["planner_downscale"]}}
        return values

    @model_validator(mode="after")
    def _adapter_fits(self):
        """What an adapter's run cannot have, because it keeps the models of `init_from` and throws no head away."""
        if self.lora is None:
            return self
        if self.init_from is None:
            raise ValueError("lora adapts a trained pipeline; give its folder or Hub id as `init_from`")
        fields = type(self).model_fields
        given = [k for k in ("preset", "planner", "transformer", "scheduler") if getattr(self, k) != fields[k].default]
        if given:
            raise ValueError(f"lora takes all sizes from `init_from` ({self.init_from}); leave {', '.join(given)} out")
        if self.lora.base_dtype != "float32" and self.mixed_precision == "no":
            raise ValueError(
                f"lora.base_dtype is {self.lora.base_dtype}, which is computed with under bf16 autocast; set mixed_precision to bf16"
            )
        for stage in self.stages:
            if stage.trains == "planner" or stage.planner_loss_weight > 0:
                raise ValueError(
                    f"stage {stage.name!r} trains by reconstruction, but a pipeline has no reconstruction head to adapt; with lora, "
                    "`trains` is joint or transformer and `planner_loss_weight` 0"
                )
        return self

    @model_validator(mode="after")
    def _unique_names(self):
        names = [stage.name for stage in self.stages]
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError(
                f"stage names are {names}; each must be given once, and they must differ in more than capitals: they "
                "name folders"
            )
        return self

    def for_processes(self, num_processes: int) -> "RunConfig":
        """The same run with every stage in `steps` and `batch_size`; see `StageConfig.for_processes`."""
        return self.model_copy(update={"stages": [stage.for_processes(num_processes) for stage in self.stages]})

    def size_of(self, stage: StageConfig) -> tuple[int, int]:
        """Height and width of a stage's windows, pixels, where they have one size (`by_bucket`)."""
        assert stage.buckets is None, f"stage {stage.name!r} has windows of several sizes"
        size = stage.size or self.data.size
        return size if isinstance(size, tuple) else (size, size)

    def by_bucket(self, stage: StageConfig) -> list[StageConfig]:
        """The stage once for each of its buckets, with that `size` and `num_frames`; itself where it has none."""
        if stage.buckets is None:
            return [stage]
        shapes = [(*bucket, stage.num_frames)[:3] for bucket in stage.buckets]
        return [
            stage.model_copy(update={"buckets": None, "size": (height, width), "num_frames": frames})
            for height, width, frames in shapes
        ]


# The models by the prefix of their keys, in the order of the file.
MODELS: dict[str, type[BaseModel]] = {
    "": RunConfig,
    "data.": DataConfig,
    "data.conditions.<name>.": ConditionConfig,
    "optimizer.": OptimizerConfig,
    "lora.": AdapterConfig,
    "stages.<name>.": StageConfig,
    "stages.<name>.tasks.": TaskMixture,
}


# What may differ when a run goes on: it says what is told, kept and read from where, not what is learned.
_NOT_SHAPING = {
    "name", "log_every", "validate_every", "validation_windows", "checkpoint_every", "keep_checkpoints", "max_hours", "save_dtype",
    "stages", "data.cache", "data.manifests", "data.workers", "data.validation", "data.train", "vae", "vae_subfolder", "init_from",
    "gradient_checkpointing", "max_skipped_steps", "quality_windows", "sample_every", "sample_windows", "sample_steps", "trackers",
}  # fmt: skip


def shaping_fields(config: RunConfig, stages: Sequence[str]) -> dict[str, Any]:
    """What the weights after the named stages depend on, by dotted key, as JSON values.

    Paths are left out (folders may move; `RunCheckpoints` is given a digest of the autoencoder's weights), and so are `batch_size` and
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


def default_of(key: str) -> Any:
    """What a dotted key of `shaping_fields` is where nothing is said of it, as a JSON value; `None` where it must be given."""
    *path, name = key.split(".")
    if path[:1] == ["stages"]:
        path[1] = "<name>"
    model = MODELS.get("".join(f"{part}." for part in path))
    field = model.model_fields.get(name) if model else None
    default = field.get_default(call_default_factory=True) if field else None
    return None if default is PydanticUndefined else to_jsonable_python(default)
