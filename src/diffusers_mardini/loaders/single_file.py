"""Weights in one file, GGUF included: `from_single_file` of our models, for those who ask for it.

diffusers loads single files only of classes that it lists, and looks their names up on its own module. Both are changed here, for
the whole process, and therefore never on import.
"""

import diffusers
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from ..models import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel


def allow_single_files() -> None:
    """Makes `MarDiniTransformer3DModel.from_single_file(file, config=folder)` and the planner's work.

    The file is what `save_pretrained` writes, or a GGUF made of it; `config` is a folder or Hub id with the model's
    `config.json`, a pipeline's with `subfolder`. Call it once, before loading.
    """
    for model_class in (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel):
        name = model_class.__name__
        setattr(diffusers, name, model_class)
        # Our files have no other names than our own models': nothing is to be converted.
        SINGLE_FILE_LOADABLE_CLASSES[name] = {"checkpoint_mapping_fn": lambda checkpoint, **_: checkpoint}
