"""Measure speed and quality of diffusers' caches on a checkpoint: `python -m benchmarks.caches CHECKPOINT CLIPS`.

All caches sample the same windows from the same noise, alternately, and are compared by medians. Scores against the
true clips reward blur, so each result is also compared with that without a cache. MagCache's ratios are calibrated on
the last clip, which is not measured.
"""

import argparse
import contextlib
import io
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device
from diffusers_mardini.masking import TASKS, task_indices
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.metrics import score_windows, summarize
from training.evaluation.sampling import generate
from training.evaluation.tables import markdown_table

from .timing import clock_of, describe_machine, machine_line, write_json


PLAIN = "none"
COLUMNS = (
    "cache", "speed (least to largest)", "PSNR to no cache", "middle SSIM", "middle PSNR", "motion", "sharpness",
)  # fmt: skip


def configurations(pipe: MarDiniPipeline, steps: int, mag_ratios: list[float]) -> dict[str, Callable[[], Any] | None]:
    """Return by name a function that makes a new configuration of the cache."""

    def pyramid(**ranges: int) -> PyramidAttentionBroadcastConfig:
        return PyramidAttentionBroadcastConfig(**ranges, current_timestep_callback=lambda: pipe.current_timestep)

    def faster() -> FasterCacheConfig:
        return FasterCacheConfig(
            current_timestep_callback=lambda: pipe.current_timestep,
            attention_weight_callback=lambda _: 0.5,  # diffusers' default, which it warns about
            is_guidance_distilled=True,  # approximate only the attention, with guidance too
        )

    def mag(threshold: float) -> MagCacheConfig:
        return MagCacheConfig(threshold=threshold, num_inference_steps=steps, mag_ratios=mag_ratios)

    return {
        PLAIN: None,
        "Pyramid Attention Broadcast, cross-attention 4": lambda: pyramid(cross_attention_block_skip_range=4),
        "Pyramid Attention Broadcast, all 2, cross-attention 4": lambda: pyramid(
            spatial_attention_block_skip_range=2,
            temporal_attention_block_skip_range=2,
            cross_attention_block_skip_range=4,
        ),
        "FasterCache": faster,
        "First Block Cache, threshold 0.05": lambda: FirstBlockCacheConfig(threshold=0.05),
        "First Block Cache, threshold 0.1": lambda: FirstBlockCacheConfig(threshold=0.1),
        "TaylorSeer, interval 2": lambda: TaylorSeerCacheConfig(cache_interval=2),
        "TaylorSeer, interval 4": lambda: TaylorSeerCacheConfig(cache_interval=4),
        "MagCache, threshold 0.06": lambda: mag(0.06),
        "MagCache, threshold 0.12": lambda: mag(0.12),
    }


@contextlib.contextmanager
def cached(pipe: MarDiniPipeline, make_config: Callable[[], Any] | None) -> Iterator[None]:
    """Enable a cache of the transformer inside the `with` block."""
    if make_config is not None:
        pipe.transformer.enable_cache(make_config())
    try:
        yield
    finally:
        if make_config is not None:
            pipe.transformer.disable_cache()


def calibrate(pipe: MarDiniPipeline, windows: torch.Tensor, given: Sequence[int], steps: int) -> list[float]:
    """Return MagCache's ratios of this checkpoint: the blocks' residual at a step over that of the step before."""
    printed = io.StringIO()  # diffusers only prints the ratios
    magcache = cached(pipe, lambda: MagCacheConfig(num_inference_steps=steps, calibrate=True))
    with contextlib.redirect_stdout(printed), magcache:
        generate(pipe, windows, given, steps)
    return [float(number) for number in re.search(r"\[(1\.0,[^]]*)\]", printed.getvalue()).group(1).split(",")]


def measure(
    pipe: MarDiniPipeline, truth: torch.Tensor, given: Sequence[int], steps: int, mag_ratios: list[float], repeats: int
) -> list[dict[str, Any]]:
    """Return and print a row for each cache: seconds, speed relative to no cache (median and range), and scores."""
    sides = configurations(pipe, steps, mag_ratios)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    clock = clock_of(pipe.device)
    generate(pipe, truth, given, 2)  # warms up
    rows, plain_frames = [], None
    for round_number in range(1, repeats + 1):
        for name, make_config in sides.items():
            with cached(pipe, make_config):
                start = clock()
                frames = generate(pipe, truth, given, steps)  # comes back on the CPU
                seconds[name].append(clock() - start)
            plain_frames = frames if name == PLAIN else plain_frames
            if round_number < repeats:
                continue
            speeds = [plain / taken for plain, taken in zip(seconds[PLAIN], seconds[name], strict=True)]
            scores = summarize(score_windows(frames, truth, given))
            rows.append(
                {
                    "cache": name,
                    "seconds": statistics.median(seconds[name]),
                    "speed": statistics.median(speeds),
                    "speed_least": min(speeds),
                    "speed_largest": max(speeds),
                    "psnr_to_plain": decibels_between(frames, plain_frames, given),
                    **{score: scores[score] for score in ("mid_ssim", "mid_psnr", "motion", "sharpness")},
                }
            )
    print(markdown_table(COLUMNS, map(cells_of, rows)))
    return rows


def decibels_between(frames: torch.Tensor, reference: torch.Tensor, given: Sequence[int]) -> float | None:
    """Return the PSNR of all sampled frames together, without a cap; `None` if they are equal."""
    sampled = [i for i in range(frames.shape[1]) if i not in set(given)]
    error = (frames[:, sampled] - reference[:, sampled]).square().mean()
    return None if error == 0 else -10 * error.log10().item()


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of `COLUMNS`."""
    return (
        row["cache"],
        f"{row['speed']:.2f} ({row['speed_least']:.2f} to {row['speed_largest']:.2f})",
        "equal" if row["psnr_to_plain"] is None else f"{row['psnr_to_plain']:.1f} dB",
        f"{row['mid_ssim']:.3f}",
        f"{row['mid_psnr']:.2f} dB",
        f"{row['motion']:.2f}",
        f"{row['sharpness']:.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of at least 2 held-out clips")
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument("--size", type=int, default=64, help="side of the square crop in pixels")
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--windows-per-clip", type=int, default=2)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint).to(device)
    pipe.set_progress_bar_config(disable=True)
    windows = load_windows(options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip)
    other = torch.tensor([clip == windows.clips[-1] for clip in windows.clips])
    if other.all():
        parser.error(f"'{options.clips}' gives windows of one clip only; MagCache is calibrated on another, give two")
    given = task_indices(options.task, options.num_frames)
    print(f"{options.task}, {int((~other).sum())} windows, {options.steps} steps, median of {options.repeats} rounds")
    print(machine_line(describe_machine(device)))
    mag_ratios = calibrate(pipe, windows.frames[other], given, options.steps)
    print(f"mag_ratios = {mag_ratios}")
    rows = measure(pipe, windows.frames[~other], given, options.steps, mag_ratios, options.repeats)
    print(f"Without a cache {rows[0]['seconds']:.2f} s.")
    write_json(options.output, {"mag_ratios": mag_ratios, "rows": rows})
    return rows


if __name__ == "__main__":
    main()
