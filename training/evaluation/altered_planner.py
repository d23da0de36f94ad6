"""Planners that know less: attention restricted to near frames, other resolutions, and generated in place of given frames.

Alterations of signals that are there already are in `altered_signals.py`, with the scale on which all are measured.
"""

import contextlib
from collections.abc import Iterator

import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.models.attention import KeyValue
from diffusers_mardini.models.embeddings import RotaryEmbedding
from diffusers_mardini.models.identity_attention import MarDiniIdentityAttention
from diffusers_mardini.models.window import WindowLayout
from training.evaluation.altered_signals import Alteration, SignalContext


class NearFramesAttnProcessor:
    """Compute identity attention whose masked tokens see frames up to `reach` places away, with a dense mask."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, reach: int):
        self.reach = reach

    def __call__(
        self,
        attn: MarDiniIdentityAttention,
        hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        layout: WindowLayout,
        reference_key_value: KeyValue | None = None,
    ) -> torch.Tensor:
        """Apply `attn`, see `MarDiniIdentityAttention.forward`; whole windows only."""
        assert reference_key_value is None, "a planner keeps no state of a window"
        _batch, frames, tokens, _ = hidden_states.shape
        query = attn.queries(hidden_states, rotary_emb)
        key, value = attn.keys_and_values(hidden_states, rotary_emb)

        place = torch.arange(frames * tokens, device=hidden_states.device)
        frame = place // tokens
        near = (frame[:, None] - frame).abs() <= self.reach  # (frames * tokens, frames * tokens)
        is_reference = layout.reference_mask.repeat_interleave(tokens, dim=1)  # (batch, frames * tokens)
        mask = torch.where(is_reference[:, :, None], place[:, None] == place, near)[:, None]

        output = torch.nn.functional.scaled_dot_product_attention(
            *(heads.flatten(1, 2).transpose(1, 2) for heads in (query, key, value)), attn_mask=mask
        )
        output = output.transpose(1, 2).unflatten(1, (frames, tokens)).flatten(3)  # (batch, frames, tokens, channels)
        return attn.to_out[1](attn.to_out[0](output))


def near_frames(reach: int) -> Alteration:
    """Return a planner whose attention across frames sees so many frames each way: 0 is its own frame alone.

    Layers follow each other, so that a token hears of frames `reach` times their number away.
    """
    if reach < 0:
        raise ValueError(f"attention over {reach} frames each way; give 0 or more")

    @contextlib.contextmanager
    def around(pipe: MarDiniPipeline, context: SignalContext) -> Iterator[None]:
        layers = [block.spatiotemporal_attn for block in pipe.planner.transformer_blocks]
        own = [layer.processor for layer in layers]
        for layer in layers:
            layer.set_processor(NearFramesAttnProcessor(reach))
        try:
            yield
        finally:
            for layer, processor in zip(layers, own, strict=True):
                layer.set_processor(processor)

    return Alteration(f"near frames {reach}", f", planner attends {reach} frames each way", around=around)


def planner_at(factor: int) -> Alteration:
    """Return a planner that sees frames whose side is so many times smaller, also if it was trained with another."""
    if factor < 1:
        raise ValueError(f"a side {factor} times smaller; give 1 or more")

    @contextlib.contextmanager
    def around(pipe: MarDiniPipeline, context: SignalContext) -> Iterator[None]:
        own = pipe.config.planner_downscale
        pipe.register_to_config(planner_downscale=factor)
        try:
            yield
        finally:
            pipe.register_to_config(planner_downscale=own)

    return Alteration(f"side / {factor}", f", planner sees a side {factor} times smaller", around=around)


@contextlib.contextmanager
def _planned_from_generated(pipe: MarDiniPipeline, context: SignalContext) -> Iterator[None]:
    assert context.regenerate is not None, "`sample_batch` says how"
    frames = context.regenerate()
    low_references, own = pipe.encode_low_frames(frames * 2 - 1), pipe.plan

    def plan(given: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return own(low_references.to(given), *args, **kwargs)

    pipe.plan = plan
    try:
        yield
    finally:
        del pipe.plan


# The transformer still gets the given frames as they are.
GENERATED = Alteration("of generated frames", ", plan of generated frames", around=_planned_from_generated)
