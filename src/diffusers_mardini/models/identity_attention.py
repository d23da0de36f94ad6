"""Identity attention (Sec. 2.3.2, Fig. 3): the attention across frames of both models.

A token of a reference frame attends to itself alone; a token of a masked frame attends to all tokens of its group. A
softmax over one key is 1, so the output of a reference token is its own value: no mask is needed, and every attention
kernel can be used. `MarDiniDenseIdentityAttnProcessor` does the same with an explicit mask; tests compare the two.
"""

import torch

from .attention import KeyValue, MarDiniAttention, attend
from .embeddings import RotaryEmbedding
from .window import WindowLayout, rotary_embedding_at


TEMPORAL_ATTENTION_KINDS = ("temporal", "spatiotemporal")


def check_temporal_attention(kind: str) -> None:
    """Raise `ValueError` if `kind` is no kind of attention across frames."""
    if kind not in TEMPORAL_ATTENTION_KINDS:
        raise ValueError(f"`temporal_attention` is {kind!r}; accepted are {TEMPORAL_ATTENTION_KINDS}")


def group(heads: torch.Tensor, kind: str) -> torch.Tensor:
    """Group tokens by which attend to each other: `(batch, frames, tokens, heads, head_dim)` to
    `(sequences, length, heads, head_dim)`."""
    if kind == "temporal":
        return heads.transpose(1, 2).flatten(0, 1)  # (batch * tokens, frames, heads, head_dim)
    return heads.flatten(1, 2)  # (batch, frames * tokens, heads, head_dim)


def _ungroup(sequences: torch.Tensor, kind: str, batch: int, tokens: int) -> torch.Tensor:
    """Invert `group`."""
    if kind == "temporal":
        return sequences.unflatten(0, (batch, tokens)).transpose(1, 2)
    return sequences.unflatten(1, (-1, tokens))


class MarDiniIdentityAttnProcessor:
    """Compute identity attention without a mask: `where(is_reference, value, attention(query, key, value))`."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "MarDiniIdentityAttention",
        hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        layout: WindowLayout | None,
        reference_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Apply `attn`, see `MarDiniIdentityAttention.forward`."""
        batch, _, tokens, _ = hidden_states.shape
        key, value = attn.keys_and_values(hidden_states, rotary_emb)  # (batch, frames, tokens, heads, head_dim)

        queries_alone = layout is not None and layout.masked_index is not None
        if queries_alone:
            # Only masked frames need queries: (batch, masked frames, tokens, channels).
            hidden_states = layout.masked_frames(hidden_states)
            rotary_emb = rotary_embedding_at(rotary_emb, layout.masked_index, batch)
        query = attn.queries(hidden_states, rotary_emb)

        keys, values = group(key, attn.kind), group(value, attn.kind)
        if reference_key_value is not None:
            # Softmax does not depend on the order of keys: reference frames come first.
            keys, values = (torch.cat(pair, dim=1) for pair in zip(reference_key_value, (keys, values)))
        output = attend(
            group(query, attn.kind),
            keys,
            values,
            backend=self._attention_backend,
            # Context parallelism splits the tokens of a frame: all frames of one place are on one device.
            parallel_config=None if attn.kind == "temporal" else self._parallel_config,
        )
        output = _ungroup(output, attn.kind, batch, tokens).type_as(value)
        if queries_alone:
            output = layout.replace_masked_frames(value, output)
        elif layout is not None:
            output = torch.where(layout.reference_mask[:, :, None, None, None], value, output)
        output = output.flatten(3)  # (batch, frames, tokens, channels)
        return attn.to_out[1](attn.to_out[0](output))


class MarDiniDenseIdentityAttnProcessor:
    """Compute Fig. 3 to the letter, with a dense mask of `(frames * tokens)**2` per row: slow, the reference for
    tests."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "MarDiniIdentityAttention",
        hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        layout: WindowLayout | None,
        reference_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Apply `attn`, see `MarDiniIdentityAttention.forward`."""
        _batch, frames, tokens, _ = hidden_states.shape
        if reference_key_value is not None:
            raise ValueError(
                "the dense form of identity attention takes whole windows only; sample without a window state"
            )
        query = attn.queries(hidden_states, rotary_emb)
        key, value = attn.keys_and_values(hidden_states, rotary_emb)

        place = torch.arange(frames * tokens, device=hidden_states.device)
        itself = place[:, None] == place  # (frames * tokens, frames * tokens)
        allowed = torch.ones_like(itself)
        if attn.kind == "temporal":
            allowed = place[:, None] % tokens == place % tokens
        is_reference = layout.reference_mask.repeat_interleave(tokens, dim=1)  # (batch, frames * tokens)
        mask = torch.where(is_reference[:, :, None], itself, allowed)[:, None]  # (batch, 1, query, key)

        output = torch.nn.functional.scaled_dot_product_attention(
            *(heads.flatten(1, 2).transpose(1, 2) for heads in (query, key, value)), attn_mask=mask
        )
        output = output.transpose(1, 2).unflatten(1, (frames, tokens)).flatten(3)  # (batch, frames, tokens, channels)
        return attn.to_out[1](attn.to_out[0](output))


class MarDiniFullAttnProcessor(MarDiniIdentityAttnProcessor):
    """Let every token attend to its whole group, those of reference frames too; the comparison of Fig. 6c."""

    def __call__(
        self,
        attn: "MarDiniIdentityAttention",
        hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        layout: WindowLayout | None,
        reference_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Apply `attn`, see `MarDiniIdentityAttention.forward`."""
        if reference_key_value is not None:
            raise ValueError(
                "without identity attention reference frames depend on the masked ones, so that no state of them can "
                "be kept; sample without a window state"
            )
        # Where no frame is a reference frame, identity attention is plain attention.
        return super().__call__(attn, hidden_states, rotary_emb, None)


class MarDiniIdentityAttention(MarDiniAttention):
    """Attention across frames in which tokens of reference frames attend only to themselves (Sec. 2.3.2, Fig. 3).

    Args:
        dim, heads, head_dim: as in `MarDiniAttention`.
        kind: tokens of masked frames attend to all tokens of all frames (`"spatiotemporal"`), or to the tokens at
            their own place in all frames (`"temporal"`). The weights are the same; only the grouping of tokens changes
            (Sec. 2.4.2).
        identity: `False` lets reference frames attend as masked ones do (Fig. 6c); the weights are the same.
    """

    _default_processor_cls = MarDiniIdentityAttnProcessor
    _available_processors = [MarDiniIdentityAttnProcessor, MarDiniDenseIdentityAttnProcessor, MarDiniFullAttnProcessor]

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        kind: str = "spatiotemporal",
        eps: float = 1e-6,
        identity: bool = True,
    ):
        super().__init__(dim, heads, head_dim, eps=eps)
        self.kind = kind
        if not identity:
            self.set_processor(MarDiniFullAttnProcessor())

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        layout: WindowLayout | None = None,
        reference_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Attend across frames.

        Args:
            hidden_states: `(batch, frames, tokens, dim)`.
            rotary_emb: `(cos, sin)`, each `(frames, tokens, 1, head_dim)`, or with a batch axis before it.
            layout: of the window. Where it has an index of the masked frames, only their queries are computed.
            reference_key_value: keys and values of the reference frames, from `reference_step`; `hidden_states` then
                holds the masked frames alone, and `layout` is `None`.

        Returns:
            `(batch, frames, tokens, dim)`.
        """
        return self.processor(self, hidden_states, rotary_emb, layout, reference_key_value)

    def reference_step(
        self, hidden_states: torch.Tensor, rotary_emb: RotaryEmbedding
    ) -> tuple[torch.Tensor, KeyValue]:
        """Apply the layer to reference frames alone, for which it is the identity on values (Fig. 3).

        Args:
            hidden_states: reference frames, `(batch, reference frames, tokens, dim)`.
            rotary_emb: tables of their places, `(batch, reference frames, tokens, 1, head_dim)`.

        Returns:
            The output, shaped like `hidden_states`; and the keys and values for masked frames, grouped as `group`
            does.
        """
        key, value = self.keys_and_values(hidden_states, rotary_emb)
        output = self.to_out[1](self.to_out[0](value.flatten(3)))
        return output, (group(key, self.kind).contiguous(), group(value, self.kind).contiguous())
