"""What the transformer computes once per window, and not at every step (Sec. 2.1; ours beyond the paper: also the references).

Reference frames are clean, have timestep 0 and attend to nobody else (Fig. 3), so that all of their states are free of the noise and
of the step. Masked frames need of them only the keys and values of the attention across frames; and of the plan only the keys and values of
the cross-attention and its mean. `MarDiniTransformer3DModel` makes and reads a state, who samples owns it.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch


KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class MarDiniBlockState:
    """One block's share of a `MarDiniWindowState`.

    Attributes:
        reference_key_value: of the reference frames in the attention across frames, in the sequences that attend:
            `(batch * tokens, reference frames, heads, head_dim)` for temporal, `(batch, reference frames * tokens, heads,
            head_dim)` for spatio-temporal attention.
        planning_key_value: of the planning signals of the masked frames: `(batch, masked frames, planning tokens, heads,
            head_dim)`.
    """

    reference_key_value: KeyValue
    planning_key_value: KeyValue


@dataclass(frozen=True)
class MarDiniWindowState:
    """Everything about a window that no step changes, for its masked frames to be denoised alone.

    It holds for one set of reference latents, one plan, one set of conditions and one set of weights (LoRA scales
    included): when one of them changes, make another. Under guidance each branch has its own.

    Attributes:
        blocks: a `MarDiniBlockState` for each block.
        pooled_plan: `(batch, masked frames, 1, dim)`: the mean of each frame's planning signals, embedded.
        rotary_emb: `(cos, sin)` of the masked frames' places, each `(batch, masked frames, tokens, 1, head_dim)`.
        query_rotary_emb: `(cos, sin)` of the queries of the cross-attention, each `(tokens, 1, head_dim)`.
        temporal_attention: the kind it was made for.
        size: rows and columns of patches of a frame.
        condition_emb: `(batch, masked frames, 1, dim)`: each frame's conditions, embedded; `None` for a model without.
    """

    blocks: tuple[MarDiniBlockState, ...]
    pooled_plan: torch.Tensor
    rotary_emb: tuple[torch.Tensor, torch.Tensor]
    query_rotary_emb: tuple[torch.Tensor, torch.Tensor]
    temporal_attention: str
    size: tuple[int, int]
    condition_emb: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.pooled_plan.shape[0]

    @property
    def num_masked_frames(self) -> int:
        return self.pooled_plan.shape[1]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self))

    def chunk(self, chunks: int, dim: int = 0) -> tuple["MarDiniWindowState", ...]:
        """Cuts the batch into equal parts, as `torch.Tensor.chunk` does: diffusers' FasterCache takes branches of guidance apart
        by it.

        Raises:
            ValueError: for another dimension, or a batch that cannot be cut so.
        """
        if dim != 0 or self.batch_size % chunks:
            raise ValueError(
                f"a window state of {self.batch_size} rows cannot be cut into {chunks} equal parts along dimension {dim}; "
                "use dimension 0 and a divisor of the rows"
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
