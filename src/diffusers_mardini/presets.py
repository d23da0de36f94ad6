"""The sizes of models that this package ships: the four rows of the paper's Table 1, and three of ours by
budget, of which the repository trains `mardini-tiny` itself.

The numbers are in `presets/*.json`, one file each, and nowhere else. A preset holds keyword arguments, no weights;
nothing is allocated or downloaded here.
"""

import json
from importlib.resources import files
from typing import Any


_FOLDER = files(__package__) / "presets"


def list_presets() -> list[str]:
    """Return the names that `load_preset` takes, sorted."""
    return sorted(entry.name.removesuffix(".json") for entry in _FOLDER.iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the keyword arguments of each part of a model.

    Args:
        name: one of `list_presets()`.

    Returns:
        A new dict: `"planner"`, `"transformer"` and `"scheduler"` are keyword arguments of
            `MarDiniPlannerTransformer3DModel`,
        `MarDiniTransformer3DModel` and `MarDiniScheduler`; `"planner_downscale"` is the pipeline's; `"vae"` names
        either a pretrained 16-channel `AutoencoderKL` (`pretrained_model_name_or_path`, `subfolder`) or a class of
        this package (`class_name` and its keyword arguments); `"num_frames"`, `"height"`, `"width"` are the window (in
        frames and pixels) that the model is meant for. `"paper_parameters"` are the counts of Table 1, for its rows.

    Raises:
        ValueError: if there is no such preset; the message lists all presets.
    """
    if name not in list_presets():
        raise ValueError(f"there is no preset {name!r}; the presets are {', '.join(list_presets())}")
    return json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
