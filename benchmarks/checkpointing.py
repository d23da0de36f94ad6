"""Time the training steps around a checkpoint, beside usual ones: `python -m benchmarks.checkpointing`.

Two ways to write it take turns in one process: in a thread, from copies, as the trainer does (`engine/writing.py`); and
within the step, read again for its digests, as it did before. Models are random: speed does not depend on the weights.
Another busy process on the same core slows the step during which the thread writes; `--seconds thread` counts the
processor time of the training thread alone.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from diffusers_mardini.hardware import choose_device
from training.costs import Shape
from training.engine.checkpoint import Checkpoint
from training.engine.ema import AveragedWeights
from training.engine.optimizers import learned, make_optimizers, optimizer_tensors
from training.engine.writing import CheckpointWriter
from training.files import whole_folder

from .timing import Spread, alternate, describe_machine, machine_line, ratio, write_json
from .train_step import make_config


CLOCKS = {"wall": time.perf_counter, "thread": time.thread_time}
USUAL = "a usual step"
SIDES = {
    "taken": "the step during which a checkpoint is taken",
    "after": "the step after it, while the thread writes",
    "rest": "waiting until it is whole, which training does not",
    "before": "the step with a checkpoint within, as before",
}


def main(arguments: list[str] | None = None) -> dict[str, Spread]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpointing", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mardini-tiny")
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", choices=CLOCKS, default="wall", help="clock, or time of the training thread")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; default: a temporary folder")
    parser.add_argument("-o", "--output", type=Path, help="json")
    options = parser.parse_args(arguments)
    device = choose_device()
    machine = describe_machine(device) | {"seconds": "of the clock" if options.seconds == "wall" else "of the thread"}
    print(machine_line(machine))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sides, size = make_sides(options.preset, options.batch_size, options.optimizer, device, Path(folder))
        print(
            f"A joint step of {options.preset}, {options.batch_size} windows, {options.optimizer}; a checkpoint has "
            f"{size / 2**20:.0f} MiB. Median (least to largest) of {options.repeats}"
        )
        seconds = alternate(sides, options.repeats, device, clock=CLOCKS[options.seconds])
    usual = seconds.pop(USUAL)
    print(f"{USUAL:<52} {Spread.of(usual):7.3f} s")
    ratios = {}
    for name, label in SIDES.items():
        ratios[name] = ratio(seconds[name], usual)
        print(f"{label:<52} {Spread.of(seconds[name]):7.3f} s, {ratios[name]:5.2f} of a usual one")
    rows = {name: {"seconds": Spread.of(seconds[name]), "ratio": ratios[name]} for name in SIDES}
    result = {"machine": machine, "preset": options.preset, "bytes": size, "usual": Spread.of(usual), **rows}
    write_json(options.output, result)
    return ratios


def make_sides(
    preset: str, batch_size: int, optimizer: str, device: torch.device, folder: Path
) -> tuple[dict[str, Callable[[], None]], int]:
    """Return the sides in their order, and the bytes of a checkpoint."""
    config = make_config(batch_size, optimizer, preset)
    stage = config.stages[0]
    shape = Shape.of(config, stage, stage.num_frames - 2)
    batch = shape.batch_of(device, torch.float32)
    torch.manual_seed(0)
    model = shape.training_model(device=device)
    optimizers, averages = make_optimizers(model, config.optimizer, 1e-6), AveragedWeights(model, 0.999)
    writer = CheckpointWriter(folder / "now", Accelerator(cpu=device.type == "cpu"), keep=1, late_news=False)
    done = [0]

    def step() -> None:
        model(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)
        averages.update()
        done[0] += 1

    def checkpoint() -> Checkpoint:
        moments, rest = optimizer_tensors(optimizers)
        return Checkpoint(learned(model), averages.tensors, moments, rest, {"global_step": done[0]})

    def taken() -> None:
        step()
        writer.begin(checkpoint(), 0)

    def before() -> None:
        step()
        write_within_the_step(folder / "before", checkpoint())

    step()  # so that the optimizers have their moments
    size = sum(tensor.nbytes for tensors in checkpoint().tensors().values() for tensor in tensors.values())
    return {USUAL: step, "taken": taken, "after": step, "rest": writer.finish, "before": before}, size


def write_within_the_step(folder: Path, checkpoint: Checkpoint) -> None:
    """Write whole tensors and read them again for their digests, as the trainer did before it had a thread."""
    with whole_folder(folder) as unfinished:
        for kind, tensors in checkpoint.tensors().items():
            path = unfinished / f"{kind}.safetensors"
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
            with open(path, "rb") as file:
                hashlib.file_digest(file, "sha256")


if __name__ == "__main__":
    main()
