"""Fits diffusers' cache configurations to the transformer: which layers are spatial, temporal and cross attention.

diffusers knows layers by their names, and its defaults take every self-attention in `transformer_blocks` for a spatial one and split
batches along arguments that other models have. Used by `MarDiniTransformer3DModel.enable_cache` alone.
"""

import dataclasses
from typing import Any

from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig


# Anchored as FasterCache asks for, which looks for layers that begin so.
SPATIAL = (r"^transformer_blocks\..*\.attn$",)
TEMPORAL = (r"^transformer_blocks\..*\.temporal_attn$",)
CROSS = (r"^transformer_blocks\..*\.cross_attn$",)
# What has a row for each branch of guidance, when both are rows of one call.
BATCHED_ARGUMENTS = (
    "hidden_states", "timestep", "planning_signals", "reference_mask", "planning_signals_mask", "window_state",
    "conditions",
)  # fmt: skip


def fit_cache_config(config: Any) -> Any:
    """A copy of the configuration that names our layers and arguments; what the user chose is kept.

    Configurations of other caches are returned as they are: they need no names, or find ours.
    """
    if isinstance(config, PyramidAttentionBroadcastConfig):
        ours = {
            "spatial_attention_block_identifiers": SPATIAL,
            "temporal_attention_block_identifiers": TEMPORAL,
            "cross_attention_block_identifiers": CROSS,
        }
    elif isinstance(config, FasterCacheConfig):
        ours = {
            "spatial_attention_block_identifiers": SPATIAL,
            "temporal_attention_block_identifiers": TEMPORAL,
            "tensor_format": "BFCHW",
            "_unconditional_conditional_input_kwargs_identifiers": BATCHED_ARGUMENTS,
        }
    else:
        return config
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    untouched = {name: value for name, value in ours.items() if getattr(config, name) == defaults[name]}
    return dataclasses.replace(config, **untouched)
