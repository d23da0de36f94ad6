"""Find how few steps solvers need on a trained checkpoint: `python -m benchmarks.few_steps CHECKPOINT CLIPS`.

All solvers start from the same noise. Scores against the true clips reward blur, and fewer steps blur, so each result
is also compared with 250 steps of DDIM from the same noise, which shows the error of the solver alone.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from diffusers_mardini import MarDiniPipeline, MarDiniScheduler
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.masking import TASKS, task_indices
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.metrics import score_windows, summarize
from training.evaluation.sampling import batches, generate

from .timing import describe_machine, write_json


EXTENSION = "extension"  # a task of several windows, by `extend`
SCORES = ("mid_ssim", "mid_psnr", "motion", "sharpness")


@dataclass(frozen=True)
class Solver:
    """A scheduler of diffusers, and settings that differ from the checkpoint's configuration."""

    scheduler: type[SchedulerMixin]
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, config: dict[str, Any]) -> SchedulerMixin:
        return self.scheduler.from_config(config, **self.settings)


DPM, UNIPC = DPMSolverMultistepScheduler, UniPCMultistepScheduler
# As `from_config` makes them, with no further settings.
SOLVERS = {
    "DDIM (ours)": Solver(MarDiniScheduler),
    "Euler": Solver(EulerDiscreteScheduler),
    "DPM-Solver++ 2, midpoint": Solver(DPM),
    "DPM-Solver++ 2, heun": Solver(DPM, {"solver_type": "heun"}),
    "DPM-Solver++ 3": Solver(DPM, {"solver_order": 3}),
    "UniPC 2": Solver(UNIPC),
    "UniPC 3": Solver(UNIPC, {"solver_order": 3}),
    "Heun": Solver(HeunDiscreteScheduler),
}
# Settings other than the order, tried one by one.
SETTINGS = {
    "DPM-Solver++ 2": Solver(DPM),
    "DPM-Solver++ 2, linspace": Solver(DPM, {"timestep_spacing": "linspace"}),
    "DPM-Solver++ 2, leading": Solver(DPM, {"timestep_spacing": "leading"}),
    "DPM-Solver++ 2, not rescaled to zero SNR": Solver(DPM, {"rescale_betas_zero_snr": False}),
    "DPM-Solver++ 2, final sigma_min": Solver(DPM, {"final_sigmas_type": "sigma_min"}),
    "DPM-Solver++ 2, Lu's lambdas": Solver(DPM, {"use_lu_lambdas": True}),
    "DPM-Solver++ 2, Karras sigmas": Solver(DPM, {"use_karras_sigmas": True}),
    "DPM-Solver++ 2, exponential sigmas": Solver(DPM, {"use_exponential_sigmas": True}),
    "DPM-Solver++ 2, no lower order at the end": Solver(
        DPM, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    ),
    "DPM-Solver++ 3, Euler at the end": Solver(DPM, {"solver_order": 3, "euler_at_final": True}),
    "UniPC 2, bh1": Solver(UNIPC, {"solver_type": "bh1"}),
    "UniPC 2, final sigma_min": Solver(UNIPC, {"final_sigmas_type": "sigma_min"}),
    "UniPC 2, Karras sigmas": Solver(UNIPC, {"use_karras_sigmas": True}),
    "UniPC 2, no corrector in the first two steps": Solver(UNIPC, {"disable_corrector": [0, 1]}),
    "Heun, leading": Solver(HeunDiscreteScheduler, {"timestep_spacing": "leading"}),
    "Heun, Karras sigmas": Solver(HeunDiscreteScheduler, {"use_karras_sigmas": True}),
}


def compare(
    sample: Callable[[SchedulerMixin, int], Any],
    config: dict[str, Any],
    solvers: dict[str, Solver],
    steps: Sequence[int],
    truth: Any,
    given: Sequence[int],
    reference_steps: int,
) -> list[dict[str, Any]]:
    """Sample with every solver and number of steps, first with the checkpoint's own and `reference_steps`.

    Args:
        sample: a scheduler and a number of steps to frames `(windows, frames, 3, height, width)` in [0, 1], from the
            same noise.
        config: of the checkpoint's scheduler.
        solvers: by name.
        steps: numbers of steps.
        truth: the true frames.
        given: positions of the given frames.
        reference_steps: of DDIM.

    Returns:
        A row for each that is not refused, with `SCORES` against the truth and `to_reference`: PSNR in dB of the
        sampled frames against those of the first row.
    """
    reference = sample(MarDiniScheduler.from_config(config), reference_steps)
    rows = []

    def add(name: str, count: int, scheduler: SchedulerMixin, frames: Any) -> None:
        scores = summarize(score_windows(frames, truth, given))
        near = summarize(score_windows(frames, reference, given))["psnr"] if frames is not reference else None
        row = {"solver": name, "steps": count, "evaluations": len(scheduler.timesteps)}
        rows.append(row | {score: scores[score] for score in SCORES} | {"to_reference": near})
        print(
            f"{name:<44} {count:>5} {row['evaluations']:>6} "
            + " ".join(f"{rows[-1][score]:>9.3f}" for score in SCORES)
            + (f" {near:>12.2f}" if near is not None else ""),
            flush=True,
        )

    print(f"{'solver':<44} {'steps':>5} {'calls':>6} " + " ".join(f"{score:>9}" for score in SCORES) + " to reference")
    scheduler = MarDiniScheduler.from_config(config)
    scheduler.set_timesteps(reference_steps)
    add("reference", reference_steps, scheduler, reference)
    for name, solver in solvers.items():
        for count in steps:
            scheduler = solver.build(config)
            try:
                frames = sample(scheduler, count)
            except ValueError as error:  # the pipeline refuses settings that cannot work
                print(f"{name:<44} {count:>5} refused: {error}", flush=True)
                continue
            add(name, count, scheduler, frames)
    return rows


def extend(pipe: MarDiniPipeline, windows: torch.Tensor, num_given: int, steps: int) -> torch.Tensor:
    """Continue the first frames of clips window by window, each from noise of its own seed.

    Args:
        pipe: the checkpoint.
        windows: in [0, 1], `(clips, frames, 3, height, width)`; the given frames lead.
        num_given: how many.
        steps: of the scheduler.

    Returns:
        Frames in [0, 1], shaped like `windows`; the given ones are those of `windows`.
    """
    parts = []
    for first, last in batches(len(windows), 8):
        frames = pipe.extend(
            windows[first:last, :num_given],
            windows.shape[1] - num_given,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in range(first, last)],
            output_type="pt",
        ).frames
        parts.append(frames.float().cpu())
    extended = torch.cat(parts)
    extended[:, :num_given] = windows[:, :num_given]
    return extended


def fewest_steps(rows: Sequence[dict[str, Any]], solver: str, distance: float) -> int | None:
    """Return the fewest steps from which on a solver keeps a PSNR of at least `distance` to the reference."""
    enough = None
    for row in sorted((row for row in rows if row["solver"] == solver), key=lambda row: -row["steps"]):
        if not row["to_reference"] >= distance:  # also NaN
            break
        enough = row["steps"]
    return enough


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_steps", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("--task", choices=(*TASKS, EXTENSION), default="interpolation")
    parser.add_argument("--num-given", type=int, default=4, help="frames that lead an extension")
    parser.add_argument("--size", type=int, default=64, help="side of the square crop in pixels")
    parser.add_argument("--num-frames", type=int, default=9)
    parser.add_argument("--stride", type=int, default=2)
    parser.add_argument("--windows-per-clip", type=int, default=1)
    parser.add_argument("--max-windows", type=int, default=16)
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, metavar="NAME", help=f"of {', '.join(SOLVERS)}")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 3, 4, 5, 8, 10, 15, 25])
    parser.add_argument("--reference-steps", type=int, default=250, help="of DDIM")
    parser.add_argument("--settings", action="store_true", help="try settings of the solvers instead")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    dtype, why = choose_dtype(options.dtype, device)
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    windows = load_windows(options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip)
    truth = windows.frames[: options.max_windows]
    is_extension = options.task == EXTENSION
    given = list(range(options.num_given)) if is_extension else task_indices(options.task, options.num_frames)
    print(f"{options.task}, {len(truth)} windows, {dtype} on {device} ({why})")

    def sample(scheduler: SchedulerMixin, count: int):
        pipe.scheduler = scheduler
        if is_extension:
            return extend(pipe, truth, options.num_given, count)
        return generate(pipe, truth, given, count)

    config = pipe.scheduler.config
    solvers = SETTINGS if options.settings else {name: SOLVERS[name] for name in options.solvers or SOLVERS}
    steps = sorted(options.steps)
    rows = compare(sample, config, solvers, steps, truth, given, options.reference_steps)
    result = {
        "machine": describe_machine(device),
        "checkpoint": Path(options.checkpoint).name,
        "task": options.task,
        "windows": len(truth),
        "dtype": str(dtype).removeprefix("torch."),
        "rows": rows,
    }
    ours = [row["to_reference"] for row in rows if row["solver"] == "DDIM (ours)" and row["steps"] == steps[-1]]
    if ours:
        result["fewest_steps"] = {name: fewest_steps(rows, name, ours[0]) for name in solvers}
        print(f"Steps to come as near to the reference as {steps[-1]} of DDIM ({ours[0]:.2f} dB):")
        for name, count in result["fewest_steps"].items():
            print(f"  {name:<42} {'not reached' if count is None else count}")
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
