"""Attention with query/key norm and rotary positions, and RMSNorm.

The spatial and the cross-attention of both models use it as it is; the attention across frames is in
`identity_attention.py`. `attend` chooses the kernel: diffusers' attention dispatcher, except for some cases on a CPU.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from .embeddings import RotaryEmbedding, apply_rotary_embedding


KeyValue = tuple[torch.Tensor, torch.Tensor]

# Up to this many keys, plain matrix products are faster on a CPU than torch's fused kernel (`python -m
# benchmarks.attention_forms`). Beyond, their table of scores does not fit into the processor's cache; in float32 they
# gain nothing. The fused kernel's backward pass is slow in every dtype and at every length tried.
LONGEST_PLAIN_ON_CPU = {torch.bfloat16: 512}
# A CUDA grid has at most this many rows, and attention across frames has a sequence for each place of a picture.
MOST_SEQUENCES = 65_535
# FlashAttention accumulates the gradient of queries in float32, with each sequence padded to whole blocks and offsets
# of 32 bits: up to 1 GiB it neither overflows nor dominates the memory of a step.
QUERY_BLOCK, MOST_QUERY_GRADIENTS = 128, 2**28


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    backend: AttentionBackendName | None = None,
    parallel_config: Any = None,
) -> torch.Tensor:
    """Compute softmax attention without a mask, by the fastest exact form.

    Args:
        query: `(sequences, length, heads, head_dim)`.
        key, value: `(sequences, keys, heads, head_dim)`.
        backend: of diffusers' dispatcher, if the user set one; `None` leaves the choice to this function.
        parallel_config: of diffusers' context parallelism.

    Returns:
        A tensor shaped like `query`.
    """
    if parallel_config is not None and query.requires_grad:
        shared = parallel_config.context_parallel_config
        if shared.ring_degree == 1:
            return attend_to_all_tokens(query, key, value, backend, shared._ulysses_mesh.get_group())
    plain = (
        backend is None
        and parallel_config is None
        and query.device.type == "cpu"
        and (query.requires_grad or key.shape[1] <= LONGEST_PLAIN_ON_CPU.get(query.dtype, 0))
        and _AttentionBackendRegistry.get_active_backend()[0] == AttentionBackendName.NATIVE
    )
    if plain:
        return attend_by_products(query, key, value)
    most = query.shape[0] if query.device.type == "cpu" or parallel_config is not None else most_sequences(query)
    return in_parts(
        lambda *heads: dispatch_attention_fn(*heads, backend=backend, parallel_config=parallel_config),
        most, query, key, value,
    )  # fmt: skip


def attend_to_all_tokens(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackendName | None, group: Any
) -> torch.Tensor:
    """Compute `attend` where each process of a group has some tokens, with gradients: each takes some heads of all.

    diffusers' own form (Ulysses) has a backward pass for as many queries as keys alone, but only masked frames have
    queries.
    """
    exchange = token_exchange()
    heads = (exchange.apply(group, tensor) for tensor in (query, key, value))
    return exchange.apply(group, attend(*heads, backend), 1, 2)


def token_exchange() -> Any:
    """Return the function by which processes exchange tokens for heads, with a gradient; private to diffusers.

    Raises:
        ValueError: if the installed diffusers has none.
    """
    found = getattr(attention_dispatch, "SeqAllToAllDim", None)
    if found is None:
        raise ValueError(
            f"processes cannot share tokens in training with diffusers {diffusers.__version__}, which has no "
            "`SeqAllToAllDim`; install diffusers 0.42, or set parallelism_config_cp_size to 1"
        )
    return found


def most_sequences(query: torch.Tensor) -> int:
    """Return how many sequences of queries `(sequences, length, heads, head_dim)` a fused GPU kernel takes at once."""
    if not query.requires_grad:
        return MOST_SEQUENCES
    _, length, heads, head_dim = query.shape
    padded = -(-length // QUERY_BLOCK) * QUERY_BLOCK * heads * head_dim
    return max(1, min(MOST_SEQUENCES, MOST_QUERY_GRADIENTS // padded))


def in_parts(
    form: Callable[..., torch.Tensor], most: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Return `form(query, key, value)`, computed on at most `most` sequences at a time."""
    if query.shape[0] <= most:
        return form(query, key, value)
    parts = zip(*(tensor.tensor_split(-(-query.shape[0] // most)) for tensor in (query, key, value)))
    return torch.cat([form(*part) for part in parts])


def attend_by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute `attend` as two batched matrix products and a softmax."""
    sequences, length, heads, head_dim = query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    scores = query.new_zeros(1, 1, 1).expand(sequences * heads, length, key.shape[1])
    scores = torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=head_dim**-0.5)
    output = torch.bmm(scores.softmax(dim=-1).type_as(value), value)  # (sequences * heads, length, head_dim)
    return output.unflatten(0, (sequences, heads)).transpose(1, 2)


class FP32RMSNorm(nn.Module):
    """RMSNorm (Llama) that computes in float32 whatever the dtypes of weights and input, and returns the input's
    dtype."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalize the last axis."""
        weight = self.weight.float()
        return F.rms_norm(hidden_states.float(), weight.shape, weight, self.eps).type_as(hidden_states)


class MarDiniAttnProcessor:
    """Attend within each frame: the frames of a batch are separate sequences."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "MarDiniAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        query_rotary_emb: RotaryEmbedding,
        key_rotary_emb: RotaryEmbedding,
        key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Apply `attn`, see `MarDiniAttention.forward`."""
        batch, frames = hidden_states.shape[:2]
        query = attn.queries(hidden_states, query_rotary_emb)  # (batch, frames, tokens, heads, head_dim)
        if key_value is None:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            key_value = attn.keys_and_values(context, key_rotary_emb)
        key, value = key_value

        output = attend(
            query.flatten(0, 1),  # (batch * frames, tokens, heads, head_dim)
            key.flatten(0, 1),
            value.flatten(0, 1),
            backend=self._attention_backend,
            # Planning tokens are few and belong to one frame: cross-attention is never split over devices.
            parallel_config=None if attn.is_cross_attention else self._parallel_config,
        )
        output = output.flatten(2).unflatten(0, (batch, frames)).type_as(query)  # (batch, frames, tokens, channels)
        return attn.to_out[1](attn.to_out[0](output))


class MarDiniAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with layer norm on the projected queries and keys (Sec. 2.2) and rotary positions.

    Args:
        dim: channels of the queries' tokens.
        heads, head_dim: number of heads and channels of each.
        cross_attention_dim: channels of the context; `None` for self-attention.
    """

    _default_processor_cls = MarDiniAttnProcessor
    _available_processors = [MarDiniAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, dim: int, heads: int, head_dim: int, cross_attention_dim: int | None = None, eps: float = 1e-6):
        super().__init__()
        inner_dim = heads * head_dim
        context_dim = dim if cross_attention_dim is None else cross_attention_dim
        self.heads = heads
        self.is_cross_attention = cross_attention_dim is not None
        self.to_q = nn.Linear(dim, inner_dim)
        self.to_k = nn.Linear(context_dim, inner_dim)
        self.to_v = nn.Linear(context_dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim), nn.Dropout(0.0)])
        self.norm_q = FP32LayerNorm(head_dim, eps)
        self.norm_k = FP32LayerNorm(head_dim, eps)
        self.set_processor(self._default_processor_cls())

    def queries(self, hidden_states: torch.Tensor, rotary_emb: RotaryEmbedding) -> torch.Tensor:
        """Return queries of tokens, normalized and rotated: `(batch, frames, tokens, dim)` to
        `(batch, frames, tokens, heads, head_dim)`."""
        return self._place(self.to_q(hidden_states), self.norm_q, rotary_emb)

    def keys_and_values(self, context: torch.Tensor, rotary_emb: RotaryEmbedding) -> KeyValue:
        """Return keys (normalized and rotated) and values of the context, shaped like the result of `queries`."""
        key = self._place(self.to_k(context), self.norm_k, rotary_emb)
        return key, self.to_v(context).unflatten(-1, (self.heads, -1))

    def _place(self, projected: torch.Tensor, norm: nn.Module, rotary_emb: RotaryEmbedding) -> torch.Tensor:
        # Norm and rotation are in float32, without rounding in between.
        heads = norm(projected.float().unflatten(-1, (self.heads, -1)))
        return apply_rotary_embedding(heads, *rotary_emb).type_as(projected)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_rotary_emb: RotaryEmbedding,
        key_rotary_emb: RotaryEmbedding | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Attend within each frame.

        Args:
            hidden_states: `(batch, frames, tokens, dim)`.
            query_rotary_emb, key_rotary_emb: `(cos, sin)` that broadcast against `(batch, frames, tokens, heads,
                head_dim)`; by default the keys use those of the queries.
            encoder_hidden_states: `(batch, frames, context tokens, cross_attention_dim)`, for cross-attention.
            key_value: result of `keys_and_values` for the context, instead of the context.

        Returns:
            `(batch, frames, tokens, dim)`.
        """
        key_rotary_emb = query_rotary_emb if key_rotary_emb is None else key_rotary_emb
        return self.processor(self, hidden_states, encoder_hidden_states, query_rotary_emb, key_rotary_emb, key_value)
