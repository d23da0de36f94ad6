"""The classes that a `model_index.json` may name, under a name of their own.

A saved pipeline says ["diffusers_mardini", class], and has a file of that name in each part's folder for the generic class of diffusers
(`format_version.py`). `MarDiniPipeline` reads the same as ["diffusers_mardini.components", class], which is no file of the folder, so that
it runs none of its code.
"""

# The base classes are looked up beside the classes when a pipeline is loaded.
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from .models import AutoencoderPatchBasis, MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from .schedulers import MarDiniScheduler


__all__ = [
    "AutoencoderPatchBasis",
    "DiffusionPipeline",
    "MarDiniPlannerTransformer3DModel",
    "MarDiniScheduler",
    "MarDiniTransformer3DModel",
    "ModelMixin",
    "SchedulerMixin",
]
