"""Check a configuration before anything runs: problems, each with its fix, and notes on likely mistakes.

Called by the trainer and by `plan.py`, which adds the checks that need clips or a memory limit.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from diffusers_mardini import MarDiniScheduler
from diffusers_mardini.models.conditions import read_config
from diffusers_mardini.presets import load_preset
from training.config.schema import RunConfig, StageConfig
from training.data.buckets import size_multiple
from training.data.sources import source_exists
from training.engine.adapter import PARTS, added_conditions, base_arguments
from training.engine.layout import ONE_PROCESS, Layout
from training.engine.models import (
    adapted_layers,
    build_models,
    check_base,
    model_arguments,
    trained_parts,
    vae_config,
    vae_factor,
)
from training.engine.sharding import uses_bfloat16


# Numbers of planner and transformer that a model cannot be built without.
COUNTS = ("num_layers", "num_attention_heads", "attention_head_dim", "mlp_dim", "patch_size", "in_channels")


@dataclass(frozen=True)
class Problem:
    """A reason why a run cannot work, with its fix.

    Args:
        kind: `models` cannot be built or adapted; sizes do not divide (`size`); a stage has nothing to learn
            (`stage`); there are no `clips`; the `memory` or the `disk` does not suffice; the `autoencoder` or the
            pipeline of `init_from` (`base`) cannot be used; there is no `room` for a model.
        text: the sentence that users read.
    """

    kind: Literal["models", "size", "stage", "clips", "memory", "disk", "autoencoder", "base", "room"]
    text: str

    @property
    def prevents_counting(self) -> bool:
        """Return whether the costs of the run cannot be counted."""
        return self.kind in ("models", "size")

    def __str__(self) -> str:
        return self.text


def find_problems(config: RunConfig, with_data: bool = True, layout: Layout = ONE_PROCESS) -> list[Problem]:
    """Return the problems that can be found without reading a clip or running a step.

    Args:
        config: the run.
        with_data: require sources of clips, the autoencoder, and the pipeline of `init_from`.
        layout: of its processes.
    """
    found = []
    if config.lora is not None:
        try:
            found += _adapter_problems(config)
        except ValueError as error:
            return [Problem("models", f"planner and transformer cannot be adapted: {error}")]
    try:
        arguments = model_arguments(config)
        if config.lora is None and (wrong := _number_problems(arguments)):
            return wrong
        models = build_models(arguments, "meta")
    except (TypeError, ValueError) as error:
        text = f"planner and transformer cannot be built: {error}; check `preset`, `planner` and `transformer`"
        return [Problem("models", text)]
    planner, transformer = models["planner"].config, models["transformer"].config
    width = planner.num_attention_heads * planner.attention_head_dim
    for key, theirs, ours in (
        ("planning_dim", "hidden size", width),
        ("in_channels", "in_channels", planner.in_channels),
    ):
        if transformer[key] != ours:
            text = f"the transformer's {key} is {transformer[key]}, but the planner's {theirs} is {ours}"
            found.append(Problem("stage", f"{text}; set `transformer.{key}` to {ours}"))
    if with_data:
        found += _opened_problems(config, planner.in_channels)
    factor = vae_factor(config)
    multiple = size_multiple(factor, transformer.patch_size, planner.patch_size, config.data.planner_downscale)
    for stage in (shape for whole in config.stages for shape in config.by_bucket(whole)):
        stage_problems = _stage_problems(config, stage, multiple, factor)
        if not stage_problems and layout.context > 1:
            stage_problems = _token_problems(config, stage, models, factor, layout.context)
        found += stage_problems
    for key, spec in (("train", config.data.train), ("validation", config.data.validation)):
        if with_data and spec is not None and not source_exists(spec):
            found.append(Problem("clips", f"there is no source of clips at {spec}; set `data.{key}` to yours"))
    return list(dict.fromkeys(found))  # several buckets may have the same


def _number_problems(arguments: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """Return what is wrong with numbers that models are built of, and with the scheduler's arguments."""
    found = []
    for part, key in itertools.product(("planner", "transformer"), COUNTS):
        value = arguments[part].get(key, 1)
        if type(value) is not int or value < 1:
            found.append(Problem("models", f"`{part}.{key}` is {value!r}; give a whole number of at least 1"))
    try:
        MarDiniScheduler(**arguments["scheduler"])
    except (TypeError, ValueError, IndexError) as error:
        found.append(Problem("models", f"the scheduler cannot be made: {error}; check `scheduler`"))
    return found


def _opened_problems(config: RunConfig, in_channels: int) -> list[Problem]:
    """Return what is wrong with the autoencoder and with the pipeline that the run starts from."""
    found = []
    try:
        channels = vae_config(config.vae, config.vae_subfolder).get("latent_channels", in_channels)
        if channels != in_channels:
            text = (
                f"the autoencoder {config.vae} has {channels} latent channels, but planner and transformer have "
                f"{in_channels}; set `planner.in_channels` and `transformer.in_channels` to {channels}"
            )
            if config.lora is not None:
                text = f"{text.partition(';')[0]}; leave `vae` out, and the pipeline's own is used"
            found.append(Problem("autoencoder", text))
    except ValueError as error:
        found.append(Problem("autoencoder", str(error)))
    if config.init_from is not None and config.lora is None:
        try:
            check_base(config)
        except ValueError as error:
            found.append(Problem("base", str(error)))
    return found


def _stage_problems(config: RunConfig, stage: StageConfig, multiple: int, factor: int) -> list[Problem]:
    found, where, size = [], f"stage {stage.name!r}", config.size_of(stage)
    if any(side % multiple for side in size):
        nearest = [max(1, round(side / multiple)) * multiple for side in size]
        text = (
            f"{where}: {size[0]}x{size[1]} pixels do not divide into the autoencoder's {factor}, patches and "
            f"`data.planner_downscale` {config.data.planner_downscale}; sides must be multiples of {multiple}, the nearest "
            f"are {nearest[0]}x{nearest[1]}"
        )
        found.append(Problem("size", text))
    low = stage.reference_ratio[0]
    if stage.tasks.random > 0 and round(low * stage.num_frames) >= stage.num_frames:
        most = (stage.num_frames - 1) / stage.num_frames
        text = (
            f"{where}: a reference_ratio from {low:g} keeps all of {stage.num_frames} frames and leaves none to learn "
            f"from; lower its first number to {math.floor(most * 100) / 100:g} or less"
        )
        found.append(Problem("stage", text))
    if stage.tasks.interpolation > 0 and stage.num_frames < 3:
        text = (
            f"{where}: interpolation keeps the first and the last of {stage.num_frames} frames and leaves none to "
            "learn from; raise `num_frames` to 3 or more, or set `tasks.interpolation` to 0"
        )
        found.append(Problem("stage", text))
    return found


def _token_problems(
    config: RunConfig, stage: StageConfig, models: nn.ModuleDict, factor: int, context: int
) -> list[Problem]:
    """Return why so many processes cannot share the tokens of a stage's windows equally."""
    found = []
    for part in trained_parts(stage):
        if part == "head":
            continue
        sizes = models[part].config
        pixels = factor * sizes.patch_size * (config.data.planner_downscale if part == "planner" else 1)
        rows, columns = (side // pixels for side in config.size_of(stage))
        tokens, heads = rows * (columns + 1), sizes.num_attention_heads  # every row ends with [NEXT]
        if tokens % context or heads % context:
            fit = math.gcd(tokens, heads)
            text = (
                f"stage {stage.name!r}: {context} processes (cp_size) cannot share the {tokens} tokens of a frame and "
                f"the {heads} heads of the {part} equally; use a number that divides {fit}"
            )
            found.append(Problem("size", text))
    return found


def _adapter_problems(config: RunConfig) -> list[Problem]:
    """Return where a run does not fit the pipeline that it adapts.

    Raises:
        ValueError: if there is no such pipeline, no layer of it is adapted, or conditions do not fit it.
    """
    base, adapted = base_arguments(config.init_from), adapted_layers(config)
    _refuse_unfit_conditions(config, base, list(adapted))
    found, lora = [], config.lora
    if lora.base_dtype != "float32" and not uses_bfloat16(config):
        text = (
            f"lora.base_dtype is {lora.base_dtype}, and this device would compute in float32; set `mixed_precision: "
            "bf16`, or base_dtype to float32"
        )
        found.append(Problem("stage", text))
    if config.data.planner_downscale != base["pipeline"]["planner_downscale"]:
        text = (
            f"`data.planner_downscale` is {config.data.planner_downscale}, but {config.init_from} has "
            f"{base['pipeline']['planner_downscale']}; an adapter is used with the base's, set it to that"
        )
        found.append(Problem("stage", text))
    for stage in config.stages:
        attention = base["transformer"].get("temporal_attention", "temporal")
        if stage.temporal_attention != attention:
            text = (
                f"stage {stage.name!r} has {stage.temporal_attention} attention, but {config.init_from} has "
                f"{attention}, with which an adapter is used; set `temporal_attention: {attention}`"
            )
            found.append(Problem("stage", text))
        if not set(trained_parts(stage)) & set(adapted):
            text = (
                f"stage {stage.name!r} trains the {stage.trains} alone, but `lora.targets` {lora.targets!r} changes "
                f"only the {' and '.join(adapted)}; set `trains: joint`, or other targets"
            )
            found.append(Problem("models", text))
    return found


def _refuse_unfit_conditions(config: RunConfig, base: Mapping[str, Mapping[str, Any]], adapted: list[str]) -> None:
    """Raise `ValueError` if an adapter cannot be trained with a condition of the run."""
    for name, condition in config.data.conditions.items():
        channels = [(base[part].get("conditions") or {}).get(name) for part in PARTS]
        if channels not in ([None] * len(PARTS), [condition.channels] * len(PARTS)):
            has = " and ".join(f"{n or 'none'} in the {part}" for part, n in zip(PARTS, channels))
            raise ValueError(
                f"`data.conditions.{name}` has {condition.channels} channels, but {config.init_from} has {has}; use "
                "another name, or as many channels as there"
            )
        for part, count in zip(PARTS, channels):
            if count is None:
                continue
            infos = ((base[part].get("condition_info") or {}).get(name) or {}, condition.info)
            was, now = (read_config({name: count}, {name: info})[name] for info in infos)
            if (was.names or now.names, was.ranges or now.ranges, was.interval) != (
                now.names,
                now.ranges,
                now.interval,
            ):
                raise ValueError(
                    f"the run has the condition {now} ({now.interval} over skipped frames), but {config.init_from} was "
                    f"trained with {was} ({was.interval}); give the same, or another name"
                )
    if (added := added_conditions(config)) and len(adapted) < len(PARTS):
        raise ValueError(
            f"the adapter adds the conditions {', '.join(added)} to both models, but `lora.targets` "
            f"{config.lora.targets!r} changes only the {adapted[0]}; use targets in both, such as both-attention"
        )


def find_notes(config: RunConfig) -> list[str]:
    """Return what works and may be a mistake; `config` has `steps` (`RunConfig.for_processes`)."""
    found = []
    # A pipeline does not say how many frames it is meant for.
    meant_for = load_preset(config.preset)["num_frames"] if config.lora is None else math.inf
    if config.data.from_pixels:
        found.append("`data.from_pixels`: what the autoencoder costs in every step is not counted here")
    for stage in config.stages:
        most = max(shape.num_frames for shape in config.by_bucket(stage))
        if most > meant_for:
            found.append(f"stage {stage.name!r} has {most} frames; preset {config.preset} is meant for {meant_for}")
    return found + _order_notes(config) + warmup_notes(config)


def _order_notes(config: RunConfig) -> list[str]:
    """Return sentences on parts that the order of the stages leaves untrained, or trained without each other."""
    trained = [stage.trains for stage in config.stages]
    found = []
    if config.init_from is None:
        found += [
            f"no stage trains the {part}, and there is no `init_from`: the pipeline samples with random weights of it; "
            "add a stage with `trains: joint`"
            for part in ("planner", "transformer")
            if part not in trained and "joint" not in trained
        ]
    if found:
        return found
    if "joint" not in trained and config.init_from is None:
        return ["no stage trains both models together, so that the transformer never learns to use the planner's "
                "signals; add a stage with `trains: joint` at the end"]  # fmt: skip
    last = config.stages[-1]
    if last.trains != "joint" and "joint" in trained:
        other = "transformer" if last.trains == "planner" else "planner"
        return [
            f"the last stage {last.name!r} trains the {last.trains} alone, after the stages that train both: it "
            f"changes what the {other} has learned to work with; put it before them, or set `trains: joint`"
        ]
    return []


def warmup_notes(config: RunConfig) -> list[str]:
    """Return a sentence for each stage that ends before its warm-up does; `config` has `steps`."""
    return [
        warmup_note(f"stage {stage.name!r}", stage.steps, stage.warmup_steps)
        for stage in config.stages
        if stage.warmup_steps >= stage.steps
    ]


def warmup_note(subject: str, steps: int, warmup_steps: int) -> str:
    """Return a sentence on a warm-up that is not over before its `steps` are."""
    share = steps / warmup_steps
    reached = "reaches the peak only at its end" if share == 1 else f"never reaches the peak, but {share:.1%} of it"
    return (
        f"{subject} ends after {steps} steps, within its warm-up of {warmup_steps}; its learning rate {reached}: lower "
        "`warmup_steps`"
    )
