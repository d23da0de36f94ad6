"""Processes, devices and precision of a run; models in shards (FSDP2), and whole tensors to and from them.

How the processes share a run is accelerate's configuration (`training/configs/accelerate/`). `make_accelerator` reads
it and refuses settings that the trainer does not honour. Functions on tensors do nothing to tensors that are not
sharded.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from diffusers_mardini import hardware
from diffusers_mardini.hardware import choose_device
from training.config.schema import RunConfig
from training.engine.context_parallel import share_tokens
from training.engine.layout import Layout
from training.engine.tensor_files import Bounds, TensorFiles


# Set by the launcher where accelerate's configuration has a `parallelism_config`.
_PARALLELISM = "ACCELERATE_USE_PARALLELISM_CONFIG"


def uses_bfloat16(config: RunConfig) -> bool:
    """Return whether a run autocasts to bfloat16 on this machine's device."""
    return hardware.uses_bfloat16(config.mixed_precision, choose_device())


def make_accelerator(bf16: bool, **arguments: Any) -> Accelerator:
    """Return the processes, their devices and the precision, as the launcher and accelerate's configuration say.

    Args:
        bf16: autocast to bfloat16.
        arguments: further ones of `Accelerator`, such as its trackers.

    Raises:
        ValueError: for DeepSpeed, FSDP1 and settings of FSDP that this trainer does not honour, for sizes that do not
            make up the number of processes, and if processes that were started together would each train alone.
    """
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "DeepSpeed is not supported; use training/configs/accelerate/fsdp2.yaml, which shards the same"
        )
    # The others wait while the main process reads every clip of a source, or encodes its share.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    parallel = os.environ.pop(_PARALLELISM, None)  # accelerate would make a mesh of its own, and none of a CPU
    try:
        # Without `cpu`, processes on a machine without accelerators get no backend: each would be a run of its own.
        accelerator = Accelerator(
            mixed_precision="bf16" if bf16 else "no",
            cpu=choose_device().type == "cpu",
            kwargs_handlers=[patience],
            **arguments,
        )
    finally:
        if parallel is not None:
            os.environ[_PARALLELISM] = parallel
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f"the launcher started {started} processes, but this one sees {accelerator.num_processes}: each would "
            f"train alone, in the same folder. On {accelerator.device.type} devices start one process, or set "
            "ACCELERATE_USE_CPU=true"
        )
    if problems := _unsupported(sharding_plugin(accelerator)):
        raise ValueError("\n".join(["these settings of FSDP are not supported:", *(f"  {text}" for text in problems)]))
    layout_of(accelerator)  # refuses sizes that do not fit
    return accelerator


def layout_of(accelerator: Accelerator) -> Layout:
    """Return how the processes share a run, as accelerate's `parallelism_config` says.

    Raises:
        ValueError: if its sizes do not make up the number of processes, or cannot be honoured.
    """
    sizes, processes = ParallelismConfig(), accelerator.num_processes
    for name in ("tp_size", "sp_size"):
        if getattr(sizes, name, 1) > 1:
            raise ValueError(
                f"parallelism_config has {name} {getattr(sizes, name)}, which must be 1; use dp_shard_size to cut the "
                "weights and cp_size to share tokens"
            )
    if sharding_plugin(accelerator) is not None:
        return Layout.sharded(processes, sizes.dp_replicate_size, sizes.dp_shard_size, sizes.cp_size)
    if processes > 1 and max(sizes.dp_replicate_size, sizes.dp_shard_size, sizes.cp_size) > 1:
        raise ValueError("parallelism_config needs `distributed_type: FSDP`; see training/configs/accelerate/")
    return Layout(copies=processes)


def sharding_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """Return accelerate's settings of FSDP, or `None` if every process holds all weights."""
    if not _flag("ACCELERATE_USE_FSDP") or accelerator.num_processes == 1:
        return None
    # accelerate 1.15 keeps the plugin for accelerators only; on CPUs it is read from the launcher's environment here.
    return getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()


def _unsupported(plugin: FullyShardedDataParallelPlugin | None) -> list[str]:
    if plugin is None:
        return []
    if plugin.fsdp_version != 2:
        return [f"fsdp_version: {plugin.fsdp_version}; set it to 2"]
    problems = []
    if plugin.activation_checkpointing:
        problems.append(
            "fsdp_activation_checkpointing; leave it out, and set `gradient_checkpointing: true` in the run's file"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        problems.append(
            "fsdp_offload_params; leave it out: more processes or `gradient_checkpointing` lower the memory"
        )
    if plugin.ignored_modules:
        problems.append("fsdp_ignored_modules; leave it out: all parameters are sharded")
    return problems


def shard(models: torch.nn.ModuleDict, accelerator: Accelerator) -> None:
    """Shard every model in place: each block, and the rest, is gathered when it runs and released afterwards.

    With several copies of the weights (`Layout`), each is sharded within its group of processes, and gradients are
    averaged over the groups, too. Models on the meta device get memory for their shards alone, without values
    (`initial_weights.py`). The models stay separate (three roots), so that a stage, an evaluation or a pipeline may run
    any of them alone. Under bf16, shards are gathered in bf16 (run them under autocast) and gradients are summed in
    float32.
    """
    plugin, layout = sharding_plugin(accelerator), layout_of(accelerator)
    if plugin is None:
        _place(models, accelerator.device)
        return
    share_tokens(models, layout, accelerator.device)
    shape = {"copies": layout.copies, "shards": layout.shards} if layout.copies > 1 else {"shards": layout.shards}
    settings = {
        "mesh": init_device_mesh(accelerator.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # rotary tables stay in float32, as they do with one process
        ),
    }
    for model in models.values():
        blocks = getattr(model, "_no_split_modules", None) or []
        for module in model.modules():
            if type(module).__name__ in blocks:
                fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **settings)
        fully_shard(model, **settings)
    _place(models, accelerator.device)


def _place(models: torch.nn.Module, device: torch.device) -> None:
    """Move models to a device; those on the meta device get memory there, for values that are still to come."""
    is_meta = any(parameter.is_meta for parameter in models.parameters())
    models.to_empty(device=device) if is_meta else models.to(device)


def data_parallel(model: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Return the module whose backward pass leaves the processes' mean gradient in every process, or in its shards."""
    alone_or_sharded = accelerator.num_processes == 1 or sharding_plugin(accelerator) is not None
    return model if alone_or_sharded else accelerator.prepare(model)


@contextlib.contextmanager
def gradients_kept_local(model: torch.nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Add the gradients of backward passes within to this process's only; the next pass outside sends the sum."""
    roots = [module for module in model.children() if isinstance(module, FSDPModule)]
    alone_or_sharded = accelerator.num_processes == 1 or roots
    with contextlib.nullcontext() if alone_or_sharded else accelerator.no_sync(model):
        for root in roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in roots:
                root.set_requires_gradient_sync(True)


def reshard(model: torch.nn.Module) -> None:
    """Release gathered weights: after a forward pass without a backward pass the parameters are not shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard, or all of a tensor that is not sharded; shares its memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def bounds(tensor: torch.Tensor) -> Bounds:
    """Return where this process's shard lies in the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tuple((0, size) for size in tensor.shape)
    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple((first, first + size) for first, size in zip(start, shape))


def copies(tensor: torch.Tensor, accelerator: Accelerator) -> tuple[int, int]:
    """Return this process's place among those that hold the same values of a tensor, and their number."""
    if not isinstance(tensor, DTensor):
        return accelerator.process_index, accelerator.num_processes
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "every process is in the mesh of its tensors"
    place, count = 0, 1
    for position, size, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements):
        if placement.is_replicate():
            place, count = place * size + position, count * size
    return place, count


@torch.no_grad()
def fill(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Give a parameter, or this process's shard of it, values out of a whole tensor; sends nothing."""
    local(parameter).copy_(values[tuple(slice(start, end) for start, end in bounds(parameter))])


@torch.no_grad()
def fill_from(parameter: torch.Tensor, tensors: TensorFiles, name: str) -> None:
    """Give a parameter, or this process's shard of it, its values in files, of which no others are read."""
    if local(parameter).numel():
        local(parameter).copy_(tensors.read(name, bounds(parameter)))


def read_like(tensors: Mapping[str, torch.Tensor], name: str, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor cut as `like` is cut, if they have the same shape; the result owns its memory."""
    if not isinstance(tensors, TensorFiles):
        return sharded_like(tensors[name], like)
    if tuple(tensors.shapes[name]) != tuple(like.shape):
        return tensors[name].clone()
    mine = torch.empty_like(like, requires_grad=False)
    fill_from(mine, tensors, name)
    return mine


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on every process; every process must call it."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def sharded_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut a whole tensor, the same on every process, as `like` is cut; sends nothing. The result owns its memory."""
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        tensor = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.clone()  # not a view of the whole tensor, or of a file that may be deleted


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
