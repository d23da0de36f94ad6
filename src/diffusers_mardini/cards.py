"""Model cards: the `README.md` of a checkpoint from a local template and known facts.

A fact that is not known is left out together with its section; nothing is filled in by guess. What a checkpoint itself can
tell (its parameters) is read from it by `read_facts`.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import safe_open


FACTS = {
    "name": "heading of the card (needed)",
    "path": "what `from_pretrained` is given; the name where it is missing",
    "num_frames": "frames of a window (needed)",
    "description": "what it is, in a sentence or two",
    "license": "licence of the weights, as an SPDX name in lower case",
    "window": 'what a window is, e.g. "9 frames of 64x64 pixels, 12.5 a second"',
    "parameters": "dict: component to number of parameters",
    "data": "text: what it was trained on, where it comes from, what was held out",
    "stages": "list of dicts, one for each stage of the training",
    "command": "the command or the list of commands that trained it",
    "metrics": "list of dicts, one for each method that was scored",
    "metrics_setting": "text: what the scores were measured on, and how",
    "limits": "list of sentences",
    "citation": "text: what else should be cited, e.g. the data",
}
_NEEDED = ("name", "num_frames")


def render_model_card(facts: Mapping[str, Any]) -> str:
    """Fills the template.

    Args:
        facts: values for the keys of `FACTS`. A missing or empty one removes its section.

    Raises:
        ValueError: on a key that is not in `FACTS`, or if a needed one is missing.
    """
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise ValueError(f"the template has no place for {', '.join(unknown)}; it knows {', '.join(FACTS)}")
    missing = [key for key in _NEEDED if not facts.get(key)]
    if missing:
        raise ValueError(f"a model card needs {', '.join(missing)}: " + "; ".join(FACTS[key] for key in missing))
    values = {key: _as_text(key, value) for key, value in facts.items() if value not in (None, "", [], {})}
    values.setdefault("path", values["name"])
    text = (files(__package__) / "templates/model_card.md").read_text(encoding="utf-8")
    for _ in range(2):  # sections stand in sections at most once
        text = re.sub(
            r"^\[\[(\w+)\]\]\n(.*?)^\[\[/\1\]\]\n",
            lambda match: match[2] if match[1] in values else "",
            text,
            flags=re.DOTALL | re.MULTILINE,
        )
    return text.format(**values)


def write_model_card(folder: str | os.PathLike, facts: Mapping[str, Any]) -> Path:
    """Writes `README.md` into a checkpoint's folder; facts that the checkpoint tells itself need not be given."""
    folder = Path(folder)
    path = folder / "README.md"
    path.write_text(render_model_card({"name": folder.name, **read_facts(folder), **facts}), encoding="utf-8")
    return path


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """What a saved pipeline says about itself: the number of parameters of each component, from the headers of its files.

    Raises:
        ValueError: if the folder is no saved pipeline.
    """
    folder = Path(folder)
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"'{folder}' has no model_index.json; give the folder of a saved pipeline")
    parameters = {}
    for component in json.loads(index.read_text(encoding="utf-8")):
        weights = sorted((folder / component).glob("*.safetensors"))
        count = sum(_count_values(path) for path in weights)
        if count:
            parameters[component] = count
    return {"parameters": parameters} if parameters else {}


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same or overlapping keys as a markdown table; what a row does not have is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _as_text(key: str, value: Any) -> str:
    if key == "parameters":
        total = sum(value.values())
        return markdown_table([{"part": k, "parameters": f"{v:,}"} for k, v in {**value, "together": total}.items()])
    if key in ("stages", "metrics"):
        return markdown_table(value)
    if key == "limits":
        return "\n".join(f"- {sentence}" for sentence in value)
    if key == "command" and not isinstance(value, str):
        return "\n".join(value)
    return str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _count_values(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        count = 0
        for name in file.keys():
            size = 1
            for side in file.get_slice(name).get_shape():
                size *= side
            count += size
        return count
