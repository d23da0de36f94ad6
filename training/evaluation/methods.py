"""What is sampled: simple methods, the autoencoder alone, and the checkpoint in every way that was asked for."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

import diffusers_mardini
from diffusers_mardini import MarDiniPipeline
from training.data.clips import list_clips
from training.engine.adapter import adapter_loaded
from training.evaluation.altered_signals import OTHER, PlanChange, batch_of_others
from training.evaluation.baselines import best_match, copy_nearest, cross_fade, flow_warp
from training.evaluation.networks import rife
from training.evaluation.sampling import (
    ADAPTED,
    batches,
    reconstruct,
    sample_batch,
    scheduler_named,
    scheduler_replaced,
    weights_digest,
)
from training.evaluation.windows import training_clips


BASELINE, CEILING, OURS = "baseline", "ceiling", "ours"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        method: its name.
        kind: `BASELINE`, `CEILING` or `OURS`.
        key: everything that its frames depend on beside the windows and the seed.
        seeds: it is sampled once for each.
        batches: first and last-plus-one of the windows that are sampled together.
        sample: `(windows, given, first, seed)` to frames in [0, 1], shaped like the windows.
        planned: the method that is the same but for the plan, where this one's was changed.
    """

    method: str
    kind: str
    key: dict[str, Any]
    seeds: tuple[int, ...]
    batches: list[tuple[int, int]]
    sample: Callable[[torch.Tensor, Sequence[int], int, int], torch.Tensor]
    planned: str = ""


@dataclass(frozen=True)
class Sampling:
    """How the checkpoint is sampled, a row for each scheduler and number of steps.

    Attributes:
        steps: numbers of steps.
        schedulers: names of diffusers' schedulers; "" is the checkpoint's own.
        guidance_scale: `None` is the pipeline's own choice for the task.
        seeds: one sample for each.
        batch_size: most windows sampled together (`batches`).
        plan_changes: a row with each of them, of the first scheduler and number of steps.
        adapter: folder or Hub id of LoRA weights: a second row with them for each scheduler and number of steps.
    """

    steps: tuple[int, ...] = (25,)
    schedulers: tuple[str, ...] = ("",)
    guidance_scale: float | None = None
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 8
    plan_changes: tuple[PlanChange, ...] = ()
    adapter: str | None = None

    def label(self, steps: int, scheduler: str = "", change: PlanChange | None = None) -> str:
        """What a row is called: by what it does not leave to the pipeline."""
        parts = [f"ours, {steps} step{'s' if steps != 1 else ''}", scheduler]
        parts.append("" if self.guidance_scale is None else f"guidance {self.guidance_scale:g}")
        return ", ".join(filter(None, parts)) + (change.suffix if change is not None else "")


@dataclass(frozen=True)
class TrainingClips:
    """Where the best match is looked for; `stride` and `fps` as `load_windows` takes them."""

    folder: Path
    size: int
    stride: int
    fps: float | None = None

    def key(self) -> list:
        """Changes where a file is added, taken away or written again."""
        files = [
            (path.relative_to(self.folder).as_posix(), path.stat())
            for path in list_clips(self.folder)
            if path.is_file()
        ]
        return [self.stride, self.fps, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]]


def baselines(
    count: int, given: Sequence[int], num_frames: int, train: TrainingClips | None, rife_model: str = ""
) -> list[Variant]:
    """The simple methods that a task allows; `rife_model` is "" for none."""

    def simple(method: str, sample: Callable, **key: Any) -> Variant:
        return Variant(
            method, BASELINE, {"method": method, **key}, (0,), [(0, count)], lambda w, given, *_: sample(w, given)
        )

    between = len(given) > 1 and max(given) == num_frames - 1
    variants = [simple("copy of the nearest given frame", copy_nearest)]
    if between:
        variants.append(simple("cross-fade", cross_fade))
    if len(given) > 1:
        variants.append(simple("DIS optical flow", flow_warp))
    if rife_model and between:
        variants.append(simple(f"RIFE ({rife_model})", lambda w, g: rife.rife(w, g, rife_model), model=rife_model))
    if train is not None:

        def match(windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
            return best_match(windows, given, training_clips(train.folder, train.size, train.stride, train.fps))[0]

        variants.append(simple("best match among training windows", match, clips=train.key()))
    return variants


def ours(pipe: MarDiniPipeline, clips: Sequence[str], sampling: Sampling) -> list[Variant]:
    """The autoencoder alone, and the checkpoint in every way that `sampling` asks for.

    Args:
        pipe: the checkpoint.
        clips: of each window.
        sampling: how it samples.

    Raises:
        ValueError: if an adapter cannot be loaded, or there is no other clip whose plan could be taken.
    """
    parts = batches(len(clips), sampling.batch_size, batch_of_others(clips) if OTHER in sampling.plan_changes else 1)
    adapted = None
    if sampling.adapter is not None:
        with adapter_loaded(pipe, sampling.adapter):
            adapted = weights_digest(pipe)
    model = model_key(pipe)
    variants = [
        Variant(
            "autoencoder alone (ceiling)",
            CEILING,
            {"method": "autoencoder", "given": "true", **model},
            (0,),
            parts,
            lambda windows, given, *_: reconstruct(pipe, windows, given),
        )
    ]

    def add(steps: int, scheduler_name: str, change: PlanChange | None = None, adapter: str | None = None) -> None:
        scheduler = scheduler_named(pipe, scheduler_name) if scheduler_name else None
        key = {
            "method": "ours",
            **model,
            **({} if adapter is None else {"checkpoint": adapted}),
            **sampling_key(scheduler or pipe.scheduler, steps, sampling.guidance_scale, scheduler_name),
            "planning": "own" if change is None else change.key,
        }

        def sample(windows: torch.Tensor, given: Sequence[int], first: int, seed: int) -> torch.Tensor:
            loaded = contextlib.nullcontext() if adapter is None else adapter_loaded(pipe, adapter)
            with loaded, scheduler_replaced(pipe, scheduler):
                return sample_batch(pipe, windows, given, steps, seed, first, change, sampling.guidance_scale)

        planned = sampling.label(steps, scheduler_name)
        label = sampling.label(steps, scheduler_name, change) + ("" if adapter is None else ADAPTED)
        variants.append(
            Variant(label, OURS, key, sampling.seeds, parts, sample, planned if change is not None else "")
        )

    for scheduler_name in sampling.schedulers:
        for steps in sampling.steps:
            add(steps, scheduler_name)
            if sampling.adapter is not None:
                add(steps, scheduler_name, adapter=sampling.adapter)
    for change in sampling.plan_changes:
        add(sampling.steps[0], sampling.schedulers[0], change)
    return variants


def model_key(pipe: MarDiniPipeline) -> dict[str, str]:
    """What sampled frames depend on of a checkpoint, and of how it runs."""
    return {"checkpoint": weights_digest(pipe), "dtype": str(pipe.dtype), "device": pipe.device.type}


def sampling_key(
    scheduler: SchedulerMixin, steps: int, guidance_scale: float | None = None, scheduler_name: str = ""
) -> dict[str, Any]:
    """What they depend on of the sampling; `scheduler_name` is "" for the checkpoint's own."""
    settings = {name: repr(value) for name, value in sorted({**scheduler.config}.items())}
    return {
        "steps": steps,
        "scheduler": [scheduler_name, settings],
        "guidance_scale": guidance_scale,
        "versions": [diffusers_mardini.__version__, diffusers.__version__, torch.__version__],
    }
