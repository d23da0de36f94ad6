"""A window: which of its frames are reference frames, and what the transformer computes once for it.

`WindowLayout` is made once per window and travels through both models. `MarDiniWindowState` (ours beyond the paper)
holds what no step changes: reference frames are clean, have timestep 0 and attend only to themselves (Fig. 3), so that
their states do not depend on the noise. The transformer creates and reads a state; `pipelines/velocities.py` owns it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..masking import reference_mask_from_indices
from .attention import KeyValue
from .compiling import standalone
from .embeddings import RotaryEmbedding


@dataclass(frozen=True)
class WindowLayout:
    """Hold which frames of a window are reference frames, and where the masked ones lie in a batch.

    It has no other fields, because compiled blocks make another graph wherever a field changes.

    Attributes:
        reference_mask: `(batch, frames)`, True at reference frames.
        masked_index: `(batch * num_masked_frames,)`, places of the masked frames on the flattened `(batch * frames)`
            axis, in order; `None` where rows may have different numbers of masked frames.
    """

    reference_mask: torch.Tensor
    masked_index: torch.Tensor | None = None

    @classmethod
    def from_mask(cls, reference_mask: torch.Tensor, num_masked_frames: int | None = None) -> "WindowLayout":
        """Make the layout of a mask, without reading values back from the device.

        Args:
            reference_mask: `(batch, frames)`, True at reference frames.
            num_masked_frames: of every row, which the caller guarantees; `None` where rows differ.
        """
        index = None if num_masked_frames is None else _frame_order(reference_mask)[:, :num_masked_frames].flatten()
        return cls(*standalone((reference_mask, index)))

    @classmethod
    def from_given_indices(
        cls, given_indices: Sequence[int], num_frames: int, batch_size: int, device: torch.device | None = None
    ) -> "WindowLayout":
        """Make the layout of windows whose frames at `given_indices` are given, the same in every row."""
        mask = reference_mask_from_indices(given_indices, num_frames, batch_size, device)
        return cls.from_mask(mask, num_frames - len(given_indices))

    @property
    def num_masked_frames(self) -> int | None:
        """Number of masked frames of every row; `None` where rows may differ."""
        return None if self.masked_index is None else len(self.masked_index) // len(self.reference_mask)

    @property
    def reference_index(self) -> torch.Tensor:
        """Places of the reference frames, like `masked_index`; computed at each access, and for rows that agree."""
        return standalone(_frame_order(self.reference_mask)[:, self.num_masked_frames :].flatten())

    def masked_frames(self, states: torch.Tensor) -> torch.Tensor:
        """Return the masked frames of `states`: `(batch, frames, ...)` to `(batch, masked frames, ...)`."""
        return frames_at(states, self.masked_index)

    def replace_masked_frames(self, states: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Return a copy of `states` `(batch, frames, ...)` with `masked` `(batch, masked frames, ...)` in place."""
        flat, masked = states.flatten(0, 1), masked.flatten(0, 1)
        if states.device.type == "mps":  # has no `index_copy` before torch 2.8, and a slow one since
            flat = flat.index_put((self.masked_index,), masked)
        else:
            flat = flat.index_copy(0, self.masked_index, masked)
        return flat.unflatten(0, states.shape[:2])

    def to(self, *args: Any, **kwargs: Any) -> "WindowLayout":
        """Move the tensors, see `torch.Tensor.to`: accelerate does so for blocks that lie on other devices."""
        index = None if self.masked_index is None else self.masked_index.to(*args, **kwargs)
        return replace(self, reference_mask=self.reference_mask.to(*args, **kwargs), masked_index=index)


def frames_at(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the frames of `states` `(batch, frames, ...)` at `index`, an index of `WindowLayout`:
    `(batch, chosen frames, ...)`."""
    return states.flatten(0, 1).index_select(0, index).unflatten(0, (len(states), -1))


def rotary_embedding_at(rotary_emb: RotaryEmbedding, index: torch.Tensor, batch: int) -> RotaryEmbedding:
    """Return rotary tables of the frames at `index`, an index of `WindowLayout`.

    Args:
        rotary_emb: tables of all frames, the same for every row: `(frames, tokens, 1, head_dim)`.
        index: places on the flattened `(batch * frames)` axis.
        batch: number of rows.

    Returns:
        Tables `(batch, chosen frames, tokens, 1, head_dim)`.
    """
    cos, sin = (table.index_select(0, index % len(table)).unflatten(0, (batch, -1)) for table in rotary_emb)
    return cos, sin


def _frame_order(reference_mask: torch.Tensor) -> torch.Tensor:
    """Return places on the flattened axis, masked frames of each row first: `(batch, frames)`."""
    batch, frames = reference_mask.shape
    order = reference_mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order + torch.arange(batch, device=order.device)[:, None] * frames


@dataclass(frozen=True)
class MarDiniBlockState:
    """One block's share of a `MarDiniWindowState`.

    Attributes:
        reference_key_value: keys and values of the reference frames in the attention across frames, as sequences:
            `(batch * tokens, reference frames, heads, head_dim)` for temporal attention, `(batch, reference frames *
            tokens, heads, head_dim)` for spatio-temporal attention.
        planning_key_value: keys and values of the masked frames' planning signals: `(batch, masked frames, planning
            tokens, heads, head_dim)`.
    """

    reference_key_value: KeyValue
    planning_key_value: KeyValue


@dataclass(frozen=True)
class MarDiniWindowState:
    """Everything about a window that no step changes, for its masked frames to be denoised alone.

    It is valid for one set of reference latents, planning signals, conditions and weights (LoRA scales included): when
    one of them changes, make another. Under guidance each branch has its own.

    Attributes:
        blocks: a `MarDiniBlockState` for each block.
        pooled_planning_signals: `(batch, masked frames, 1, dim)`: the mean of each frame's planning signals, embedded.
        rotary_emb: `(cos, sin)` of the masked frames' places, each `(batch, masked frames, tokens, 1, head_dim)`.
        query_rotary_emb: `(cos, sin)` of the queries of the cross-attention, each `(tokens, 1, head_dim)`.
        temporal_attention: the kind it was made for.
        size: rows and columns of patches of a frame.
        condition_emb: `(batch, masked frames, 1, dim)`: each frame's conditions, embedded; `None` for a model without.
    """

    blocks: tuple[MarDiniBlockState, ...]
    pooled_planning_signals: torch.Tensor
    rotary_emb: RotaryEmbedding
    query_rotary_emb: RotaryEmbedding
    temporal_attention: str
    size: tuple[int, int]
    condition_emb: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.pooled_planning_signals.shape[0]

    @property
    def num_masked_frames(self) -> int:
        """Number of masked frames of every row."""
        return self.pooled_planning_signals.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self))

    def chunk(self, chunks: int, dim: int = 0) -> tuple["MarDiniWindowState", ...]:
        """Cut the batch into equal parts, as `torch.Tensor.chunk` does: FasterCache separates branches of guidance so.

        Raises:
            ValueError: for another dimension, or a batch that cannot be cut so.
        """
        if dim != 0 or self.batch_size % chunks:
            raise ValueError(
                f"a window state of {self.batch_size} rows cannot be cut into {chunks} equal parts along dimension "
                f"{dim}; use dimension 0 and a divisor of the rows"
            )
        return tuple(_take(self, chunks, i, shared=("query_rotary_emb",)) for i in range(chunks))


def _take(value: Any, chunks: int, i: int, shared: tuple[str, ...] = ()) -> Any:
    if isinstance(value, torch.Tensor):
        return value.chunk(chunks)[i]
    if isinstance(value, (MarDiniWindowState, MarDiniBlockState)):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return type(value)(**{k: v if k in shared else _take(v, chunks, i) for k, v in parts.items()})
    if isinstance(value, tuple) and any(not isinstance(part, int) for part in value):
        return tuple(_take(part, chunks, i) for part in value)
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (MarDiniWindowState, MarDiniBlockState)):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []


def check_window(
    hidden_states: torch.Tensor, reference_mask: torch.Tensor, in_channels: int, num_masked_frames: int | None
) -> None:
    """Raise `ValueError` if a window of latents and its mask do not fit together; reads shapes and dtypes only."""
    if hidden_states.ndim != 5:
        raise ValueError(
            f"`hidden_states` has shape {tuple(hidden_states.shape)}; expected 5 dimensions "
            "(batch, frames, channels, height, width)"
        )
    if hidden_states.shape[2] != in_channels:
        raise ValueError(
            f"`hidden_states` has {hidden_states.shape[2]} channels in dimension 2, but this model takes "
            f"{in_channels}; expected (batch, frames, channels, height, width)"
        )
    if reference_mask.dtype != torch.bool or reference_mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"`reference_mask` is {reference_mask.dtype} of shape {tuple(reference_mask.shape)}; expected torch.bool "
            f"of shape {tuple(hidden_states.shape[:2])} (batch, frames), True at reference frames"
        )
    if num_masked_frames is not None and not 0 < num_masked_frames <= hidden_states.shape[1]:
        raise ValueError(
            f"`num_masked_frames` is {num_masked_frames}; expected 1 to {hidden_states.shape[1]}, the window's "
            "frames, or None"
        )


def check_planning_signals(
    planning_signals: torch.Tensor, planning_signals_mask: torch.Tensor | None, window: tuple[int, int], dim: int
) -> None:
    """Raise `ValueError` if planning signals do not fit a window of (batch, frames) or a transformer of `dim`."""
    batch, frames = window
    if planning_signals.ndim != 5 or planning_signals.shape[:2] != window:
        raise ValueError(
            f"`planning_signals` has shape {tuple(planning_signals.shape)}; expected ({batch}, {frames}, planner "
            f"rows, planner columns, {dim}), the planner's output for the same window"
        )
    if planning_signals.shape[-1] != dim:
        raise ValueError(
            f"`planning_signals` has {planning_signals.shape[-1]} channels, but this transformer was built with "
            f"`planning_dim={dim}`; use the planner it was trained with"
        )
    mask = planning_signals_mask
    if mask is not None and (mask.shape != (batch,) or mask.dtype != torch.bool):
        raise ValueError(
            f"`planning_signals_mask` is {mask.dtype} shaped {tuple(mask.shape)}; expected booleans shaped "
            f"({batch},), one for each row of the batch"
        )
