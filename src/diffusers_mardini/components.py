"""The classes that a `model_index.json` may name, in a module of their own.

A saved pipeline says ["diffusers_mardini", class], and has a file of that name in each part's folder for diffusers'
generic class (`checkpoint_format.py`). `MarDiniPipeline` reads it as ["diffusers_mardini.components", class], which is
no file of the folder, so that it runs no code from there.
"""

# diffusers looks for the base classes in the same module when it loads a pipeline.
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
