"""What lets compiled models take windows of every shape: few graphs for many windows, and room for those that remain.

`torch.compile` makes another graph where a size is 1 for the first time, because such a size broadcasts, and where a
tensor is a view for the first time, because it also looks at the tensor behind it. The first cannot be avoided (one
masked frame, one given frame, one video), the second can.
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
    """A module whose `compile` leaves room for `MOST_GRAPHS` graphs."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile as [`torch.nn.Module.compile`] does; `compile_repeated_blocks` calls this for each block."""
        if "recompile_limit" in inspect.signature(torch.compile).parameters:
            kwargs.setdefault("recompile_limit", MOST_GRAPHS)
        else:  # older torch has one limit for all functions
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
        super().compile(*args, **kwargs)


def standalone(value: Any) -> Any:
    """Copy the tensors of nested tuples that are views or not contiguous; the rest is returned as it is.

    For what is handed to blocks. Within a graph nothing has to be done.
    """
    if isinstance(value, tuple):
        return tuple(standalone(part) for part in value)
    if not isinstance(value, torch.Tensor) or torch.compiler.is_compiling():
        return value
    return (
        value.clone(memory_format=torch.contiguous_format) if value._is_view() or not value.is_contiguous() else value
    )
