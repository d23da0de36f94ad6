"""The generator (Sec. 2.3, Table 1 right): noised high-resolution frames and planning signals in, velocity out.

Called `transformer` everywhere, because in diffusers a `generator` is a source of random numbers. The planner is
`transformer_mardini_planner.py`; the noise schedule is `schedulers/scheduling_mardini.py`, on which nothing here
depends.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from .adapters import MarDiniAdapterMixin
from .attention import FP32RMSNorm, MarDiniAttention
from .caching import fit_cache_config
from .compiling import CompiledOverShapes, begin_replay, kept, standalone
from .conditions import ConditionsMixin, register_changes
from .embeddings import (
    MarDiniCrossRotaryPosEmbed,
    MarDiniRotaryPosEmbed,
    NextTokens,
    RotaryEmbedding,
    patchify,
    per_frame_timestep,
    remove_next_tokens,
    unpatchify,
)
from .identity_attention import MarDiniIdentityAttention, check_temporal_attention
from .latent_stem import LatentHead, LatentResidualBlock, LatentStem
from .loading import WholeModelMixin, WholeSingleFileMixin
from .lora_scale import scales_lora
from .window import (
    MarDiniBlockState,
    MarDiniWindowState,
    WindowLayout,
    check_planning_signals,
    check_window,
    frames_at,
    rotary_embedding_at,
)


class MarDiniTransformerBlock(CompiledOverShapes):
    """AdaLN spatial attention, RMSNorm (spatio-)temporal identity attention, RMSNorm cross-attention to the planning
    signals, AdaLN MLP (Fig. 2, right).

    The spatial attention is modulated by the timestep, the MLP by the timestep plus the pooled planning signals.
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
        identity_attention: bool = True,
    ):
        super().__init__()
        heads, head_dim = num_attention_heads, attention_head_dim
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn_modulation = nn.Linear(dim, 3 * dim)
        self.attn = MarDiniAttention(dim, heads, head_dim, eps=eps)
        self.norm2 = FP32RMSNorm(dim, eps)
        self.temporal_attn = MarDiniIdentityAttention(
            dim, heads, head_dim, kind=temporal_attention, eps=eps, identity=identity_attention
        )
        self.norm3 = FP32RMSNorm(dim, eps)
        self.cross_attn = MarDiniAttention(dim, heads, head_dim, cross_attention_dim=planning_dim, eps=eps)
        self.norm4 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.ff_modulation = nn.Linear(dim, 3 * dim)
        self.ff = FeedForward(dim, inner_dim=mlp_dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: torch.Tensor,
        planning_tokens: torch.Tensor | None,
        temb: torch.Tensor,
        planning_temb: torch.Tensor,
        rotary_emb: RotaryEmbedding,
        query_rotary_emb: RotaryEmbedding,
        key_rotary_emb: RotaryEmbedding | None,
        layout: WindowLayout | None = None,
        block_state: MarDiniBlockState | None = None,
        masked_planning_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, MarDiniBlockState]:
        """Run the block on all frames of a window with its `layout`, or on its masked frames alone with `block_state`,
        or on its reference frames alone with `masked_planning_tokens`; the last also returns the block's state."""
        # temb and planning_temb: (batch, frames or 1, 1, dim); hidden_states: (batch, frames, tokens, dim) throughout
        reference_key_value, planning_key_value = None, None
        if block_state is not None:
            reference_key_value, planning_key_value = block_state.reference_key_value, block_state.planning_key_value

        shift, scale, gate = self.attn_modulation(temb).chunk(3, dim=-1)
        modulated = torch.addcmul(shift, self.norm1(hidden_states), 1 + scale)
        hidden_states = torch.addcmul(hidden_states, gate, self.attn(modulated, rotary_emb))

        normed = self.norm2(hidden_states)
        if masked_planning_tokens is None:
            output = self.temporal_attn(normed, rotary_emb, layout, reference_key_value)
        else:
            output, reference_key_value = self.temporal_attn.reference_step(normed, rotary_emb)
        hidden_states = hidden_states + output

        one_key = (planning_tokens if planning_key_value is None else planning_key_value[0]).shape[2] == 1
        # A softmax over one key is 1, whatever the query: one token of a frame has the output of all.
        hidden_states = hidden_states + self.cross_attn(
            self.norm3(hidden_states[:, :, :1] if one_key else hidden_states),
            tuple(table[..., :1, :, :] for table in query_rotary_emb) if one_key else query_rotary_emb,
            key_rotary_emb, planning_tokens, planning_key_value,
        )  # fmt: skip

        shift, scale, gate = self.ff_modulation(planning_temb).chunk(3, dim=-1)
        modulated = torch.addcmul(shift, self.norm4(hidden_states), 1 + scale)
        hidden_states = torch.addcmul(hidden_states, gate, self.ff(modulated))
        if masked_planning_tokens is None:
            return hidden_states
        planning_key_value = self.cross_attn.keys_and_values(masked_planning_tokens, key_rotary_emb)
        return hidden_states, MarDiniBlockState(reference_key_value, planning_key_value)


class MarDiniTransformer3DModel(
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
            Highest rotary frequency, in radians per frame, position, row or column. Ours: 1 as in Llama; with pi, the
            highest frequency without aliasing on whole numbers, a narrow model learns sooner to attend to one
            neighbour.
        latent_skip (`bool`, defaults to `False`):
            Ours, not in the paper: adds the noised latents to the output with a learned gain per channel and timestep,
            zero at the start. A velocity is partly linear in the noised latents; with the skip, a narrow model need
            not carry them through its layers.
        stem_channels (`int`, defaults to `0`):
            Ours, not in the paper: channels of the convolutions at the resolution of the latents before and after the
            trunk (`latent_stem.py`), for latents finer than a patch. 0 is the paper's plain patch embedding.
        stem_blocks (`int`, defaults to `2`): Residual blocks on each side if `stem_channels` is not 0.
        identity_attention (`bool`, defaults to `True`):
            `False` lets reference frames attend as masked ones do: not MarDini, but the comparison of Fig. 6c. Nothing
            can then be computed once for all steps. The parameters are the same.
        eps (`float`, defaults to `1e-6`): Added to variances in the norms.
        conditions (`dict`, *optional*):
            Ours: conditions of each frame, names to numbers of channels, `{"action": 3}` (`models/conditions.py`).
        condition_info (`dict`, *optional*): Names of the channels, unit, range and more of each condition.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["MarDiniTransformerBlock"]
    _repeated_blocks = ["MarDiniTransformerBlock"]
    _skip_layerwise_casting_patterns = [
        "patch_embed", "time_embed", "planning_embed", "stem", "head", "norm", "next_token", "unconditional_planning_signal",
        "condition_embedder",
    ]  # fmt: skip
    _keep_in_fp32_modules = ["norm2", "norm3", "norm_q", "norm_k"]
    # Every process has some tokens of each frame: temporal and cross-attention need none of another process.
    _cp_plan = {
        "next_tokens": {0: ContextParallelInput(split_dim=2, expected_dims=4, split_output=True)},
        "rope": {table: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True) for table in (0, 1)},
        "cross_rope": {
            table: ContextParallelInput(split_dim=0, expected_dims=3, split_output=True) for table in (0, 1)
        },
        "norm_out": ContextParallelOutput(gather_dim=2, expected_dims=4),
    }

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
        stem_channels: int = 0,
        stem_blocks: int = 2,
        identity_attention: bool = True,
        eps: float = 1e-6,
        conditions: dict[str, int] | None = None,
        condition_info: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__()
        if attention_head_dim % 4:
            raise ValueError(f"`attention_head_dim` is {attention_head_dim}; it must be divisible by 4")
        check_temporal_attention(temporal_attention)
        dim = num_attention_heads * attention_head_dim
        patch_channels = (stem_channels or in_channels) * patch_size**2
        self.stem = LatentStem(in_channels, stem_channels, stem_blocks, dim, eps) if stem_channels else None
        self.patch_embed = nn.Linear(patch_channels, dim)
        self.next_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.next_tokens = NextTokens()
        self.unconditional_planning_signal = nn.Parameter(torch.randn(planning_dim) * 0.02)
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(256, dim)
        self.planning_embed = TimestepEmbedding(planning_dim, dim)
        self.rope = MarDiniRotaryPosEmbed(attention_head_dim, rope_theta, rope_max_frequency)
        self.cross_rope = MarDiniCrossRotaryPosEmbed(attention_head_dim, rope_theta, rope_max_frequency)
        self.transformer_blocks = nn.ModuleList(
            MarDiniTransformerBlock(
                dim,
                num_attention_heads,
                attention_head_dim,
                mlp_dim,
                planning_dim,
                temporal_attention,
                eps,
                identity_attention,
            )
            for _ in range(num_layers)
        )
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.out_modulation = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, patch_channels)
        self.head = LatentHead(stem_channels, in_channels, stem_blocks, dim, eps) if stem_channels else None
        self.skip_gain = nn.Linear(dim, in_channels) if latent_skip else None
        self.gradient_checkpointing = False
        self._initialize_weights()
        # Last, so that a seed gives all other weights as it does without conditions.
        self.condition_embedder = self._make_conditions(conditions, condition_info)

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
        for module in self.modules():
            if isinstance(module, LatentResidualBlock):
                nn.init.zeros_(module.modulation.weight)
        if self.head is not None:
            nn.init.zeros_(self.head.conv_out.weight)
            nn.init.zeros_(self.head.conv_out.bias)

    def set_temporal_attention(self, temporal_attention: str) -> None:
        """Swap `"spatiotemporal"` for `"temporal"` attention or back, keeping all weights (Sec. 2.4.2, Fig. 4)."""
        check_temporal_attention(temporal_attention)
        for block in self.transformer_blocks:
            block.temporal_attn.kind = temporal_attention
        register_changes(self, temporal_attention=temporal_attention)

    def enable_cache(self, config: Any) -> None:
        """Reuse features between steps, see [`~CacheMixin.enable_cache`]; names our layers where `config` does not."""
        super().enable_cache(fit_cache_config(config))

    @scales_lora
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        planning_signals: torch.Tensor | None = None,
        reference_mask: torch.Tensor | None = None,
        num_masked_frames: int | None = None,
        planning_signals_mask: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        window_state: MarDiniWindowState | None = None,
        return_window_state: bool = False,
        conditions: dict[str, torch.Tensor | None] | None = None,
        reference_timestep: torch.Tensor | float = 0,
        frame_positions: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor] | MarDiniWindowState:
        r"""
        Predict the velocity `v_t = alpha_t * noise - sigma_t * z` of the masked frames (Sec. 2.4.1).

        In the plain form, each step computes the whole window. Two other calls give the same up to rounding, with less
        work: one with `return_window_state=True`, once per window, and one with that `window_state` at every step, on
        the masked frames alone:

        ```py
        state = transformer(latents, 0, planning_signals, mask, num_masked_frames=7, return_window_state=True)
        velocity = transformer(masked_latents, timestep, window_state=state).sample
        ```

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, frames, channels, height, width)`):
                Latents: clean at reference frames (noised at `reference_timestep` if that is given), noised at masked
                frames.
            timestep (`torch.Tensor`, a scalar or of shape `(batch,)` or `(batch, frames)`):
                Timesteps of the noise. At reference frames `reference_timestep` is used instead.
            planning_signals (`torch.Tensor` of shape `(batch, frames, planner rows, planner columns, planning_dim)`):
                The planner's output, or `None` for the learned unconditional signal (Sec. 2.4.1).
            reference_mask (`torch.BoolTensor` of shape `(batch, frames)`): True at reference frames ([REF]).
            num_masked_frames (`int`, *optional*):
                Number of masked frames, if it is the same in every row, which the caller guarantees: then only their
                queries are computed. `None` for rows that differ.
            planning_signals_mask (`torch.BoolTensor` of shape `(batch,)`, *optional*):
                Rows where it is False use the unconditional signal instead of theirs.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` scales LoRA layers.
            return_dict (`bool`, defaults to `True`): Whether to return a `Transformer2DModelOutput` or a tuple.
            window_state (`MarDiniWindowState`, *optional*):
                Result of an earlier call for this window. `hidden_states` are then the noised latents of its masked
                frames, in order, `(batch, masked frames, channels, height, width)`; planning signals, masks and
                conditions are not given again.
            return_window_state (`bool`, defaults to `False`):
                Whether to return the state of the window instead of a velocity. Needs `num_masked_frames`; reads
                neither the latents of masked frames nor `timestep`.
            conditions (`dict` of `torch.Tensor` of shape `(batch, frames, channels)`, *optional*):
                Values for each frame, reference or masked; NaN in all channels of a frame without values. Leave them
                out of the unconditional pass of guidance, like `planning_signals`.
            reference_timestep (`torch.Tensor`, a scalar or of shape `(batch,)` or `(batch, frames)`, defaults to `0`):
                Ours: timestep of the reference frames, 0 for clean ones as in the paper. Frames that a model made
                itself need not claim to be clean, if it was trained with noised ones (`reference_noise` of a stage).
            frame_positions (`torch.Tensor` of shape `(frames,)`, *optional*):
                Ours: places of the frames in time, the same in every row; by default 0, 1, 2, ..., as in the paper.
                Fractions put frames between, which models learn from whole numbers (docs/results/long_video.md).

        Returns:
            `Transformer2DModelOutput` with `sample` shaped like `hidden_states`; values at reference frames have no
            meaning. With `return_window_state`, a `MarDiniWindowState`.

        Raises:
            ValueError: if shapes, dtypes or the patch size do not fit, or arguments exclude each other.
        """
        if window_state is not None:
            given = (
                planning_signals, reference_mask, num_masked_frames, planning_signals_mask, conditions, frame_positions,
            )  # fmt: skip
            clean = isinstance(reference_timestep, (int, float)) and reference_timestep == 0
            if return_window_state or not clean or any(argument is not None for argument in given):
                raise ValueError(
                    "`window_state` holds the planning signals, masks, conditions, reference timesteps and frame "
                    "positions of its window; give none of them again, nor `return_window_state`"
                )
            sample = self._denoise_masked_frames(hidden_states, timestep, window_state)
            return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
        if reference_mask is None:
            raise ValueError("`reference_mask` is missing; give it, or the `window_state` of an earlier call")
        check_window(hidden_states, reference_mask, self.config.in_channels, num_masked_frames)
        layout = WindowLayout.from_mask(reference_mask, num_masked_frames)
        reference_timestep = per_frame_timestep(
            reference_timestep, *reference_mask.shape, reference_mask.device, "reference_timestep"
        )
        planning_tokens, *planner_grid = self._planning_tokens(hidden_states, planning_signals, planning_signals_mask)
        frames = hidden_states.shape[1]
        condition_emb = self._embed_conditions(conditions, hidden_states, frames)  # (batch, frames, 1, dim), or None
        # The mean of each frame's planning signals, (batch, frames, 1, dim).
        pooled_planning_signals = self.planning_embed(planning_tokens.mean(dim=2, keepdim=True))
        if return_window_state:
            return self._window_state(
                hidden_states, layout, planning_tokens, planner_grid, pooled_planning_signals, condition_emb,
                reference_timestep, frame_positions,
            )  # fmt: skip

        # 1. Modulation: timestep 0 at reference frames if they are clean, conditions, pooled planning signals.
        timestep = per_frame_timestep(timestep, *reference_mask.shape, reference_mask.device)
        timestep = torch.where(reference_mask, reference_timestep, timestep)
        temb, planning_temb = self._modulation(timestep, hidden_states.dtype, pooled_planning_signals, condition_emb)

        # 2. Tokens: every row of patches ends with [NEXT].
        tokens, rows, columns, features = self._embed_patches(hidden_states, temb)

        # 3. Rotary positions.
        rotary_emb = self.rope(frames, rows, columns, tokens.device, frame_positions)
        cross_rotary_emb = self.cross_rope(rows, columns, *planner_grid, tokens.device)

        # 4. Blocks.
        tokens = standalone(tokens)
        arguments = (
            planning_tokens, temb, planning_temb, rotary_emb, cross_rotary_emb[:2], cross_rotary_emb[2:], layout,
        )  # fmt: skip
        begin_replay(self.transformer_blocks, tokens.device)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, *arguments)
            else:
                tokens = block(tokens, *arguments)

        # 5. Velocity.
        sample = self._velocity(tokens, temb, rows, hidden_states, features)
        if not return_dict:
            return (sample,)
        return Transformer2DModelOutput(sample=sample)

    def _window_state(
        self,
        hidden_states: torch.Tensor,
        layout: WindowLayout,
        planning_tokens: torch.Tensor,
        planner_grid: list[int],
        pooled_planning_signals: torch.Tensor,
        condition_emb: torch.Tensor | None,
        reference_timestep: torch.Tensor,
        frame_positions: torch.Tensor | None,
    ) -> MarDiniWindowState:
        """Run the reference frames alone through all blocks, and return all that no step changes."""
        if not self.config.identity_attention:
            raise ValueError(
                "this transformer has no identity attention: its reference frames depend on the masked ones, so that "
                "no state of them can be kept; call without `return_window_state`"
            )
        batch, frames = layout.reference_mask.shape
        if layout.num_masked_frames in (None, frames):
            raise ValueError(
                "a window state needs rows that all have the same number of masked frames, and a reference frame in "
                f"each; give `num_masked_frames`, 1 to {frames - 1} (got {layout.num_masked_frames}), or call without "
                "`return_window_state`"
            )
        masked, references = layout.masked_index, layout.reference_index
        reference_condition_emb, masked_condition_emb = None, None
        if condition_emb is not None:
            reference_condition_emb, masked_condition_emb = (frames_at(condition_emb, i) for i in (references, masked))
        timestep = frames_at(reference_timestep, references)  # (batch, reference frames)
        temb, planning_temb = self._modulation(
            timestep, hidden_states.dtype, frames_at(pooled_planning_signals, references), reference_condition_emb
        )
        tokens, rows, columns, _ = self._embed_patches(frames_at(hidden_states, references), temb)
        rotary_emb = self.rope(frames, rows, columns, tokens.device, frame_positions)
        cross_rotary_emb = self.cross_rope(rows, columns, *planner_grid, tokens.device)
        arguments = (
            frames_at(planning_tokens, references), temb, planning_temb,
            rotary_embedding_at(rotary_emb, references, batch), cross_rotary_emb[:2], cross_rotary_emb[2:],
        )  # fmt: skip
        tokens, arguments, masked_planning_tokens = standalone((tokens, arguments, frames_at(planning_tokens, masked)))
        blocks = []
        begin_replay(self.transformer_blocks, tokens.device)
        for block in self.transformer_blocks:
            tokens, state = block(tokens, *arguments, masked_planning_tokens=masked_planning_tokens)
            pairs = (state.reference_key_value, state.planning_key_value)
            blocks.append(MarDiniBlockState(*kept(pairs, self.transformer_blocks, tokens.device)))
        return MarDiniWindowState(
            blocks=tuple(blocks),
            pooled_planning_signals=frames_at(pooled_planning_signals, masked),
            rotary_emb=standalone(rotary_embedding_at(rotary_emb, masked, batch)),
            query_rotary_emb=cross_rotary_emb[:2],
            temporal_attention=self.config.temporal_attention,
            size=(rows, columns),
            condition_emb=masked_condition_emb,
        )

    def _denoise_masked_frames(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, state: MarDiniWindowState
    ) -> torch.Tensor:
        """Return the velocity of masked frames, `(batch, masked frames, channels, height, width)`."""
        height, width = (length * self.config.patch_size for length in state.size)
        expected = (state.batch_size, state.num_masked_frames, self.config.in_channels, height, width)
        if tuple(hidden_states.shape) != expected:
            raise ValueError(
                f"`hidden_states` has shape {tuple(hidden_states.shape)}, but `window_state` was made for {expected} "
                "(batch, masked frames, channels, height, width); give the masked frames of its window alone"
            )
        own = (len(self.transformer_blocks), self.config.temporal_attention)
        if (len(state.blocks), state.temporal_attention) != own:
            raise ValueError(
                f"`window_state` was made by a transformer with {len(state.blocks)} blocks and "
                f"{state.temporal_attention} attention; this one has {own[0]} and {own[1]}: make it again"
            )
        timestep = per_frame_timestep(timestep, *expected[:2], hidden_states.device)
        temb, planning_temb = self._modulation(
            timestep, hidden_states.dtype, state.pooled_planning_signals, state.condition_emb
        )
        tokens, rows, _, features = self._embed_patches(hidden_states, temb)
        tokens = standalone(tokens)
        arguments = (None, temb, planning_temb, state.rotary_emb, state.query_rotary_emb, None)
        begin_replay(self.transformer_blocks, tokens.device)
        for block, block_state in zip(self.transformer_blocks, state.blocks):
            tokens = block(tokens, *arguments, block_state=block_state)
        return self._velocity(tokens, temb, rows, hidden_states, features)

    def _modulation(
        self,
        timestep: torch.Tensor,
        dtype: torch.dtype,
        pooled_planning_signals: torch.Tensor,
        condition_emb: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed timesteps `(batch, frames or 1)`, add conditions; return this without and with the pooled planning
        signals: the modulation of the attention and of the MLP, `(batch, frames or 1, 1, dim)` and
            `(batch, frames, 1, dim)`."""
        temb = self.time_embed(self.time_proj(timestep.flatten()).to(dtype)).unflatten(0, timestep.shape)[:, :, None]
        if condition_emb is not None:
            temb = temb + condition_emb
        return nn.functional.silu(temb), nn.functional.silu(temb + pooled_planning_signals)

    def _embed_patches(
        self, hidden_states: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, int, int, torch.Tensor | None]:
        """Turn latents into tokens `(batch, frames, rows * (columns + 1), dim)`; return these, the rows and columns of
        patches, and the features of the stem, if there is one."""
        features = None if self.stem is None else self.stem(hidden_states, temb)
        patches = patchify(hidden_states if features is None else features, self.config.patch_size)
        _, _, rows, columns, _ = patches.shape
        return self.next_tokens(self.patch_embed(patches), self.next_token), rows, columns, features

    def _velocity(
        self,
        tokens: torch.Tensor,
        temb: torch.Tensor,
        rows: int,
        hidden_states: torch.Tensor,
        features: torch.Tensor | None,
    ) -> torch.Tensor:
        """Apply the last layers: tokens of the last block to velocities, shaped like the noised latents
        `hidden_states`."""
        shift, scale = self.out_modulation(temb).chunk(2, dim=-1)
        tokens = torch.addcmul(shift, self.norm_out(tokens), 1 + scale)
        patches = self.proj_out(remove_next_tokens(tokens, rows))
        sample = unpatchify(patches, self.config.patch_size)  # (batch, frames, channels, height, width)
        if self.head is not None:
            sample = self.head(sample, features, temb)
        if self.skip_gain is not None:
            gain = self.skip_gain(temb)[:, :, 0, :, None, None]  # (batch, frames, channels, 1, 1)
            sample = sample + gain * hidden_states
        return sample

    def _planning_tokens(
        self,
        hidden_states: torch.Tensor,
        planning_signals: torch.Tensor | None,
        planning_signals_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, int, int]:
        """Return planning tokens `(batch, frames, tokens, planning_dim)`, and rows and columns of their grid."""
        unconditional = self.unconditional_planning_signal.to(hidden_states.dtype)
        if planning_signals is None:
            # Equal values: whatever the weights are, one token has the effect of a whole grid.
            return unconditional.expand(*hidden_states.shape[:2], 1, -1), 1, 1
        check_planning_signals(
            planning_signals, planning_signals_mask, hidden_states.shape[:2], self.config.planning_dim
        )
        if planning_signals_mask is not None:
            keep = planning_signals_mask[:, None, None, None, None]
            planning_signals = torch.where(keep, planning_signals, unconditional.to(planning_signals.dtype))
        _, _, planner_rows, planner_columns, _ = planning_signals.shape
        tokens = planning_signals.flatten(2, 3).contiguous()  # not contiguous for one row of patches
        return tokens.to(hidden_states.dtype), planner_rows, planner_columns


TransformerBlockRegistry.register(
    model_class=MarDiniTransformerBlock,
    metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
)
