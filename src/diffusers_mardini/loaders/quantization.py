"""List the layers that should keep their full precision when a model is quantized.

diffusers quantizes: `TorchAoConfig`, `QuantoConfig`, `BitsAndBytesConfig` and GGUF files work on our models as they
are. It cannot know which layers suffer most.
"""

# The layers between the channels of a latent and the model: in a CarRacing checkpoint of 16 channels they hold 0.15% of
# the transformer's weights and cause 30% of the squared error of its velocity in 8 bits, 33% in 4 (`python -m
# benchmarks.quantized_models`). The layers of the timestep and the planning signals cause less than their share.
_LATENT_LAYERS = {"planner": ["patch_embed"], "transformer": ["patch_embed", "proj_out", "skip_gain"]}


def layers_to_keep(component: str) -> list[str]:
    """Return the layers of `"planner"` or `"transformer"` for `modules_to_not_convert` of a quantization.

    Raises:
        ValueError: for another component: the others are small, or have no weights.
    """
    if component not in _LATENT_LAYERS:
        raise ValueError(f"`component` is {component!r}; only planner and transformer are quantized")
    return list(_LATENT_LAYERS[component])  # a copy, as diffusers appends to it
