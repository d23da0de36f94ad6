"""Compile the blocks of a stage, and fail when dynamo would run further shapes uncompiled without a message."""

import contextlib
from collections.abc import Iterator

import torch

from diffusers_mardini.models.compiling import MOST_GRAPHS
from training.config.schema import StageConfig
from training.engine.guards import RunFailed


@contextlib.contextmanager
def compiled_blocks(stage: StageConfig) -> Iterator[None]:
    """Run blocks compiled or eagerly within, as the stage says; forget the graphs of earlier stages first.

    Raises:
        RunFailed: if a block is compiled too often.
    """
    if not stage.compile:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    from torch._dynamo import config as dynamo
    from torch._dynamo.exc import FailOnRecompileLimitHit

    torch.compiler.reset()
    limits = {
        "recompile_limit": max(MOST_GRAPHS, dynamo.recompile_limit),
        "accumulated_recompile_limit": max(16 * MOST_GRAPHS, dynamo.accumulated_recompile_limit),
        "fail_on_recompile_limit_hit": True,
    }
    try:
        with dynamo.patch(limits), torch.compiler.set_stance("default"):
            yield
    except FailOnRecompileLimitHit as error:
        raise RunFailed(
            f"stage {stage.name!r}: a block was compiled {limits['recompile_limit']} times and would run uncompiled "
            f"from here on; use fewer buckets, or continue with `stages.{stage.name}.compile=false --allow-change "
            f"stages.{stage.name}.compile`"
        ) from error
