"""Checks for every configuration: no booleans or text for numbers, no infinite numbers, no paths for names.

pydantic alone takes `true` for 1 and "5" for 5, and lets nan pass every bound. The keys and their bounds are defined
by the models that use this.
"""

import math
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from diffusers_mardini.sizes import Size, parse_size, sides, size_text


_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # numbers such as 1e-4, which YAML 1.1 reads as text
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
# Device names on Windows, whatever their suffix.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}
_DECIMAL = re.compile(r"\d+(\.\d+)?")
LEAST_SIDE = 16  # pixels of a side of a window
MAX_NAME = 100  # bytes; file systems take 255, and temporary names are longer than the name


class StrictModel(BaseModel):
    """A model that refuses unknown keys and values of the wrong kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        check_kind(value, _kinds(cls.model_fields[info.field_name].annotation))
        return value


class SizedModel(StrictModel):
    """A model with a key `size`: a side, or "64x128" (height x width)."""

    @field_validator("size", mode="before", check_fields=False)  # before `_of_its_kind`, which refuses text
    @classmethod
    def _size_of_text(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("size", mode="after", check_fields=False)
    @classmethod
    def _large_enough(cls, value: Size | None) -> Size | None:
        if value is not None and min(sides(value)) < LEAST_SIDE:
            raise ValueError(f"the size is {size_text(value)}; every side must be at least {LEAST_SIDE} pixels")
        return value


def check_kind(value: Any, kinds: frozenset = frozenset({Any})) -> None:
    """Check a value, and all values within lists and mappings.

    Args:
        kinds: the types that are accepted; by default all.

    Raises:
        ValueError: if a number is not finite, or a boolean or text is given for a number, or anything else for a
            boolean.
    """
    if kinds & _MODELS:  # it checks itself
        return
    if isinstance(value, dict):
        for key, item in value.items():
            # Keys of JSON are text.
            check_kind(
                float(key) if isinstance(key, str) and _DECIMAL.fullmatch(key) and str not in kinds else key, kinds
            )
            check_kind(item, kinds)
    elif isinstance(value, list | tuple):
        for item in value:
            check_kind(item, kinds)
    elif isinstance(value, bool):
        if not kinds & {bool, Any}:
            raise ValueError(f"{str(value).lower()} is a boolean; give {_wanted(kinds)}")
    elif isinstance(value, int | float):
        if not _is_finite(value):
            raise ValueError(f"{str(value)[:20]} is not finite; give {_wanted(kinds)}")
        if bool in kinds and not kinds & {int, float, Any}:
            raise ValueError(f"{value} is not a boolean; give true or false")
    elif (
        isinstance(value, str)
        and not kinds & {str, Any}
        and not (float in kinds and _SCIENTIFIC.fullmatch(value) and math.isfinite(float(value)))
    ):
        raise ValueError(f"{value!r} is text; give {_wanted(kinds)}, without quotes")


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer with more than 308 digits
        return False


def _wanted(kinds: frozenset) -> str:
    if kinds & {int, float, Any}:
        return "a number"
    return "true or false" if bool in kinds else "text"


_MODELS = frozenset({BaseModel})


def _kinds(annotation: Any) -> frozenset:
    """Return the types of a field's values, also within lists and mappings; paths and literals count as text."""
    if get_origin(annotation) is Literal:
        return frozenset(map(type, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        parts = [part for part in get_args(annotation) if part is not Ellipsis]
        return frozenset().union(*map(_kinds, parts))
    if annotation in (Any, bool, int, float, type(None)):
        return frozenset({annotation})
    return _MODELS if isinstance(annotation, type) and issubclass(annotation, BaseModel) else frozenset({str})


def check_name(name: str) -> str:
    """Return the name if it can name a folder on every system.

    Raises:
        ValueError: if it is a path, hidden, empty, too long, or reserved somewhere.
    """
    if not name.strip():
        raise ValueError("a name must not be empty")
    if found := _NOT_IN_NAMES.search(name):
        raise ValueError(f"{name!r} holds {found[0]!r}; a name is not a path: use letters, digits, - and _")
    if name.startswith(".") or name != name.strip() or name.endswith("."):
        raise ValueError(f"{name!r} begins or ends with a dot or a space; remove it")
    if name.split(".")[0].rstrip().lower() in _DEVICES:
        raise ValueError(f"{name!r} is the name of a device on Windows; use another one")
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
        raise ValueError(f"{name!r} is longer than {MAX_NAME} bytes; use a shorter one")
    return name


Name = Annotated[str, AfterValidator(check_name)]
