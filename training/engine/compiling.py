"""Compiled blocks of a stage: dynamo counts what it compiles, and beyond its limit it would run the rest uncompiled
without a word."""

import contextlib
from collections.abc import Iterator

import torch

from diffusers_mardini.models.compiling import MOST_GRAPHS
from training.config.schema import StageConfig
from training.engine.guards import RunFailed


@contextlib.contextmanager
def blocks_of(stage: StageConfig) -> Iterator[None]:
    """Run blocks compiled or eagerly within, as the stage says; what earlier stages compiled is forgotten and does
    not count.

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
            "from here on; use fewer "
            f"buckets, or go on with `stages.{stage.name}.compile=false --allow-change stages.{stage.name}.compile`"
        ) from error
