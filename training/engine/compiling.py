"""Compile a stage's blocks or its whole step, and fail when dynamo would run further shapes uncompiled silently."""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from diffusers_mardini.models.compiling import MOST_GRAPHS, recompile_limit_name
from training.config.schema import RunConfig, StageConfig
from training.engine.guards import RunFailed
from training.engine.sharding import sharding_plugin


Model = TypeVar("Model", bound=torch.nn.Module)


def refuse_sharded_steps(config: RunConfig, accelerator: Accelerator) -> None:
    """Raise `ValueError` if a whole step is to be compiled of models in shards: gathering them breaks the graph."""
    steps = [stage.name for stage in config.stages if stage.compile == "step"]
    if steps and sharding_plugin(accelerator) is not None:
        raise ValueError(
            f"stage {steps[0]!r} compiles whole steps, which models in shards (FSDP) cannot; set "
            f"`stages.{steps[0]}.compile` to true, for their blocks"
        )


def compile_step(model: Model, stage: StageConfig, backend: Any = "inductor") -> Model:
    """Return the training model of a stage; compiled as one graph, loss included, if the stage says so."""
    if stage.compile == "step":
        model.compile(fullgraph=True, backend=backend)
    return model


@contextlib.contextmanager
def compiled_blocks(stage: StageConfig) -> Iterator[None]:
    """Run what is compiled as such or eagerly within, as the stage says; forget the graphs of earlier stages first.

    Raises:
        RunFailed: if a block or the step is compiled too often.
    """
    if not stage.compile:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    from torch._dynamo import config as dynamo
    from torch._dynamo import exc

    torch.compiler.reset()
    name = recompile_limit_name()  # torch 2.6 has other names
    fails = "fail_on_recompile_limit_hit" if name == "recompile_limit" else "fail_on_cache_limit_hit"
    limit_hit = getattr(exc, "FailOnRecompileLimitHit", None) or getattr(exc, "FailOnCacheLimitHit")  # noqa: B009
    limits = {
        name: max(MOST_GRAPHS, getattr(dynamo, name)),
        f"accumulated_{name}": max(16 * MOST_GRAPHS, getattr(dynamo, f"accumulated_{name}")),
        fails: True,
    }
    try:
        with dynamo.patch(limits), torch.compiler.set_stance("default"):
            yield
    except limit_hit as error:
        raise RunFailed(
            f"stage {stage.name!r}: {'its step' if stage.compile == 'step' else 'a block'} was compiled "
            f"{limits[name]} times and would run uncompiled "
            f"from here on; use fewer buckets, or continue with `stages.{stage.name}.compile=false --allow-change "
            f"stages.{stage.name}.compile`"
        ) from error
