"""The models of a run, built or loaded as configured.

Adapters are in `adapter.py`, shards in `sharding.py`, the losses in `losses.py`, the export in `exporting.py`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, ModelMixin
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn

from diffusers_mardini import (
    AutoencoderPatchBasis,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.models.adapter_conditions import adapter_conditions
from diffusers_mardini.presets import load_preset
from diffusers_mardini.weights import check_weight_files, local_folder
from training.config.schema import AdapterConfig, RunConfig, StageConfig
from training.data.conditions import condition_arguments
from training.engine.adapter import (
    PARTS,
    add_adapter,
    added_conditions,
    base_arguments,
    load_arguments,
    matched_layers,
)
from training.engine.initial_weights import InitialWeights
from training.engine.reconstruction_head import PlannerReconstructionHead
from training.engine.sharding import fill_from, shard
from training.engine.tensor_files import TensorFiles
from training.files import read_json


CLASSES = {"planner": MarDiniPlannerTransformer3DModel, "transformer": MarDiniTransformer3DModel}
VAE_CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderPatchBasis": AutoencoderPatchBasis}
USUAL_FACTOR = 8  # pixels of a side of a latent, where the autoencoder's own cannot be read


def model_arguments(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the arguments of a run's planner, transformer and scheduler, and of conditions that an adapter adds."""
    if config.lora is not None:
        arguments = base_arguments(config.init_from)
        added = condition_arguments(added_conditions(config))
        return {**{part: arguments[part] for part in (*CLASSES, "scheduler")}, "added": added}
    preset, conditions = load_preset(config.preset), condition_arguments(config.data.conditions)
    models = {part: {**preset[part], **conditions, **getattr(config, part)} for part in CLASSES}
    return {**models, "scheduler": {**preset["scheduler"], **config.scheduler}}


def build_models(
    arguments: dict[str, dict], device: torch.device | str, lora: AdapterConfig | None = None
) -> nn.ModuleDict:
    """Return new models `planner`, `transformer` and `head` on a device; with an adapter, no head."""
    with torch.device(device):
        models = _build_pair(arguments)
        if lora is None:
            models["head"] = _build_head(models)
        else:
            add_adapter(models, lora, seed=0, conditions=arguments["added"])
    return models


def _build_pair(arguments: dict[str, dict]) -> nn.ModuleDict:
    return nn.ModuleDict({part: model_class(**arguments[part]) for part, model_class in CLASSES.items()})


def _build_head(models: nn.ModuleDict) -> PlannerReconstructionHead:
    planner = models["planner"].config
    planning_dim = planner.num_attention_heads * planner.attention_head_dim
    return PlannerReconstructionHead(planning_dim, planner.in_channels, planner.patch_size)


def whole_models(config: RunConfig) -> nn.ModuleDict:
    """Return the models of a run on the meta device, shared between calls: do not change them."""
    return _whole_models(json.dumps(model_arguments(config)), config.lora)


@cache
def _whole_models(arguments: str, lora: AdapterConfig | None) -> nn.ModuleDict:
    return build_models(json.loads(arguments), "meta", lora)


def check_base(config: RunConfig) -> None:
    """Check that the pipeline of `init_from` can be read and has the run's sizes, without loading its weights.

    Raises:
        ValueError: if not.
    """
    base = base_arguments(config.init_from)
    try:
        models = _whole_models(json.dumps({part: base[part] for part in CLASSES}), None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`init_from` is {config.init_from!r}, whose models cannot be built: {error}") from error
    for name in CLASSES:
        theirs, own = (_shapes(each[name]) for each in (models, whole_models(config)))
        refuse_other_sizes(config.init_from, name, theirs, own)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def adapted_layers(config: RunConfig) -> dict[str, list[str]]:
    """Return the names of the linear layers that an adapter changes, by part; see `adapter.matched_layers`."""
    return matched_layers(_whole_models(json.dumps(model_arguments(config)), None), config.lora.targets)


def added_parameters(config: RunConfig) -> dict[str, int]:
    """Return the number of parameters of each condition that an adapter adds, in both models together."""
    models, counts = whole_models(config), dict.fromkeys(added_conditions(config), 0)
    for part in PARTS:
        for name, embedding in adapter_conditions(models[part]).items():
            counts[name] += sum(parameter.numel() for parameter in embedding.parameters())
    return counts


def trained_parts(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of the models that a stage trains."""
    parts = {"planner": ("planner", "head"), "transformer": ("transformer",), "joint": ("planner", "transformer")}
    return parts[stage.trains] + (("head",) if stage.trains == "joint" and stage.planner_loss_weight > 0 else ())


def make_scheduler(config: RunConfig) -> MarDiniScheduler:
    """Return the scheduler of a run."""
    if config.lora is not None:
        return MarDiniScheduler.from_pretrained(config.init_from, subfolder="scheduler")  # pyright: ignore[reportReturnType]
    return MarDiniScheduler(**model_arguments(config)["scheduler"])


def make_models(config: RunConfig, accelerator: Accelerator | None = None) -> nn.ModuleDict:
    """Return `planner`, `transformer` and `head` of a run, with the same weights for any number of processes.

    They are built on the meta device, sharded, and then filled: the host never has a whole model, unless it trains
    one there. For an adapter, return planner and transformer of the pipeline that it adapts, frozen except for the
    adapter.

    Args:
        config: the run.
        accelerator: the processes that share the models; by default the models are whole and on the CPU.
    """
    if config.lora is not None:
        models, initial = _adapted_models(config), None
    else:
        initial = InitialWeights()
        with torch.device("meta"), initial:
            models = build_models(model_arguments(config), "meta")
        initial.name(models)
    for name in CLASSES:
        if config.gradient_checkpointing:
            models[name].enable_gradient_checkpointing()
        if any(stage.compile is True for stage in config.stages):
            models[name].compile_repeated_blocks()
    if accelerator is not None:
        shard(models, accelerator)
    elif initial is not None:
        models.to_empty(device="cpu")
    if initial is not None:
        torch.manual_seed(config.seed)  # initialization only; steps draw from `step_generator`
        initial.draw(models)
    if config.lora is None and config.init_from is not None:
        start_from(config.init_from, {name: models[name] for name in CLASSES})
    return models


def _adapted_models(config: RunConfig) -> nn.ModuleDict:
    arguments = load_arguments(config.lora)
    models = nn.ModuleDict({name: _pretrained(name, config.init_from, **arguments) for name in CLASSES})
    add_adapter(models, config.lora, config.seed, condition_arguments(added_conditions(config)))
    return models


def load_vae(path: str, subfolder: str | None = None) -> ModelMixin:
    """Load the `AutoencoderKL`, or this project's `AutoencoderPatchBasis`, of a folder or Hub repository.

    Raises:
        ValueError: if there is none, or one whose weights are pickled, damaged or not whole.
    """
    where, vae_class = _where(path, subfolder), VAE_CLASSES[vae_config(path, subfolder)["_class_name"]]
    try:
        vae = vae_class.from_pretrained(path, subfolder=subfolder, use_safetensors=True)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{where}, whose weights cannot be read as safetensors ({said}). {how_to_convert(path, subfolder)}"
        ) from error
    if absent := [name for name, tensor in vae.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"{where}, whose weights lack {len(absent)} tensors, the first is {absent[0]!r}; get it again"
        )
    return vae.eval().requires_grad_(False)


def vae_config(path: str, subfolder: str | None = None) -> dict[str, Any]:
    """Return the configuration of an autoencoder, without its weights.

    Raises:
        ValueError: if there is none, or one of another kind; says which folder was meant, if that can be seen.
    """
    where, folder = _where(path, subfolder), Path(path)
    if (folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1) and not folder.is_dir():
        raise ValueError(f"{where}, and there is no such folder; give that of an autoencoder, or a Hub id")
    if not subfolder and (folder / "vae" / "config.json").is_file():
        raise ValueError(
            f"{where}, the folder of a pipeline; its autoencoder is a part of it: set `vae_subfolder: vae`"
        )
    if not subfolder and (folder / "pipeline" / "vae" / "config.json").is_file():
        pipeline = (folder / "pipeline").as_posix()
        raise ValueError(
            f"{where}, the folder of a run; its autoencoder is a part of its pipeline: set `vae: {pipeline}` and "
            "`vae_subfolder: vae`"
        )
    try:
        loaded: Any = AutoencoderPatchBasis.load_config(path, subfolder=subfolder)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{where}, where no autoencoder can be read ({said}); give its folder or Hub id") from error
    config: dict[str, Any] = dict(loaded)
    name = config.get("_class_name")
    if name not in VAE_CLASSES:
        raise ValueError(f"{where}, which holds a {name}; accepted are {' and '.join(VAE_CLASSES)}")
    return config


def new_vae(config: RunConfig) -> ModelMixin:
    """Return an autoencoder of a run's kind with random weights: the usual one if it cannot be read."""
    try:
        settings = vae_config(config.vae, config.vae_subfolder)
    except ValueError:
        settings = {"_class_name": "AutoencoderPatchBasis"}
    return VAE_CLASSES[settings["_class_name"]].from_config(settings).eval()


def has_variance(config: RunConfig) -> bool:
    """Return whether the latents of a run's autoencoder have a variance; as usual, if it cannot be read."""
    try:
        return vae_config(config.vae, config.vae_subfolder)["_class_name"] != AutoencoderPatchBasis.__name__
    except ValueError:
        return True


def vae_factor(config: RunConfig) -> int:
    """Return the pixels of a side of a latent; `USUAL_FACTOR` if the autoencoder is not in a folder here."""
    if not (Path(config.vae) / (config.vae_subfolder or "") / "config.json").is_file():
        return USUAL_FACTOR
    try:
        found = vae_config(config.vae, config.vae_subfolder)
    except ValueError:
        return USUAL_FACTOR  # `engine/feasibility.py` says what is wrong with it
    return 2 ** (len(found["block_out_channels"]) - 1) if found.get("block_out_channels") else USUAL_FACTOR


def _where(path: str, subfolder: str | None) -> str:
    return f"the autoencoder (`vae`) is {path!r}" + (f", `vae_subfolder` {subfolder!r}" if subfolder else "")


def how_to_convert(path: str, subfolder: str | None) -> str:
    """Return why pickled weights are not read, and how to convert those of a folder to safetensors."""
    file = f"{path}/{subfolder}/diffusion_pytorch_model" if subfolder else f"{path}/diffusion_pytorch_model"
    return (
        "Pickled weights (.bin, .pt, .ckpt) are not read, since they can run code; if you trust the file, convert it "
        'once: python -c "import torch; from safetensors.torch import save_file; '
        f"save_file(torch.load('{file}.bin', weights_only=True), '{file}.safetensors', {{'format': 'pt'}})\""
    )


def _pretrained(name: str, pipeline: str, **arguments: Any) -> nn.Module:
    """Load planner or transformer of a trained pipeline.

    Raises:
        ValueError: if it is missing, or not whole.
    """
    with _named_read_errors(name, pipeline):
        model = CLASSES[name].from_pretrained(pipeline, subfolder=name, use_safetensors=True, **arguments)
    if absent := [key for key, tensor in model.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"`init_from` is {pipeline!r}, whose {name} lacks {len(absent)} tensors, the first is {absent[0]!r}; get "
            "it again"
        )
    return model


@contextlib.contextmanager
def _named_read_errors(name: str, pipeline: str) -> Iterator[None]:
    """Turn errors of reading a part of the pipeline of `init_from` into one sentence."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"`init_from` is {pipeline!r}, whose {name} cannot be read as safetensors ({said}); give the folder or "
            f"Hub id of a pipeline. {how_to_convert(pipeline, name)}"
        ) from error


def start_from(pipeline: str, models: Mapping[str, nn.Module]) -> None:
    """Fill `planner` and `transformer`, sharded or not, with the weights of a trained pipeline.

    Each process reads its shards alone.

    Raises:
        ValueError: if the weights are missing or no safetensors, or their sizes differ.
    """
    for name, model in models.items():
        own = dict(model.named_parameters())
        with _named_read_errors(name, pipeline):
            weights = _weights_of(name, pipeline)
            shapes = weights.shapes
        refuse_other_sizes(pipeline, name, shapes, _shapes(model))
        with _named_read_errors(name, pipeline):
            for key in shapes:
                fill_from(own[key], weights, key)


def _weights_of(name: str, pipeline: str) -> TensorFiles:
    """Return the tensors of a part of a pipeline in a folder or on the Hub."""
    home = local_folder(pipeline) or Path(snapshot_download(pipeline, allow_patterns=[f"{name}/*"]))
    folder = home / name
    check_weight_files(folder)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    shards = set(read_json(index, ["weight_map"])["weight_map"].values()) if index.is_file() else None
    return TensorFiles([folder / file for file in sorted(shards or [SAFETENSORS_WEIGHTS_NAME])])


def refuse_other_sizes(
    pipeline: str, name: str, weights: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]]
) -> None:
    """Check that weights of a pipeline fit the run's; those of a new condition may be missing: it has no effect yet.

    Args:
        pipeline, name: for the message.
        weights, own: shapes of the tensors by name.

    Raises:
        ValueError: if they do not; names the first that differs.
    """
    differing = sorted(
        key
        for key in own.keys() | weights.keys()
        if key not in own
        or (key not in weights and not key.startswith("condition_embedder."))
        or (key in weights and tuple(own[key]) != tuple(weights[key]))
    )
    if differing:
        raise ValueError(
            f"the {name} of {pipeline} (`init_from`) has other sizes than this run's: {len(differing)} tensors differ, "
            f"the first is {differing[0]!r}; use the same `preset` and overrides, or start from scratch"
        )
