"""The networks: planner, transformer and a small autoencoder."""

from .autoencoder_patch_basis import AutoencoderPatchBasis
from .transformer_mardini import MarDiniTransformer3DModel
from .transformer_mardini_planner import MarDiniPlannerOutput, MarDiniPlannerTransformer3DModel
from .window import MarDiniWindowState


__all__ = [
    "AutoencoderPatchBasis",
    "MarDiniPlannerOutput",
    "MarDiniPlannerTransformer3DModel",
    "MarDiniTransformer3DModel",
    "MarDiniWindowState",
]
