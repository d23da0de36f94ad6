"""The models of a run: planner, transformer and reconstruction head, as the configuration wants them, and the pipeline they become."""

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffusers_mardini import (
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.presets import load_preset
from training.config.schema import RunConfig
from training.data.conditions import model_arguments
from training.engine.adapter import add_adapter, load_arguments
from training.engine.ema import AveragedWeights
from training.engine.sharding import gather
from training.losses import PlannerReconstructionHead


CLASSES = {"planner": MarDiniPlannerTransformer3DModel, "transformer": MarDiniTransformer3DModel}


def make_scheduler(config: RunConfig) -> MarDiniScheduler:
    if config.lora is not None:
        return MarDiniScheduler.from_pretrained(config.init_from, subfolder="scheduler")  # pyright: ignore[reportReturnType]
    return MarDiniScheduler(**{**load_preset(config.preset)["scheduler"], **config.scheduler})


def make_models(config: RunConfig) -> torch.nn.ModuleDict:
    """`planner`, `transformer` and `head`, the same on every process, still on the CPU and whole.

    For an adapter, those of the pipeline that it adapts, frozen but for it, without a head.

    Args:
        config: the run.
    """
    models = _new_models(config) if config.lora is None else _adapted_models(config)
    for name in CLASSES:
        if config.gradient_checkpointing:
            models[name].enable_gradient_checkpointing()
        if any(stage.compile for stage in config.stages):
            models[name].compile_repeated_blocks()
    return models


def _new_models(config: RunConfig) -> torch.nn.ModuleDict:
    preset = load_preset(config.preset)
    torch.manual_seed(config.seed)  # initialization only; steps draw from `step_generator`
    told = model_arguments(config.data.conditions)
    models = {
        name: model_class(**{**preset[name], **told, **getattr(config, name)}) for name, model_class in CLASSES.items()
    }
    if config.init_from is not None:
        start_from(config.init_from, models)
    planner = models["planner"].config
    planning_dim = planner.num_attention_heads * planner.attention_head_dim
    head = PlannerReconstructionHead(planning_dim, planner.in_channels, planner.patch_size)
    return torch.nn.ModuleDict({**models, "head": head})


def _adapted_models(config: RunConfig) -> torch.nn.ModuleDict:
    arguments = load_arguments(config.lora)
    models = torch.nn.ModuleDict({name: _pretrained(name, config.init_from, **arguments) for name in CLASSES})
    add_adapter(models, config.lora, config.seed)
    return models


def how_to_convert(path: str, subfolder: str | None) -> str:
    """Say why pickled weights are not read, and how to turn those of a folder into safetensors."""
    file = f"{path}/{subfolder}/diffusion_pytorch_model" if subfolder else f"{path}/diffusion_pytorch_model"
    return (
        "Pickled weights (.bin, .pt, .ckpt) are not read, since they can run code; if you trust the file, convert it "
        "once: "
        'python -c "import torch; from safetensors.torch import save_file; '
        f"save_file(torch.load('{file}.bin', weights_only=True), '{file}.safetensors', {{'format': 'pt'}})\""
    )


def _pretrained(name: str, pipeline: str, **arguments: Any) -> torch.nn.Module:
    """Load planner or transformer of a trained pipeline.

    Raises:
        ValueError: if it is not there, or not whole.
    """
    try:
        model = CLASSES[name].from_pretrained(pipeline, subfolder=name, use_safetensors=True, **arguments)
    except OSError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`init_from` is {pipeline!r}, whose {name} cannot be read as safetensors ({said}); give the folder or "
            "Hub id of "
            f"a pipeline. {how_to_convert(pipeline, name)}"
        ) from error
    if absent := [key for key, tensor in model.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"`init_from` is {pipeline!r}, whose {name} lacks {len(absent)} tensors, the first is {absent[0]!r}; get "
            "it again"
        )
    return model


def start_from(pipeline: str, models: dict[str, torch.nn.Module]) -> None:
    """Copies planner and transformer of a trained pipeline; the reconstruction head starts anew.

    Raises:
        ValueError: if their sizes differ.
    """

    def gained(key: str) -> bool:
        """Whether a weight belongs to a condition, which starts without effect where the pipeline has none."""
        return key.startswith("condition_embedder.")

    for name, model in models.items():
        weights = _pretrained(name, pipeline).state_dict()
        own = model.state_dict()
        differing = sorted(
            k
            for k in own.keys() | weights.keys()
            if k not in own
            or (k not in weights and not gained(k))
            or (k in weights and own[k].shape != weights[k].shape)
        )
        if differing:
            raise ValueError(
                f"the {name} of {pipeline} (`init_from`) has other sizes than this run's: {len(differing)} tensors differ, "
                f"the first is {differing[0]!r}; use the same `preset` and overrides, or start from scratch"
            )
        model.load_state_dict({**{k: own[k] for k in own if k not in weights}, **weights})


def export_pipeline(
    folder: Path,
    config: RunConfig,
    models: torch.nn.ModuleDict,
    averages: AveragedWeights,
    vae: torch.nn.Module,
    scheduler: MarDiniScheduler,
    accelerator: Accelerator,
) -> Path:
    """Saves the averaged weights as a pipeline that `MarDiniPipeline.from_pretrained` loads; whole or absent.

    Every process must call it; the main one writes.
    """
    tensors = gather({n: t for n, t in averages.tensors.items() if not n.startswith("head.")}, accelerator)
    if accelerator.is_main_process:
        parts = {"vae": copy.deepcopy(vae)}
        for name, model_class in CLASSES.items():
            # A copy from the config: the trained one may be compiled or sharded, and must not be rounded to `save_dtype`.
            parts[name] = model_class.from_config(models[name].config)
            prefix = f"{name}."
            own = {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}
            parts[name].load_state_dict(own)
        dtype = getattr(torch, config.save_dtype)
        for parameter in itertools.chain.from_iterable(part.parameters() for part in parts.values()):
            parameter.data = parameter.data.to("cpu", dtype)
        pipeline = MarDiniPipeline(**parts, scheduler=scheduler, planner_downscale=config.data.planner_downscale)
        temporary = folder.with_name(f".{folder.name}.partial")
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        pipeline.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    accelerator.wait_for_everyone()
    return folder
