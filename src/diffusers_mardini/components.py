"""The classes that a `model_index.json` may name, in a module of their own.

A saved pipeline names them ["diffusers_mardini", class], and has a file of that name in each part's folder for the
generic class of diffusers (`format_version.py`). `MarDiniPipeline` reads the same entry as
["diffusers_mardini.components", class]: no file of the folder has this name, so none of its code runs.
"""

# diffusers looks the base classes up beside the classes when it loads a pipeline.
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
