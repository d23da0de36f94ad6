"""Trains a MarDini by the curriculum of a YAML file: `accelerate launch -m training.train_mardini CONFIG`.

Typing the same command again resumes from the newest checkpoint; `docs/training.md` tells the rest.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, ModelMixin

from diffusers_mardini import AutoencoderPatchBasis
from diffusers_mardini.hardware import choose_device, has_bfloat16_units

from .config import RunConfig, load_config
from .data.latents import cache_latents
from .loop import Run
from .plan import problems, unsupported


def load_vae(path: str, subfolder: str | None = None) -> ModelMixin:
    """Loads an `AutoencoderKL`, or this project's `AutoencoderPatchBasis`, whichever the folder or Hub repository holds."""
    name = AutoencoderPatchBasis.load_config(path, subfolder=subfolder)["_class_name"]
    vae_class = {"AutoencoderKL": AutoencoderKL, "AutoencoderPatchBasis": AutoencoderPatchBasis}.get(name)
    if vae_class is None:
        raise ValueError(f"{path} holds a {name}; accepted are AutoencoderKL and AutoencoderPatchBasis")
    return vae_class.from_pretrained(path, subfolder=subfolder).eval().requires_grad_(False)


def train(config: RunConfig, runs: Path = Path("runs")) -> Path:
    """Runs all stages; returns the folder of the finished pipeline."""
    use_bf16 = config.mixed_precision == "bf16" or (
        config.mixed_precision == "auto" and has_bfloat16_units(choose_device())
    )
    accelerator = Accelerator(mixed_precision="bf16" if use_bf16 else "no")
    resolved = config.for_processes(accelerator.num_processes)
    if found := [*problems(resolved), *unsupported(resolved)]:
        raise ValueError("\n".join([f"{config.name} cannot be trained:", *(f"  {problem}" for problem in found)]))
    folder = runs / config.name
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config.model_dump_json(indent=2))  # as given, for any number of processes
    config = resolved
    vae = load_vae(config.vae, config.vae_subfolder)

    def latents(clips: Path):
        # One process encodes, the others then read what it wrote.
        with accelerator.main_process_first():
            return cache_latents(clips, vae, config.data.size, config.data.planner_downscale, config.data.cache)

    train_data = latents(config.data.train)
    validation_data = latents(config.data.validation) if config.data.validation else None
    for stage in config.stages:
        for stride in stage.strides:
            train_data.windows(stage.num_frames, stride)  # says now, not after hours, that clips are too short
    run = Run(config, accelerator, vae, train_data, validation_data, folder)
    parameters = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in run.models.items()}
    accelerator.print(
        f"{config.name}: {len(config.stages)} stages, {len(train_data.names)} clips, {accelerator.num_processes} process(es) on "
        f"{accelerator.device}, {'bf16 autocast' if use_bf16 else 'float32'}, million parameters "
        + ", ".join(f"{name} {count:.2f}" for name, count in parameters.items())
    )
    pipeline = run.train()
    accelerator.print(f"the finished pipeline lies in {pipeline}")
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, for example training/configs/tiny-racing.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to it, such as optimizer.ema_decay=0.99 stages.joint.steps=10",
    )
    arguments = parser.parse_intermixed_args()
    train(load_config(arguments.config, arguments.overrides))


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
