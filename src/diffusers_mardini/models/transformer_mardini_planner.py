"""The planner (Sec. 2.2, Table 1 left): masked low-resolution frames in, planning signals out, once per window.

The diffusion model, which samples the frames, is `transformer_mardini.py`. The reconstruction head of the initial
training stage (Sec. 2.4.1) is discarded after training, and belongs to the trainer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.utils import BaseOutput
from torch import nn

from .adapters import MarDiniAdapterMixin
from .attention import FP32RMSNorm, MarDiniAttention
from .compiling import CompiledOverShapes, begin_replay, standalone
from .conditions import ConditionsMixin
from .embeddings import MarDiniRotaryPosEmbed, NextTokens, RotaryEmbedding, patchify, remove_next_tokens
from .identity_attention import MarDiniIdentityAttention
from .loading import WholeModelMixin, WholeSingleFileMixin
from .lora_scale import scales_lora
from .window import WindowLayout, check_window


@dataclass
class MarDiniPlannerOutput(BaseOutput):
    """Output of `MarDiniPlannerTransformer3DModel`.

    Args:
        planning_signals: `(batch, frames, rows, columns, channels)`: `z_cond` of Sec. 2.2, the tokens of each frame on
            the planner's grid of patches, without [NEXT].
    """

    planning_signals: torch.Tensor


class MarDiniPlannerTransformerBlock(CompiledOverShapes):
    """RMSNorm, spatial attention, RMSNorm, spatio-temporal identity attention, RMSNorm, MLP (Fig. 2, left)."""

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        mlp_dim: int,
        eps: float,
        identity_attention: bool = True,
    ):
        super().__init__()
        self.norm1 = FP32RMSNorm(dim, eps)
        self.attn = MarDiniAttention(dim, num_attention_heads, attention_head_dim, eps=eps)
        self.norm2 = FP32RMSNorm(dim, eps)
        self.spatiotemporal_attn = MarDiniIdentityAttention(
            dim, num_attention_heads, attention_head_dim, kind="spatiotemporal", eps=eps, identity=identity_attention
        )
        self.norm3 = FP32RMSNorm(dim, eps)
        self.ff = FeedForward(dim, inner_dim=mlp_dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        layout: WindowLayout,
    ) -> torch.Tensor:
        """Run the block on all frames of a window, `(batch, frames, tokens, dim)`."""
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states), rotary_emb)
        hidden_states = hidden_states + self.spatiotemporal_attn(self.norm2(hidden_states), rotary_emb, layout)
        return hidden_states + self.ff(self.norm3(hidden_states))  # (batch, frames, tokens, dim) throughout


class MarDiniPlannerTransformer3DModel(
    CompiledOverShapes,
    MarDiniAdapterMixin,
    ConditionsMixin,
    WholeModelMixin,
    ConfigMixin,
    WholeSingleFileMixin,
    CacheMixin,
    AttentionMixin,
):
    r"""
    The planning model of MarDini (Sec. 2.2): a masked autoregressive transformer over a low-resolution window.

    Args:
        in_channels (`int`, defaults to `16`): Channels of the latents.
        patch_size (`int`, defaults to `1`): Side of a square patch of latents, one token each.
        num_layers (`int`, defaults to `8`): Number of blocks (Table 1, "depth").
        num_attention_heads (`int`, defaults to `32`): Number of heads in both attentions of a block.
        attention_head_dim (`int`, defaults to `128`): Channels of a head; divisible by 4, for two rotary axes.
        mlp_dim (`int`, defaults to `4096`): Hidden channels of the MLP (Table 1).
        rope_theta (`float`, defaults to `10000.0`): Base of the rotary frequencies.
        rope_max_frequency (`float`, defaults to `1.0`):
            Highest rotary frequency, in radians per frame, position, row or column. Ours: 1 as in Llama; with pi, the
            highest frequency without aliasing on whole numbers, a narrow model learns sooner to attend to one
            neighbour.
        identity_attention (`bool`, defaults to `True`):
            `False` lets reference frames attend as masked ones do: not MarDini, but the comparison of Fig. 6c. The
            parameters are the same.
        eps (`float`, defaults to `1e-6`): Added to variances in the norms.
        conditions (`dict`, *optional*):
            Ours: conditions of each frame, names to numbers of channels, `{"action": 3}` (`models/conditions.py`).
        condition_info (`dict`, *optional*): Names of the channels, unit, range and more of each condition.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MarDiniPlannerTransformerBlock"]
    _repeated_blocks = ["MarDiniPlannerTransformerBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "norm", "mask_token", "next_token", "condition_embedder"]
    _keep_in_fp32_modules = ["norm1", "norm2", "norm3", "norm_q", "norm_k", "norm_out"]
    _cp_plan = {
        "next_tokens": {0: ContextParallelInput(split_dim=2, expected_dims=4, split_output=True)},
        "rope": {table: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True) for table in (0, 1)},
        "norm_out": ContextParallelOutput(gather_dim=2, expected_dims=4),
    }

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        patch_size: int = 1,
        num_layers: int = 8,
        num_attention_heads: int = 32,
        attention_head_dim: int = 128,
        mlp_dim: int = 4096,
        rope_theta: float = 10000.0,
        rope_max_frequency: float = 1.0,
        identity_attention: bool = True,
        eps: float = 1e-6,
        conditions: dict[str, int] | None = None,
        condition_info: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__()
        if attention_head_dim % 4:
            raise ValueError(f"`attention_head_dim` is {attention_head_dim}; it must be divisible by 4")
        dim = num_attention_heads * attention_head_dim
        self.patch_embed = nn.Linear(in_channels * patch_size**2, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.next_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.next_tokens = NextTokens()
        self.rope = MarDiniRotaryPosEmbed(attention_head_dim, rope_theta, rope_max_frequency)
        self.transformer_blocks = nn.ModuleList(
            MarDiniPlannerTransformerBlock(
                dim, num_attention_heads, attention_head_dim, mlp_dim, eps, identity_attention
            )
            for _ in range(num_layers)
        )
        self.norm_out = FP32RMSNorm(dim, eps)
        self.gradient_checkpointing = False
        self._initialize_weights()
        # Last, so that a seed gives all other weights as it does without conditions.
        self.condition_embedder = self._make_conditions(conditions, condition_info)

    def _initialize_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # Three branches per block add up in the residual stream: keep its variance independent of depth (GPT-2).
        branch_std = 0.02 / (3 * len(self.transformer_blocks)) ** 0.5
        for block in self.transformer_blocks:
            for projection in (block.attn.to_out[0], block.spatiotemporal_attn.to_out[0], block.ff.net[2]):
                nn.init.normal_(projection.weight, std=branch_std)

    @scales_lora
    def forward(
        self,
        hidden_states: torch.Tensor,
        reference_mask: torch.Tensor,
        num_masked_frames: int | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        conditions: dict[str, torch.Tensor | None] | None = None,
        frame_positions: torch.Tensor | None = None,
    ) -> MarDiniPlannerOutput | tuple[torch.Tensor]:
        r"""
        Compute the planning signals of a window.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, frames, channels, height, width)`):
                Low-resolution latents. Values at masked frames are ignored, even NaN.
            reference_mask (`torch.BoolTensor` of shape `(batch, frames)`): True at reference frames ([REF]).
            num_masked_frames (`int`, *optional*):
                Number of masked frames, if it is the same in every row, which the caller guarantees: then only their
                queries are computed. `None` for rows that differ.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales LoRA layers.
            return_dict (`bool`, defaults to `True`): Whether to return a `MarDiniPlannerOutput` or a tuple.
            conditions (`dict` of `torch.Tensor` of shape `(batch, frames, channels)`, *optional*):
                Values for each frame, masked or not; NaN in all channels of a frame without values.
            frame_positions (`torch.Tensor` of shape `(frames,)`, *optional*):
                Ours: places of the frames in time, the same in every row; by default 0, 1, 2, ..., as in the paper.
                Fractions put frames between, which models learn from whole numbers (docs/results/long_video.md).

        Returns:
            `MarDiniPlannerOutput` with `planning_signals` of shape `(batch, frames, rows, columns, channels)`.

        Raises:
            ValueError: if shapes, the mask's dtype, the patch size or the names of conditions do not fit.
        """
        check_window(hidden_states, reference_mask, self.config.in_channels, num_masked_frames)
        layout = WindowLayout.from_mask(reference_mask, num_masked_frames)
        is_reference = reference_mask[:, :, None, None, None]

        # 1. Tokens: masked frames become [MASK], every row of patches ends with [NEXT].
        # Zeroed before the projection too, so that a NaN at a masked frame cannot reach the weights' gradients.
        patches = patchify(hidden_states.masked_fill(~is_reference, 0), self.config.patch_size)
        _, frames, rows, columns, _ = patches.shape
        patches = self.patch_embed(patches)  # (batch, frames, rows, columns, dim)
        patches = torch.where(is_reference, patches, self.mask_token.to(patches.dtype))
        tokens = self.next_tokens(patches, self.next_token)  # (batch, frames, rows * (columns + 1), dim)
        condition_emb = self._embed_conditions(conditions, hidden_states, frames)  # (batch, frames, 1, dim), or None
        if condition_emb is not None:
            tokens = tokens + condition_emb

        # 2. Blocks.
        rotary_emb = self.rope(frames, rows, columns, tokens.device, frame_positions)
        tokens = standalone(tokens)
        begin_replay(self.transformer_blocks, tokens.device)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, rotary_emb, layout)
            else:
                tokens = block(tokens, rotary_emb, layout)

        # 3. Planning signals.
        planning_signals = remove_next_tokens(self.norm_out(tokens), rows)  # (batch, frames, rows, columns, dim)
        if not return_dict:
            return (planning_signals,)
        return MarDiniPlannerOutput(planning_signals=planning_signals)


TransformerBlockRegistry.register(
    model_class=MarDiniPlannerTransformerBlock,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
