"""Fit diffusers' cache configurations to the transformer: which layers are spatial, temporal and cross-attention.

diffusers identifies layers by name. Its defaults take every self-attention in `transformer_blocks` for a spatial one,
and split the batch of arguments that other models have. Used by `MarDiniTransformer3DModel.enable_cache` alone.
"""

import dataclasses
from typing import Any

from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig


# Anchored: diffusers uses `re.search`, and a bare `attn` would also match `temporal_attn`.
SPATIAL = (r"^transformer_blocks\..*\.attn$",)
TEMPORAL = (r"^transformer_blocks\..*\.temporal_attn$",)
CROSS = (r"^transformer_blocks\..*\.cross_attn$",)
# Arguments with rows for both branches of guidance, when these run in one call.
BATCHED_ARGUMENTS = (
    "hidden_states", "timestep", "planning_signals", "reference_mask", "planning_signals_mask", "window_state",
    "conditions", "reference_timestep",
)  # fmt: skip


def fit_cache_config(config: Any) -> Any:
    """Return a copy of a cache's configuration that names our layers and arguments where the user chose none.

    Configurations of other caches are returned as they are: they need no names, or their defaults match ours.
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
