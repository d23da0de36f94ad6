"""Time a training step eagerly, with compiled blocks, and compiled as a whole: `python -m benchmarks.compiled_step`.

The forms of a stage's `compile` (false, true, step) run alternately on the same made-up batch, forward and backward
pass, each with a model of the same weights; ratios are of the same round. `train_step.py` times the optimizer, too.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from training.config.schema import RunConfig
from training.costs import Shape
from training.engine.compiling import compile_step

from .timing import Spread, alternate, describe_machine, machine_line, ratio, synchronize, write_json
from .train_step import make_config


FORMS: dict[str, Any] = {"eager": False, "blocks compiled": True, "the whole step compiled": "step"}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print seconds and ratios; return them as rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled_step", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--batch-size", type=int, default=10, help="windows of the step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="to be timed, eager first")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device()
    machine, rows = describe_machine(device), []
    print(f"A joint step of {options.preset}, {options.batch_size} windows, {options.repeats} rounds")
    print(machine_line(machine))
    sides = {
        name: learning(make_config(options.batch_size, "adamw", options.preset), name, device)
        for name in options.forms
    }
    first = {}
    for name, call in sides.items():
        started = time.perf_counter()
        call()
        synchronize(device)
        first[name] = time.perf_counter() - started
        print(f"{name}: the first step took {first[name]:.0f} s", flush=True)
    seconds = alternate(sides, options.repeats, device)
    for name, values in seconds.items():
        row = {
            "form": name,
            "seconds": Spread.of(values),
            "times as fast as eager": ratio(seconds[options.forms[0]], values),
            "seconds of the first step": first[name],
        }
        rows.append(row)
        print(
            f"{name:<26} {row['seconds']:.3f} s, {row['times as fast as eager']:.2f} times as fast as "
            f"{options.forms[0]}",
            flush=True,
        )
    write_json(options.output, {"machine": machine, "rows": rows})
    return rows


def learning(config: RunConfig, form: str, device: torch.device) -> Callable[[], None]:
    """Return the forward and backward pass of a step, compiled as a stage would have it."""
    stage = config.stages[0].model_copy(update={"compile": FORMS[form]})
    shape = Shape.of(config, stage, stage.num_frames - 2)
    torch.manual_seed(0)
    model, batch = shape.training_model(device=device), shape.batch_of(device, torch.float32)
    if stage.compile is True:
        for part in (model.planner, model.transformer):
            part.compile_repeated_blocks()
    model = compile_step(model, stage)
    bf16 = has_bfloat16_units(device)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(batch)["loss"]
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


if __name__ == "__main__":
    main()
