"""Makes a saved pipeline loadable by people who only know diffusers.

`DiffusionPipeline.from_pretrained` looks class names up in diffusers itself. A folder whose `model_index.json` names a
Python file beside it is loaded through that file (with `trust_remote_code=True`), and the file here does nothing but
import this package. `MarDiniPipeline.from_pretrained` needs none of it.
"""

import json
from pathlib import Path


SHIM_NAME = "pipeline_mardini"
SHIM = '''"""Lets `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` find MarDini's pipeline."""

try:
    from diffusers_mardini import MarDiniPipeline
except ImportError as error:
    raise ImportError(
        "this model needs the diffusers plugin of MarDini; install it with `pip install diffusers-mardini`"
    ) from error

__all__ = ["MarDiniPipeline"]
'''


def write_shim(index_file: Path) -> None:
    """Writes the shim beside the saved `index_file` (`model_index.json`) and names it there."""
    index_file.with_name(f"{SHIM_NAME}.py").write_text(SHIM, encoding="utf-8")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = [SHIM_NAME, "MarDiniPipeline"]
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def without_shim(index: dict) -> dict:
    """The index with the plain class name: our own class needs no code from the folder."""
    if isinstance(index.get("_class_name"), list):
        index = {**index, "_class_name": index["_class_name"][-1]}
    return index
