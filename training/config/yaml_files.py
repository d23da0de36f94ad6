"""Read YAML for configurations and model cards: errors name the file and the line, and repeated keys are refused.

Numbers follow YAML 1.2: `3e-4` is a number; `010` and `1:30` are text, not 8 and 90.
"""

import re
from pathlib import Path
from typing import Any

import yaml


_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but refusing repeated keys, of which PyYAML silently takes the last.

    Args:
        stream: the text, or the bytes of a file, whose encoding is detected.
        label: its name in messages.
    """

    def __init__(self, stream: str | bytes, label: str):
        super().__init__(stream)
        self.label = label
        self._open: list[str | None] = []  # anchors of the nodes being read

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent) and self.peek_event().anchor in self._open:
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor} contains itself", event.start_mark)
        return super().compose_node(parent, index)

    def compose_sequence_node(self, anchor):
        self._open.append(anchor)
        node = super().compose_sequence_node(anchor)
        self._open.pop()
        return node

    def compose_mapping_node(self, anchor):
        self._open.append(anchor)
        node = super().compose_mapping_node(anchor)
        self._open.pop()
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:  # before the keys that `<<` merges are added
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE:
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                raise ValueError(
                    f"{self.label}: the key {key_node.value!r} is given twice, in line {lines[key]} and in line "
                    f"{line}; keep one of them"
                )
            lines[key] = line
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # such as the date 2025-13-45
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} cannot be read ({error})", node.start_mark
            ) from error


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _INT, re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> dict:
    """Return the mapping that a file holds.

    Raises:
        ValueError: if it is not YAML, not a mapping, or gives a key twice; names file and line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    value, line = _parse(content, str(path))
    if not isinstance(value, dict):
        kind = {list: "a list", str: "text", type(None): "nothing"}.get(type(value), repr(value))
        raise ValueError(f"{path}, line {line}: holds {kind}; it has to be a mapping of keys, such as `seed: 1`")
    return value


def parse_yaml(text: str, label: str) -> Any:
    """Return the value of a text, which messages call `label`; raise `ValueError` as `load_yaml` does."""
    return _parse(text, label)[0]


def _parse(content: str | bytes, label: str) -> tuple[Any, int]:
    """Return the value and the line where it begins."""
    try:
        loader = _Loader(content, label)
        node = loader.get_single_node()
        return (None, 1) if node is None else (loader.construct_document(node), node.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        said = ", ".join(filter(None, (error.context, error.problem, error.note)))
        hint = "; indent with spaces, not with tabs" if "'\\t'" in said else ""
        raise ValueError(f"{label} is not YAML{where}: {said}{hint}") from error
    except yaml.reader.ReaderError as error:
        before = content[: error.position] if isinstance(content, bytes) else content[: error.position].encode()
        line = before.count(b"\n") + 1
        raise ValueError(f"{label} is not YAML (line {line}): {error.reason}; save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{label} is not YAML: it is nested too deeply") from error
