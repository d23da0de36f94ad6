"""Choose what `training.fit` trains on own clips: rate, size, autoencoder, models, batch, stages and steps.

Each choice comes with its reason in words; `configs.py` writes both into the YAML files that the person may edit.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from diffusers_mardini.hardware import is_lack_of_memory
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from training.config.schema import RunConfig
from training.costs import count_operations, probe
from training.evaluation.metrics import score_frames
from training.evaluation.probe import NUM_FRAMES


MULTIPLE = 16  # of pixels: the autoencoder's 8, and the planner's frames that are half as large
# Largest first: the models of a preset at about so many pixels a frame, and the training windows below which a smaller
# pair learns more in the same time (docs/results/own-clips.md).
CANDIDATES = (
    ("mardini-small", 128 * 128, 200_000),
    ("mardini-small", 64 * 64, 100_000),
    ("mardini-tiny", 64 * 64, 60_000),
    ("mardini-nano", 64 * 64, 0),
)
PROBED = 64 * 64  # pixels of a frame while nothing is chosen yet
LATENTS = (16, 24, 32)  # channels of an 8-pixel patch
ENOUGH_CEILING = 0.93  # SSIM; more channels are harder to predict
ENOUGH_ROOM = 0.7  # of the most room at any distance between frames
FRAMES = 512  # that the choice of the channels is measured with, on each side
WINDOWS_PER_STEP = 16
PROBE_STEPS = 3
BETTER_USE = 4.0  # larger models use a machine better, by at most so much


@dataclass
class Choices:
    """Name what is trained, each with its reason in words (`why`, by the name of the choice)."""

    fps: float
    height: int
    width: int
    latent_channels: int
    preset: str
    windows_per_step: int
    processes: int
    steps: int
    why: dict[str, str] = field(default_factory=dict)
    searches_matches: bool = True  # whether the verdict seeks the best match among the training clips


def choose_fps(probed: Mapping[str, Any]) -> tuple[float, str]:
    """Return the frames per second of windows, and why: the shortest distance at which there is enough room.

    Args:
        probed: content of `probe.json`; without room at any distance the one with the most is taken.
    """
    rows = probed["distances"]
    most = max(row["room"] for row in rows)
    enough = most - (1 - ENOUGH_ROOM) * abs(most)
    chosen = next(row for row in rows if row["room"] >= enough)
    reached = max(score["mid_ssim"] for score in chosen["rows"] if score["method"] != "autoencoder")
    why = (
        f"at {1 / chosen['seconds']:.3g} frames a second {chosen['best']} reaches a SSIM of {reached:.2f} half-way "
        f"between two frames that are {(NUM_FRAMES - 1) * chosen['seconds']:.2g} seconds apart; that leaves room for a model"
    )
    return float(f"{1 / chosen['seconds']:.4g}"), why


def usual_rate(rates: Sequence[float]) -> float:
    """Return frames per second that nine of ten clips have at least: a clip with fewer has no window at that rate."""
    return sorted(rates)[len(rates) // 10]


def choose_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """Return height and width of frames of about `pixels` pixels, in the aspect ratio of clips of `width` x `height`.

    Sides are multiples of 16 and no longer than the clips', unless a clip is smaller than 16 pixels.
    """
    most_high, most_wide = (max(MULTIPLE, side // MULTIPLE * MULTIPLE) for side in (height, width))

    def misfit(size: tuple[int, int]) -> float:
        aspect = abs(math.log(size[1] / size[0] / (width / height)))
        return aspect + 0.5 * abs(math.log(size[0] * size[1] / pixels))

    sides = range(MULTIPLE, 4 * MULTIPLE * math.ceil(math.sqrt(pixels) / MULTIPLE) + 1, MULTIPLE)
    sizes = [(high, wide) for high in sides for wide in sides if high <= most_high and wide <= most_wide]
    return min(sizes, key=misfit)


@torch.no_grad()
def choose_latents(frames: torch.Tensor, held_out: torch.Tensor) -> tuple[AutoencoderPatchBasis, str]:
    """Return a bare linear basis with the fewest channels that keep enough, and why; its convolutions are not trained.

    Args:
        frames: to fit the basis to, `uint8`, `(number, 3, height, width)`.
        held_out: to measure it on, of the same shape but for the number.
    """
    found = []
    for channels in LATENTS:
        vae = AutoencoderPatchBasis(latent_channels=channels, encoder_blocks=0, decoder_blocks=0)
        vae.fit_basis(frames.float() / 127.5 - 1)
        kept = torch.cat([vae(some.float() / 127.5 - 1).sample for some in held_out.split(64)])
        scores = score_frames((kept[None] / 2 + 0.5).clamp(0, 1), held_out[None].float() / 255)
        found.append((channels, scores["ssim"].mean().item()))
        if found[-1][1] >= ENOUGH_CEILING:
            break
    measured = ", ".join(f"{count} channels keep a SSIM of {ssim:.3f}" for count, ssim in found)
    return vae, f"{measured} (bare linear basis, held-out frames)"


def choose_models(
    configs: Sequence[tuple[str, RunConfig, int]], seconds: float, processes: int
) -> tuple[int, float, str]:
    """Return the largest candidate that sees enough windows in the time, by real steps on this machine.

    The smallest is measured first; of the others only those that its speed, and their operations, do not rule out.

    Args:
        configs: preset, the run at the size that goes with it, and the windows that it needs; largest first.
        seconds: of training.
        processes: that train side by side.

    Returns:
        The index of the candidate, its seconds per step, and why, in words.
    """
    reasons = []

    def measured(index: int) -> tuple[float, float]:
        preset, config, wanted = configs[index]
        config = config.for_processes(processes)
        stage = config.stages[-1]
        try:
            step = probe(config, stage, PROBE_STEPS)
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
            step = math.inf
        clear_device_cache()  # the training is another process
        if step == math.inf:
            reasons.append(f"{preset} does not fit into the device's memory")
            return math.inf, 0.0
        windows = seconds / step * stage.windows_per_step
        height, width = config.size_of(stage)
        reasons.append(
            f"{preset} at {height}x{width}: {step:.2f} s a step of {stage.windows_per_step} windows, so "
            f"{windows:,.0f} windows in {seconds / 60:.0f} minutes" + (f", {wanted:,} wanted" if wanted else "")
        )
        return step, windows

    def operations(index: int) -> float:
        config = configs[index][1].for_processes(processes)
        return count_operations(config, config.stages[-1])

    last = len(configs) - 1
    step, windows = measured(last)
    for index in range(last):
        hoped = windows * operations(last) / operations(index) * BETTER_USE
        if hoped >= configs[index][2]:
            larger, seen = measured(index)
            if seen >= configs[index][2]:
                return index, larger, "; ".join(reasons)
    return last, step, "; ".join(reasons)


def processes_for(device: str, cores: int, windows: int) -> int:
    """Return how many processes train: one per core of a CPU, which share a step's windows equally; one on a GPU.

    One on Windows, too, where torch's launcher of several does not start.
    """
    if device != "cpu" or os.name == "nt":
        return 1
    return max(count for count in range(1, min(cores, windows) + 1) if windows % count == 0)
