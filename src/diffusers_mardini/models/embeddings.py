"""Tokens and places: patches, the [NEXT] token, and rotary positions (Sec. 2.3.1, "2D RoPE for 3D video").

Both models lay out a frame of patches as one sequence in which a learned [NEXT] token ends every row, so that the
sequence itself shows resolution and aspect ratio. Attention is in `attention.py` and `identity_attention.py`.
"""

from typing import Any

import torch
from torch import nn


RotaryEmbedding = tuple[torch.Tensor, torch.Tensor]  # cosines and sines


def patchify(hidden_states: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut latents into patches: `(batch, frames, channels, height, width)` to
    `(batch, frames, rows, columns, channels * patch_size**2)`."""
    batch, frames, channels, height, width = hidden_states.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"latents of {height}x{width} (height x width) cannot be cut into patches of {patch_size}x{patch_size}; "
            "both sides must be divisible by `patch_size`"
        )
    rows, columns = height // patch_size, width // patch_size
    hidden_states = hidden_states.reshape(batch, frames, channels, rows, patch_size, columns, patch_size)
    return hidden_states.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)  # (batch, frames, rows, columns, channels * patch**2)


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Invert `patchify`."""
    patches = patches.unflatten(-1, (-1, patch_size, patch_size))  # (batch, frames, rows, columns, channels, p, p)
    return patches.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)  # (batch, frames, channels, height, width)


class NextTokens(nn.Module):
    """Call `append_next_tokens`; a module without weights, because context parallelism splits the outputs of
    modules."""

    def forward(self, patches: torch.Tensor, next_token: torch.Tensor) -> torch.Tensor:
        """Return the tokens of each frame, see `append_next_tokens`."""
        return append_next_tokens(patches, next_token)


def append_next_tokens(patches: torch.Tensor, next_token: torch.Tensor) -> torch.Tensor:
    """End every row of patches with the learned [NEXT] token (Sec. 2.3.1) and flatten the frame.

    `(batch, frames, rows, columns, channels)` to `(batch, frames, rows * (columns + 1), channels)`.
    """
    batch, frames, rows, _, _ = patches.shape
    next_tokens = next_token.to(patches.dtype).expand(batch, frames, rows, 1, -1)
    return torch.cat([patches, next_tokens], dim=3).flatten(2, 3)


def remove_next_tokens(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """Invert `append_next_tokens`: `(batch, frames, tokens, channels)` to
    `(batch, frames, rows, columns, channels)`."""
    return tokens.unflatten(2, (rows, -1))[:, :, :, :-1]


def rotary_embedding(
    first: torch.Tensor, second: torch.Tensor, head_dim: int, theta: float, max_frequency: float = 1.0
) -> RotaryEmbedding:
    """Return cosines and sines that rotate a head by two coordinates, half of its channel pairs by each.

    Args:
        first, second: coordinates of the two axes, broadcastable to a common shape `(...)`.
        head_dim: channels of a head; must be divisible by 4.
        theta: base of the geometric series of frequencies.
        max_frequency: first of the series, in radians per unit of a coordinate.

    Returns:
        `(cos, sin)`, float32, each shaped `(..., 1, head_dim)`; the 1 broadcasts over the heads. Channel `i` forms a
        pair with channel `i + head_dim // 2`: their cosines are equal, and the sine of the first is the negative of
        the second's.
    """
    pairs = head_dim // 4
    frequencies = max_frequency * theta ** (-torch.arange(pairs, device=first.device, dtype=torch.float32) / pairs)
    first, second = torch.broadcast_tensors(first, second)
    angles = torch.cat([first[..., None] * frequencies, second[..., None] * frequencies], dim=-1)
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_rotary_embedding(hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads `(..., heads, head_dim)` by tables of `rotary_embedding`, in float32; return the input's dtype."""
    rotate = _rotate_in_graphs if torch.compiler.is_compiling() else _Rotation.apply
    return rotate(hidden_states.float(), cos, sin).type_as(hidden_states)


class _Rotation(torch.autograd.Function):
    """Rotate in three passes over memory, and back in three: autograd would take four, and another copy."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        rotated = heads * cos
        for half, other, sines in zip(rotated.chunk(2, -1), reversed(heads.chunk(2, -1)), sin.chunk(2, -1)):
            half.addcmul_(other, sines)
        return rotated

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotation.apply(grad, cos, -sin), None, None


def _rotate_in_graphs(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Do the same without changing a tensor: compilers fuse it themselves."""
    first, second = heads.chunk(2, dim=-1)
    return torch.addcmul(heads * cos, torch.cat([second, first], dim=-1), sin)


class MarDiniRotaryPosEmbed(nn.Module):
    """Rotary positions of self-attention: a frame axis and a flattened-within-frame axis (Sec. 2.3.1).

    The flattened index runs over a row's patches and its [NEXT] token before it enters the next row.
    """

    def __init__(self, head_dim: int, theta: float, max_frequency: float = 1.0):
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.max_frequency = max_frequency

    def forward(
        self,
        num_frames: int,
        rows: int,
        columns: int,
        device: torch.device,
        frame_positions: torch.Tensor | None = None,
    ) -> RotaryEmbedding:
        """Return `(cos, sin)`, each shaped `(frames, rows * (columns + 1), 1, head_dim)`.

        Args:
            num_frames, rows, columns: of the window, in patches.
            device: of the result.
            frame_positions: places of the frames, `(frames,)`, any numbers; by default 0, 1, 2, ...

        Raises:
            ValueError: for `frame_positions` of another shape.
        """
        if frame_positions is None:
            frame_positions = torch.arange(num_frames, device=device)
        elif frame_positions.shape != (num_frames,):
            raise ValueError(
                f"`frame_positions` has shape {tuple(frame_positions.shape)}; expected ({num_frames},), a place for "
                "each frame of the window"
            )
        frame = frame_positions.to(device, torch.float32)[:, None]
        position = torch.arange(rows * (columns + 1), device=device, dtype=torch.float32)[None]
        return rotary_embedding(frame, position, self.head_dim, self.theta, self.max_frequency)


class MarDiniCrossRotaryPosEmbed(nn.Module):
    """Rotary positions of cross-attention: rows and columns in the transformer's grid, for both resolutions.

    The paper does not say how a high-resolution token finds the planning tokens of its place. Ours: the planner's grid
    is scaled onto the transformer's, so that planning tokens have the coordinates of the part of the picture they
    cover.
    """

    def __init__(self, head_dim: int, theta: float, max_frequency: float = 1.0):
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta
        self.max_frequency = max_frequency

    def forward(
        self, rows: int, columns: int, planner_rows: int, planner_columns: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return cosines and sines of the queries, each `(rows * (columns + 1), 1, head_dim)` with [NEXT], and of the
        keys, each `(planner_rows * planner_columns, 1, head_dim)`: four tensors, because context parallelism splits
        two."""
        query = self._grid(rows, columns + 1, 1.0, 1.0, device)
        key = self._grid(planner_rows, planner_columns, rows / planner_rows, columns / planner_columns, device)
        return (*query, *key)

    def _grid(
        self, rows: int, columns: int, row_scale: float, column_scale: float, device: torch.device
    ) -> RotaryEmbedding:
        row = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) * row_scale
        column = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) * column_scale
        row, column = row[:, None].expand(rows, columns), column[None].expand(rows, columns)
        return rotary_embedding(row.flatten(), column.flatten(), self.head_dim, self.theta, self.max_frequency)


def per_frame_timestep(
    timestep: torch.Tensor | float, batch: int, frames: int, device: torch.device, name: str = "timestep"
) -> torch.Tensor:
    """Expand timesteps, a scalar, `(batch,)` or `(batch, frames)`, to `(batch, frames)`; errors call them `name`.

    Raises:
        ValueError: for another shape.
    """
    # A number becomes a tensor on the device itself: copying one there would wait for all that is queued.
    timestep = timestep.to(device) if torch.is_tensor(timestep) else torch.full((), timestep, device=device)
    if timestep.ndim == 1 and timestep.shape[0] in (1, batch):
        timestep = timestep[:, None]
    elif timestep.ndim != 0 and timestep.shape != (batch, frames):
        raise ValueError(
            f"`{name}` has shape {tuple(timestep.shape)}; expected a scalar, ({batch},) (batch) or ({batch}, "
            f"{frames}) (batch, frames)"
        )
    return timestep.expand(batch, frames)
