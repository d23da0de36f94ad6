"""The transformer on one window: the velocities of its masked frames, conditional and, under guidance, unconditional.

Owns what is computed once per window (`models/window.py`), separately for each branch of guidance. The loop over steps
is in `pipeline_mardini.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig

from ..models.transformer_mardini import MarDiniTransformer3DModel
from ..models.window import MarDiniWindowState, WindowLayout


class ConditionRows(dict[str, torch.Tensor]):
    """Conditions by name, for both branches of guidance; FasterCache separates them by `chunk`, like tensors."""

    @classmethod
    def of_both_branches(cls, conditions: dict[str, torch.Tensor]) -> "ConditionRows":
        """Return rows without values, for the unconditional branch, above those of `conditions`."""
        return cls({name: torch.cat([torch.full_like(rows, torch.nan), rows]) for name, rows in conditions.items()})

    def chunk(self, chunks: int, dim: int = 0) -> tuple["ConditionRows", ...]:
        """Cut each condition, as `torch.Tensor.chunk` does."""
        parts = {name: values.chunk(chunks, dim) for name, values in self.items()}
        return tuple(ConditionRows({name: part[i] for name, part in parts.items()}) for i in range(chunks))


class WindowVelocities:
    """Evaluate the transformer on one window.

    Args:
        transformer: the model.
        clean: latents of the given frames at their places, `(videos, frames, channels, h, w)`; elsewhere not read.
        layout: of the window, with a row for each video.
        planning_signals: `(videos, frames, rows, columns, planning_dim)`; `None` for the learned unconditional signal.
        attention_kwargs: given to the model.
        use_window_state: computes once what no step changes, instead of the whole window at every step; the same up to
            rounding. A transformer without identity attention has no such state, and always gets the whole window.
        conditions: of each frame, `(videos, frames, channels)` each. The unconditional branch gets none, so that
            guidance acts on planning signals and conditions together.
        reference_timestep: timesteps of the given frames where not all are clean, `(videos, frames)`.
        positions: places of the frames on the model's axis of frames; by default 0, 1, 2, ...
    """

    def __init__(
        self,
        transformer: MarDiniTransformer3DModel,
        clean: torch.Tensor,
        layout: WindowLayout,
        planning_signals: torch.Tensor | None,
        attention_kwargs: dict[str, Any] | None,
        use_window_state: bool = True,
        conditions: dict[str, torch.Tensor] | None = None,
        reference_timestep: torch.Tensor | None = None,
        positions: Sequence[float] | None = None,
    ):
        self.transformer = transformer
        self.clean = clean
        self.layout = layout
        self.planning_signals = planning_signals
        self._written = _times_written(planning_signals)
        self.attention_kwargs = attention_kwargs
        self.conditions = conditions or {}
        self.reference_timestep = reference_timestep
        self.positions = torch.tensor(positions, device=clean.device) if positions else None
        self.use_window_state = use_window_state and transformer.config.identity_attention
        self._states: dict[str, MarDiniWindowState] = {}
        self._was_guided: bool | None = None
        transformer._reset_stateful_cache()  # features of the last window are wrong for this one

    def reset(self) -> None:
        """Discard states, and what diffusers' caches keep: the next evaluation computes them with the present
        weights."""
        self._states.clear()
        self.transformer._reset_stateful_cache()

    def update_planning_signals(self, planning_signals: torch.Tensor | None, may_be_written: bool) -> None:
        """Use these planning signals from now on; discards states only if they are new or were written to.

        Args:
            planning_signals: shaped like the former ones, or these themselves.
            may_be_written: whether a callback had the former ones, and may have written to them.
        """
        written = may_be_written and (self._written is None or _times_written(self.planning_signals) != self._written)
        if written or planning_signals is not self.planning_signals:
            self.planning_signals = planning_signals
            self._written = _times_written(planning_signals)
            self.reset()

    def __call__(
        self, noisy: torch.Tensor, timestep: torch.Tensor, guided: bool, step_index: int, num_steps: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Evaluate the transformer once.

        Args:
            noisy: latents of the masked frames, `(videos, masked frames, channels, h, w)`.
            timestep: a scalar.
            guided: whether to return the unconditional velocity too.
            step_index, num_steps: for diffusers' caches.

        Returns:
            Velocities shaped like `noisy`, in float32: the conditional one, and the unconditional one or `None`.
        """
        self._check_caches(guided)
        self._was_guided = guided
        branches = self._branches(guided, len(noisy))
        if self.use_window_state:
            # All states before the first evaluation: caches keep features of evaluations.
            self._make_states({branch: given for branch, given in branches.items() if branch not in self._states})
        context = {"step_index": step_index, "num_inference_steps": num_steps}
        velocities = [self._evaluate(branch, noisy, timestep, given, context) for branch, given in branches.items()]
        if "both" in branches:
            unconditional, velocity = velocities[0].chunk(2)
            return velocity, unconditional
        return velocities[0], velocities[1] if guided else None

    def _check_caches(self, guided: bool) -> None:
        """Raise `ValueError` if the cache cannot do with or without guidance; discard features of another batch
        size."""
        cache = self.transformer._cache_config
        if guided != self._was_guided and self._was_guided is not None and self._cache_joins_branches:
            if isinstance(cache, FasterCacheConfig):
                raise ValueError(
                    "FasterCache cannot follow guidance that begins or ends between steps; keep it on or off for a "
                    "whole window, or use another cache"
                )
            self.transformer._reset_stateful_cache()  # a callback changed the number of rows that are cached
        if not guided and isinstance(cache, FasterCacheConfig) and not cache.is_guidance_distilled:
            raise ValueError(
                "FasterCache is set to approximate the unconditional branch, but without guidance there is none; "
                "enable it with `is_guidance_distilled=True`, or give a `guidance_scale` other than 1"
            )

    def _branches(self, guided: bool, videos: int) -> dict[str, dict[str, Any]]:
        """Return the branches of guidance to evaluate, each with the planning signals and conditions of its call."""
        signals = self.planning_signals
        conditions = {"conditions": self.conditions} if self.conditions else {}
        if guided and self._cache_joins_branches:
            # Unconditional rows first, as FasterCache expects.
            mask = torch.arange(2 * videos, device=self.clean.device) >= videos
            if conditions:
                conditions = {"conditions": ConditionRows.of_both_branches(self.conditions)}
            both = {"planning_signals": torch.cat([signals] * 2), "planning_signals_mask": mask, **conditions}
            return {"both": both}
        branches: dict[str, dict[str, Any]] = {"cond": {"planning_signals": signals, **conditions}}
        return branches | ({"uncond": {"planning_signals": None}} if guided else {})

    def _evaluate(
        self,
        branch: str,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        given: dict[str, Any],
        context: dict[str, int],
    ) -> torch.Tensor:
        """Return the velocity of the masked frames in one branch, or in both, one below the other."""
        if branch == "both":
            noisy = torch.cat([noisy] * 2)
        timestep = timestep.expand(len(noisy))
        dtype = self.transformer.dtype
        if self.use_window_state:
            # A keyword argument: FasterCache separates the branches in keyword arguments that it knows.
            arguments = {"window_state": self._states[branch], "attention_kwargs": self.attention_kwargs}
        else:
            clean, layout = self._window(branch)
            noisy = layout.replace_masked_frames(clean, noisy)
            arguments = self._arguments(layout, given, branch)
        with self.transformer.cache_context(branch, **context):
            velocity = self.transformer(noisy.to(dtype), timestep, **arguments, return_dict=False)[0].float()
        return velocity if self.use_window_state else layout.masked_frames(velocity)

    def _window(self, branch: str) -> tuple[torch.Tensor, WindowLayout]:
        """Return clean latents and layout of the window, with the rows of the branch."""
        if branch != "both":
            return self.clean, self.layout
        mask = self.layout.reference_mask.repeat(2, 1)
        return self.clean.repeat(2, 1, 1, 1, 1), WindowLayout.from_mask(mask, self.layout.num_masked_frames)

    def _arguments(self, layout: WindowLayout, given: dict[str, Any], branch: str) -> dict[str, Any]:
        """Return the transformer's arguments for a whole window."""
        timestep = self.reference_timestep
        if timestep is not None:
            given = {**given, "reference_timestep": timestep.repeat(2, 1) if branch == "both" else timestep}
        return {
            **given,
            "reference_mask": layout.reference_mask,
            "num_masked_frames": layout.num_masked_frames,
            "attention_kwargs": self.attention_kwargs,
            **({} if self.positions is None else {"frame_positions": self.positions}),
        }

    def _make_states(self, branches: dict[str, dict[str, Any]]) -> None:
        if not branches:
            return
        # diffusers' caches count and keep every call of the layers they hook; these calls are no steps.
        cache = self.transformer._cache_config
        if cache is not None:
            self.transformer.disable_cache()
        try:
            for branch, given in branches.items():
                clean, layout = self._window(branch)
                self._states[branch] = self.transformer(
                    clean.to(self.transformer.dtype),
                    0,
                    **self._arguments(layout, given, branch),
                    return_window_state=True,
                )
        finally:
            if cache is not None:
                self.transformer.enable_cache(cache)

    @property
    def _cache_joins_branches(self) -> bool:
        """Whether the cache keeps one state per layer, not one per branch of guidance, so that both branches must be
        rows of one call: in two calls, the second would get the attention of the first."""
        return isinstance(self.transformer._cache_config, (PyramidAttentionBroadcastConfig, FasterCacheConfig))


def _times_written(tensor: torch.Tensor | None) -> int | None:
    """Return how often a tensor was written to; `None` for no tensor, and under `torch.inference_mode`, which does not
    count."""
    return None if tensor is None or tensor.is_inference() else tensor._version
