"""Model cards: the `README.md` of a checkpoint or of LoRA weights, from a local template and known facts.

A fact that is not known is left out together with its section; nothing is filled in by guess. What a folder itself can tell (its
parameters, the size its autoencoder learned, rank and targets of an adapter) is read from it by `read_facts`. Uploading is `hub.py`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open


FACTS = {
    "name": "heading of the card (needed)",
    "path": "what `from_pretrained` or `load_lora_weights` is given; the name where it is missing",
    "description": "what it is, in a sentence or two",
    "license": "licence of the weights, as an SPDX name in lower case",
    "base_model": "Hub id of the checkpoint that LoRA weights adapt; makes the card one of an adapter",
    "num_frames": "number: frames of a window",
    "size": "number: side of the square pictures in pixels",
    "window": 'what a window is, e.g. "9 frames of 64x64 pixels, 12.5 a second"',
    "samples": 'list of dicts with "file", a picture or an mp4 of the folder, and "caption"',
    "parameters": "dict: component to number of parameters",
    "adapter": "list of dicts, one for each part that LoRA weights adapt",
    "conditions": "list of dicts, one for each condition that frames may be told",
    "data": "text: what it was trained on, where it comes from, what was held out",
    "stages": "list of dicts, one for each stage of the training",
    "hardware": "text: what it was trained on, as recorded",
    "hours": "number: how long all stages took together",
    "command": "the command or the list of commands that trained it",
    "metrics": "list of dicts, one for each method that was scored",
    "metrics_setting": "text: what the scores were measured on, and how",
    "limits": "list of sentences",
    "citation": "text: what else should be cited, e.g. the data",
}
_KINDS = {
    **dict.fromkeys(("samples", "adapter", "conditions", "stages", "metrics", "limits"), list | tuple),
    **dict.fromkeys(("num_frames", "size"), int),
    "parameters": Mapping,
    "hours": int | float,
}
TAGS = ("image-to-video", "video-interpolation", "mardini")
PICTURES, VIDEOS = (".png", ".jpg", ".jpeg", ".webp", ".gif"), (".mp4",)


def render_model_card(facts: Mapping[str, Any]) -> str:
    """Fills the template.

    Args:
        facts: values for the keys of `FACTS`. A missing or empty one removes its section.

    Raises:
        ValueError: on a key that is not in `FACTS` or a value of another kind, if the name is missing, or a sample is neither
            picture nor video.
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
    values = {key: _as_text(key, value) for key, value in facts.items()}
    values.setdefault("path", values["name"])
    values["metadata"] = _metadata(facts)
    values["call"] = "".join(
        f", {argument}={facts[key]}"
        for argument, key in (("num_frames", "num_frames"), ("height", "size"), ("width", "size"))
        if key in facts
    )
    if "base_model" not in facts:
        values["pipeline"] = ""  # the sections of a card that is none of an adapter
    resources = {"hardware": "trained on", "hours": "hours, all stages together"}
    if resources.keys() & facts.keys():
        values["resources"] = "\n".join(
            f"- {label}: {values[key]}" for key, label in resources.items() if key in facts
        )
    text = (files(__package__) / "templates/model_card.md").read_text(encoding="utf-8")
    for _ in range(2):  # sections stand in sections at most once
        text = re.sub(
            r"^\[\[(\w+)\]\]\n(.*?)^\[\[/\1\]\]\n",
            lambda match: match[2] if match[1] in values else "",
            text,
            flags=re.DOTALL | re.MULTILINE,
        )
    return text.format(**values)


def card_of_folder(folder: str | os.PathLike, facts: Mapping[str, Any]) -> str:
    """The card of a checkpoint's folder; facts that the folder tells itself need not be given.

    Raises:
        ValueError: as `read_facts` and `render_model_card` do, or if a sample is not in the folder.
    """
    folder = Path(folder)
    told = read_facts(folder)
    is_pipeline = (folder / "model_index.json").is_file()
    if is_pipeline == bool(facts.get("base_model")):
        advice = (
            "is a whole pipeline; leave the fact base_model out"
            if is_pipeline
            else "has LoRA weights; give the fact base_model"
        )
        raise ValueError(f"'{folder}' {advice}, the Hub id of what LoRA weights adapt")
    card = render_model_card({"name": folder.name, **told, **facts})
    missing = [sample["file"] for sample in facts.get("samples") or [] if not (folder / sample["file"]).is_file()]
    if missing:
        raise ValueError(f"the card shows {', '.join(missing)}, which '{folder}' does not have; copy it there first")
    return card


def write_model_card(folder: str | os.PathLike, facts: Mapping[str, Any]) -> Path:
    """Writes `README.md` into a checkpoint's folder; see `card_of_folder`."""
    path = Path(folder) / "README.md"
    path.write_text(card_of_folder(folder, facts), encoding="utf-8")
    return path


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """What a saved pipeline, or the folder of LoRA weights, says about itself.

    Of a pipeline: the number of parameters of each component, from the headers of its files, the size that our own
    autoencoder was trained at, and the conditions of its models. Of LoRA weights: the parameters of each
    part, and rank, alpha and targets where they were saved.

    Raises:
        ValueError: if the folder is neither, or a file of weights is damaged.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        return _pipeline_facts(folder)
    if (folder / LORA_WEIGHT_NAME_SAFE).is_file():
        return _adapter_facts(folder / LORA_WEIGHT_NAME_SAFE)
    raise ValueError(
        f"'{folder}' has neither model_index.json nor {LORA_WEIGHT_NAME_SAFE}; give the folder of a saved pipeline or of LoRA weights"
    )


def card_metadata(card: str) -> dict[str, Any]:
    """The YAML at the top of a card, as a dict; empty where there is none.

    Raises:
        ValueError: if it is no YAML.
    """
    try:
        return ModelCard(card).data.to_dict()
    except Exception as error:  # the YAML parser's own classes have no base but Exception
        reason = " ".join(str(error).split())  # told over many lines
        raise ValueError(f"the block between the first two lines of --- is no YAML: {reason}") from error


def retarget_card(card: str, path: str) -> tuple[str, str | None]:
    """Makes the snippets of a card load from `path`; what they loaded from comes second, `None` where nothing changed.

    Only what the first snippet loads is replaced, in code blocks: the name within quotation marks and after `--checkpoint`. Where LoRA
    weights are loaded it is them, not the pipeline below.
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
    """Rows with the same or overlapping keys as a markdown table; what a row does not have is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _metadata(facts: Mapping[str, Any]) -> str:
    """The YAML that the Hub reads: what finds the model, what it derives from, what its page shows."""
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
    ).to_yaml()


def _as_text(key: str, value: Any) -> str:
    if key == "parameters":
        total = sum(value.values())
        return markdown_table([{"part": k, "parameters": f"{v:,}"} for k, v in {**value, "together": total}.items()])
    if key in ("stages", "metrics", "adapter", "conditions"):
        return markdown_table(value)
    if key == "samples":
        return "\n\n".join(map(_sample, value))
    if key == "limits":
        return "\n".join(f"- {sentence}" for sentence in value)
    if key == "command" and not isinstance(value, str):
        return "\n".join(value)
    if key == "hours":
        return f"{value:.2f}"
    return str(value)


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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def learned_size(class_name: str, config: Mapping[str, Any]) -> int | None:
    """Side in pixels of the pictures that an autoencoder was trained on, where its config tells.

    An `AutoencoderKL` has a `sample_size` too, but often the default of its class, or that of pictures (1024) where the window of the
    models is another: for it, and for every class but `AutoencoderPatchBasis`, `None`.
    """
    return config.get("sample_size") if class_name == "AutoencoderPatchBasis" else None


def _pipeline_facts(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parameters = {}
    for component in index:
        count = sum(sum(_sizes(path).values()) for path in sorted((folder / component).glob("*.safetensors")))
        if count:
            parameters[component] = count
    facts: dict[str, Any] = {"parameters": parameters} if parameters else {}
    config = folder / "vae" / "config.json"
    if config.is_file() and "vae" in index:
        size = learned_size(index["vae"][1], json.loads(config.read_text(encoding="utf-8")))
        if size is not None:
            facts["size"] = size
    conditions = _conditions(folder)
    return facts | ({"conditions": conditions} if conditions else {})


def _conditions(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each condition that planner or transformer takes, from their configurations."""
    rows = {}
    for part in ("planner", "transformer"):
        path = folder / part / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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
        saved = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
    rows = []
    for part in parameters:
        targets = saved.get(f"{part}.target_modules")
        kinds = [name for name, key in (("DoRA", "use_dora"), ("rsLoRA", "use_rslora")) if saved.get(f"{part}.{key}")]
        row = {"part": part, "rank": saved.get(f"{part}.r"), "alpha": saved.get(f"{part}.lora_alpha"), "kind": ", ".join(kinds) or None,
               "targets": targets if isinstance(targets, str) or targets is None else ", ".join(sorted(targets))}  # fmt: skip
        rows.append({key: value for key, value in row.items() if value is not None})
    return {"parameters": parameters, "adapter": [row for row in rows if len(row) > 1]}


def _sizes(path: Path) -> dict[str, int]:
    """Number of values of each tensor, from the header."""
    try:
        with safe_open(path, framework="numpy") as file:
            sizes = {}
            for name in file.keys():
                size = 1
                for side in file.get_slice(name).get_shape():
                    size *= side
                sizes[name] = size
            return sizes
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); save or copy it again") from error
