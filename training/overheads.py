"""Estimate what a run needs beside its steps: start-up, encoding, held-out losses and scores, pictures.

Times are measured on this machine (`plan --probe`), or counted from operations at a stated throughput. `costs.py` has
the steps themselves; `plan.py` prints both.
"""

import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusers_mardini.hardware import choose_device
from diffusers_mardini.latents import decode_latents, encode_video
from diffusers_mardini.pipelines.sampling_options import SamplingOptions
from diffusers_mardini.video.errors import FILE_ERRORS
from diffusers_mardini.video_io import iterate_frames
from training.config.schema import RunConfig, StageConfig
from training.costs import Shape, count_forward, masked_frames, time_forward
from training.data.clips import View
from training.data.entries import Entry
from training.data.sources import Source
from training.engine.models import VAE_CLASSES, vae_config
from training.engine.sharding import uses_bfloat16
from training.monitoring.heldout_losses import NOISE_LEVELS, PATTERN_NOISE_LEVELS, patterns
from training.monitoring.heldout_sampler import tasks
from training.monitoring.heldout_scores import TASK


KINDS: tuple[str, ...] = ("start-up", "encoding", "held-out losses", "held-out scores", "pictures")
_TIMED_FRAMES = 8  # encoded and decoded to time the autoencoder
_DECODED = 32  # frames of a clip, to time the decoder of videos
_TRIED = 5  # clips, of which some may be damaged or out of reach
# The trainer imports what the plan does and its trackers, builds its models and writes its report.
_START = 2.0
_IMPORTED = time.process_time()  # seconds: libraries are loaded by now, and no clip is read


@dataclass(frozen=True)
class WindowTimes:
    """Seconds for one window, or operations if no throughput is known yet.

    Attributes:
        planner, transformer: a forward pass, without gradients.
        encode, decode: a frame by the autoencoder, at the stage's size.
    """

    planner: float
    transformer: float
    encode: float
    decode: float

    def scaled(self, factor: float) -> "WindowTimes":
        """Return everything times a factor."""
        return WindowTimes(*(value * factor for value in vars(self).values()))


def count_window(config: RunConfig, stage: StageConfig) -> WindowTimes:
    """Return the operations of one window."""
    both, alone = (count_forward(shape) / stage.batch_size for shape in _shapes(config, stage))
    return WindowTimes(both - alone, alone, *_count_autoencoder(config, stage))


def time_window(config: RunConfig, stage: StageConfig, vae: torch.nn.Module) -> WindowTimes:
    """Return the seconds of one window on this machine's device; the models have random weights."""
    device = choose_device()
    both, alone = (
        time_forward(shape, device, uses_bfloat16(config)) / stage.batch_size for shape in _shapes(config, stage)
    )
    vae = vae.to(device)
    frames = torch.rand(1, _TIMED_FRAMES, 3, *config.size_of(stage), device=device) * 2 - 1
    with torch.no_grad():
        latents = encode_video(vae, frames)
        encode = _seconds(lambda: encode_video(vae, frames).sum().item()) / _TIMED_FRAMES
        decode = _seconds(lambda: decode_latents(vae, latents).sum().item()) / _TIMED_FRAMES
    vae.to("cpu")
    return WindowTimes(max(0.0, both - alone), alone, encode, decode)


def stage_overheads(config: RunConfig, stage: StageConfig, first: int, times: WindowTimes) -> dict[str, float]:
    """Return the seconds of a stage's held-out losses, held-out scores and pictures.

    Args:
        config: with `steps` (`RunConfig.for_processes`).
        stage: one of its stages, of one shape.
        first: steps before the stage.
        times: of one window.
    """
    found = dict.fromkeys(KINDS, 0.0)
    if config.data.validation is None:
        return found
    checks = evaluations(first, stage.steps, config.validate_every)
    found["held-out losses"] = checks * config.validation_windows * _loss_time(stage, times)
    given = tasks(stage.num_frames)
    if TASK in given and stage.trains != "planner":
        one = _sampling_time(config, stage, given[TASK], times) + 2 * stage.num_frames * times.decode
        found["held-out scores"] = checks * config.quality_windows * one
    if config.sample_every:
        pictures = evaluations(first, stage.steps, config.sample_every) + (first == 0)
        one = sum(_sampling_time(config, stage, indices, times) for indices in given.values())
        one += (1 + len(given)) * stage.num_frames * times.decode
        found["pictures"] = pictures * config.sample_windows * one
    return found


def evaluations(first: int, steps: int, every: int) -> int:
    """Return how often a stage evaluates: at every multiple of `every` of the run's steps, and after its last step."""
    last = first + steps
    return last // every - first // every + (last % every > 0)


def encoding_seconds(config: RunConfig, frames: dict[tuple[int, int], int], times: dict, read: float) -> float:
    """Return the seconds in which clips are decoded and encoded into the cache.

    Args:
        config: of the run.
        frames: to be encoded, by size.
        times: `WindowTimes` by size, of some of the sizes at least.
        read: seconds in which a frame is decoded and resized.
    """
    low = 1 + 1 / config.data.planner_downscale**2  # every frame is encoded at the planner's size, too
    known = {height * width: one.encode for (height, width), one in times.items()}

    def encode(pixels: int) -> float:
        nearest = min(known, key=lambda other: abs(math.log(other / pixels)))
        return known[nearest] * pixels / nearest  # an autoencoder's work grows with the area

    return sum(count * (read + low * encode(size[0] * size[1])) for size, count in frames.items()) if known else 0.0


def read_seconds(source: Source, entries: Iterable[Entry], size: tuple[int, int]) -> float:
    """Return the seconds in which a frame of a source's first readable clip is decoded and resized; 0 without one."""
    for entry in islice(entries, _TRIED):
        started, count = time.perf_counter(), 0
        with suppress(*FILE_ERRORS):
            for _, frame in islice(iterate_frames(source.open(entry.key), source.fps(entry.key)), _DECODED):
                View().of(frame[None], *size)
                count += 1
        if count:
            return (time.perf_counter() - started) / count
    return 0.0


def start_up_seconds() -> float:
    """Return about how long the trainer needs to start, from what this process has needed until it was imported."""
    return _START * _IMPORTED


def process_bytes() -> int:
    """Return the memory of this process: the libraries and the autoencoder, which the trainer holds, too."""
    return psutil.Process().memory_info().rss


def _shapes(config: RunConfig, stage: StageConfig) -> tuple[Shape, Shape]:
    """Return the shapes of a forward pass of both models, and of the transformer alone."""
    shape = Shape.of(config, stage, round(masked_frames(stage)[0]), checkpointing=False)
    return replace(shape, parts=("planner", "transformer")), replace(shape, parts=("transformer",))


def _loss_time(stage: StageConfig, times: WindowTimes) -> float:
    masks = len(patterns(stage.num_frames, 1, torch.Generator()))
    levels = len({*NOISE_LEVELS, *PATTERN_NOISE_LEVELS}) + (masks - 1) * len(PATTERN_NOISE_LEVELS)
    planner = masks * times.planner * (stage.trains != "transformer")
    return planner + (levels + (stage.trains == "joint")) * times.transformer * (stage.trains != "planner")


def _sampling_time(config: RunConfig, stage: StageConfig, given: list[int], times: WindowTimes) -> float:
    if stage.trains == "planner":
        return times.planner
    alone = stage.trains == "transformer"
    guided = not alone and SamplingOptions().guidance_for(given) != 1
    return times.planner * (not alone) + config.sample_steps * (1 + guided) * times.transformer


def _count_autoencoder(config: RunConfig, stage: StageConfig) -> tuple[float, float]:
    """Return the operations in which the autoencoder encodes and decodes a frame; 0 if it cannot be read."""
    try:
        settings = vae_config(config.vae, config.vae_subfolder)
    except ValueError:
        return 0.0, 0.0
    with torch.device("meta"), torch.no_grad():
        vae = VAE_CLASSES[settings["_class_name"]].from_config(settings)
        frame = torch.zeros(1, 3, *config.size_of(stage))
        latents = vae.encode(frame).latent_dist.mode()
        counted = []
        for call in (partial(vae.encode, frame), partial(vae.decode, latents)):
            with FlopCounterMode(display=False) as counter:
                call()
            counted.append(float(counter.get_total_flops()))
    return counted[0], counted[1]


def _seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
