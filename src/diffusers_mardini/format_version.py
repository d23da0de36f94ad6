"""The form of a saved pipeline's folder: its version, and the files of code through which diffusers finds our classes.

`DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` runs the Python file that `model_index.json` names:
the shim below, which only imports this package or says what to install. `MarDiniPipeline.from_pretrained` runs none of
it. Saving is `pipelines/saving.py`.
"""

import os
from collections.abc import Mapping
from typing import Any


# Increment when older plugins would misread the folder or fail without a reason.
FORMAT_VERSION = 1
FORMAT_KEY = "_mardini_format"  # in model_index.json; the underscore keeps it out of the pipeline's arguments
LORA_DESCRIPTION_KEY = "mardini_lora"  # in the header of LoRA files
LIBRARY = "diffusers_mardini"  # our name in model_index.json
COMPONENTS = f"{LIBRARY}.components"  # the module that `MarDiniPipeline` reads instead
SHIM_NAME = "pipeline_mardini"
# `import ... as`, in a `try`: imports in other forms diffusers looks for itself, and advises to install a package of that
# name, which is not ours.
NOT_INSTALLED = "this model needs the diffusers plugin of MarDini; install it with `pip install .` in a checkout of diffusers-mardini"
SHIM = f'''"""Lets `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` find MarDini's pipeline."""

FORMAT_VERSION = {FORMAT_VERSION}  # of the folder that this file lies in

try:
    import diffusers_mardini as plugin
except ImportError as error:
    raise ImportError(
        "{NOT_INSTALLED}"
    ) from error

if getattr(plugin, "FORMAT_VERSION", 0) < FORMAT_VERSION:
    raise ImportError(
        f"this model was saved in format {{FORMAT_VERSION}}, which the installed diffusers-mardini "
        f"{{plugin.__version__}} does not know; update it with `git pull` and `pip install .` in its checkout"
    )

MarDiniPipeline = plugin.MarDiniPipeline
'''
# The same for the folder of a modular pipeline: modular_config.json names this file and the class in it.
BLOCKS_SHIM_NAME = "modular_mardini"
BLOCKS_SHIM = (
    SHIM.replace("DiffusionPipeline.from_pretrained", "ModularPipeline.from_pretrained")
    .replace("MarDini's pipeline", "MarDini's blocks")
    .replace("MarDiniPipeline", "MarDiniBlocks")
)
# diffusers wants a file for each component whose library it does not know, before it runs the shim. They share one
# text because diffusers copies each of them to the same place before importing it.
COMPONENT_SHIM = f'''"""Lets diffusers find the class of this part in the plugin; see pipeline_mardini.py."""

try:
    import diffusers_mardini.components as components
except ImportError as error:
    raise ImportError(
        "{NOT_INSTALLED}"
    ) from error

globals().update({{name: getattr(components, name) for name in components.__all__}})
'''


def shims(index: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of every file of code that belongs to a pipeline with this index, by its path in the folder."""
    parts = [name for name, value in index.items() if isinstance(value, list) and value[:1] == [LIBRARY]]
    return {f"{SHIM_NAME}.py": SHIM} | {f"{part}/{LIBRARY}.py": COMPONENT_SHIM for part in parts}


def check_format(index: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Refuse an index (the content of `model_index.json`) in a format that this version does not know.

    An index without the key has the first format.

    Raises:
        ValueError: if a newer plugin saved the folder, or its version is not a whole number from 1.
    """
    version = index.get(FORMAT_KEY, 1)
    if not isinstance(version, int) or version < 1:
        raise ValueError(
            f"model_index.json of '{folder}' has {FORMAT_KEY} {version!r}; it must be a whole number from 1"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"'{folder}' was saved in format {version} by a newer diffusers-mardini; the installed one knows the formats "
            f"up to {FORMAT_VERSION}; update it with `git pull` and `pip install .` in its checkout"
        )
