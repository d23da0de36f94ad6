"""Identity attention (Sec. 2.3.2, Fig. 3): the attention across frames of both models.

A token of a reference frame attends to itself alone; a token of a masked frame attends to all tokens it is grouped with. A
softmax over one key is 1, so a reference token's output is its own value: no mask is needed, and every attention kernel
can be used. `MarDiniDenseIdentityAttnProcessor` says the same with an explicit mask; tests compare the two.
"""

import torch

from .attention import MarDiniAttention, attend
from .compiling import standalone


TEMPORAL_ATTENTION_KINDS = ("temporal", "spatiotemporal")


def masked_frame_index(reference_mask: torch.Tensor, num_masked_frames: int) -> torch.Tensor:
    """Where the masked frames stand in a batch whose rows all have `num_masked_frames` of them.

    Args:
        reference_mask: `(batch, frames)`, True at reference frames.

    Returns:
        `(batch * num_masked_frames,)` indices into the flattened `(batch * frames)` axis, in order. Computed without
        reading values back from the device.
    """
    return frame_indices(reference_mask, num_masked_frames)[0]


def frame_indices(reference_mask: torch.Tensor, num_masked_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`masked_frame_index` and the same of the reference frames, `(batch * num_reference_frames,)`."""
    batch, frames = reference_mask.shape
    order = reference_mask.to(torch.uint8).argsort(dim=1, stable=True)  # masked frames first
    order = order + torch.arange(batch, device=order.device)[:, None] * frames
    return standalone((order[:, :num_masked_frames].flatten(), order[:, num_masked_frames:].flatten()))


def frames_at(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The frames of `states` `(batch, frames, ...)` that `index` (of `frame_indices`) names: `(batch, chosen frames, ...)`."""
    return states.flatten(0, 1).index_select(0, index).unflatten(0, (len(states), -1))


def rotary_embedding_at(
    rotary_emb: tuple[torch.Tensor, torch.Tensor], index: torch.Tensor, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary tables `(frames, tokens, 1, head_dim)`, the same in every row of the batch, at the frames that `index` names:
    `(batch, chosen frames, tokens, 1, head_dim)`."""
    cos, sin = (table.index_select(0, index % len(table)).unflatten(0, (batch, -1)) for table in rotary_emb)
    return cos, sin


def group(heads: torch.Tensor, kind: str) -> torch.Tensor:
    """`(batch, frames, tokens, heads, head_dim)` to the sequences that attend: `(sequences, length, heads, head_dim)`."""
    if kind == "temporal":
        return heads.transpose(1, 2).flatten(0, 1)  # (batch * tokens, frames, heads, head_dim)
    return heads.flatten(1, 2)  # (batch, frames * tokens, heads, head_dim)


def _ungroup(sequences: torch.Tensor, kind: str, batch: int, tokens: int) -> torch.Tensor:
    """Inverse of `group`."""
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
        reference_mask: torch.Tensor | None,
        masked_index: torch.Tensor | None,
        reference_key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        batch, frames, tokens, _ = hidden_states.shape
        key, value = attn.keys_and_values(hidden_states, rotary_emb)  # (batch, frames, tokens, heads, head_dim)

        asking = hidden_states
        if masked_index is not None:
            # Only masked frames have something to ask: (batch, masked frames, tokens, channels).
            asking = frames_at(hidden_states, masked_index)
            rotary_emb = rotary_embedding_at(rotary_emb, masked_index, batch)
        query = attn.queries(asking, rotary_emb)

        keys, values = group(key, attn.kind), group(value, attn.kind)
        if reference_key_value is not None:
            # The order of keys is of no importance to a softmax: references first.
            keys, values = (torch.cat(pair, dim=1) for pair in zip(reference_key_value, (keys, values)))
        output = attend(
            group(query, attn.kind),
            keys,
            values,
            backend=self._attention_backend,
            # Where tokens are shared out over devices, all frames of a place are on one of them.
            parallel_config=None if attn.kind == "temporal" else self._parallel_config,
        )
        output = _ungroup(output, attn.kind, batch, tokens).type_as(value)
        if masked_index is not None:
            output = (
                value.flatten(0, 1).index_copy(0, masked_index, output.flatten(0, 1)).unflatten(0, (batch, frames))
            )
        elif reference_key_value is None:
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
        reference_key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        _batch, frames, tokens, _ = hidden_states.shape
        if reference_key_value is not None:
            raise ValueError(
                "the dense form of identity attention knows whole windows only; sample without a window state"
            )
        query = attn.queries(hidden_states, rotary_emb)
        key, value = attn.keys_and_values(hidden_states, rotary_emb)

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


class MarDiniFullAttnProcessor(MarDiniIdentityAttnProcessor):
    """Every token attends to all it is grouped with, reference tokens too: what Fig. 6c compares identity attention with."""

    def __call__(
        self,
        attn: "MarDiniIdentityAttention",
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        reference_mask: torch.Tensor | None,
        masked_index: torch.Tensor | None,
        reference_key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if reference_key_value is not None:
            raise ValueError(
                "without identity attention reference frames follow the masked ones, so that no state of theirs can be kept; sample "
                "without a window state"
            )
        # A window that keeps no frame: identity attention is plain attention there.
        return super().__call__(attn, hidden_states, rotary_emb, torch.zeros_like(reference_mask), None)


class MarDiniIdentityAttention(MarDiniAttention):
    """Attention across frames in which reference frames keep to themselves (Sec. 2.3.2, Fig. 3).

    Args:
        dim, heads, head_dim: as in `MarDiniAttention`.
        kind: `"spatiotemporal"`, a token of a masked frame attends to all tokens of all frames, or `"temporal"`, to the tokens
            at its own place in all frames. The weights are the same; only the grouping of tokens changes (Sec. 2.4.2).
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
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        reference_mask: torch.Tensor | None,
        masked_index: torch.Tensor | None = None,
        reference_key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attends across frames.

        Args:
            hidden_states: `(batch, frames, tokens, dim)`.
            rotary_emb: `(cos, sin)`, each `(frames, tokens, 1, head_dim)`, or with a batch axis before it.
            reference_mask: `(batch, frames)`, True at reference frames.
            masked_index: from `masked_frame_index`, where every row has the same number of masked frames: then only their
                queries are computed. `None` computes all queries and takes what the mask allows.
            reference_key_value: from `reference_step`, the keys and values of the reference frames; `hidden_states` then
                holds the masked frames alone, and the two arguments before are not read.

        Returns:
            `(batch, frames, tokens, dim)`.
        """
        return self.processor(self, hidden_states, rotary_emb, reference_mask, masked_index, reference_key_value)

    def reference_step(
        self, hidden_states: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The layer for reference frames alone: the identity (Fig. 3), and what masked frames will ask them.

        Args:
            hidden_states: reference frames, `(batch, reference frames, tokens, dim)`.
            rotary_emb: their places, `(batch, reference frames, tokens, 1, head_dim)`.

        Returns:
            The layer's output, shaped as `hidden_states`, and keys and values in the sequences that attend (see `group`).
        """
        key, value = self.keys_and_values(hidden_states, rotary_emb)
        output = self.to_out[1](self.to_out[0](value.flatten(3)))
        return output, (group(key, self.kind).contiguous(), group(value, self.kind).contiguous())
