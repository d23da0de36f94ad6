"""Arguments that the programs here share where they look at a checkpoint, and what they stand for.

What a program measures is its own business; how windows are sampled and scored is `evaluation/`'s.
"""

import argparse
from pathlib import Path
from typing import Any

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, choose_dtype
from training.evaluation.networks.loading import Networks, load_networks


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every such program is told; the defaults are those of `training.evaluate`."""
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--size", type=int, default=64, help="side of the square crop in pixels")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a sample each; their mean is told")
    parser.add_argument("--batch-size", type=int, default=8, help="most windows sampled together")
    parser.add_argument("--page", type=Path, help="markdown file whose blocks are filled with the tables (page.py)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")


def load_pipeline(options: argparse.Namespace) -> MarDiniPipeline:
    """The checkpoint where and in what it is to run, which is printed."""
    device = choose_device(options.device)
    dtype, why = choose_dtype(options.dtype, device)
    print(f"{options.checkpoint} on {options.clips}: {options.steps} steps, {dtype} on {device} ({why})", flush=True)
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_lpips(size: int, num_frames: int) -> tuple[Networks, list[str]]:
    """LPIPS where its network can be had, else the reason why not."""
    try:
        return load_networks(["lpips"], size, num_frames)
    except ValueError as error:
        return Networks({}, {}), [f"lpips: {error}"]


def facts(options: argparse.Namespace, command: str, checkpoint: str) -> dict[str, Any]:
    """How it was measured, for `results.json`.

    Args:
        options: of the program.
        command: as it was typed.
        checkpoint: digest of the weights.
    """
    told = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    told.pop("page", None)
    return {**told, "command": command, "weights": checkpoint}
