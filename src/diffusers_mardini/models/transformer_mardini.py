"""The generator (Sec. 2.3, Table 1 right): noised high-resolution frames and planning signals in, velocity out.

Called `transformer` everywhere, because in diffusers a `generator` is a source of random numbers. Its partner is
`transformer_mardini_planner.py`; the noise schedule is `schedulers/scheduling_mardini.py` and is not known here.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .attention import FP32LayerNorm, FP32RMSNorm, MarDiniAttention
from .caching import fit_cache_config
from .embeddings import (
    MarDiniCrossRotaryPosEmbed,
    MarDiniRotaryPosEmbed,
    append_next_tokens,
    patchify,
    remove_next_tokens,
    unpatchify,
)
from .identity_attention import TEMPORAL_ATTENTION_KINDS, MarDiniIdentityAttention, masked_frame_index
from .lora_scale import scales_lora
from .transformer_mardini_planner import check_window


class MarDiniTransformerBlock(nn.Module):
    """AdaLN spatial attention, RMSNorm (spatio-)temporal identity attention, RMSNorm cross-attention to the planning signals,
    AdaLN MLP (Fig. 2, right).

    The spatial attention is modulated by the timestep, the MLP by the timestep plus the pooled planning signal.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        mlp_dim: int,
        planning_dim: int,
        temporal_attention: str,
        eps: float,
    ):
        super().__init__()
        heads, head_dim = num_attention_heads, attention_head_dim
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn_modulation = nn.Linear(dim, 3 * dim)
        self.attn = MarDiniAttention(dim, heads, head_dim, eps=eps)
        self.norm2 = FP32RMSNorm(dim, eps)
        self.temporal_attn = MarDiniIdentityAttention(dim, heads, head_dim, kind=temporal_attention, eps=eps)
        self.norm3 = FP32RMSNorm(dim, eps)
        self.cross_attn = MarDiniAttention(dim, heads, head_dim, cross_attention_dim=planning_dim, eps=eps)
        self.norm4 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.ff_modulation = nn.Linear(dim, 3 * dim)
        self.ff = FeedForward(dim, inner_dim=mlp_dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: torch.Tensor,
        planning_tokens: torch.Tensor,
        temb: torch.Tensor,
        planning_temb: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        cross_rotary_emb: tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        reference_mask: torch.Tensor,
        masked_index: torch.Tensor | None,
    ) -> torch.Tensor:
        # temb and planning_temb: (batch, frames, 1, dim); hidden_states: (batch, frames, tokens, dim) throughout
        shift, scale, gate = self.attn_modulation(temb).chunk(3, dim=-1)
        modulated = self.norm1(hidden_states) * (1 + scale) + shift
        hidden_states = hidden_states + gate * self.attn(modulated, rotary_emb)

        hidden_states = hidden_states + self.temporal_attn(
            self.norm2(hidden_states), rotary_emb, reference_mask, masked_index
        )

        query_rotary_emb, key_rotary_emb = cross_rotary_emb
        hidden_states = hidden_states + self.cross_attn(
            self.norm3(hidden_states), query_rotary_emb, key_rotary_emb, encoder_hidden_states=planning_tokens
        )

        shift, scale, gate = self.ff_modulation(planning_temb).chunk(3, dim=-1)
        modulated = self.norm4(hidden_states) * (1 + scale) + shift
        return hidden_states + gate * self.ff(modulated)


class MarDiniTransformer3DModel(
    ModelMixin, ConfigMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin, AttentionMixin
):
    r"""
    The light diffusion model of MarDini (Sec. 2.3): predicts the velocity of the masked frames of a window.

    Args:
        in_channels (`int`, defaults to `16`): Channels of the latents, in and out.
        patch_size (`int`, defaults to `2`): Side of a square patch of latents, one token each.
        num_layers (`int`, defaults to `8`): Number of blocks (Table 1, "depth").
        num_attention_heads (`int`, defaults to `16`): Number of heads in every attention.
        attention_head_dim (`int`, defaults to `64`): Channels of a head; divisible by 4, for two rotary axes.
        mlp_dim (`int`, defaults to `4096`): Hidden channels of the MLP (Table 1).
        planning_dim (`int`, defaults to `4096`): Channels of the planning signals, the planner's hidden size.
        temporal_attention (`str`, defaults to `"temporal"`):
            `"temporal"` or `"spatiotemporal"` (Table 1, T and ST); the parameters are the same.
        rope_theta (`float`, defaults to `10000.0`): Base of the rotary frequencies.
        rope_max_frequency (`float`, defaults to `1.0`):
            Highest rotary frequency, radians per frame, position, row or column. Ours: 1 as in Llama; pi, the highest that whole
            numbers tell apart, lets a narrow model attend to single neighbours sooner.
        latent_skip (`bool`, defaults to `False`):
            Ours, not in the paper: adds the noised latents to the output with a learned gain per channel and timestep, zero at
            the start. A velocity is in part linear in the noised latents, and a narrow model then need not carry them
            through its layers.
        eps (`float`, defaults to `1e-6`): Added to variances in the norms.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MarDiniTransformerBlock"]
    _repeated_blocks = ["MarDiniTransformerBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embed", "time_embed", "planning_embed", "norm", "next_token", "unconditional_planning_signal"
    ]  # fmt: skip
    _keep_in_fp32_modules = ["norm2", "norm3", "norm_q", "norm_k"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 16,
        patch_size: int = 2,
        num_layers: int = 8,
        num_attention_heads: int = 16,
        attention_head_dim: int = 64,
        mlp_dim: int = 4096,
        planning_dim: int = 4096,
        temporal_attention: str = "temporal",
        rope_theta: float = 10000.0,
        rope_max_frequency: float = 1.0,
        latent_skip: bool = False,
        eps: float = 1e-6,
    ):
        super().__init__()
        if attention_head_dim % 4:
            raise ValueError(f"`attention_head_dim` is {attention_head_dim}; it must be divisible by 4")
        _check_temporal_attention(temporal_attention)
        dim = num_attention_heads * attention_head_dim
        self.patch_embed = nn.Linear(in_channels * patch_size**2, dim)
        self.next_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.unconditional_planning_signal = nn.Parameter(torch.randn(planning_dim) * 0.02)
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(256, dim)
        self.planning_embed = TimestepEmbedding(planning_dim, dim)
        self.rope = MarDiniRotaryPosEmbed(attention_head_dim, rope_theta, rope_max_frequency)
        self.cross_rope = MarDiniCrossRotaryPosEmbed(attention_head_dim, rope_theta, rope_max_frequency)
        self.transformer_blocks = nn.ModuleList(
            MarDiniTransformerBlock(
                dim, num_attention_heads, attention_head_dim, mlp_dim, planning_dim, temporal_attention, eps
            )
            for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.out_modulation = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, in_channels * patch_size**2)
        self.skip_gain = nn.Linear(dim, in_channels) if latent_skip else None
        self.gradient_checkpointing = False
        self._initialize_weights()

    def _initialize_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # At the start every block is the identity and the velocity is zero (AdaLN-Zero, DiT).
        for block in self.transformer_blocks:
            for layer in (
                block.attn_modulation, block.ff_modulation, block.temporal_attn.to_out[0], block.cross_attn.to_out[0]
            ):  # fmt: skip
                nn.init.zeros_(layer.weight)
        for layer in (self.out_modulation, self.proj_out, self.skip_gain):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def set_temporal_attention(self, temporal_attention: str) -> None:
        """Swaps `"spatiotemporal"` for `"temporal"` attention or back, keeping all weights (Sec. 2.4.2, Fig. 4)."""
        _check_temporal_attention(temporal_attention)
        for block in self.transformer_blocks:
            block.temporal_attn.kind = temporal_attention
        self.register_to_config(temporal_attention=temporal_attention)

    def enable_cache(self, config: Any) -> None:
        """Reuses features between steps, see [`~CacheMixin.enable_cache`]; names our layers where `config` does not."""
        super().enable_cache(fit_cache_config(config))

    @scales_lora
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        planning_signals: torch.Tensor | None,
        reference_mask: torch.Tensor,
        num_masked_frames: int | None = None,
        planning_signals_mask: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        r"""
        Predicts the velocity `v_t = alpha_t * noise - sigma_t * z` of the masked frames (Sec. 2.4.1).

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, frames, channels, height, width)`):
                Latents: clean at reference frames, noised at masked frames.
            timestep (`torch.Tensor`, a scalar or of shape `(batch,)` or `(batch, frames)`):
                Timesteps of the noise; those of reference frames are taken as 0, because they are clean.
            planning_signals (`torch.Tensor` of shape `(batch, frames, planner rows, planner columns, planning_dim)`):
                The planner's output, or `None` for the learned unconditional signal (Sec. 2.4.1).
            reference_mask (`torch.BoolTensor` of shape `(batch, frames)`): True at reference frames ([REF]).
            num_masked_frames (`int`, *optional*):
                The number of masked frames, where every row of the batch has the same: then only their queries are computed
                (the caller vouches for it). `None` for rows that keep different numbers of frames.
            planning_signals_mask (`torch.BoolTensor` of shape `(batch,)`, *optional*):
                Rows where it is False use the unconditional signal instead of theirs.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales LoRA layers.
            return_dict (`bool`, defaults to `True`): Whether to return a `Transformer2DModelOutput` or a tuple.

        Returns:
            `Transformer2DModelOutput` with `sample` of the shape of `hidden_states`; what stands at reference frames has no meaning.

        Raises:
            ValueError: where shapes, dtypes or the patch size do not fit.
        """
        check_window(hidden_states, reference_mask, self.config.in_channels, num_masked_frames)
        batch, frames, _, _, _ = hidden_states.shape
        planning_tokens, planner_rows, planner_columns = self._planning_tokens(
            hidden_states, planning_signals, planning_signals_mask
        )  # (batch, frames, planner rows * planner columns, planning_dim)

        # 1. Conditions: timestep 0 at reference frames (they are clean), and the planning signal pooled over each frame.
        timestep = _per_frame_timestep(timestep, reference_mask)
        temb = self.time_proj(timestep.flatten()).to(hidden_states.dtype)
        temb = self.time_embed(temb).unflatten(0, (batch, frames))[:, :, None]  # (batch, frames, 1, dim)
        pooled = self.planning_embed(planning_tokens.mean(dim=2, keepdim=True))
        planning_temb = nn.functional.silu(temb + pooled)  # (batch, frames, 1, dim)
        temb = nn.functional.silu(temb)

        # 2. Tokens: every row of patches ends with [NEXT].
        patches = patchify(hidden_states, self.config.patch_size)
        _, _, rows, columns, _ = patches.shape
        tokens = append_next_tokens(
            self.patch_embed(patches), self.next_token
        )  # (batch, frames, rows * (columns + 1), dim)

        # 3. Places, and which frames ask across frames.
        rotary_emb = self.rope(frames, rows, columns, tokens.device)
        cross_rotary_emb = self.cross_rope(rows, columns, planner_rows, planner_columns, tokens.device)
        masked_index = None if num_masked_frames is None else masked_frame_index(reference_mask, num_masked_frames)

        # 4. Blocks.
        for block in self.transformer_blocks:
            arguments = (
                planning_tokens, temb, planning_temb, rotary_emb, cross_rotary_emb, reference_mask, masked_index
            )  # fmt: skip
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *arguments)
            else:
                tokens = block(tokens, *arguments)

        # 5. Velocity.
        shift, scale = self.out_modulation(temb).chunk(2, dim=-1)
        tokens = self.norm_out(tokens) * (1 + scale) + shift
        patches = self.proj_out(remove_next_tokens(tokens, rows))
        sample = unpatchify(patches, self.config.patch_size)  # (batch, frames, channels, height, width)
        if self.skip_gain is not None:
            gain = self.skip_gain(temb)[:, :, 0, :, None, None]  # (batch, frames, channels, 1, 1)
            sample = sample + gain * hidden_states
        if not return_dict:
            return (sample,)
        return Transformer2DModelOutput(sample=sample)

    def _planning_tokens(
        self,
        hidden_states: torch.Tensor,
        planning_signals: torch.Tensor | None,
        planning_signals_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, int, int]:
        batch, frames = hidden_states.shape[:2]
        unconditional = self.unconditional_planning_signal.to(hidden_states.dtype)
        if planning_signals is None:
            # Equal keys get equal weights: one token says what a whole grid of them would.
            return unconditional.expand(batch, frames, 1, -1), 1, 1
        if planning_signals.ndim != 5 or planning_signals.shape[:2] != hidden_states.shape[:2]:
            raise ValueError(
                f"`planning_signals` has shape {tuple(planning_signals.shape)}; expected ({batch}, {frames}, planner rows, "
                f"planner columns, {self.config.planning_dim}), the planner's output for the same window"
            )
        if planning_signals.shape[-1] != self.config.planning_dim:
            raise ValueError(
                f"`planning_signals` has {planning_signals.shape[-1]} channels, but this transformer was built with "
                f"`planning_dim={self.config.planning_dim}`; use the planner it was trained with"
            )
        if planning_signals_mask is not None:
            keep = planning_signals_mask[:, None, None, None, None]
            planning_signals = torch.where(keep, planning_signals, unconditional.to(planning_signals.dtype))
        _, _, planner_rows, planner_columns, _ = planning_signals.shape
        return planning_signals.flatten(2, 3).to(hidden_states.dtype), planner_rows, planner_columns


def _per_frame_timestep(timestep: torch.Tensor, reference_mask: torch.Tensor) -> torch.Tensor:
    """A scalar, `(batch,)` or `(batch, frames)` to `(batch, frames)` with 0 at reference frames."""
    batch, frames = reference_mask.shape
    timestep = torch.as_tensor(timestep, device=reference_mask.device)
    if timestep.ndim == 1 and timestep.shape[0] in (1, batch):
        timestep = timestep[:, None]
    elif timestep.ndim != 0 and timestep.shape != reference_mask.shape:
        raise ValueError(
            f"`timestep` has shape {tuple(timestep.shape)}; expected a scalar, ({batch},) (batch) or ({batch}, {frames}) "
            "(batch, frames)"
        )
    return timestep.expand(batch, frames).masked_fill(reference_mask, 0)


def _check_temporal_attention(temporal_attention: str) -> None:
    if temporal_attention not in TEMPORAL_ATTENTION_KINDS:
        raise ValueError(f"`temporal_attention` is {temporal_attention!r}; accepted are {TEMPORAL_ATTENTION_KINDS}")


TransformerBlockRegistry.register(
    model_class=MarDiniTransformerBlock,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
