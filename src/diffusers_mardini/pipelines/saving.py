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


def finish_saved_folder(index_file: Path) -> None:
    """Writes the shim beside the saved `index_file` (`model_index.json`) and names it there.

    Where the pipeline had been loaded from is taken out of all configurations: a path on this machine is not
    published.
    """
    index_file.with_name(f"{SHIM_NAME}.py").write_text(SHIM, encoding="utf-8")
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = [SHIM_NAME, "MarDiniPipeline"]
    _write_without_origin(index_file, index)
    for name in index:
        config_file = index_file.parent / name / "config.json"
        if config_file.exists():
            _write_without_origin(config_file, json.loads(config_file.read_text(encoding="utf-8")))


def without_shim(index: dict) -> dict:
    """The index with the plain class name: our own class needs no code from the folder."""
    if isinstance(index.get("_class_name"), list):
        index = {**index, "_class_name": index["_class_name"][-1]}
    return index


def _write_without_origin(file: Path, config: dict) -> None:
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
