"""Context parallelism in training: neighbouring processes share the tokens of the same windows.

diffusers splits the tokens and exchanges heads within spatial attention (Ulysses; `_cp_plan` of the models). What is
added here is the gradient of its gather, for which every process computes the loss of whole windows.
"""

import contextlib
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelOutput
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from diffusers_mardini.models.attention import token_exchange
from training.engine.layout import Layout


def refuse_without_exchange(layout: Layout) -> None:
    """Raise `ValueError` if tokens are to be shared and the installed diffusers cannot exchange them in training."""
    if layout.context > 1:
        token_exchange()


def share_tokens(models: nn.ModuleDict, layout: Layout, device: torch.device) -> None:
    """Let neighbouring processes share the tokens of planner and transformer, in place; before they are sharded.

    With the gradients averaged over all processes, as FSDP2 does, those of the weights are then the step's.
    """
    if layout.context == 1:
        return
    mesh = init_device_mesh(
        device.type, (layout.data_ranks, 1, layout.context), mesh_dim_names=("data", "ring", "ulysses")
    )
    group = mesh["ulysses"].get_group()
    # diffusers divides by the number of accelerators.
    counted = mock.patch.object(torch.accelerator, "device_count", return_value=1)
    for model in models.values():
        plan = getattr(model, "_cp_plan", None)
        if plan is None:  # the head, whose input is whole
            continue
        config = ContextParallelConfig(ulysses_degree=layout.context, mesh=mesh["ring", "ulysses"])
        with counted if device.type == "cpu" else contextlib.nullcontext():
            model.enable_parallelism(config=config)
        for name, what in plan.items():
            if isinstance(what, ContextParallelOutput):
                model.get_submodule(name).register_forward_hook(
                    lambda module, args, out: SumGradient.apply(out, group)
                )


class SumGradient(torch.autograd.Function):
    """Return a gathered tensor as it is; backward, add up its gradient over the processes that have gathered it.

    The backward pass of diffusers' gather takes this process's part of its own gradient. What another process computes
    from that part counts, too: planning signals are read by all tokens.
    """

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """Return the tensor."""
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the sum of the processes' gradients."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
