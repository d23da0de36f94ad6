"""Help compiled models with windows of every shape: few graphs for many windows, and a limit that these stay below.

`torch.compile` makes another graph when a size is 1 for the first time, because such a size broadcasts, and when a
tensor is a view for the first time, because its guards include the base tensor. The first cannot be avoided (one
masked frame, one given frame, one video); `standalone` avoids the second.

CUDA graphs (`mode="reduce-overhead"`) overwrite their results at the next replay: `begin_replay` tells torch where a
call of a model begins, so that all blocks of one call keep theirs, and `kept` copies what outlives the call.
"""

import inspect
from typing import Any

import torch
from torch import nn


# Of one function. torch's own limit of 8 is meant to find programs that compile without end. Here each of four numbers
# may be 1 or more (videos, frames given, frames masked, tokens of a plan), which makes up to 16 graphs for each of the
# two ways to call a block.
MOST_GRAPHS = 64


class CompiledOverShapes(nn.Module):
    """A module whose `compile` allows `MOST_GRAPHS` graphs."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile as [`torch.nn.Module.compile`] does; `compile_repeated_blocks` of a model calls it for each
        block."""
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("recompile_limit", MOST_GRAPHS)
        else:  # before torch 2.12 there is one global limit
            config = torch._dynamo.config
            name = recompile_limit_name()
            setattr(config, name, max(getattr(config, name), MOST_GRAPHS))
        super().compile(*args, **kwargs)


def recompile_limit_name() -> str:
    """Return what torch calls the limit of graphs in its configuration; `cache_size_limit` before torch 2.7."""
    return "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"


def standalone(value: Any) -> Any:
    """Copy the tensors of nested tuples that are views or not contiguous; return everything else as it is.

    Use it for arguments of blocks. Inside a graph it does nothing.
    """
    if isinstance(value, tuple):
        return tuple(standalone(part) for part in value)
    if not isinstance(value, torch.Tensor) or torch.compiler.is_compiling():
        return value
    return (
        value.clone(memory_format=torch.contiguous_format) if value._is_view() or not value.is_contiguous() else value
    )


def begin_replay(blocks: nn.ModuleList, device: torch.device) -> None:
    """Call before the blocks of a model run: results of the call before may be overwritten from here on."""
    if _may_replay(blocks, device):
        torch.compiler.cudagraph_mark_step_begin()


def kept(value: Any, blocks: nn.ModuleList, device: torch.device) -> Any:
    """Copy the tensors of nested tuples that compiled blocks made on a GPU; return everything else as it is."""
    if not _may_replay(blocks, device):
        return value
    if isinstance(value, tuple):
        return tuple(kept(part, blocks, device) for part in value)
    return value.clone() if isinstance(value, torch.Tensor) else value


def _may_replay(blocks: nn.ModuleList, device: torch.device) -> bool:
    """Tell whether blocks are compiled one by one and run on a GPU; inside a graph the outer one decides."""
    compiled = any(getattr(block, "_compiled_call_impl", None) is not None for block in blocks)
    return compiled and device.type == "cuda" and not torch.compiler.is_compiling()
