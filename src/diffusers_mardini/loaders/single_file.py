"""Make `from_single_file` work on our models: weights in one file, GGUF included.

diffusers loads single files only for classes that it lists, and looks their names up in its own module. Both are
changed here for the whole process, and therefore never on import.
"""

import diffusers
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from ..models import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel


def allow_single_files() -> None:
    """Make `MarDiniTransformer3DModel.from_single_file(file, config=folder)` work, and the planner's.

    The file is one that `save_pretrained` writes, or a GGUF made from it; `config` is a folder or Hub id with the
    model's `config.json` (for a pipeline's, give `subfolder`). Call it once, before loading.
    """
    for model_class in (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel):
        name = model_class.__name__
        setattr(diffusers, name, model_class)
        # Keys already match; nothing to convert.
        SINGLE_FILE_LOADABLE_CLASSES[name] = {"checkpoint_mapping_fn": lambda checkpoint, **_: checkpoint}
