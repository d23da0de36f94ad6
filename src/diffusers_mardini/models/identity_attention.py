"""Identity attention (Sec. 2.3.2, Fig. 3): the attention across frames of both models.

A token of a reference frame attends to itself alone; a token of a masked frame attends to all tokens it is grouped with. A
softmax over one key is 1, so a reference token's output is its own value: no mask is needed, and every attention kernel
can be used. `MarDiniDenseIdentityAttnProcessor` says the same with an explicit mask; tests compare the two.
"""

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from .attention import MarDiniAttention
from .embeddings import apply_rotary_embedding


TEMPORAL_ATTENTION_KINDS = ("temporal", "spatiotemporal")


def masked_frame_index(reference_mask: torch.Tensor, num_masked_frames: int) -> torch.Tensor:
    """Where the masked frames stand in a batch whose rows all have `num_masked_frames` of them.

    Args:
        reference_mask: `(batch, frames)`, True at reference frames.

    Returns:
        `(batch * num_masked_frames,)` indices into the flattened `(batch * frames)` axis, in order. Computed without
        reading values back from the device.
    """
    batch, frames = reference_mask.shape
    order = reference_mask.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_masked_frames]
    return (order + torch.arange(batch, device=order.device)[:, None] * frames).flatten()


def _group(heads: torch.Tensor, kind: str) -> torch.Tensor:
    """`(batch, frames, tokens, heads, head_dim)` to the sequences that attend: `(sequences, length, heads, head_dim)`."""
    if kind == "temporal":
        return heads.transpose(1, 2).flatten(0, 1)  # (batch * tokens, frames, heads, head_dim)
    return heads.flatten(1, 2)  # (batch, frames * tokens, heads, head_dim)


def _ungroup(sequences: torch.Tensor, kind: str, batch: int, tokens: int) -> torch.Tensor:
    """Inverse of `_group`."""
    if kind == "temporal":
        return sequences.unflatten(0, (batch, tokens)).transpose(1, 2)
    return sequences.unflatten(1, (-1, tokens))


class MarDiniIdentityAttnProcessor:
    """Identity attention without a mask: `where(is_reference, value, attention(query, key, value))`."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "MarDiniIdentityAttention",
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        reference_mask: torch.Tensor,
        masked_index: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, frames, tokens, _ = hidden_states.shape
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, (attn.heads, -1)))
        key = apply_rotary_embedding(key, *rotary_emb)  # (batch, frames, tokens, heads, head_dim)
        value = attn.to_v(hidden_states).unflatten(-1, (attn.heads, -1))

        asking = hidden_states
        if masked_index is not None:
            # Only masked frames have something to ask: (batch, masked frames, tokens, channels).
            asking = hidden_states.flatten(0, 1).index_select(0, masked_index).unflatten(0, (batch, -1))
            rotary_emb = tuple(
                # The frame of row b, place i is masked_index % frames; tables are the same in every row of the batch.
                table.index_select(0, masked_index % frames).unflatten(0, (batch, -1))
                for table in rotary_emb
            )
        query = attn.norm_q(attn.to_q(asking).unflatten(-1, (attn.heads, -1)))
        query = apply_rotary_embedding(query, *rotary_emb)

        output = dispatch_attention_fn(
            _group(query, attn.kind),
            _group(key, attn.kind),
            _group(value, attn.kind),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        output = _ungroup(output, attn.kind, batch, tokens).type_as(value)
        if masked_index is not None:
            output = (
                value.flatten(0, 1).index_copy(0, masked_index, output.flatten(0, 1)).unflatten(0, (batch, frames))
            )
        else:
            output = torch.where(reference_mask[:, :, None, None, None], value, output)
        output = output.flatten(3)  # (batch, frames, tokens, channels)
        return attn.to_out[1](attn.to_out[0](output))


class MarDiniDenseIdentityAttnProcessor:
    """Fig. 3 to the letter, with a dense mask of `(frames * tokens)**2` per row: slow, the reference that tests hold."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "MarDiniIdentityAttention",
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        reference_mask: torch.Tensor,
        masked_index: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, frames, tokens, _ = hidden_states.shape
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, (attn.heads, -1)))
        value = attn.to_v(hidden_states).unflatten(-1, (attn.heads, -1))
        query = apply_rotary_embedding(query, *rotary_emb)
        key = apply_rotary_embedding(key, *rotary_emb)

        place = torch.arange(frames * tokens, device=hidden_states.device)
        itself = place[:, None] == place  # (frames * tokens, frames * tokens)
        allowed = torch.ones_like(itself)
        if attn.kind == "temporal":
            allowed = place[:, None] % tokens == place % tokens
        is_reference = reference_mask.repeat_interleave(tokens, dim=1)  # (batch, frames * tokens)
        mask = torch.where(is_reference[:, :, None], itself, allowed)[:, None]  # (batch, 1, query, key)

        output = torch.nn.functional.scaled_dot_product_attention(
            *(heads.flatten(1, 2).transpose(1, 2) for heads in (query, key, value)), attn_mask=mask
        )
        output = output.transpose(1, 2).unflatten(1, (frames, tokens)).flatten(3)  # (batch, frames, tokens, channels)
        return attn.to_out[1](attn.to_out[0](output))


class MarDiniIdentityAttention(MarDiniAttention):
    """Attention across frames in which reference frames keep to themselves (Sec. 2.3.2, Fig. 3).

    Args:
        dim, heads, head_dim: as in `MarDiniAttention`.
        kind: `"spatiotemporal"`, a token of a masked frame attends to all tokens of all frames, or `"temporal"`, to the tokens
            at its own place in all frames. The weights are the same; only the grouping of tokens changes (Sec. 2.4.2).
    """

    _default_processor_cls = MarDiniIdentityAttnProcessor
    _available_processors = [MarDiniIdentityAttnProcessor, MarDiniDenseIdentityAttnProcessor]

    def __init__(self, dim: int, heads: int, head_dim: int, kind: str = "spatiotemporal", eps: float = 1e-6):
        super().__init__(dim, heads, head_dim, eps=eps)
        self.kind = kind

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        reference_mask: torch.Tensor,
        masked_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends across frames.

        Args:
            hidden_states: `(batch, frames, tokens, dim)`.
            rotary_emb: `(cos, sin)`, each `(frames, tokens, 1, head_dim // 2)`.
            reference_mask: `(batch, frames)`, True at reference frames.
            masked_index: from `masked_frame_index`, where every row has the same number of masked frames: then only their
                queries are computed. `None` computes all queries and takes what the mask allows.

        Returns:
            `(batch, frames, tokens, dim)`.
        """
        return self.processor(self, hidden_states, rotary_emb, reference_mask, masked_index)
