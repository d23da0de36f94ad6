"""Command-line options and facts that the programs of this folder share.

Windows are sampled and scored by `evaluation/`.
"""

import argparse
from pathlib import Path
from typing import Any

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.sizes import Size
from training.evaluation import sampling
from training.evaluation.evaluation_windows import DEFAULT_SIZE, add_window_options, size_argument
from training.evaluation.networks.loading import Networks, load_networks


def add_options(parser: argparse.ArgumentParser, windows: bool = False) -> None:
    """Add the shared options, with the defaults of `training.evaluate`; of windows the size alone, or all of it."""
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    if windows:
        add_window_options(parser)
    else:
        parser.add_argument("--size", type=size_argument, help="64 (square) or 64x128 (height x width); default: as the "
                            "checkpoint was trained, or 64")  # fmt: skip
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one sample each; their mean is reported")
    parser.add_argument("--batch-size", type=int, default=8, help="most windows sampled together")
    parser.add_argument("--page", type=Path, help="markdown file with blocks for the tables")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")


def load_pipeline(options: argparse.Namespace) -> MarDiniPipeline:
    """Load the checkpoint on the device and in the dtype that it runs in, and print both; fill in the window's size."""
    pipe, how = sampling.load_pipeline(options.checkpoint, options.device, options.dtype)
    if options.size is None:
        options.size = pipe.trained_window.size or DEFAULT_SIZE
    print(f"{options.checkpoint} on {options.clips}: {options.steps} steps, {how}", flush=True)
    return pipe


def load_lpips(size: Size, num_frames: int) -> tuple[Networks, list[str]]:
    """Return LPIPS, or no network and the reason."""
    try:
        return load_networks(["lpips"], size, num_frames)
    except ValueError as error:
        return Networks({}, {}), [f"lpips: {error}"]


def facts(options: argparse.Namespace, command: str, checkpoint: str) -> dict[str, Any]:
    """Return the settings for `results.json`.

    Args:
        options: of the program.
        command: as it was typed.
        checkpoint: digest of the weights.
    """
    record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    record.pop("page", None)
    return {**record, "command": command, "weights": checkpoint}
