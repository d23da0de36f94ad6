"""The form of a saved pipeline's folder: its version, and the files through which the generic class of diffusers finds us.

`DiffusionPipeline.from_pretrained` looks class names up in diffusers itself. A folder whose `model_index.json` names a Python file
beside it is loaded through that file (with `trust_remote_code=True`), and the file here, the shim, does nothing but import this package,
or say what to install. From the Hub diffusers also wants to see, before it has run the shim, a file for each part whose library it does not know.
`MarDiniPipeline.from_pretrained` needs none of them, and runs none.
"""

import os
from collections.abc import Mapping
from typing import Any


# Raised by one whenever a plugin that knows only the forms before would load a folder wrongly or fail without a reason.
FORMAT_VERSION = 1
FORMAT_KEY = "_mardini_format"  # of model_index.json; the underscore keeps it out of the arguments of the pipeline
LIBRARY = "diffusers_mardini"  # what model_index.json calls us
COMPONENTS = f"{LIBRARY}.components"  # what `MarDiniPipeline` reads instead
SHIM_NAME = "pipeline_mardini"
# All in the `try`: what is imported outside of one diffusers looks for itself, and its message says less than ours.
SHIM = f'''"""Lets `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` find MarDini's pipeline."""

FORMAT_VERSION = {FORMAT_VERSION}  # of the folder that this file lies in

try:
    import diffusers_mardini
except ImportError as error:
    raise ImportError(
        "this model needs the diffusers plugin of MarDini; install it with `pip install .` in a checkout of diffusers-mardini"
    ) from error

if getattr(diffusers_mardini, "FORMAT_VERSION", 0) < FORMAT_VERSION:
    raise ImportError(
        f"this model was saved in format {{FORMAT_VERSION}}, which the installed diffusers-mardini "
        f"{{diffusers_mardini.__version__}} does not know; update it with `git pull` and `pip install .` in its checkout"
    )

MarDiniPipeline = diffusers_mardini.MarDiniPipeline
'''
# The same for a modular pipeline's folder: modular_config.json names this file and the class in it.
BLOCKS_SHIM_NAME = "modular_mardini"
BLOCKS_SHIM = (
    SHIM.replace("DiffusionPipeline.from_pretrained", "ModularPipeline.from_pretrained")
    .replace("MarDini's pipeline", "MarDini's blocks")
    .replace("MarDiniPipeline", "MarDiniBlocks")
)
# One text for all parts: diffusers copies each of them to the same place before it imports it.
COMPONENT_SHIM = '''"""Lets diffusers find the class of this part in the plugin; see pipeline_mardini.py."""

from diffusers_mardini.components import *  # noqa: F403
'''


def shims(index: Mapping[str, Any]) -> dict[str, str]:
    """Path in the folder to text of every file of code that belongs to a pipeline with this index; there is no other."""
    parts = [name for name, value in index.items() if isinstance(value, list) and value[:1] == [LIBRARY]]
    return {f"{SHIM_NAME}.py": SHIM} | {f"{part}/{LIBRARY}.py": COMPONENT_SHIM for part in parts}


def check_format(index: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Refuses an index (the content of `model_index.json`) of a form that this version does not know.

    An index without the key was saved before there was one, and is of the first form.

    Raises:
        ValueError: if the folder was saved by a newer plugin, or its version is no version.
    """
    version = index.get(FORMAT_KEY, 1)
    if not isinstance(version, int) or version < 1:
        raise ValueError(
            f"model_index.json of '{folder}' has {FORMAT_KEY} {version!r}; it has to be a whole number from 1"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"'{folder}' was saved in format {version} by a newer diffusers-mardini; the installed one knows the formats up "
            f"to {FORMAT_VERSION}; update it with `git pull` and `pip install .` in its checkout"
        )
