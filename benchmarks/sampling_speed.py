"""Time whole sampling with one saving after another, for the three tasks: `python -m benchmarks.sampling_speed`.

The first form is plain: float32, with the planner at every step. Each further form adds one saving to the one before.
All sample the same windows, alternately in one process.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from diffusers_mardini.masking import task_indices

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json


CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "mardini-tiny-carracing"


@dataclass(frozen=True)
class Task:
    """The length of a window and its given frames; the pipeline chooses the guidance for them."""

    num_frames: int
    given: tuple[int, ...]


TASKS = {
    "interpolation": Task(9, tuple(task_indices("interpolation", 9))),
    "image-to-video": Task(17, tuple(task_indices("image-to-video", 17))),
    "expansion": Task(28, tuple(task_indices("expansion", 28, num_leading=16))),  # Fig. 8
}


@dataclass(frozen=True)
class Variant:
    """A way of sampling.

    Attributes:
        dtype: of planner, transformer and autoencoder.
        compiled: whether the blocks of both models are compiled (`compile_repeated_blocks`).
        planner_at_every_step: whether the planner runs after every step, as in a symmetric model.
        call: keyword arguments of the pipeline's call.
    """

    dtype: torch.dtype = torch.float32
    compiled: bool = False
    planner_at_every_step: bool = False
    call: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "plain: float32, planner at every step": Variant(planner_at_every_step=True, call={"use_window_state": False}),
    "+ planner once": Variant(call={"use_window_state": False}),
    "+ reference frames and keys of the planning signals once": Variant(),
    "+ bfloat16": Variant(dtype=torch.bfloat16),
    "+ compiled blocks": Variant(dtype=torch.bfloat16, compiled=True),
}


def make_pipeline(checkpoint: str | Path, variant: Variant, device: torch.device | str) -> MarDiniPipeline:
    """Load a checkpoint in the variant's number format; compile it if the variant says so."""
    pipe = MarDiniPipeline.from_pretrained(checkpoint, dtype=variant.dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    if variant.compiled:
        pipe.planner.compile_repeated_blocks()
        pipe.transformer.compile_repeated_blocks()
    return pipe


def sampler(
    pipe: MarDiniPipeline, variant: Variant, task: Task, size: int, steps: int
) -> Callable[[int | None], torch.Tensor]:
    """Return a function that samples the task's window from the same frames and noise; it takes a number of steps."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(len(task.given), 3, size, size, generator=generator)
    plan_again = None
    if variant.planner_at_every_step:
        pixels = frames[None] * 2 - 1
        low_references = pipe.encode_low_frames(pixels)

        def plan_again(pipe, step, timestep, tensors):
            return {"planning_signals": pipe.plan(low_references, task.given, task.num_frames)}

    def sample(count: int | None = None) -> torch.Tensor:
        return pipe(
            video=frames, frame_indices=list(task.given), num_frames=task.num_frames,
            num_inference_steps=count or steps, generator=torch.Generator().manual_seed(1), output_type="latent",
            callback_on_step_end=plan_again, **variant.call,
        ).frames  # fmt: skip

    return sample


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="folder or Hub id of a pipeline")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the compiled form, which takes minutes to start"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    machine = describe_machine(device)
    print(f"{Path(options.checkpoint).name}, {options.steps} steps, {options.size} pixels, median (least to largest)")
    print(machine_line(machine))
    variants = {
        name: variant
        for name, variant in VARIANTS.items()
        if not (variant.compiled and options.no_compile)
        and (variant.dtype == torch.float32 or has_bfloat16_units(device))
    }
    pipes = {name: make_pipeline(options.checkpoint, variant, device) for name, variant in variants.items()}
    rows = []
    for task_name in options.tasks:
        task = TASKS[task_name]
        samplers = {
            name: sampler(pipes[name], variant, task, options.size, options.steps)
            for name, variant in variants.items()
        }
        results = {name: sample(min(2, options.steps)) for name, sample in samplers.items()}  # also warms up
        seconds = alternate(samplers, options.repeats, device, warm_up=0)
        plain = next(iter(seconds))
        print(f"\n{task_name}, {len(task.given)} of {task.num_frames} frames given")
        for name, times in seconds.items():
            # Difference to the plain form after two steps, in standard deviations of the latents.
            differs = (results[name] - results[plain]).square().mean().sqrt() / results[plain].std()
            row = {
                "task": task_name,
                "variant": name,
                "seconds": Spread.of(times),
                "speedup": ratio(seconds[plain], times),
                "difference": differs.item(),
            }
            rows.append(row)
            print(
                f"{name:<46} {format(row['seconds'], '.2f'):>24} s "
                f"{format(row['speedup'], '.2f'):>22} times as fast, differs by {row['difference']:.1e}",
                flush=True,
            )
    result = {"machine": machine, "steps": options.steps, "size": options.size, "rows": rows}
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
