"""Which layers are worth their full precision when a model is quantized.

Quantizing is diffusers': `TorchAoConfig`, `QuantoConfig`, `BitsAndBytesConfig` and GGUF files work on our models as they are. What diffusers
cannot know is which layers it harms.
"""

# The layers between the 16 channels of a latent and the model: in the CarRacing checkpoint 0.15% of the transformer's weights, and 30% of the squared error of
# its velocity in 8 bits, 33% in 4 (`python -m benchmarks.quantized_models`). Those of the timestep and the planning signals take less harm than their share.
_LATENT_LAYERS = {"planner": ["patch_embed"], "transformer": ["patch_embed", "proj_out", "skip_gain"]}


def layers_to_keep(component: str) -> list[str]:
    """For `modules_to_not_convert` of a quantization: the layers of `"planner"` or `"transformer"` to leave as they are.

    Raises:
        ValueError: for another component; the others are small, or have no weights.
    """
    if component not in _LATENT_LAYERS:
        raise ValueError(f"`component` is {component!r}; planner and transformer are what is quantized")
    return list(_LATENT_LAYERS[component])  # diffusers adds to the list that it is given
