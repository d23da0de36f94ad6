"""The methods that are compared: simple ones, the autoencoder alone, and the checkpoint with all requested settings.

Each is a `Method` that samples windows; `scores.py` runs and scores them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

import diffusers_mardini
from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.schedulers.named import scheduler_named
from diffusers_mardini.sizes import Size
from training.data.clips import FoundClip, find_clips
from training.digests import tensors_digest
from training.engine.adapter import adapter_loaded
from training.evaluation.altered_signals import DROPPED, OTHER, Alteration, batch_of_others
from training.evaluation.baselines import best_match, copy_nearest, cross_fade, flow_warp
from training.evaluation.evaluation_windows import training_clips
from training.evaluation.networks import rife
from training.evaluation.sampling import (
    ADAPTED,
    batches,
    reconstruct,
    sample_batch,
    scheduler_replaced,
    weights_digest,
)
from training.evaluation.true_conditions import TrueConditions


BASELINE, CEILING, OURS = "baseline", "ceiling", "ours"
WITHOUT_CONDITIONS = ", without conditions"  # in names of methods
TIMES = " × "


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: in tables and pictures.
        kind: `BASELINE`, `CEILING` or `OURS`.
        key: everything that its frames depend on beside the windows and the seed.
        seeds: one sample is made for each.
        batches: first and last-plus-one of the windows that are sampled together.
        sample: `(windows, given, first, seed)` to frames in [0, 1], shaped like the windows.
        unaltered: name of the method with the planner's own signals and the true conditions, if this one alters them.
        facts: of the row, for `results.json`.
    """

    name: str
    kind: str
    key: dict[str, Any]
    seeds: tuple[int, ...]
    batches: list[tuple[int, int]]
    sample: Callable[[torch.Tensor, Sequence[int], int, int], torch.Tensor]
    unaltered: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplerSettings:
    """Settings with which the checkpoint is sampled; a row for each scheduler and number of steps.

    Attributes:
        steps: numbers of steps.
        schedulers: names of diffusers' schedulers; "" is the checkpoint's own.
        guidance_scale: `None` is the pipeline's own choice for the task.
        seeds: one sample for each.
        batch_size: most windows sampled together (`batches`).
        alterations: of the planning signals; one more row for each, with the first scheduler and number of steps.
        adapter: folder or Hub id of LoRA weights: a second row with them for each scheduler and number of steps.
        no_conditions: one more row without conditions, with the first scheduler and number of steps.
        condition_scales: conditions to multiply, with their factors; one more row for each, likewise.
    """

    steps: tuple[int, ...] = (25,)
    schedulers: tuple[str, ...] = ("",)
    guidance_scale: float | None = None
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 8
    alterations: tuple[Alteration, ...] = ()
    adapter: str | None = None
    no_conditions: bool = False
    condition_scales: tuple[tuple[str, float], ...] = ()

    def label(self, steps: int, scheduler: str = "", alteration: Alteration | None = None) -> str:
        """Return the name of a row, which lists the settings that the pipeline does not choose itself."""
        parts = [f"ours, {steps} step{'s' if steps != 1 else ''}", scheduler]
        parts.append("" if self.guidance_scale is None else f"guidance {self.guidance_scale:g}")
        return ", ".join(filter(None, parts)) + (alteration.suffix if alteration is not None else "")


@dataclass(frozen=True)
class TrainingClips:
    """The clips that are searched for the best match; `stride` and `fps` as `load_windows` takes them."""

    source: str | Path
    size: Size
    stride: int
    fps: float | None = None
    picture_fps: float | None = None

    def key(self) -> list:
        """Return a key that changes if a file is added, removed or rewritten."""
        rate = [] if self.picture_fps is None else [self.picture_fps]
        return [self.stride, self.fps, *rate, [[clip.name, clip.entry.sha256] for clip in self.found()]]

    def found(self) -> list[FoundClip]:
        """Return the clips."""
        return find_clips(self.source, picture_fps=self.picture_fps)

    def windows(self) -> Iterator[tuple[torch.Tensor, float]]:
        """Yield what `training_clips` does."""
        return training_clips(self.source, self.size, self.stride, self.fps, self.picture_fps)


def baselines(
    count: int, given: Sequence[int], num_frames: int, train: TrainingClips | None, rife_model: str = ""
) -> list[Method]:
    """Return the simple methods that suit the given frames; without RIFE if `rife_model` is ""."""

    def simple(name: str, sample: Callable, **key: Any) -> Method:
        key = {"method": name, **key}
        return Method(name, BASELINE, key, (0,), [(0, count)], lambda windows, given, *_: sample(windows, given))

    between = len(given) > 1 and max(given) == num_frames - 1
    methods = [simple("copy of the nearest given frame", copy_nearest)]
    if between:
        methods.append(simple("cross-fade", cross_fade))
    if len(given) > 1:
        methods.append(simple("DIS optical flow", flow_warp))
    if rife_model and between:
        methods.append(simple(f"RIFE ({rife_model})", lambda w, g: rife.rife(w, g, rife_model), model=rife_model))
    if train is not None:

        def match(windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
            return best_match(windows, given, train.windows())[0]

        methods.append(simple("best match among training windows", match, clips=train.key()))
    return methods


def ours(
    pipe: MarDiniPipeline,
    clips: Sequence[str],
    settings: SamplerSettings,
    conditions: TrueConditions | None = None,
    given: Sequence[int] = (),
) -> list[Method]:
    """Return the autoencoder alone and the checkpoint with all that `settings` list.

    Args:
        pipe: the checkpoint.
        clips: the clip of each window.
        settings: of the sampler.
        conditions: of the windows, for a checkpoint that has some, or whose adapter adds some. Rows of changed ones
            are of the adapter then.
        given: positions of the given frames, for changed conditions.

    Raises:
        ValueError: if an adapter cannot be loaded, `OTHER` finds no other clip, or there are no conditions to change.
    """
    parts = batches(len(clips), settings.batch_size, batch_of_others(clips) if OTHER in settings.alterations else 1)
    adapted = None
    if settings.adapter is not None:
        with adapter_loaded(pipe, settings.adapter):
            adapted = weights_digest(pipe)
    model = model_key(pipe)
    key = {"method": "autoencoder", "given": "true", **model}
    methods = [
        Method(
            "autoencoder alone (ceiling)", CEILING, key, (0,), parts, lambda w, given, *_: reconstruct(pipe, w, given)
        )
    ]

    true = conditions or TrueConditions({}, {})
    own = true.only(pipe.conditions)
    told = settings.adapter if len(own.values) < len(true.values) else None
    if settings.no_conditions and not true.values:
        raise ValueError(
            "--no-conditions asks for a row without conditions, but this checkpoint has none; leave it out"
        )

    def add(
        steps: int,
        scheduler_name: str,
        alteration: Alteration | None = None,
        adapter: str | None = None,
        conditions: TrueConditions = own,
        changed: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        scheduler = scheduler_named(pipe.scheduler, scheduler_name) if scheduler_name else None
        key = {
            "method": "ours",
            **model,
            **({} if adapter is None else {"checkpoint": adapted}),
            **sampling_key(scheduler or pipe.scheduler, steps, settings.guidance_scale, scheduler_name),
            "planning": "own" if alteration is None else alteration.key,
            **({"conditions": tensors_digest(conditions.values, {})} if conditions.values else {}),
        }

        def sample(windows: torch.Tensor, given: Sequence[int], first: int, seed: int) -> torch.Tensor:
            loaded = contextlib.nullcontext() if adapter is None else adapter_loaded(pipe, adapter)
            with loaded, scheduler_replaced(pipe, scheduler):
                return sample_batch(
                    pipe, windows, given, steps, seed, first, alteration, settings.guidance_scale,
                    conditions.of(first, len(windows)),
                )  # fmt: skip

        adapted_by = "" if adapter is None else ADAPTED
        name = settings.label(steps, scheduler_name, alteration) + adapted_by + changed
        unaltered = settings.label(steps, scheduler_name) + adapted_by
        if alteration is DROPPED and changed and settings.no_conditions:
            unaltered += changed  # told as little
        is_altered = alteration is not None or changed
        methods.append(
            Method(name, OURS, key, settings.seeds, parts, sample, unaltered if is_altered else "", facts or {})
        )

    for scheduler_name in settings.schedulers:
        for steps in settings.steps:
            add(steps, scheduler_name)
            if settings.adapter is not None:
                add(steps, scheduler_name, adapter=settings.adapter, conditions=true)
    none = TrueConditions({}, {})
    for alteration in settings.alterations:
        # Training drops the signals and all conditions together: without the one the models do not know the other.
        untold = {"conditions": none, "changed": WITHOUT_CONDITIONS} if alteration is DROPPED and own.values else {}
        add(settings.steps[0], settings.schedulers[0], alteration, **untold)
    if settings.no_conditions:
        add(settings.steps[0], settings.schedulers[0], adapter=told, conditions=none, changed=WITHOUT_CONDITIONS)
    for name, factor in settings.condition_scales:
        changed = f", {name}{TIMES}{factor:g}"
        scaled = true.scaled(name, factor, given)
        facts = {"told": scaled.told_of(name, true, given)}
        add(settings.steps[0], settings.schedulers[0], adapter=told, conditions=scaled, changed=changed, facts=facts)
    return methods


def is_changed(method: str) -> bool:
    """Return whether the name of a row says that its conditions were left out or multiplied."""
    return method.endswith(WITHOUT_CONDITIONS) or TIMES in method


def model_key(pipe: MarDiniPipeline) -> dict[str, str]:
    """Return the facts of a checkpoint, and of how it runs, that sampled frames depend on."""
    return {"checkpoint": weights_digest(pipe), "dtype": str(pipe.dtype), "device": pipe.device.type}


def sampling_key(
    scheduler: SchedulerMixin, steps: int, guidance_scale: float | None = None, scheduler_name: str = ""
) -> dict[str, Any]:
    """Return the sampler settings that frames depend on; `scheduler_name` is "" for the checkpoint's own."""
    # diffusers lists the defaults from a set, which each process has in another order.
    config = {
        name: sorted(value) if name == "_use_default_values" else value for name, value in scheduler.config.items()
    }
    settings = {name: repr(value) for name, value in sorted(config.items())}
    return {
        "steps": steps,
        "scheduler": [scheduler_name, settings],
        "guidance_scale": guidance_scale,
        "versions": [diffusers_mardini.__version__, diffusers.__version__, torch.__version__],
    }
