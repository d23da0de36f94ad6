"""Model cards: the `README.md` of a checkpoint or of LoRA weights, from `templates/model_card.md` and known facts.

An unknown fact is left out together with its section; nothing is guessed. `read_facts` reads from a folder what it
says about itself: parameters, the window it was trained on, rank and targets of an adapter. Uploading is
`hub.py`.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from .format_version import LORA_DESCRIPTION_KEY
from .measured_sampling import MeasuredSampling
from .sizes import parse_size, sides, size_text
from .trained_window import TrainedWindow


FACTS = {
    "name": "heading of the card (needed)",
    "path": "argument of `from_pretrained` or `load_lora_weights`; by default the name",
    "description": "a sentence or two about the model",
    "license": "licence of the weights, as an SPDX name in lower case",
    "base_model": "Hub id of the checkpoint that LoRA weights adapt; makes the card one of an adapter",
    "num_frames": "number: frames of a window",
    "size": 'side of the square frames in pixels, or "64x128" (height x width)',
    "fps": "number: frames per second from one frame of a window to the next",
    "window": 'size and rate of a window, e.g. "9 frames of 64x64 pixels, 12.5 a second"',
    "sampling": 'text: steps and solver measured to be as good as 25 steps, e.g. "10 steps of UniPCMultistepScheduler"',
    "anchors": "number: `anchors` of `extend` that were measured to help against drift",
    "samples": 'list of dicts with "file", a picture or an mp4 of the folder, and "caption"',
    "parameters": "dict: component to number of parameters",
    "adapter": "list of dicts, one for each part that LoRA weights adapt",
    "conditions": "list of dicts, one for each condition that frames can be given, or that LoRA weights add",
    "data": "text: the training data, where they come from, and the held-out part",
    "stages": "list of dicts, one for each stage of the training",
    "hardware": "text: the machine it was trained on, as recorded",
    "hours": "number: hours that all stages took together",
    "command": "the command or the list of commands that trained it",
    "metrics": "list of dicts, one for each method that was scored",
    "verdict": "list of sentences on what the scores say",
    "metrics_setting": "text: how the scores were measured, and on which windows",
    "sections": 'list of dicts with "heading" and "text": what else was measured, in markdown',
    "limits": "list of sentences",
    "citation": "text: further works to cite, e.g. the data",
}
_KINDS = {
    **dict.fromkeys(
        ("samples", "adapter", "conditions", "stages", "metrics", "verdict", "sections", "limits"), list | tuple
    ),
    "num_frames": int,
    "anchors": int,
    "size": int | str,
    "parameters": Mapping,
    **dict.fromkeys(("hours", "fps"), int | float),
}
SHARD_NUMBERS = re.compile(r"-\d{5}-of-\d{5}")
TAGS = ("image-to-video", "video-interpolation", "mardini")
PICTURES, VIDEOS = (".png", ".jpg", ".jpeg", ".webp", ".gif"), (".mp4",)


def render_model_card(facts: Mapping[str, Any]) -> str:
    """Return the text of a card.

    Args:
        facts: values for the keys of `FACTS`. A missing or empty one removes its section.

    Raises:
        ValueError: for a key that is not in `FACTS`, a value of another kind, a missing name, a sample that is neither
            a picture nor a video, or a section without heading or text.
    """
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise ValueError(f"the template has no place for {', '.join(unknown)}; it knows {', '.join(FACTS)}")
    facts = {key: value for key, value in facts.items() if value not in (None, "", [], {})}
    for key, kind in _KINDS.items():
        if key in facts and not isinstance(facts[key], kind):
            raise ValueError(f"the fact {key} is {facts[key]!r}; give {FACTS[key]}")
    if "name" not in facts:
        raise ValueError("a model card needs a name, its heading")
    template = (files(__package__) / "templates/model_card.md").read_text(encoding="utf-8")
    values = {"path": facts["name"]} | facts | {key: _LAYOUTS[key](facts[key]) for key in _LAYOUTS if key in facts}
    if "size" in facts:
        values["height"], values["width"] = sides(parse_size(str(facts["size"])))
    return ModelCard.from_template(_metadata(facts), template_str=template, **values).content.rstrip() + "\n"


def card_of_folder(folder: str | os.PathLike, facts: Mapping[str, Any]) -> str:
    """Return the card of a checkpoint's folder; facts that `read_facts` finds there need not be given.

    Raises:
        ValueError: as `read_facts` and `render_model_card` do, or if a sample is not in the folder.
    """
    folder = Path(folder)
    found = read_facts(folder)
    is_pipeline = (folder / "model_index.json").is_file()
    if is_pipeline == bool(facts.get("base_model")):
        advice = (
            "is a whole pipeline; leave the fact base_model out"
            if is_pipeline
            else "has LoRA weights; give the fact base_model"
        )
        raise ValueError(f"'{folder}' {advice}, the Hub id of what LoRA weights adapt")
    card = render_model_card({"name": folder.name, **found, **facts})
    missing = [sample["file"] for sample in facts.get("samples") or [] if not (folder / sample["file"]).is_file()]
    if missing:
        raise ValueError(f"the card shows {', '.join(missing)}, which '{folder}' does not have; copy it there first")
    return card


def write_model_card(folder: str | os.PathLike, facts: Mapping[str, Any]) -> Path:
    """Write `README.md` into a checkpoint's folder and return its path; see `card_of_folder`."""
    path = Path(folder) / "README.md"
    path.write_text(card_of_folder(folder, facts), encoding="utf-8")
    return path


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the facts that a saved pipeline, or a folder of LoRA weights, holds about itself.

    For a pipeline: the number of parameters of each component, from the headers of its files, the window that it was
    trained on, and the conditions of its models. For LoRA weights: the parameters of each part, and rank, alpha,
    targets, window and added conditions if they were saved.

    Raises:
        ValueError: if the folder is neither, or a file of weights is damaged.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        return _pipeline_facts(folder)
    if (folder / LORA_WEIGHT_NAME_SAFE).is_file():
        return _adapter_facts(folder / LORA_WEIGHT_NAME_SAFE)
    raise ValueError(
        f"'{folder}' has neither model_index.json nor {LORA_WEIGHT_NAME_SAFE}; give the folder of a saved pipeline or of "
        "LoRA weights"
    )


def card_metadata(card: str) -> dict[str, Any]:
    """Return the YAML at the top of a card as a dict, which is empty if there is none.

    Raises:
        ValueError: if it is not valid YAML.
    """
    try:
        return ModelCard(card).data.to_dict()
    except Exception as error:  # the YAML parser's classes have no base but Exception
        reason = " ".join(str(error).split())  # the parser spreads it over many lines
        raise ValueError(f"the block between the first two lines of --- is not valid YAML: {reason}") from error


def retarget_card(card: str, path: str) -> tuple[str, str | None]:
    """Return the card with snippets that load from `path`, and the name they loaded before (`None` if nothing
    changed).

    The name is the one that the first snippet loads: the LoRA weights if there are any, else the pipeline. It is
    replaced in code blocks only, within quotation marks and after `--checkpoint`.
    """
    loads = re.search(r'load_lora_weights\(\s*"([^"\n]+)"', card) or re.search(
        r'from_pretrained\(\s*"([^"\n]+)"', card
    )
    if loads is None or loads[1] == path:
        return card, None
    name = re.escape(loads[1])

    def in_block(block: re.Match) -> str:
        return re.sub(rf'(?<=["]){name}(?=")|(?<=--checkpoint ){name}(?!\S)', lambda _: path, block[0])

    return re.sub(r"^```.*?^```$", in_block, card, flags=re.DOTALL | re.MULTILINE), loads[1]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay rows out as a markdown table with a column for each key; a key that a row lacks is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _metadata(facts: Mapping[str, Any]) -> ModelCardData:
    """Return the block that the Hub reads: by it the model is found, linked to its base model and illustrated."""
    adapter = {"base_model_relation": "adapter"} if "base_model" in facts else {}
    widget = [{"text": s["caption"], "output": {"url": s["file"]}} for s in facts.get("samples", [])]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-video",
        tags=[*TAGS, *(["lora"] if adapter else [])],
        license=facts.get("license"),
        base_model=facts.get("base_model"),
        **adapter,
        **({"widget": widget} if widget else {}),
    )


def _sample(sample: Mapping[str, str]) -> str:
    if not isinstance(sample, Mapping) or set(sample) != {"file", "caption"}:
        raise ValueError(f'the sample {sample!r} cannot be shown; give a dict with "file" and "caption"')
    file, caption = sample["file"], sample["caption"]
    suffix = Path(file).suffix.lower()
    if suffix in PICTURES:
        return f"![{caption}]({file})"
    if suffix in VIDEOS:
        return f'<video controls loop src="{file}"></video>\n\n*{caption}*'
    raise ValueError(f"the sample {file} cannot be shown; use {', '.join(PICTURES + VIDEOS)}")


def _section(section: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(section, Mapping) or set(section) != {"heading", "text"}:
        raise ValueError(f'the section {section!r} cannot be written; give a dict with "heading" and "text"')
    return section


def _parameter_table(parameters: Mapping[str, int]) -> str:
    rows = {**parameters, "together": sum(parameters.values())}
    return markdown_table([{"part": part, "parameters": f"{count:,}"} for part, count in rows.items()])


# Facts that the template receives laid out; the others it lays out itself.
_LAYOUTS: dict[str, Callable] = {
    "parameters": _parameter_table,
    **dict.fromkeys(("stages", "metrics", "adapter", "conditions"), markdown_table),
    "samples": lambda samples: [_sample(sample) for sample in samples],
    "sections": lambda sections: [_section(section) for section in sections],
}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _pipeline_facts(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parameters = {}
    for component in index:
        # The parts of one file; a variant such as fp16 holds the same weights once more.
        counts: dict[str, int] = {}
        for path in sorted((folder / component).glob("*.safetensors")):
            name = SHARD_NUMBERS.sub("", path.name)
            counts[name] = counts.get(name, 0) + sum(_sizes(path).values())
        if counts:
            parameters[component] = max(counts.values())
    facts: dict[str, Any] = {"parameters": parameters} if parameters else {}
    config = folder / "vae" / "config.json"
    vae_config = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if "vae" in index:
        facts |= _window_facts(TrainedWindow.of_checkpoint(index, vae_config))
    measured = MeasuredSampling.from_config(index)
    if measured.solver is not None:
        facts["sampling"] = f"{measured.num_inference_steps} steps of {measured.solver}"
    if measured.anchors is not None:
        facts["anchors"] = measured.anchors
    configs = [folder / part / "config.json" for part in ("planner", "transformer")]
    conditions = _conditions(json.loads(path.read_text(encoding="utf-8")) for path in configs if path.is_file())
    return facts | ({"conditions": conditions} if conditions else {})


def _window_facts(window: TrainedWindow) -> dict[str, Any]:
    size = None if window.size is None else size_text(window.size) if isinstance(window.size, tuple) else window.size
    whole = str(window) if window.num_frames and window.size else None
    facts = {"num_frames": window.num_frames, "size": size, "fps": window.fps, "window": whole}
    return {key: value for key, value in facts.items() if value is not None}


def _conditions(configs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each condition in `conditions` and `condition_info` of models, or of an adapter."""
    rows = {}
    for config in configs:
        for name, channels in (config.get("conditions") or {}).items():
            info = (config.get("condition_info") or {}).get(name) or {}
            ranges = info.get("range") or []
            pairs = ranges if ranges and isinstance(ranges[0], list) else [ranges] if ranges else []
            row = {
                "condition": name,
                "channels": f"{channels} ({', '.join(info['names'])})" if info.get("names") else str(channels),
                "range": ", ".join("{:g} to {:g}".format(*pair) for pair in pairs),
                "unit": info.get("unit"),
                "what it says": info.get("description"),
            }
            rows[name] = {key: value for key, value in row.items() if value}
    return [rows[name] for name in sorted(rows)]


def _adapter_facts(path: Path) -> dict[str, Any]:
    parameters: dict[str, int] = {}
    for name, size in _sizes(path).items():
        part = name.split(".")[0]
        parameters[part] = parameters.get(part, 0) + size
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    saved = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    description = json.loads(metadata.get(LORA_DESCRIPTION_KEY, "{}"))
    trained = (description.get("training_config") or {}).get("window") or {}
    rows = []
    for part in parameters:
        targets = saved.get(f"{part}.target_modules")
        kinds = [name for name, key in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if saved.get(f"{part}.{key}")]
        row = {
            "part": part,
            "rank": saved.get(f"{part}.r"),
            "alpha": saved.get(f"{part}.lora_alpha"),
            "kind": ", ".join(kinds) or None,
            "targets": ", ".join(sorted(targets)) if isinstance(targets, list) else targets,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    facts = {"parameters": parameters, "adapter": [row for row in rows if len(row) > 1]}
    conditions = _conditions([description])
    facts |= {"conditions": conditions} if conditions else {}
    return facts | _window_facts(TrainedWindow.from_config(trained))


def _sizes(path: Path) -> dict[str, int]:
    """Return the number of values of each tensor, from the header."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); save or copy it again") from error
