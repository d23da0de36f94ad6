"""Find a checkpoint, read its defaults, and load it as the options say."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.utils import logging
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars

from ..demo_files import demo_checkpoints
from ..hardware import choose_device, choose_dtype
from ..measured_sampling import USUAL_STEPS, MeasuredSampling
from ..pipelines.inputs import read_window
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..schedulers.named import scheduler_named
from ..sizes import parse_size, sides
from ..trained_window import TrainedWindow
from ..video.errors import named_file_errors
from .checks import as_usage_errors, lora_weight
from .conditions import read_table
from .messages import is_terminal, note
from .options import TaskOptions


DEFAULT_CHECKPOINT = Path("checkpoints/mardini-tiny-carracing")


def resolve_checkpoint(checkpoint: str | None) -> str:
    """Return the given checkpoint, else the one that MARDINI_CHECKPOINT names, else the one in the checkout,
    else the one that the extra `demo` brings.

    Raises:
        ValueError: if there is none of the four, or the name can only be a folder that does not exist.
    """
    checkpoint = checkpoint or os.environ.get("MARDINI_CHECKPOINT")
    if checkpoint:
        return _folder_or_hub_id(os.path.expanduser(checkpoint))
    if (DEFAULT_CHECKPOINT / "model_index.json").is_file():
        return str(DEFAULT_CHECKPOINT)
    for installed in demo_checkpoints():
        return str(installed)
    raise ValueError(
        "there is no checkpoint: give --checkpoint (a folder or a Hub id), set MARDINI_CHECKPOINT, run this in a "
        f"checkout that has ./{DEFAULT_CHECKPOINT}, or install the extra `demo`, which brings one"
    )


def window_to_sample(checkpoint: str | None, size: str | None) -> TrainedWindow:
    """Return the window that a checkpoint was trained on, of the size asked for, if any.

    Raises:
        ValueError: if the size can't be read, or neither the checkpoint nor the user gives one.
    """
    if size is not None:
        with as_usage_errors():
            height, width = sides(parse_size(size))
    checkpoint = resolve_checkpoint(checkpoint)
    with _checkpoint_errors(checkpoint):
        vae_config = _VaeConfig.load_config(checkpoint, subfolder="vae")
        window = TrainedWindow.of_checkpoint(MarDiniPipeline.load_config(checkpoint), vae_config)
        window = read_window(**window.config)
    if size is not None:
        return replace(window, height=height, width=width)
    if window.size is None:
        raise ValueError('this checkpoint does not say which size it learned; give --size, such as "512" or "512x768"')
    return window


def folder_of_configs(checkpoint: str) -> str:
    """Return the folder of a checkpoint, or one with the configurations alone of a checkpoint on the Hub; other names
    as they are.

    Raises:
        ValueError: if there is no such folder and no such checkpoint.
    """
    if os.path.isdir(checkpoint) or "/" not in checkpoint:
        return checkpoint
    repo_id = _folder_or_hub_id(checkpoint)
    disable_progress_bars()  # for a few small files
    with _checkpoint_errors(checkpoint):
        return snapshot_download(repo_id, allow_patterns=["model_index.json", "*/config.json"])


def measured_anchors(checkpoint: str | None, overlap: int) -> int:
    """Return the anchors that were measured to help a checkpoint, for windows that `overlap` frames lead; 0 if none."""
    checkpoint = resolve_checkpoint(checkpoint)
    with _checkpoint_errors(checkpoint):
        measured = MeasuredSampling.from_config(MarDiniPipeline.load_config(checkpoint))
    return measured.anchors_of(overlap)


def load(options: TaskOptions, task: str) -> tuple[MarDiniPipeline, dict[str, Any]]:
    """Say what will be done and with which model; return the pipeline and the arguments of its methods."""
    checkpoint = resolve_checkpoint(options.checkpoint)
    place = choose_device(options.device)
    data_type, why = choose_dtype(options.dtype, place)
    note(f"{task}, with {checkpoint} on {place} in {str(data_type).removeprefix('torch.')} ({why})")
    if not is_terminal():
        logging.disable_progress_bar()
    with _checkpoint_errors(checkpoint):
        pipe = MarDiniPipeline.from_pretrained(checkpoint, dtype=data_type).to(place)
    arguments = sampling_arguments(options, MeasuredSampling.from_config(pipe.config))
    name = options.scheduler or pipe.config.get("solver")
    if name:
        pipe.scheduler = scheduler_named(pipe.scheduler, name)
    _load_adapters(pipe, options.lora or [])
    if options.conditions is not None:  # adapters may add some
        arguments["conditions"] = read_table(options.conditions, pipe.conditions)
    pipe.set_progress_bar_config(disable=None)  # silent where there is no terminal
    return pipe, arguments


def sampling_arguments(options: TaskOptions, measured: MeasuredSampling) -> dict[str, Any]:
    """Return the arguments of the pipeline's methods that all tasks share.

    Fewer steps than 25 are the default only with the solver that was measured.
    """
    steps = measured.num_inference_steps if options.scheduler is None else None
    return {
        "num_inference_steps": options.steps or steps or USUAL_STEPS,
        "guidance_scale": options.guidance_scale,
        "generator": torch.Generator().manual_seed(options.seed),
        "paste_given": options.paste_given,
        "blend": options.blend,
    }


def _load_adapters(pipe: MarDiniPipeline, texts: list[str]) -> None:
    weights = {}
    for number, text in enumerate(texts):
        place, weight = lora_weight(text)
        name = f"lora_{number}"
        with named_file_errors(f"'{place}'", "LoRA weights"):
            pipe.load_lora_weights(os.path.expanduser(place), adapter_name=name)
        weights[name] = weight
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))


def _checkpoint_errors(checkpoint: str) -> contextlib.AbstractContextManager:
    where = "" if os.path.isdir(checkpoint) else " (no folder here, so taken for a Hub id)"
    return named_file_errors(f"'{checkpoint}'{where}", "a checkpoint")


class _VaeConfig(ConfigMixin):
    """Read the configuration of any autoencoder, from a folder or the Hub."""

    config_name = "config.json"


def _folder_or_hub_id(checkpoint: str) -> str:
    """Return `checkpoint`; refuse what can only be a local folder and is none, as the Hub's answer would mislead."""
    path = Path(checkpoint)
    if path.is_file():
        raise ValueError(
            f"'{checkpoint}' is a file; give the folder of a saved pipeline, which holds model_index.json"
        )
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(f"folder '{checkpoint}' holds no model_index.json, so it is not a saved pipeline")
    elif path.is_absolute() or checkpoint.startswith((".", "~")) or len(path.parts) > 2 or "\\" in checkpoint:
        raise ValueError(
            f"there is no folder '{checkpoint}'; give the folder of a saved pipeline, or a Hub id (owner/name)"
        )
    return checkpoint
