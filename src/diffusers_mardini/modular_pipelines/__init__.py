"""Sampling with MarDini as blocks: `MarDiniBlocks`, and the modular pipeline that runs them."""

from .before_denoise import MarDiniPrepareLatentsStep, MarDiniSamplingOptionsStep
from .decoders import MarDiniDecoderStep
from .denoise import MarDiniDenoiseStep
from .encoders import MarDiniPlannerStep, MarDiniVaeEncoderStep
from .inputs import (
    MarDiniAnyFramesInputStep,
    MarDiniExpansionInputStep,
    MarDiniImageToVideoInputStep,
    MarDiniInterpolationInputStep,
)
from .modular_blocks_mardini import MarDiniAutoInputStep, MarDiniBlocks
from .modular_pipeline import MarDiniModularPipeline


__all__ = [
    "MarDiniAnyFramesInputStep",
    "MarDiniAutoInputStep",
    "MarDiniBlocks",
    "MarDiniDecoderStep",
    "MarDiniDenoiseStep",
    "MarDiniExpansionInputStep",
    "MarDiniImageToVideoInputStep",
    "MarDiniInterpolationInputStep",
    "MarDiniModularPipeline",
    "MarDiniPlannerStep",
    "MarDiniPrepareLatentsStep",
    "MarDiniSamplingOptionsStep",
    "MarDiniVaeEncoderStep",
]
