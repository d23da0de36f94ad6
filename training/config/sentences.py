"""Say in plain words what a configuration's values should be, in place of pydantic's own messages.

`layers.py` adds file and key; `strict.py` and the models raise what is particular to a key.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


_WORDS = {
    "string_type": "give text",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "float_type": "give a number",
    "float_parsing": "give a number",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "path_type": "give a path",
    "dict_type": "give a mapping of keys to values",
    "list_type": "give a list",
    "tuple_type": "give a list",
    "missing": "is missing; give a value",
    "too_short": "has too few values; give at least {min_length}",
    "too_long": "has too many values; give at most {max_length}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "give {expected}",
    "model_type": "give its keys, indented below it; they are {fields}",
}
_TYPES = {"int", "float", "str", "bool", "path"}  # pydantic adds these to the place of a value of several kinds


def explain(error: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """Return what is wrong with a value.

    Args:
        error: one of pydantic's `ValidationError.errors()`.
        model: the model that the value should be, if it should be one.
    """
    kind = error["type"]
    if model is not None and kind in ("dict_type", "model_attributes_type"):
        kind = "model_type"
    if kind not in _WORDS:
        return error["msg"].removeprefix("Value error, ")
    context = error.get("ctx", {}).items()
    facts = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context}
    if kind == "literal_error":  # as YAML writes them
        facts["expected"] = facts["expected"].replace("True", "true").replace("False", "false")
    text = _WORDS[kind].format(**facts, fields=", ".join(model.model_fields) if model is not None else "")
    return f"has no value; {text}" if error["input"] is None and kind != "missing" else text


def typed_keys(location: Iterable[int | str]) -> list[int | str]:
    """Return the keys of an error's place as the user typed them, without pydantic's names of types."""
    return [key for key in location if isinstance(key, int) or not (key in _TYPES or "[" in key)]


def nearest(name: Any, known: Iterable[Any]) -> str:
    """Return a hint at the known name that is most like a given one; empty if none is."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def invalid_file(path: Any, model: type[BaseModel], error: ValidationError) -> ValueError:
    """Return the error of a file that holds one model without sections: a line for each key that is wrong."""
    lines = {}
    for each in error.errors():
        key = ".".join(map(str, typed_keys(each["loc"]))) or "(file)"
        text = explain(each)
        if each["type"] == "extra_forbidden":
            fields = model.model_fields
            text = f"there is no such key{nearest(key, fields)}; accepted are {', '.join(fields)}"
        given = "" if each["type"] == "missing" else f" (given: {each['input']!r})"
        lines.setdefault(key, f"  {key}: {text}{given if len(given) < 200 else ''}")
    return ValueError("\n".join([f"{path} is not valid:", *lines.values()]))
