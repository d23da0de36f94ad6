"""MarDini (arXiv 2410.20280) as a plugin of diffusers: models, scheduler and pipeline.

Importing this package also tells diffusers where the classes named in a `model_index.json` are to be found. The
training code is no part of it.
"""

# The base classes are looked up on this package when a pipeline is loaded.
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .format_version import COMPONENTS, FORMAT_VERSION, LIBRARY
from .models import (
    AutoencoderPatchBasis,
    MarDiniPlannerOutput,
    MarDiniPlannerTransformer3DModel,
    MarDiniTransformer3DModel,
    MarDiniWindowState,
)
from .modular_pipelines import MarDiniBlocks, MarDiniModularPipeline
from .pipelines import MarDiniPipeline, MarDiniPipelineOutput
from .presets import list_presets, load_preset
from .schedulers import MarDiniScheduler, MarDiniSchedulerOutput


__version__ = "0.1.0.dev0"

__all__ = [
    "AutoencoderPatchBasis",
    "DiffusionPipeline",
    "FORMAT_VERSION",
    "MarDiniBlocks",
    "MarDiniModularPipeline",
    "MarDiniPipeline",
    "MarDiniPipelineOutput",
    "MarDiniPlannerOutput",
    "MarDiniPlannerTransformer3DModel",
    "MarDiniScheduler",
    "MarDiniSchedulerOutput",
    "MarDiniTransformer3DModel",
    "MarDiniWindowState",
    "ModelMixin",
    "SchedulerMixin",
    "list_presets",
    "load_preset",
]

# A library that diffusers does not list is written to model_index.json by module path, and cannot be loaded from the
# Hub. The table is private to diffusers; pipelines_tests/test_loading.py notices when it changes.
_BASES = {
    name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
}
LOADABLE_CLASSES.setdefault(LIBRARY, _BASES)
LOADABLE_CLASSES.setdefault(COMPONENTS, _BASES)
