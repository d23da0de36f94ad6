"""Time a training step of an adapter beside one of all weights: `python -m benchmarks.train_adapter`.

All forms train the same pipeline on the same made-up batch with the trainer's settings (bf16 autocast if the device
has units for it, plain attention and compiled blocks on a CPU), alternately, and are compared by medians. All weights
are trained by AdamW here, like the adapter.
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from training.config.schema import RunConfig
from training.costs import Shape, count_operations
from training.engine.adapter import base_arguments
from training.engine.models import make_models, make_scheduler
from training.engine.optimizers import learned, make_optimizers
from training.losses import MarDiniTrainingModel

from .timing import alternate, describe_machine, machine_line


FORMS = {
    "all weights": None,
    "adapter, both-linear": {"targets": "both-linear"},
    "adapter, both-attention": {"targets": "both-attention"},
    "adapter, transformer-attention": {"targets": "transformer-attention"},
}


def make_config(pipeline: str, lora: dict | None, batch_size: int, compiled: bool) -> RunConfig:
    """Return a joint stage on a trained pipeline."""
    stage = {"name": "joint", "trains": "joint", "steps": 1, "batch_size": batch_size, "compile": compiled}
    sizes = {} if lora else {part: base_arguments(pipeline)[part] for part in ("planner", "transformer", "scheduler")}
    return RunConfig(
        name="benchmark", data={"train": "none"}, vae="none", init_from=pipeline, lora=lora, stages=[stage], **sizes
    )


def step_of(config: RunConfig) -> Callable[[], None]:
    """Return one step of the configuration's stage, on its own model."""
    device, stage = choose_device(), config.stages[0]
    models = make_models(config).to(device)
    model = MarDiniTrainingModel(models["planner"], None, models["transformer"], make_scheduler(config))
    optimizers = make_optimizers(model, config.optimizer, 1e-6)
    batch = Shape.of(config, stage, stage.num_frames - 2).batch_of(device, torch.float32)
    parameters = list(learned(model).values())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16_units(device)):
            loss = model(batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device

    return step


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_adapter", description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default="checkpoints/mardini-tiny-carracing")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="compiling takes a minute or more for each form")
    options = parser.parse_args(arguments)
    configs = {
        name: make_config(options.pipeline, lora, options.batch_size, not options.no_compile)
        for name, lora in FORMS.items()
    }
    blocks = "blocks not compiled" if options.no_compile else "compiled blocks"
    print(f"A joint step of {options.pipeline}, {options.batch_size} windows, {blocks}")
    print(machine_line(describe_machine(choose_device())))
    steps = {name: step_of(config) for name, config in configs.items()}
    times = alternate(steps, options.repeats, choose_device())
    seconds = {name: statistics.median(values) for name, values in times.items()}
    operations = {name: count_operations(config, config.stages[0]) for name, config in configs.items()}
    first, first_operations = seconds["all weights"], operations["all weights"]
    print(f"{'':<32} {'seconds':>8} {'of all weights':>14} {'operations':>11}")
    for name, value in seconds.items():
        print(f"{name:<32} {value:8.3f} {value / first:13.2f}x {operations[name] / first_operations:10.2f}x")
    return seconds


if __name__ == "__main__":
    main()
