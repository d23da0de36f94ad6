"""Read and check the conditions that users pass, and cut them to windows.

The models' configurations describe their conditions (`models/conditions.py`). Everything here happens before any model
runs. The result has one form: tensors `(batch, frames, channels)` by name, float32 on the CPU, NaN where absent.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.conditions import Condition, conditions_of, refuse_resting, resting_conditions
from .window_plans import Window


Conditions = dict[str, torch.Tensor]
EPSILON = 1e-6  # of a frame, by which times are rounded


class KnownConditions(dict[str, Condition]):
    """The conditions that models take now, by name.

    Attributes:
        resting: the adapters of further conditions, which count for nothing because the adapter is not active.
    """

    resting: Mapping[str, str] = MappingProxyType({})


def known_conditions(*models: nn.Module | None) -> KnownConditions:
    """Return the conditions of all models, by name.

    Raises:
        ValueError: if two of them take different conditions under one name.
    """
    known = KnownConditions()
    known.resting = {name: adapter for model in models for name, adapter in resting_conditions(model).items()}
    for model in models:
        for name, condition in conditions_of(model).items():
            other = known.setdefault(name, condition)
            alike = ("channels", "ranges", "names", "interval")
            if any(getattr(other, key) != getattr(condition, key) for key in alike):
                raise ValueError(
                    f"planner and transformer differ in a condition: one takes {other}, the other {condition}; use "
                    "models that were trained together"
                )
    return known


def read_conditions(
    conditions: Mapping[str, Any] | None,
    known: Mapping[str, Condition],
    batch_size: int,
    num_frames: int,
    num_given: int = 0,
) -> Conditions:
    """Read the argument `conditions` of the pipeline's methods.

    Args:
        conditions: for each name an array `(num_frames, channels)` for all videos, or `(batch, num_frames, channels)`;
            `(num_frames,)` is accepted for a condition of one channel. `None` is an absent condition.
        known: conditions of the models.
        batch_size: number of videos.
        num_frames: number of frames that the values belong to.
        num_given: number of leading frames whose values may be left out, and then are absent.

    Returns:
        The values in one form: `(batch, num_frames, channels)`.

    Raises:
        ValueError: for unknown names, and values of another shape, kind or range.
    """
    if conditions is None:
        return {}
    if not isinstance(conditions, Mapping):
        raise ValueError(
            f"`conditions` is of type {type(conditions).__name__}; give a dictionary of names and arrays, such as "
            f'{{"action": array}}, with a row for each of the {num_frames} frames'
        )
    unknown = [str(name) for name in conditions if name not in known]
    refuse_resting(unknown, getattr(known, "resting", {}))
    if unknown and not known:
        raise ValueError(
            f"`conditions` has {', '.join(unknown)}, but the models of this pipeline take none; load a checkpoint "
            "that was trained with conditions, or leave the argument out"
        )
    if unknown:
        raise ValueError(
            f"`conditions` has {', '.join(unknown)}, but this pipeline takes {'; '.join(map(str, known.values()))}"
        )
    return {
        name: _read_values(values, known[name], batch_size, num_frames, num_given)
        for name, values in conditions.items()
        if values is not None
    }


def read_rows(conditions: Mapping[str, Any] | None, known: Mapping[str, Condition]) -> Conditions:
    """Read the conditions of a result whose number of frames is not known: those that have a row decide.

    Raises:
        ValueError: as `read_conditions` does; all conditions need the same number of rows.
    """
    rows = 1
    if isinstance(conditions, Mapping):
        for values in conditions.values():
            shape = np.shape(values) if hasattr(values, "__len__") else ()
            if shape:
                rows = max(1, shape[1] if len(shape) == 3 else shape[0])
                break
    return read_conditions(conditions, known, 1, rows)


def conditions_for(conditions: Conditions | None, model: nn.Module, device: torch.device) -> Conditions:
    """Return the conditions that the model accepts, on its device."""
    takes = conditions_of(model)
    return {name: values.to(device) for name, values in (conditions or {}).items() if name in takes}


def conditions_at(conditions: Conditions, known: Mapping[str, Condition], places: list[int]) -> Conditions:
    """Cut the conditions of a video to the frames of a window, at `places`.

    Values belong to the interval that leads to their frame. A window that skips frames has longer intervals: its
    values are the mean over the interval, or the sum if the configuration says so; absent frames do not count. The
    interval of the window's first frame is as long as the next one. A frame that occurs twice keeps its values; places
    after the last frame have its values.
    """
    first = min(places[0], max(0, 2 * places[0] - places[1] + 1))
    intervals = [(first, places[0] + 1)] + [
        (min(before + 1, place), place + 1) for before, place in itertools.pairwise(places)
    ]
    cut = {}
    for name, values in conditions.items():
        last = values.shape[1] - 1
        rows = []
        for i, (start, stop) in enumerate(intervals):
            row = values[:, min(start, last) : min(stop, last + 1)].nanmean(dim=1)  # (batch, channels)
            length = max(1, places[1] - places[0]) if i == 0 else stop - start
            rows.append(row * length if known[name].interval == "sum" else row)
        cut[name] = torch.stack(rows, dim=1)  # (batch, places, channels)
    return cut


def conditions_of_window(conditions: Conditions, known: Mapping[str, Condition], window: Window) -> Conditions:
    """Cut the conditions of a result to a window of a stream, whose frames may lie between those of the result.

    Raises:
        ValueError: if the result has more frames than the conditions have rows.
    """
    if not conditions:
        return {}
    numbers = window.places if window.numbers is None else window.numbers
    rows = next(iter(conditions.values())).shape[1]
    # A given frame may lie after the last frame of the result, by less than one.
    if numbers[-1] > rows - 1 + (window.numbers is not None):
        raise ValueError(
            f"`conditions` has {rows} rows, but the result goes on to frame {math.ceil(numbers[-1])}, counted from 0; "
            "give a row for each of its frames"
        )
    if window.numbers is None:
        return conditions_at(conditions, known, window.places)
    return _conditions_between(conditions, known, window.numbers)


def _conditions_between(
    conditions: Conditions, known: Mapping[str, Condition], numbers: Sequence[float]
) -> Conditions:
    """Do what `conditions_at` does for frames anywhere between those of the result: row `k` holds from `k - 1` to
    `k`, and a mean weighs each row by its share of the interval."""
    spans = [(2 * numbers[0] - numbers[1], numbers[0]), *itertools.pairwise(numbers)]
    cut = {}
    for name, values in conditions.items():
        rows = []
        for start, stop in spans:
            places = range(math.floor(start + EPSILON) + 1, math.ceil(stop - EPSILON) + 1)
            weights = values.new_tensor([min(stop, place) - max(start, place - 1) for place in places])[None, :, None]
            some = values[:, [min(max(place, 0), values.shape[1] - 1) for place in places]]
            weights = weights * ~some.isnan()
            row = (some.nan_to_num() * weights).sum(dim=1) / weights.sum(dim=1)  # (batch, channels); NaN if absent
            rows.append(row * (stop - start) if known[name].interval == "sum" else row)
        cut[name] = torch.stack(rows, dim=1)  # (batch, frames, channels)
    return cut


def _read_values(values: Any, condition: Condition, batch_size: int, num_frames: int, num_given: int) -> torch.Tensor:
    tensor = _to_tensor(values, condition)
    if condition.channels == 1 and tensor.ndim == 1:
        tensor = tensor[:, None]
    lengths = (num_frames, num_frames - num_given) if num_given else (num_frames,)
    fits = (
        tensor.ndim in (2, 3)
        and tensor.shape[-1] == condition.channels
        and tensor.shape[-2] in lengths
        and (tensor.ndim == 2 or len(tensor) == batch_size)
    )
    if not fits:
        frames = " or ".join(map(str, lengths))
        raise ValueError(
            f"`conditions[{condition.name!r}]` has shape {tuple(tensor.shape)}; give ({frames}, {condition.channels})"
            f", a row for each frame, or ({batch_size}, {frames}, {condition.channels}), a table for each video. It "
            f"is {condition}"
        )
    tensor = tensor.expand(batch_size, -1, -1)  # (batch, frames, channels)
    _check_values(tensor, condition)
    absent = tensor.new_full((batch_size, num_frames - tensor.shape[1], condition.channels), torch.nan)
    return torch.cat([absent, tensor], dim=1)


def _to_tensor(values: Any, condition: Condition) -> torch.Tensor:
    if isinstance(values, torch.Tensor) and not values.is_complex():
        return values.detach().to("cpu", torch.float32)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"`conditions[{condition.name!r}]` ({type(values).__name__}) is no array of numbers; give a list of rows, "
            f"an array or a tensor, with NaN where a frame has no values. It is {condition}"
        )
    return torch.from_numpy(array.astype(np.float32))


def _check_values(values: torch.Tensor, condition: Condition) -> None:
    """Raise `ValueError` for values that are infinite, out of their range, or absent in some channels only."""

    def refuse(wrong: torch.Tensor, what: str) -> None:
        if wrong.any():
            video, frame, i = wrong.nonzero()[0].tolist()
            value = values[video, frame, i].item()
            where = f"frame {frame}" + (f" of video {video}" if len(values) > 1 else "")
            raise ValueError(
                f"`conditions[{condition.name!r}]` is {value:g} for {condition.channel(i)} in {where}; {what}. It is "
                f"{condition}"
            )

    absent = values.isnan()
    absent_in_some = absent & ~absent.all(dim=-1, keepdim=True)
    refuse(absent_in_some, "give values in all channels, or NaN in all of them for a frame without values")
    refuse(values.isinf(), "give finite numbers")
    if condition.ranges is not None:
        # Values at the ends of the range may be rounded.
        beyond = condition.scaled(values).abs() > 1 + 1e-4
        refuse(beyond, "give values within the range that the checkpoint learned, in its unit")
