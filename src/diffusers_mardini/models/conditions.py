"""Conditions: named vectors for each frame, such as an action, which both models are conditioned on (ours).

A model's configuration describes its conditions, see `Condition`. Values are scaled by their range and embedded per
frame. Nothing is random here: the trainer drops values. `pipelines/conditions.py` reads the values that users pass.
Conditions of adapters are in `adapter_conditions.py`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn


HIDDEN_DIM = 128
OCTAVES = 4
INTERVALS = ("mean", "sum")
INFO = {
    "names": "a list with a name for each channel",
    "unit": "text",
    "range": "[lowest, highest] for all channels, or a list of such pairs, one for each channel",
    "interval": f"one of {', '.join(INTERVALS)}",
    "description": "text: the meaning of the values, and how they are derived",
}


@dataclass(frozen=True)
class Condition:
    """One condition, as `conditions` and `condition_info` of a model's configuration describe it.

    Attributes:
        name: key of the condition.
        channels: number of values per frame.
        names: of the channels; empty if not configured.
        unit: of the values; empty if not configured.
        ranges: lowest and highest value of each channel, scaled to -1 and 1; `None` for values that need no scaling.
        interval: combines the values of skipped frames: their `"mean"` (actions), or their `"sum"` (seconds).
        description: meaning of the values, and how they are derived.
    """

    name: str
    channels: int
    names: tuple[str, ...] = ()
    unit: str = ""
    ranges: tuple[tuple[float, float], ...] | None = None
    interval: str = "mean"
    description: str = ""

    def __str__(self) -> str:
        """Describe it in a line, for errors: `action: 2 channels (steering -1 to 1, gas 0 to 1), in shares`."""
        text = f"{self.name}: {self.channels} channel{'' if self.channels == 1 else 's'}"
        if self._ranges_differ:
            text += f" ({', '.join(f'{self.channel(i)} {_span(pair)}' for i, pair in enumerate(self.ranges))})"
        elif self.names:
            text += f" ({', '.join(self.names)})"
        if self.ranges is not None and not self._ranges_differ:
            text += f", {_span(self.ranges[0])}"
        return text + (f", in {self.unit}" if self.unit else "")

    def channel(self, i: int) -> str:
        """Return the name of a channel."""
        return self.names[i] if self.names else f"channel {i}"

    @property
    def _ranges_differ(self) -> bool:
        return self.ranges is not None and len(set(self.ranges)) > 1

    def scaled(self, values: torch.Tensor) -> torch.Tensor:
        """Scale values `(..., channels)` so that the range becomes -1 to 1."""
        if self.ranges is None:
            return values
        if not self._ranges_differ:
            return _scale(values, *self.ranges[0])
        # Python numbers need no copy to the device, and `to(torch.bfloat16)` does not round them.
        return torch.cat([_scale(values[..., i : i + 1], *pair) for i, pair in enumerate(self.ranges)], dim=-1)


def read_config(
    conditions: Mapping[str, int] | None, condition_info: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Condition]:
    """Read `conditions` and `condition_info` of a model's configuration.

    Returns:
        The conditions by name, in alphabetical order: saving sorts a configuration, and rounding of a sum depends on
        order.

    Raises:
        ValueError: for names, numbers of channels or facts that cannot be used.
    """
    if conditions is None:
        conditions = {}
    if not isinstance(conditions, Mapping):
        raise ValueError(f"`conditions` is {conditions!r}; give a mapping of names to numbers of channels, or `None`")
    info = condition_info or {}
    if not isinstance(info, Mapping) or not all(isinstance(one, Mapping | None) for one in info.values()):
        raise ValueError(f"`condition_info` is {condition_info!r}; give a mapping of names to mappings, or `None`")
    unknown = sorted(set(info) - set(conditions))
    if unknown:
        raise ValueError(f"`condition_info` describes {', '.join(unknown)}, which `conditions` does not name; add it")
    return {name: _read_condition(name, conditions[name], info.get(name) or {}) for name in sorted(conditions)}


def _read_condition(name: str, channels: Any, info: Mapping[str, Any]) -> Condition:
    # The name becomes a key of an `nn.ModuleDict`, and must not be one of its attributes.
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"`conditions` has the name {name!r}; choose another, of letters, digits and underscores, that is no "
            "attribute of `torch.nn.ModuleDict`"
        )
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise ValueError(f"`conditions[{name!r}]` is {channels!r}; give its number of channels, at least 1")
    unknown = sorted(set(info) - set(INFO))
    if unknown:
        known = "; ".join(f"{key}: {text}" for key, text in INFO.items())
        raise ValueError(f"`condition_info[{name!r}]` has {', '.join(unknown)}; it may have: {known}")

    def refuse(key: str) -> ValueError:
        return ValueError(f"`condition_info[{name!r}][{key!r}]` is {info[key]!r}; give {INFO[key]} ({channels} here)")

    names = info.get("names", ())
    if not isinstance(names, (list, tuple)) or len(names) not in (0, channels):
        raise refuse("names")
    for key in ("unit", "description"):
        if not isinstance(info.get(key, ""), str):
            raise refuse(key)
    if info.get("interval", "mean") not in INTERVALS:
        raise refuse("interval")
    ranges = info.get("range")
    if ranges is not None:
        pairs = [ranges] * channels if _is_range(ranges) else ranges
        if not isinstance(pairs, (list, tuple)) or len(pairs) != channels or not all(map(_is_range, pairs)):
            raise refuse("range")
        ranges = tuple((float(low), float(high)) for low, high in pairs)
    return Condition(
        name, channels, tuple(map(str, names)), info.get("unit", ""), ranges, info.get("interval", "mean"),
        info.get("description", ""),
    )  # fmt: skip


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2
    return is_pair and all(isinstance(v, Real) and math.isfinite(v) for v in value) and value[0] < value[1]


def _span(pair: tuple[float, float]) -> str:
    return "{:g} to {:g}".format(*pair)


def _scale(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return (values - (low + high) / 2) * (2 / (high - low))


class MarDiniConditionEmbedding(nn.Module):
    """Embeds one condition per frame: sinusoidal features and two linear layers, or a learned null where it is absent.

    The last layer and the null are zero at first, so that adding a condition does not change a model's output.

    Attributes:
        condition: what is embedded.
        adapter: the adapter that adds the condition; `None` for one of the model's own.
        rests: whether that adapter is not active, so that the condition counts for nothing.
    """

    adapter: str | None = None
    rests = False

    def __init__(self, condition: Condition, dim: int):
        super().__init__()
        self.condition = condition
        # PyTorch's own initialization: features are at most 1, and the models' 0.02 would make them too small.
        self.linear_1 = nn.Linear(condition.channels * (1 + 2 * OCTAVES), HIDDEN_DIM)
        self.linear_2 = nn.Linear(HIDDEN_DIM, dim)
        self.null = nn.Parameter(torch.zeros(dim))
        for parameter in self.linear_2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embed float32 values `(batch, frames, channels)`: `(batch, frames, dim)`.

        A frame is absent if all of its channels are NaN. NaN in some of them gives NaN, so that the error is noticed.
        """
        absent = values.isnan().all(dim=-1, keepdim=True)  # (batch, frames, 1)
        # Zeroed before the layers: otherwise NaN would reach the gradients of their weights.
        features = _features(self.condition.scaled(torch.where(absent, 0.0, values)))
        embedded = self.linear_2(nn.functional.silu(self.linear_1(features.to(dtype))))  # (batch, frames, dim)
        return torch.where(absent, self.null.to(embedded.dtype), embedded)


def _features(values: torch.Tensor) -> torch.Tensor:
    """Return the values, their sines and cosines: `(..., channels * (1 + 2 * OCTAVES))`.

    The lowest frequency makes half a turn from -1 to 1, so that the two ends differ.
    """
    frequencies = math.pi / 2 * 2.0 ** torch.arange(OCTAVES, device=values.device, dtype=torch.float32)
    angles = values[..., None] * frequencies  # (..., channels, octaves)
    return torch.cat([values[..., None], angles.sin(), angles.cos()], dim=-1).flatten(-2)


class MarDiniConditionEmbedder(nn.ModuleDict):
    """The embeddings of all conditions of a model, by name; a frame gets their sum."""

    def forward(
        self, conditions: Mapping[str, torch.Tensor | None], hidden_states: torch.Tensor, frames: int
    ) -> torch.Tensor | None:
        """Embed conditions in the dtype and on the device of `hidden_states`: `(batch, frames, 1, dim)`; `None` if
        all rest.

        All layers run even without values: distributed training fails if a parameter gets no gradient.
        """
        batch, device = len(hidden_states), hidden_states.device
        embedded = []
        for name, embedding in self.items():
            if embedding.rests:
                continue
            values = conditions.get(name)
            if values is None:
                values = torch.full((batch, frames, embedding.condition.channels), torch.nan, device=device)
            embedded.append(embedding(values.to(device, torch.float32), hidden_states.dtype))
        return sum(embedded[1:], start=embedded[0])[:, :, None] if embedded else None


def conditions_of(model: Any) -> dict[str, Condition]:
    """Return the conditions that a model takes now, by name: its own ones, and those of its active adapters."""
    embedder = getattr(model, "condition_embedder", None) or {}
    return {name: embedding.condition for name, embedding in embedder.items() if not embedding.rests}


def resting_conditions(model: Any) -> dict[str, str]:
    """Return the adapter of each condition that a model does not take now, because its adapter is not active."""
    embedder = getattr(model, "condition_embedder", None) or {}
    return {name: embedding.adapter for name, embedding in embedder.items() if embedding.rests}


def refuse_resting(names: Iterable[str], resting: Mapping[str, str]) -> None:
    """Raise `ValueError` if one of `names` is a condition of an adapter that is not active."""
    for name in names:
        if name in resting:
            raise ValueError(
                f"`conditions` has {name}, which the adapter {resting[name]!r} adds, and that is not active; choose "
                f"it with `set_adapters` or `enable_lora`, or leave {name} out"
            )


class ConditionsMixin:
    """Add conditions to a model, which sets `condition_embedder` to the result of `_make_conditions`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        conditions: Mapping[str, int] | None = None,
        condition_info: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ):
        """Load a model, see [`~ModelMixin.from_pretrained`], and add `conditions`, see `add_conditions`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if conditions is not None or condition_info is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
            model.add_conditions({} if conditions is None else conditions, condition_info)
        return loaded

    def add_conditions(
        self, conditions: Mapping[str, int], condition_info: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Add conditions to the model; they do not change its output until it is trained.

        Args:
            conditions: names to numbers of channels. Conditions that the model already has keep their weights.
            condition_info: see `INFO`; replaces that of conditions that the model already has.

        Raises:
            ValueError: if a condition cannot be used, the model has it with another number of channels, or a loaded
                adapter has added some.
        """
        read_config(conditions, None)
        had = self.config.get("conditions") or {}
        for name, channels in conditions.items():
            if had.get(name, channels) != channels:
                raise ValueError(
                    f"`conditions[{name!r}]` is {channels}, but this model has that condition with {had[name]} "
                    "channels; use another name"
                )
        embedded = self.condition_embedder or {}
        if adapters := sorted({e.adapter for e in embedded.values() if e.adapter is not None}):
            raise ValueError(
                f"the model has conditions of {', '.join(map(repr, adapters))}, and can gain its own only without "
                "adapters that add some; call `unload_lora()` first"
            )
        conditions = {**had, **conditions}
        info = {**(self.config.get("condition_info") or {}), **(condition_info or {})}
        embedder = self._make_conditions(conditions, info or None, self.device, self.dtype)
        for name, embedding in embedded.items():
            embedding.condition = embedder[name].condition
            embedder[name] = embedding
        self.condition_embedder = embedder
        register_changes(self, conditions=conditions, condition_info=info or None)

    def _make_conditions(
        self,
        conditions: Mapping[str, int] | None,
        condition_info: Mapping[str, Mapping[str, Any]] | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> MarDiniConditionEmbedder | None:
        """Make the embeddings of the configured conditions; return `None` if there are none."""
        read = read_config(conditions, condition_info)
        embeddings = {
            name: MarDiniConditionEmbedding(condition, hidden_size(self)) for name, condition in read.items()
        }
        return MarDiniConditionEmbedder(embeddings).to(device, dtype).train(self.training) if embeddings else None

    def _embed_conditions(
        self, conditions: Mapping[str, torch.Tensor | None] | None, hidden_states: torch.Tensor, frames: int
    ) -> torch.Tensor | None:
        """Embed the conditions of each frame: `(batch, frames, 1, dim)`, or `None` for a model without conditions.

        Raises:
            ValueError: for unknown names and wrong shapes; values are not checked.
        """
        known = conditions_of(self)
        unknown = sorted(set(conditions or {}) - set(known))
        if unknown:
            refuse_resting(unknown, resting_conditions(self))
            takes = "; ".join(map(str, known.values()))
            raise ValueError(
                f"`conditions` has {', '.join(unknown)}, but this {type(self).__name__} takes {takes or 'none'}; "
                "leave out the others"
            )
        if self.condition_embedder is None:
            return None
        for name, values in (conditions or {}).items():
            expected = (len(hidden_states), frames, known[name].channels)
            if values is not None and tuple(values.shape) != expected:
                raise ValueError(
                    f"`conditions[{name!r}]` has shape {tuple(values.shape)}; expected {expected} (batch, frames, "
                    "channels), with NaN in all channels of absent frames"
                )
        return self.condition_embedder(conditions or {}, hidden_states, frames)


def hidden_size(model: Any) -> int:
    """Return the number of channels of a model's tokens, to which conditions are embedded."""
    return model.config.num_attention_heads * model.config.attention_head_dim


def register_changes(model: Any, **values: Any) -> None:
    """Write changed values to a model's configuration."""
    model.register_to_config(**values)
    # `from_config` drops keys that are listed as defaults.
    defaults = model.config.get("_use_default_values")
    if defaults is not None:
        defaults[:] = [key for key in defaults if key not in values]
