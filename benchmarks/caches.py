"""What diffusers' caches save, and what they cost in quality, on a trained checkpoint: `python -m benchmarks.caches CHECKPOINT CLIPS`.

All sides sample the same windows from the same noise, in turn, and are compared by medians. Scores against the true clips reward blur; each result is
therefore also held against that without a cache. MagCache's ratios are calibrated on the last clip, which is not measured.
"""

import argparse
import contextlib
import io
import json
import re
import statistics
import time
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
from training.evaluate import TASKS, generate, given_indices, load_windows
from training.evaluation.metrics import score_windows, summarize


PLAIN = "none"
HEAD = (
    "| cache | speed (least to largest) | PSNR to no cache | middle SSIM | middle PSNR | motion | sharpness |",
    "|---|---|---|---|---|---|---|",
)


def configurations(pipe: MarDiniPipeline, steps: int, mag_ratios: list[float]) -> dict[str, Callable[[], Any] | None]:
    """Name to a function that makes the cache's configuration; a new one for each run."""

    def pyramid(**ranges: int) -> PyramidAttentionBroadcastConfig:
        return PyramidAttentionBroadcastConfig(**ranges, current_timestep_callback=lambda: pipe.current_timestep)

    def faster() -> FasterCacheConfig:
        return FasterCacheConfig(
            current_timestep_callback=lambda: pipe.current_timestep,
            attention_weight_callback=lambda _: 0.5,  # diffusers' default, which it warns of
            is_guidance_distilled=True,  # where there is guidance too, the attention alone is approximated
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
    """The transformer with a cache within the block, and without it afterwards."""
    if make_config is not None:
        pipe.transformer.enable_cache(make_config())
    try:
        yield
    finally:
        if make_config is not None:
            pipe.transformer.disable_cache()


def clock_of(device: torch.device) -> tuple[Callable[[], float], str]:
    """The clock and its name: with one thread on a CPU its own time, which stands still while others have the processor."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.process_time, "processor time"
    return time.perf_counter, "time"


def calibrate(pipe: MarDiniPipeline, windows: torch.Tensor, given: Sequence[int], steps: int) -> list[float]:
    """MagCache's ratios of this checkpoint: how much the blocks add at a step, by how much they added at the step before."""
    printed = io.StringIO()  # diffusers hands them out on no other way
    magcache = cached(pipe, lambda: MagCacheConfig(num_inference_steps=steps, calibrate=True))
    with contextlib.redirect_stdout(printed), magcache:
        generate(pipe, windows, given, steps)
    return [float(number) for number in re.search(r"\[(1\.0,[^]]*)\]", printed.getvalue()).group(1).split(",")]


def measure(
    pipe: MarDiniPipeline, truth: torch.Tensor, given: Sequence[int], steps: int, mag_ratios: list[float], repeats: int
) -> list[dict[str, Any]]:
    """A row for each cache: seconds, speed beside no cache (median, least and largest of the rounds), and scores."""
    sides = configurations(pipe, steps, mag_ratios)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    clock, _ = clock_of(pipe.device)
    generate(pipe, truth, given, 2)  # warms up
    rows, plain_frames = [], None
    print("\n".join(HEAD))
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
            print(markdown(rows[-1]), flush=True)
    return rows


def decibels_between(frames: torch.Tensor, reference: torch.Tensor, given: Sequence[int]) -> float | None:
    """PSNR of all generated frames together, not capped as the scores of single frames are; `None` where they are equal."""
    generated = [i for i in range(frames.shape[1]) if i not in set(given)]
    error = (frames[:, generated] - reference[:, generated]).square().mean()
    return None if error == 0 else -10 * error.log10().item()


def markdown(row: dict[str, Any]) -> str:
    near = "equal" if row["psnr_to_plain"] is None else f"{row['psnr_to_plain']:.1f} dB"
    return (
        f"| {row['cache']} | {row['speed']:.2f} ({row['speed_least']:.2f} to {row['speed_largest']:.2f}) | {near} | "
        f"{row['mid_ssim']:.3f} | {row['mid_psnr']:.2f} dB | {row['motion']:.2f} | {row['sharpness']:.2f} |"
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
    given = given_indices(options.task, options.num_frames)
    print(
        f"{options.task}, {int((~other).sum())} windows, {options.steps} steps on {device}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, {clock_of(pipe.device)[1]}, median of {options.repeats} rounds"
    )
    mag_ratios = calibrate(pipe, windows.frames[other], given, options.steps)
    print(f"mag_ratios = {mag_ratios}")
    rows = measure(pipe, windows.frames[~other], given, options.steps, mag_ratios, options.repeats)
    print(f"Without a cache {rows[0]['seconds']:.2f} s.")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"mag_ratios": mag_ratios, "rows": rows}, indent=1) + "\n")
        print(f"Wrote {options.output}")
    return rows


if __name__ == "__main__":
    main()
