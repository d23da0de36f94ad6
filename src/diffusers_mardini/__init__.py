"""MarDini (arXiv 2410.20280) as a plugin of diffusers: models, scheduler and pipeline.

Importing this package also registers with diffusers where to find the classes that a `model_index.json` names. The
training code is not part of it.
"""

# diffusers looks the base classes up in this package when it loads a pipeline.
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
from .pipelines import MarDiniPipeline, MarDiniPipelineOutput, MarDiniRollout
from .presets import list_presets, load_preset
from .schedulers import MarDiniScheduler, MarDiniSchedulerOutput


__version__ = "0.1.0.dev0"

__all__ = [
    "FORMAT_VERSION",
    "AutoencoderPatchBasis",
    "DiffusionPipeline",
    "MarDiniBlocks",
    "MarDiniModularPipeline",
    "MarDiniPipeline",
    "MarDiniPipelineOutput",
    "MarDiniPlannerOutput",
    "MarDiniPlannerTransformer3DModel",
    "MarDiniRollout",
    "MarDiniScheduler",
    "MarDiniSchedulerOutput",
    "MarDiniTransformer3DModel",
    "MarDiniWindowState",
    "ModelMixin",
    "SchedulerMixin",
    "list_presets",
    "load_preset",
]

# Without this entry diffusers would write our classes to model_index.json by module path, which cannot be loaded from
# the Hub. The table is private to diffusers; pipelines_tests/test_loading.py notices when it changes.
_BASES = {
    name: ["save_pretrained", "from_pretrained"] for name in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline")
}
LOADABLE_CLASSES.setdefault(LIBRARY, _BASES)
LOADABLE_CLASSES.setdefault(COMPONENTS, _BASES)
