"""The configuration of a training run, in models that refuse unknown keys. `layers.py` reads files into them.

Its sections are here, in `data_section.py` and in `stages.py`. Each field's description says what happens if it is
raised; `python -m training.config.reference` writes them into `docs/config.md`.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticUndefined, to_jsonable_python

from diffusers_mardini.presets import list_presets, load_preset
from diffusers_mardini.sizes import sides
from training.config.data_section import ConditionConfig, DataConfig
from training.config.stages import StageConfig, TaskMixture, check_pace
from training.config.strict import Name, StrictModel


class OptimizerConfig(StrictModel):
    """AdamW (Appendix B), or Muon for the matrices of the blocks, and the moving average of the weights."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`muon` (ours): Muon for the matrices of the blocks, AdamW for the rest, at the same learning "
        "rates.",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of gradients.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the running mean of squared gradients.")
    weight_decay: float = Field(0.01, ge=0, description="Raising it shrinks the weights, against over-fitting.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Raising it averages over more steps (about 1 / (1 - decay))."
    )


class AdapterConfig(StrictModel):
    """LoRA weights, and conditions that are new to it, trained on a pipeline whose own weights are frozen
    (`training.train_mardini_lora`)."""

    targets: str = Field(
        "both-attention",
        description="Which linear layers are adapted: `planner-`, `transformer-` or `both-`, followed by `attention` "
        "(queries, keys, values, outputs) or `linear` (every linear layer of the blocks), or a regular expression "
        "for whole names such as `transformer.transformer_blocks.0.attn.to_q`. More layers learn more and cost more.",
    )
    rank: int = Field(
        16, ge=1, description="Rank of each adapted layer; raising it learns more and makes a larger file."
    )
    alpha: int | None = Field(
        None,
        ge=1,
        description="The adapter is scaled by alpha / rank; raising it acts like a higher learning rate. None: the "
        "rank.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the adapted layers' inputs dropped in training, against over-fitting."
    )
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank) instead, so that high ranks do not learn more slowly."
    )
    dora: bool = Field(
        False,
        description="DoRA: learn the magnitude of each output's weights apart from their direction; slower steps.",
    )
    base_dtype: Literal["float32", "bf16", "int8"] = Field(
        "float32",
        description="How the frozen weights are stored: `bf16` needs half the memory, `int8` (by torchao) a quarter; "
        "both need bf16 autocast.",
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
        description="Everything random is a function of this seed, the stage, the step and the row of the batch.",
    )
    data: DataConfig = Field(description="Clips and how they are read; see below.")
    vae: str = Field(description="Folder or Hub id of the autoencoder, loaded by `from_pretrained`.")
    vae_subfolder: str | None = Field(
        None, description="Subfolder of `vae` that holds the autoencoder, as in `from_pretrained`."
    )
    preset: str = Field(
        "mardini-tiny", description="Sizes of planner, transformer and scheduler (`diffusers_mardini.presets`)."
    )
    init_from: str | None = Field(
        None,
        description="Folder or Hub id of a pipeline whose planner and transformer the run starts from. None: random "
        "weights.",
    )
    planner: dict[str, Any] = Field({}, description="Overrides of the preset's planner; see below.")
    transformer: dict[str, Any] = Field({}, description="Overrides of the preset's transformer; see below.")
    scheduler: dict[str, Any] = Field({}, description="Overrides of the preset's scheduler.")
    lora: AdapterConfig | None = Field(
        None,
        description="Train an adapter of `init_from`, which also provides the sizes, the scheduler and, unless `vae` "
        "is given, the autoencoder; see below.",
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="The optimizer; see below.")
    mixed_precision: Literal["auto", "no", "bf16"] = Field(
        "auto", description="`auto`: bf16 autocast if the device multiplies bf16 matrices fast, else float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute blocks in the backward pass: less memory, slower."
    )
    log_every: int = Field(10, ge=1, description="Steps between lines of `metrics.jsonl`.")
    validate_every: int = Field(300, ge=1, description="Steps between held-out losses.")
    validation_windows: int = Field(
        16, ge=1, description="Held-out windows; raising it makes the held-out losses steadier and slower."
    )
    quality_windows: int = Field(
        8,
        ge=0,
        description="Held-out windows that are sampled between their first and last frame and scored, as often as "
        "held-out losses are measured; 0: none.",
    )
    sample_every: int = Field(
        1000,
        ge=0,
        description="Steps between pictures of sampled held-out windows, also made before the first step and after "
        "each stage. 0: none.",
    )
    sample_windows: int = Field(4, ge=1, description="Held-out windows in the pictures.")
    sample_steps: int = Field(
        10,
        ge=1,
        description="Denoising steps of pictures and scores; raising it takes longer and makes them sharper (Fig. "
        "6a: up to 25).",
    )
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        ["tensorboard"],
        description="Trackers that get losses and pictures in addition to `metrics.jsonl` and `samples/`.",
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(
        2, ge=1, description="Checkpoints kept; older ones are deleted once a new one is complete."
    )
    max_skipped_steps: int = Field(
        3,
        ge=1,
        description="Steps in a row that may be skipped because they are not finite, before the run goes back to its "
        "last checkpoint.",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        description="Hours after which the run saves and stops; the same command continues it. None: no limit.",
    )
    anyway: bool = Field(
        False,
        description="Train although the autoencoder scores less on the held-out clips than copying, cross-fading or "
        "optical flow, so that no model with it can win against them (`python -m training.probe`).",
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="Hours that the whole run shall take, over all its starts: the steps of the stages are planned "
        "anew from the measured speed, in the proportions that they have here, and learning rates still decay to the "
        "end. None: the steps as given.",
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="Dtype of the exported weights."
    )
    strides: dict[int, float] | None = Field(
        None, description="As in a stage; for the stages that give neither `strides` nor `fps`."
    )
    fps: float | dict[float, float] | None = Field(None, description="As in a stage; instead of `strides`.")
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
    def _stages_inherit_the_pace(cls, values: Any) -> Any:
        """Give the run's `fps` or `strides` to the stages that have neither."""
        if not isinstance(values, dict) or not isinstance(values.get("stages"), list):
            return values
        given = {key: values[key] for key in ("strides", "fps") if values.get(key) is not None}
        if len(given) == 2:
            raise ValueError(
                f"`strides` ({given['strides']!r}) and `fps` ({given['fps']!r}) are both given; keep one of them"
            )
        stages = [
            {**stage, **given} if isinstance(stage, dict) and not stage.keys() & {"strides", "fps"} else stage
            for stage in values["stages"]
        ]
        return {**values, "stages": stages}

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
        """Refuse settings that contradict an adapter, which keeps its models' sizes and has no reconstruction head."""
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
                f"lora.base_dtype is {self.lora.base_dtype}, which works only under bf16 autocast; set "
                "mixed_precision to bf16"
            )
        for stage in self.stages:
            if stage.trains == "planner" or stage.planner_loss_weight > 0:
                raise ValueError(
                    f"stage {stage.name!r} trains by reconstruction, but a pipeline has no reconstruction head to "
                    "adapt; with lora, set `trains` to joint or transformer and `planner_loss_weight` to 0"
                )
        return self

    @model_validator(mode="after")
    def _usable_pace(self):
        check_pace(self.strides, self.fps)
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

    @model_validator(mode="after")
    def _drawn_latents_are_known(self):
        if self.data.latents == "drawn" and self.hours is not None:
            raise ValueError(
                "data.latents is 'drawn', but which frames are drawn is not known before a run of so many `hours`, whose "
                "steps are planned anew; leave `hours` out, or set data.latents to all or auto"
            )
        return self

    @model_validator(mode="after")
    def _flat_stages_are_measured(self):
        flat = [stage.name for stage in self.stages if stage.stop_when_flat is not None]
        if flat and self.data.validation is None:
            raise ValueError(
                f"stage {flat[0]!r} has `stop_when_flat`, which needs held-out losses; give `data.validation`, or "
                "leave it out"
            )
        return self

    def longer(self, steps: Sequence[int]) -> "RunConfig":
        """Return the same run with a further stage for each number of steps, like its last one but for the warm-up.

        A further stage warms the learning rate up again, over a tenth of its steps at most, and lets it decay again.
        It has the steps that are given, so `hours` and `stop_when_flat` do not apply.

        Raises:
            ValueError: if a number of steps is not positive.
        """
        if not steps:
            return self
        if wrong := [number for number in steps if number < 1]:
            raise ValueError(f"--longer got {wrong[0]} steps; give at least 1")
        last = self.stages[-1]
        added = [
            last.model_copy(
                update={
                    "name": f"{last.name}-longer" + (f"-{number}" if number > 1 else ""),
                    "steps": count,
                    "clips": None,
                    "warmup_steps": min(max(last.warmup_steps, 1), count // 10),
                    "stop_when_flat": None,
                }
            )
            for number, count in enumerate(steps, 1)
        ]
        return type(self).model_validate({**self.model_dump(), "hours": None, "stages": [*self.stages, *added]})

    def for_processes(self, num_processes: int) -> "RunConfig":
        """Return the same run with every stage in steps and windows; see `StageConfig.for_processes`."""
        return self.model_copy(update={"stages": [stage.for_processes(num_processes) for stage in self.stages]})

    def size_of(self, stage: StageConfig) -> tuple[int, int]:
        """Return height and width in pixels of a stage's windows; split a stage with buckets by `by_bucket` first."""
        assert stage.buckets is None, f"stage {stage.name!r} has windows of several sizes"
        return sides(stage.size or self.data.size)

    def by_bucket(self, stage: StageConfig) -> list[StageConfig]:
        """Return the stage once per bucket, with that `size` and `num_frames`; itself if it has no buckets."""
        if stage.buckets is None:
            return [stage]
        shapes = [(*bucket, stage.num_frames)[:3] for bucket in stage.buckets]
        return [
            stage.model_copy(update={"buckets": None, "size": (height, width), "num_frames": frames})
            for height, width, frames in shapes
        ]


# The models by the prefix of their keys, in the order of `docs/config.md`.
MODELS: dict[str, type[BaseModel]] = {
    "": RunConfig,
    "data.": DataConfig,
    "data.conditions.<name>.": ConditionConfig,
    "optimizer.": OptimizerConfig,
    "lora.": AdapterConfig,
    "stages.<name>.": StageConfig,
    "stages.<name>.tasks.": TaskMixture,
}


# Keys that may differ when a run is resumed: they do not affect the weights.
_NOT_SHAPING = {
    "name", "log_every", "validate_every", "validation_windows", "checkpoint_every", "keep_checkpoints", "max_hours",
    "hours",
    "save_dtype", "stages", "data.cache", "data.manifests", "data.workers", "data.device_gb", "data.latents", "data.validation", "data.train", "vae",
    "vae_subfolder", "init_from", "gradient_checkpointing", "max_skipped_steps", "quality_windows", "sample_every",
    "sample_windows", "sample_steps", "trackers", "anyway", "strides", "fps",
}  # fmt: skip

# How the windows of a stage's step are shared.
_SHARING = {"batch_size", "global_batch", "gradient_accumulation"}


def shaping_fields(config: RunConfig, stages: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the weights after the named stages depend on, by dotted key, as JSON values.

    Paths are left out, because folders may move (`RunCheckpoints` gets a digest of the autoencoder instead), and so
    is how a step's windows are shared: only their number matters, which `RunCheckpoints` adds.
    """
    dump = config.model_dump(mode="json")
    fields = _flat({key: value for key, value in dump.items() if key not in _NOT_SHAPING})
    for stage in dump["stages"]:
        if stage["name"] in stages:
            fields |= _flat(
                {k: v for k, v in stage.items() if k not in _SHARING},
                f"stages.{stage['name']}.",
            )
    return {key: value for key, value in fields.items() if key not in _NOT_SHAPING}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def default_of(key: str) -> Any:
    """Return the default of a dotted key of `shaping_fields` as a JSON value; `None` if the key is required."""
    *path, name = key.split(".")
    if path[:1] == ["stages"]:
        path[1] = "<name>"
    model = MODELS.get("".join(f"{part}." for part in path))
    field = model.model_fields.get(name) if model else None
    default = field.get_default(call_default_factory=True) if field else None
    return None if default is PydanticUndefined else to_jsonable_python(default)
