"""The pipeline that a run's averaged weights become: written tensor by tensor, so that no process holds a whole model.

The tensors are the trainer's own, or those of a checkpoint's files (`tensor_files.py`). Adapters are in `adapter.py`.
"""

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import split_torch_state_dict_into_shards
from torch import nn

from diffusers_mardini import MarDiniPipeline, MarDiniScheduler
from diffusers_mardini.trained_window import TrainedWindow
from training.config.schema import RunConfig
from training.engine.models import CLASSES
from training.engine.tensor_files import Part, write_tensors
from training.files import whole_folder


def export_pipeline(
    folder: Path,
    config: RunConfig,
    models: nn.ModuleDict,
    averages: Mapping[str, torch.Tensor],
    vae: nn.Module,
    scheduler: MarDiniScheduler,
    window: TrainedWindow,
    accelerator: Accelerator,
) -> Path:
    """Save the averaged weights as a pipeline that `MarDiniPipeline.from_pretrained` loads; whole or absent.

    Every process must call it; the main one writes, and has one tensor more than before in its memory.

    Args:
        folder: where to.
        config: the run.
        models: planner and transformer, for their configurations.
        averages: whole tensors by name, of which the main process asks for one at a time.
        vae, scheduler, window: of the pipeline.
        accelerator: the processes.
    """
    if accelerator.is_main_process:
        parts = {"vae": copy.deepcopy(vae)}
        dtype = getattr(torch, config.save_dtype)
        for parameter in parts["vae"].parameters():
            parameter.data = parameter.data.to("cpu", dtype)
        for name, model_class in CLASSES.items():
            # A new model: the trained one may be compiled or sharded, and must not be rounded to `save_dtype`.
            with torch.device("meta"):
                parts[name] = model_class.from_config(models[name].config)
            # What the pipeline calls for each of its parts.
            parts[name].save_pretrained = partial(_save_model, parts[name], averages, f"{name}.", dtype)
        downscale = config.data.planner_downscale
        pipeline = MarDiniPipeline(**parts, scheduler=scheduler, planner_downscale=downscale, **window.config)
        with whole_folder(folder) as unfinished:
            pipeline.save_pretrained(unfinished)
    accelerator.wait_for_everyone()
    return folder


def _save_model(
    model: ModelMixin, values: Mapping[str, torch.Tensor], prefix: str, dtype: torch.dtype, folder: str,
    max_shard_size: str = "10GB",
) -> None:  # fmt: skip
    """Save a model that has no values, as its own `save_pretrained` would with them.

    Args:
        model: on the meta device.
        values: of its tensors, by names that begin with `prefix`.
        prefix: of these names.
        dtype: of the files.
        folder: for the model; it is created.
        max_shard_size: of a file.
    """
    model.save_config(folder)
    empty = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    pattern = SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
    split = split_torch_state_dict_into_shards(empty, filename_pattern=pattern, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        parts = {name: Part(empty[name], (0,) * empty[name].ndim) for name in names}
        write_tensors(Path(folder) / file, parts, lambda name: values[f"{prefix}{name}"].detach().to("cpu", dtype))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (Path(folder) / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
