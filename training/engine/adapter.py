"""LoRA weights on the models of a trained pipeline: choose the layers, add the weights, export them as a folder.

A run with a `lora` block trains nothing else but conditions that the pipeline lacks: its own weights are frozen, and the
run learns, averages and saves only the parameters that are not (`optimizers.learned`). `diffusers_mardini.loaders`
loads the result.
"""

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from diffusers_mardini import (
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.loaders.lora_files import read_lora
from diffusers_mardini.models.adapter_conditions import condition_parameters
from diffusers_mardini.pipelines.inputs import read_window
from diffusers_mardini.trained_window import TrainedWindow
from training.config.data_section import ConditionConfig
from training.config.schema import AdapterConfig, RunConfig, shaping_fields
from training.data.conditions import condition_arguments
from training.digests import tensors_digest
from training.engine.optimizers import learned
from training.engine.sharding import sharding_plugin
from training.files import whole_folder


ADAPTER = "default"  # peft's name of the adapter within the models
PARTS = ("planner", "transformer")
_LAYERS = {
    "attention": r"transformer_blocks\.\d+\.\w*attn\.(to_q|to_k|to_v|to_out\.0)",
    "linear": r"transformer_blocks\.\d+\..+",
}
# Named sets of layers, as regular expressions for `<part>.<name within it>`; only linear layers are ever adapted.
TARGETS = {
    f"{part}-{kind}": rf"{name}\.{layers}"
    for part, name in (("planner", "planner"), ("transformer", "transformer"), ("both", "(planner|transformer)"))
    for kind, layers in _LAYERS.items()
}
QUANTIZED = {"int8": "Int8WeightOnlyConfig"}  # `base_dtype` to the name of torchao's own configuration


def base_arguments(pipeline: str) -> dict[str, dict[str, Any]]:
    """Return the arguments of a trained pipeline's parts, and its own settings as `pipeline`.

    Raises:
        ValueError: if there is no pipeline.
    """
    return {part: dict(arguments) for part, arguments in _base_arguments(str(pipeline)).items()}


@cache
def _base_arguments(pipeline: str) -> dict[str, dict[str, Any]]:
    try:
        configs = {
            "planner": MarDiniPlannerTransformer3DModel.load_config(pipeline, subfolder="planner"),
            "transformer": MarDiniTransformer3DModel.load_config(pipeline, subfolder="transformer"),
            "scheduler": MarDiniScheduler.load_config(pipeline, subfolder="scheduler"),
            "pipeline": MarDiniPipeline.load_config(pipeline),
        }
    except OSError as error:
        raise ValueError(
            f"`init_from` is {pipeline!r}, where no pipeline can be read ({' '.join(str(error).split())[:200]}); give "
            "the folder or Hub id of one, such as checkpoints/mardini-tiny-carracing"
        ) from error
    return {part: {k: v for k, v in config.items() if not k.startswith("_")} for part, config in configs.items()}


def added_conditions(config: RunConfig) -> dict[str, ConditionConfig]:
    """Return the conditions of a run that the pipeline which it adapts lacks, and that the adapter adds."""
    base = base_arguments(config.init_from)
    has = {name for part in PARTS for name in base[part].get("conditions") or {}}
    return {name: condition for name, condition in config.data.conditions.items() if name not in has}


def matched_layers(models: Mapping[str, nn.Module], targets: str) -> dict[str, list[str]]:
    """Return the names of the linear layers that are adapted, by part; parts without one are left out.

    Args:
        models: `planner` and `transformer`.
        targets: a key of `TARGETS`, or a regular expression for whole names that begin with the part's.

    Raises:
        ValueError: if no layer matches; names the nearest.
    """
    linear = [
        (part, name)
        for part in PARTS
        for name, module in models[part].named_modules()
        if isinstance(module, nn.Linear)
    ]
    pattern = re.compile(TARGETS.get(targets, targets))
    matched: dict[str, list[str]] = {}
    for part, name in linear:
        if pattern.fullmatch(f"{part}.{name}"):
            matched.setdefault(part, []).append(name)
    if not matched:
        near = _nearest(targets, [f"{part}.{name}" for part, name in linear])
        raise ValueError(
            f"lora.targets is {targets!r}, which is no linear layer's whole name; the nearest are {', '.join(near)}. "
            f"Named sets are {', '.join(TARGETS)}"
        )
    return matched


def _nearest(targets: str, layers: list[str]) -> list[str]:
    """Return the closest named sets or, for a pattern with dots, the layers whose last parts are closest."""
    if "." not in targets:
        return difflib.get_close_matches(targets, TARGETS, n=3, cutoff=0)
    ends = {name.rpartition(".")[2] if not name.endswith(".0") else "to_out.0": name for name in reversed(layers)}
    last = re.sub(r"[^\w]", "", re.split(r"\.[*+]?", targets)[-1])
    return [ends[end] for end in difflib.get_close_matches(last, ends, n=3, cutoff=0)]


def add_adapter(
    models: nn.ModuleDict, lora: AdapterConfig, seed: int, conditions: Mapping[str, Any] | None = None
) -> None:
    """Freeze `planner` and `transformer`; give matched layers new LoRA weights in float32, the same on every process.

    Args:
        models: `planner` and `transformer`.
        lora: the adapter.
        seed: of the new weights.
        conditions: `condition_arguments` of the conditions that the adapter adds.

    Raises:
        ValueError: if no layer matches.
    """
    from peft import LoraConfig

    matched = matched_layers(models, lora.targets)  # before anything is changed
    conditions = conditions or {}
    assert not conditions.get("conditions") or len(matched) == len(PARTS), "conditions belong to both models"
    models.requires_grad_(False)
    torch.manual_seed(seed)  # initialization only
    for part, names in matched.items():
        models[part].add_adapter(
            LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=names, lora_dropout=lora.dropout,
                use_rslora=lora.rslora, use_dora=lora.dora,
            ),
            adapter_name=ADAPTER,
            **conditions,
        )  # fmt: skip
    for parameter in learned(models).values():
        parameter.data = parameter.data.float()  # peft follows the base's dtype, in which small steps are lost
    models.train()  # `from_pretrained` switches dropout off


def load_arguments(lora: AdapterConfig) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that hold frozen weights in `base_dtype`.

    Raises:
        ValueError: if torchao has to be installed first.
    """
    if lora.base_dtype not in QUANTIZED:
        return {"torch_dtype": torch.float32 if lora.base_dtype == "float32" else torch.bfloat16}
    try:
        import torchao.quantization
    except ImportError as error:
        raise ValueError(
            f"lora.base_dtype is {lora.base_dtype}, which needs torchao ({error}); `pip install torchao`, or set it "
            "to bf16"
        ) from error
    from diffusers import TorchAoConfig

    quantization = TorchAoConfig(getattr(torchao.quantization, QUANTIZED[lora.base_dtype])())
    return {"torch_dtype": torch.bfloat16, "quantization_config": quantization}


def refuse_shards(accelerator: Accelerator) -> None:
    """Raise `ValueError` for FSDP: frozen weights are not sharded."""
    if sharding_plugin(accelerator) is not None:
        raise ValueError(
            "an adapter is trained with all weights on every process; use training/configs/accelerate/ddp.yaml (or "
            "cpu2.yaml) instead of FSDP, and lora.base_dtype bf16 or int8 where the weights do not fit"
        )


def frozen_digests(models: nn.ModuleDict) -> dict[str, str]:
    """Return digests of the frozen weights by `init_from.<model>`: an adapter fits no others."""
    found = {}
    for part, model in models.items():
        frozen = {
            # Quantized weights are of a class of their own, with several tensors inside.
            name: parameter.data if type(parameter.data) is torch.Tensor else parameter.data.dequantize()
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
        }
        found[f"init_from.{part}"] = tensors_digest(frozen, {})[:16]
    return found


def export_adapter(
    folder: Path,
    config: RunConfig,
    models: nn.ModuleDict,
    averages: Mapping[str, torch.Tensor],
    window: TrainedWindow,
    accelerator: Accelerator,
) -> Path:
    """Save the averaged adapter as a folder that `pipe.load_lora_weights` takes; whole or absent.

    Every process must call it; the main one writes.
    """
    from peft.utils import get_peft_model_state_dict

    if accelerator.is_main_process:
        arguments: dict[str, Any] = {}
        for part in PARTS:
            if ADAPTER in getattr(models[part], "peft_config", {}):
                own = {
                    name.removeprefix(f"{part}."): tensor.detach().to("cpu", getattr(torch, config.save_dtype))
                    for name, tensor in averages.items()
                    if name.startswith(f"{part}.")
                }
                arguments[f"{part}_lora_layers"] = {
                    **get_peft_model_state_dict(models[part], own, ADAPTER),
                    **{name: own[name] for name in condition_parameters(models[part], ADAPTER)},
                }
                arguments[f"{part}_lora_adapter_metadata"] = models[part].peft_config[ADAPTER].to_dict()
        with whole_folder(folder) as unfinished:
            MarDiniPipeline.save_lora_weights(
                unfinished,
                **arguments,
                base_model=config.init_from,
                training_config={
                    **shaping_fields(config, [stage.name for stage in config.stages]),  # names no folders
                    "window": window.config,
                },
                **condition_arguments(added_conditions(config)),
            )
    accelerator.wait_for_everyone()
    return folder


@contextlib.contextmanager
def adapter_loaded(pipe: MarDiniPipeline, folder: str | Path) -> Iterator[None]:
    """Give the pipeline the adapter of a folder or Hub id within the block; afterwards restore it bit for bit."""
    pipe.load_lora_weights(str(folder))
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def trained_window(pipe: MarDiniPipeline, adapter: str | None = None) -> TrainedWindow:
    """Return the window that a pipeline was trained on, or that of its adapter, if the adapter's file says one."""
    if adapter is None:
        return pipe.trained_window
    _, description = read_lora(adapter)
    window = (description.training_config or {}).get("window")
    return pipe.trained_window if window is None else read_window(**window)


def summary(names: list[str]) -> list[str]:
    """Return the names of layers, equal ones of several blocks joined: `transformer_blocks.0-5.attn.to_q`."""
    blocks: dict[tuple[str, str], list[int]] = {}
    for name in names:
        before, number, after = re.fullmatch(r"(?:(.*?)\.(\d+)\.)?(.*)", name).groups()
        blocks.setdefault((before or "", after), []).extend([int(number)] if number else [])
    joined = []
    for (before, after), numbers in blocks.items():
        runs = f"{min(numbers)}-{max(numbers)}" if len(numbers) > 1 else "".join(map(str, numbers))
        whole = len(numbers) <= 1 or len(numbers) == max(numbers) - min(numbers) + 1
        joined.append(".".join(filter(None, (before, runs if whole else ",".join(map(str, numbers)), after))))
    return joined
