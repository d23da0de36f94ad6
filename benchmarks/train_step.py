"""Time a training step beside the straightforward form and its own matrix products: `python -m benchmarks.train_step`.

All forms run alternately in one process on the same made-up batch and are compared by medians. A form with a plus adds
one thing to the one before. The limit is the step's matrix products alone, of the same shapes, on random matrices.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from diffusers_mardini.presets import load_preset
from training.config.schema import RunConfig
from training.costs import Shape
from training.engine.optimizers import make_optimizers

from .products import products_alone, record_products
from .timing import alternate, synchronize


FLOATS = ("latents", "planner_latents", "noise")


def make_config(batch_size: int, optimizer: str, preset: str = "mardini-tiny") -> RunConfig:
    """Return the joint stage of the small models, as in `training/configs/tiny-carracing.yaml`."""
    size = load_preset(preset)["height"]
    stage = {"name": "joint", "trains": "joint", "steps": 1, "batch_size": batch_size, "planner_loss_weight": 0.5}
    return RunConfig(
        name="benchmark", data={"train": "none", "size": size}, vae="none", preset=preset,
        optimizer={"name": optimizer}, stages=[stage],
    )  # fmt: skip


def forms(config: RunConfig, device: torch.device, compiled: bool) -> dict[str, Callable[[], None]]:
    """Return steps by name, each with its own model."""
    stage = config.stages[0]
    shape = Shape.of(config, stage, stage.num_frames - 2)
    batch = shape.batch_of(device, torch.float32)
    bf16 = has_bfloat16_units(device)

    def step(
        autocast: bool,
        fused_attention: bool = False,
        compile_blocks: bool = False,
        optimize: bool = True,
        masters: bool = False,
    ):
        torch.manual_seed(0)
        model = shape.training_model(device=device)
        learned = copy.deepcopy(model) if masters else model  # what the optimizers see
        if masters:
            model.to(torch.bfloat16)
        for part in (model.planner, model.transformer):
            if fused_attention:
                part.set_attention_backend("native")
            if compile_blocks:
                part.compile_repeated_blocks()
        optimizers = make_optimizers(learned, config.optimizer, 1e-6)
        pairs = list(zip(learned.parameters(), model.parameters())) if masters else []
        inputs = replace(batch, **{name: getattr(batch, name).bfloat16() for name in FLOATS}) if masters else batch

        def run() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast and bf16):
                loss = model(inputs)["loss"]
            loss.backward()
            for master, parameter in pairs:
                master.grad = None if parameter.grad is None else parameter.grad.float()
            if optimize:
                torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
            with torch.no_grad():
                for master, parameter in pairs:
                    parameter.copy_(master)
            model.zero_grad(set_to_none=True)
            loss.item()  # waits for the device

        return run

    result = {"straightforward (float32, fused attention)": step(autocast=False, fused_attention=True)}
    if bf16:
        result["+ bf16 autocast"] = step(autocast=True, fused_attention=True)
    if device.type == "cpu":
        result["+ attention as plain products"] = step(autocast=True)
    if compiled:
        result["+ compiled blocks (as in the trainer)"] = step(autocast=True, compile_blocks=True)
        if bf16:
            result["bf16 weights and float32 masters instead of autocast"] = step(
                autocast=False, masters=True, compile_blocks=True
            )
    alone = products_alone(record_products(step(autocast=True, optimize=False)), device)

    def limit() -> None:
        alone()
        synchronize(device)

    result["limit: the matrix products alone"] = limit
    return result


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", default="mardini-tiny", help="one of ours: mardini-nano, mardini-tiny, mardini-small"
    )
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the compiled form, which takes a minute or more to start"
    )
    options = parser.parse_args(arguments)
    device = choose_device()
    print(
        f"A joint step of {options.preset}, {options.batch_size} windows, {options.optimizer}, on {device}, "
        f"{torch.get_num_threads()} thread(s)"
    )
    calls = forms(make_config(options.batch_size, options.optimizer, options.preset), device, not options.no_compile)
    times = alternate(calls, options.repeats, device, warm_up=2)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    first, last = next(iter(seconds.values())), list(seconds.values())[-1]
    print(f"{'':<54} {'seconds':>8} {'windows/s':>9} {'of the first':>12} {'of the limit':>12}")
    for name, value in seconds.items():
        print(
            f"{name:<54} {value:8.3f} {options.batch_size / value:9.2f} {first / value:11.2f}x {value / last:11.2f}x"
        )
    return seconds


if __name__ == "__main__":
    main()
