"""Time the steps of a rollout, from a key to its pictures, by number of sampler steps: `python -m benchmarks.rollout`.

A checkpoint without conditions gains random ones, which cost what learned ones cost. Also timed: the same frames by
`extend`, which encodes and decodes the given frames again, float32 beside bfloat16, and the share of each part.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, has_bfloat16_units

from .sampling_speed import CHECKPOINT, Variant, make_pipeline
from .timing import Spread, alternate, clock_of, describe_machine, machine_line, ratio, synchronize, write_json


WINDOW = 9
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CONDITIONS = {"action": 3}
ROUNDS = 4  # steps of a rollout in one measurement


def make_driven_pipeline(checkpoint: str | Path, variant: Variant, device: torch.device | str) -> MarDiniPipeline:
    """Load a checkpoint that takes actions; random embeddings if it has learned none."""
    pipe = make_pipeline(checkpoint, variant, device)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    if not pipe.conditions:
        generator = torch.Generator().manual_seed(0)
        for model in (pipe.planner, pipe.transformer):
            model.add_conditions(CONDITIONS)
            for parameter in model.condition_embedder.parameters():
                parameter.data = (0.02 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    return pipe


def actions(pipe: MarDiniPipeline, num_frames: int) -> dict[str, torch.Tensor]:
    """Return values within the range of each condition of the checkpoint."""
    values = {}
    for name, condition in pipe.conditions.items():
        ranges = torch.tensor(condition.ranges or [(-1.0, 1.0)] * condition.channels)
        values[name] = ranges.mean(dim=1).expand(num_frames, -1)
    return values


def stepper(
    pipe: MarDiniPipeline, steps: int, new: int, size: int, **kwargs: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return two functions that make `ROUNDS * new` frames: a rollout, and calls of `extend`."""
    overlap = WINDOW - new
    given = torch.rand(overlap, 3, size, size, generator=torch.Generator().manual_seed(0))
    values = actions(pipe, new)
    common = {"num_inference_steps": steps, "window": WINDOW, "overlap": overlap, "output_type": "np", **kwargs}
    rollout = pipe.rollout(given, generator=torch.Generator().manual_seed(1), **common)

    def roll() -> None:
        for _ in range(ROUNDS):
            rollout.step(new, values)

    def extend() -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(ROUNDS):
            pipe.extend(given, new, generator=generator, conditions=values, **common)

    return roll, extend


@contextmanager
def watched(pipe: MarDiniPipeline, device: torch.device | str):
    """Measure the seconds in each part of a pipeline inside the `with` block; yields them by name."""
    clock, seconds = clock_of(device), {"planner": 0.0, "transformer": 0.0, "decoder": 0.0, "encoder": 0.0}
    undo = []

    def watch(owner: Any, method: str, part: str) -> None:
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = clock()
            result = original(*args, **kwargs)
            synchronize(device)
            seconds[part] += clock() - start
            return result

        setattr(owner, method, timed)
        undo.append(lambda: delattr(owner, method))

    watch(pipe.planner, "forward", "planner")
    watch(pipe.transformer, "forward", "transformer")
    watch(pipe.vae, "decode", "decoder")
    watch(pipe.vae, "encode", "encoder")
    try:
        yield seconds
    finally:
        for one in undo:
            one()


def shares(pipe: MarDiniPipeline, roll: Callable[[], Any], device: torch.device | str) -> dict[str, float]:
    """Return the share of each part in a rollout's time; "rest" is the sampler, noise, copies and checks."""
    clock = clock_of(device)
    with watched(pipe, device) as seconds:
        start = clock()
        roll()
        whole = clock() - start
    return {**{part: spent / whole for part, spent in seconds.items()}, "rest": 1 - sum(seconds.values()) / whole}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollout", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=CHECKPOINT, help="folder or Hub id of a pipeline")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5], help="of UniPC")
    parser.add_argument("--new", type=int, default=4, help=f"new frames of a step, in windows of {WINDOW}")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="other than 1 evaluates twice per step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the processor; default: as torch has it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    machine = describe_machine(device)
    print(
        f"{Path(options.checkpoint).name}, {options.size} pixels, {WINDOW - options.new} frames kept, "
        f"{options.new} new ones a step, guidance {options.guidance_scale:g}; median (least to largest)"
    )
    print(machine_line(machine))
    dtypes = [torch.float32, *([torch.bfloat16] if has_bfloat16_units(device) else [])]
    pipes = {dtype: make_driven_pipeline(options.checkpoint, Variant(dtype=dtype), device) for dtype in dtypes}
    rows = []
    for steps in options.steps:
        makers = {
            dtype: stepper(pipe, steps, options.new, options.size, guidance_scale=options.guidance_scale)
            for dtype, pipe in pipes.items()
        }
        sides = {("rollout", dtype): roll for dtype, (roll, _) in makers.items()}
        sides["extend", torch.float32] = makers[torch.float32][1]
        seconds = alternate(sides, options.repeats, device)
        plain = seconds["extend", torch.float32]
        for (method, dtype), times in seconds.items():
            key_to_picture = [spent / ROUNDS for spent in times]
            row = {
                "steps": steps,
                "method": method,
                "dtype": NAMES[dtype],
                "key_to_picture": Spread.of(key_to_picture),
                "frames_a_second": Spread.of([options.new / spent for spent in key_to_picture]),
                "times_as_fast_as_extend": ratio(plain, times),
                "shares": shares(pipes[dtype], sides[method, dtype], device),
            }
            rows.append(row)
            parts = ", ".join(f"{part} {100 * share:.0f}%" for part, share in row["shares"].items())
            print(
                f"{steps} step(s), {method:<7} {row['dtype']:<8} {row['key_to_picture']:.3f} s, "
                f"{row['frames_a_second']:.1f} frames/s, {row['times_as_fast_as_extend']:.2f} times extend; {parts}",
                flush=True,
            )
    result = {"machine": machine, "new": options.new, "size": options.size, "rows": rows}
    result["guidance_scale"] = options.guidance_scale
    write_json(options.output, result)
    return result


if __name__ == "__main__":
    main()
