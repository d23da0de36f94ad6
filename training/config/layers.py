"""Read a run's configuration: a YAML file, the files that it extends, and overrides, each on top of the one before.

The keys and their values are defined in `schema.py`.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from diffusers_mardini.video.errors import named_file_errors
from training.config.schema import MODELS, RunConfig
from training.config.sentences import explain, nearest, typed_keys
from training.config.stages import ALTERNATIVES
from training.config.yaml_files import load_yaml, parse_yaml


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, the files it extends, and overrides.

    `extends: other.yaml` (relative to the file) starts from another configuration. Mappings are merged key by key;
    everything else, and `strides` and `fps`, is replaced. `stages` as a list replaces the parent's. As a mapping by stage name
    it changes the fields it names, removes the stages that are `null`, and appends those the parent does not have.

    Args:
        path: the file.
        overrides: `key=value`, dotted (`optimizer.ema_decay=0.99`, `stages.joint.steps=10`), values in YAML.

    Raises:
        ValueError: if the configuration is not valid; names file, key, the given value, what is accepted and the
            nearest valid key.
    """
    layers = [*_read_layers(Path(path), ()), *(read_override(override) for override in overrides)]
    merged: dict[str, Any] = {}
    for source, layer in layers:
        _merge(merged, layer, source)
    merged["stages"] = list(merged.get("stages", {}).values())
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(e, merged, layers, path) for e in error.errors()))
        raise ValueError("\n".join([f"{path} is not a valid training configuration:", *lines])) from error


def read_run_config(run: Path) -> RunConfig:
    """Return the configuration that a run wrote into its folder.

    Raises:
        ValueError: if the folder is no run's, or the file is damaged.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{run} is not the folder of a run and has no finished pipeline: it has no config.json; give runs/NAME"
        )
    with named_file_errors(f"'{path}'", "a run's configuration"):
        return RunConfig.model_validate_json(path.read_bytes())


def _read_layers(path: Path, children: tuple[Path, ...]) -> list[tuple[str, dict]]:
    """Return `(file, mapping)` of a file and all it extends, parents first."""
    if not path.is_file():
        extended = f", which {children[-1]} extends" if children else ""
        raise ValueError(f"there is no configuration at {path}{extended}; see training/configs/ for examples")
    if path.resolve() in [child.resolve() for child in children]:
        chain = " -> ".join(map(str, [*children, path]))
        raise ValueError(f"{path} extends itself: {chain}; remove one `extends`")
    layer = load_yaml(path)
    parent = layer.pop("extends", None)
    if parent is not None and not isinstance(parent, str):
        raise ValueError(f"{path}: extends is {parent!r}; give the path of one file, relative to this one")
    below = _read_layers(path.parent / parent, (*children, path)) if parent else []
    return [*below, (str(path), layer)]


def read_override(text: str) -> tuple[str, dict]:
    """Return the name and the mapping of an override `key=value`, dotted; raise `ValueError` if it is none."""
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"the override {text!r} is not of the form key=value, such as optimizer.ema_decay=0.99")
    layer = parse_yaml(value, f"the value of the override {text!r}")
    for name in reversed(keys):
        layer = {name: layer}
    return f"override {text}", layer


def _merge(target: dict, layer: dict, source: str) -> None:
    """Put a layer on top of `target`, in place."""
    for key, value in layer.items():
        if key == "stages":
            _merge_stages(target, value, source)
            continue
        other = ALTERNATIVES.get(key)
        if value is not None and other not in layer:
            target.pop(other, None)
        if isinstance(value, dict) and isinstance(target.get(key), dict) and key not in ("strides", "fps"):
            _merge(target[key], value, source)
        else:
            target[key] = copy.deepcopy(value)


def _merge_stages(target: dict, value: Any, source: str) -> None:
    if isinstance(value, list) and all(isinstance(stage, dict) and "name" in stage for stage in value):
        names = [stage["name"] for stage in value]
        if wrong := [name for name in names if isinstance(name, list | dict)]:
            raise ValueError(f"{source}: the name of a stage is {wrong[0]!r}; give a word")
        if len(set(map(str, names))) != len(names):
            raise ValueError(f"{source}: stage names are {names}; each must be given once")
        target["stages"] = {stage["name"]: copy.deepcopy(stage) for stage in value}
        return
    if not isinstance(value, dict) or not all(stage is None or isinstance(stage, dict) for stage in value.values()):
        raise ValueError(
            f"{source}: stages is {value!r}; give a list of stages, each with a `name`, or a mapping by name"
        )
    stages = target.setdefault("stages", {})
    for name, stage in value.items():
        if name not in stages and (
            stage is None or source.startswith("override ") or (stages and "trains" not in stage)
        ):
            raise ValueError(
                f"{source}: there is no stage {name!r}{nearest(name, stages)}; the stages are "
                f"{', '.join(map(str, stages))}"
            )
        if stage is None:
            del stages[name]
        else:
            _merge(stages.setdefault(name, {"name": name}), stage, source)


def _explain(error: dict, merged: dict, layers: list[tuple[str, dict]], path: str | Path) -> str:
    """Describe a validation error in one line: its source, the key, what is wrong and the nearest valid key."""
    location = typed_keys(error["loc"])
    if location[:1] == ["stages"] and len(location) > 1:
        location[1] = merged["stages"][location[1]]["name"]
    key = ".".join(map(str, location))
    # The source is the last layer that names the key or, if the key is missing, its nearest parent.
    depths = range(len(location), 0, -1)
    named_by = [name for depth in depths for name, layer in reversed(layers) if _names(layer, location[:depth])]
    source = named_by[0] if named_by else path
    text = f"  {source}: {key or '(file)'}: "
    if error["type"] == "extra_forbidden":
        fields = _model_at(error["loc"][:-1]).model_fields
        elsewhere = [f"{prefix}{name}" for prefix, model in MODELS.items() for name in model.model_fields]
        same = [full for full in elsewhere if full.rpartition(".")[2] == location[-1]]
        hint = f" (did you mean {same[0]!r}?)" if same else nearest(location[-1], fields)
        return f"{text}there is no such key{hint} (given: {error['input']!r}); accepted are {', '.join(fields)}"
    # What a model says about its keys together names them and their values itself.
    named = error["type"] == "missing" or (error["type"] == "value_error" and isinstance(error["input"], dict))
    given = "" if named else f" (given: {error['input']!r})"
    model = MODELS.get(_prefix(error["loc"]))
    return f"{text}{explain(error, model)}{given if len(given) < 200 else ''}"


def _names(layer: Any, location: list) -> bool:
    """Return whether a layer, as read from its file, gives the key at `location`."""
    for key in location:
        if isinstance(layer, list):
            layer = {stage.get("name"): stage for stage in layer if isinstance(stage, dict)}
        if not isinstance(layer, dict) or key not in layer:
            return False
        layer = layer[key]
    return True


def _model_at(location: tuple) -> type[BaseModel]:
    return MODELS[_prefix(location)]


def _prefix(location: tuple) -> str:
    return "".join("<name>." if isinstance(key, int) else f"{key}." for key in location)
