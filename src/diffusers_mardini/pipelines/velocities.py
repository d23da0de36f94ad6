"""The transformer on one window: the velocities of its masked frames, with the plan and, under guidance, without.

Owns what is computed once per window (`models/window_state.py`), for each branch of guidance its own. The loop over steps is
`pipeline_mardini.py`'s.
"""

from typing import Any

import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig

from ..masking import reference_mask_from_indices
from ..models.transformer_mardini import MarDiniTransformer3DModel
from ..models.window import MarDiniWindowState


class ConditionRows(dict[str, torch.Tensor]):
    """Conditions by name, of both branches of guidance; FasterCache takes them apart by `chunk`, like tensors."""

    @classmethod
    def of_both_branches(cls, conditions: dict[str, torch.Tensor]) -> "ConditionRows":
        """Return rows without values, for the unconditional branch, above those of `conditions`."""
        return cls({name: torch.cat([torch.full_like(rows, torch.nan), rows]) for name, rows in conditions.items()})

    def chunk(self, chunks: int, dim: int = 0) -> tuple["ConditionRows", ...]:
        parts = {name: values.chunk(chunks, dim) for name, values in self.items()}
        return tuple(ConditionRows({name: part[i] for name, part in parts.items()}) for i in range(chunks))


class WindowVelocities:
    """Evaluates the transformer on one window.

    Args:
        transformer: the model.
        clean: latents of the given frames at their places, `(videos, frames, channels, h, w)`; elsewhere not read.
        frame_indices: those places, the same in every row.
        attention_kwargs: given to the model.
        use_window_state: computes what no step changes once, instead of the whole window at every step. The same but for rounding.
            A transformer without identity attention has nothing of that kind, and is always given the whole window.
        conditions: what the frames are told, `(videos, frames, channels)` each. In the unconditional branch no frame
            is told anything, so that guidance weighs plan and conditions together.
    """

    def __init__(
        self,
        transformer: MarDiniTransformer3DModel,
        clean: torch.Tensor,
        frame_indices: list[int],
        attention_kwargs: dict[str, Any] | None,
        use_window_state: bool = True,
        conditions: dict[str, torch.Tensor] | None = None,
    ):
        videos, frames = clean.shape[:2]
        self.transformer = transformer
        self.clean = clean
        self.masked = torch.tensor([i for i in range(frames) if i not in set(frame_indices)], device=clean.device)
        self.reference_mask = reference_mask_from_indices(frame_indices, frames, videos, clean.device)
        self.attention_kwargs = attention_kwargs
        self.conditions = conditions or {}
        self.use_window_state = use_window_state and transformer.config.identity_attention
        self._states: dict[str, MarDiniWindowState] = {}
        self._was_guided: bool | None = None
        transformer._reset_stateful_cache()  # the last window's features are not this one's

    def forget(self) -> None:
        """To be called when the plan or the weights have changed: states, and what diffusers' caches keep, are made anew at the next evaluation."""
        self._states.clear()
        self.transformer._reset_stateful_cache()

    def __call__(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        planning_signals: torch.Tensor,
        guided: bool,
        step_index: int,
        num_steps: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One evaluation.

        Args:
            noisy: latents of the masked frames, `(videos, masked frames, channels, h, w)`.
            timestep: a scalar.
            planning_signals: `(videos, frames, rows, columns, planning_dim)`.
            guided: whether the unconditional velocity is wanted too.
            step_index, num_steps: for diffusers' caches.

        Returns:
            Velocities shaped as `noisy`, in float32: with plan and conditions, and without (`None` if not wanted).
        """
        joined = self._cache_joins_branches
        if guided != self._was_guided and self._was_guided is not None and joined:
            if isinstance(self.transformer._cache_config, FasterCacheConfig):
                raise ValueError(
                    "FasterCache cannot follow guidance that begins or ends between steps; keep it on or off for a whole window, or use "
                    "another cache"
                )
            self.transformer._reset_stateful_cache()  # a callback changed the number of rows that are cached
        self._was_guided = guided
        told = {"conditions": self.conditions} if self.conditions else {}
        plans: dict[str, dict[str, Any]] = {"cond": {"planning_signals": planning_signals, **told}}
        if guided and not joined:
            plans["uncond"] = {"planning_signals": None}
        elif guided:
            rows = torch.arange(2 * len(noisy), device=noisy.device)
            # Unconditional rows first, as FasterCache has it.
            mask = rows >= len(noisy)
            plans = {"both": {"planning_signals": torch.cat([planning_signals] * 2), "planning_signals_mask": mask}}
            if told:
                plans["both"]["conditions"] = ConditionRows.of_both_branches(self.conditions)
        else:
            cache = self.transformer._cache_config
            if isinstance(cache, FasterCacheConfig) and not cache.is_guidance_distilled:
                raise ValueError(
                    "FasterCache is set to approximate the unconditional branch, but without guidance there is none; "
                    "enable it with `is_guidance_distilled=True`, or give a `guidance_scale` other than 1"
                )
        if self.use_window_state:
            # All before the first evaluation, which caches keep something of.
            self._make_states({branch: plan for branch, plan in plans.items() if branch not in self._states})
        context = {"step_index": step_index, "num_inference_steps": num_steps}
        velocities = [self._evaluate(branch, noisy, timestep, plan, context) for branch, plan in plans.items()]
        if "both" in plans:
            unconditional, velocity = velocities[0].chunk(2)
            return velocity, unconditional
        return velocities[0], velocities[1] if guided else None

    def _evaluate(
        self,
        branch: str,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        plan: dict[str, Any],
        context: dict[str, int],
    ) -> torch.Tensor:
        """The velocity of the masked frames in one branch, or in both, one below the other."""
        noisy = torch.cat([noisy] * self._repeats(branch))
        timestep = timestep.expand(len(noisy))
        dtype = self.transformer.dtype
        if self.use_window_state:
            # As a keyword: FasterCache takes branches apart in keywords that it knows.
            arguments = {"window_state": self._states[branch], "attention_kwargs": self.attention_kwargs}
        else:
            clean, arguments = self._window(branch, plan)
            noisy = clean.index_copy(1, self.masked, noisy)
        with self.transformer.cache_context(branch, **context):
            velocity = self.transformer(noisy.to(dtype), timestep, **arguments, return_dict=False)[0].float()
        return velocity if self.use_window_state else velocity.index_select(1, self.masked)

    def _window(self, branch: str, plan: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Clean latents of the window and what the model is told about it, with the rows of the branch."""
        repeats = self._repeats(branch)
        arguments = {
            **plan,
            "reference_mask": self.reference_mask.repeat(repeats, 1),
            "num_masked_frames": len(self.masked),
            "attention_kwargs": self.attention_kwargs,
        }
        return self.clean.repeat(repeats, 1, 1, 1, 1), arguments

    def _make_states(self, plans: dict[str, dict[str, Any]]) -> None:
        if not plans:
            return
        # diffusers' caches count and keep every call of the layers they hook; these are no steps.
        cache = self.transformer._cache_config
        if cache is not None:
            self.transformer.disable_cache()
        try:
            for branch, plan in plans.items():
                clean, arguments = self._window(branch, plan)
                self._states[branch] = self.transformer(
                    clean.to(self.transformer.dtype), 0, **arguments, return_window_state=True
                )
        finally:
            if cache is not None:
                self.transformer.enable_cache(cache)

    @staticmethod
    def _repeats(branch: str) -> int:
        return 2 if branch == "both" else 1

    @property
    def _cache_joins_branches(self) -> bool:
        """Whether the cache keeps one state per layer and not one per branch of guidance, so that both must be rows of
        one call: in two calls, the second would be given the attention of the first."""
        return isinstance(self.transformer._cache_config, (PyramidAttentionBroadcastConfig, FasterCacheConfig))
