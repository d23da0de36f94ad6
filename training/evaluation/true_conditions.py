"""The true conditions of the windows that are scored, for a checkpoint that has conditions, and changed ones.

Tables lie beside the clips, and rates and motion are derived, both as in training (`training/data/conditions.py`).
What each condition is follows from the checkpoint's own configuration.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.latents import encode_video
from diffusers_mardini.models.conditions import Condition
from training.config.data_section import ConditionConfig
from training.data.conditions import ClipConditions
from training.data.sources import open_source
from training.evaluation.evaluation_windows import EvaluationWindows


DERIVED = ("rate", "motion")


@dataclass(frozen=True)
class TrueConditions:
    """The conditions of all windows.

    Attributes:
        values: by name, `(windows, frames, channels)`, NaN where absent.
        known: what the checkpoint says of each.
    """

    values: Mapping[str, torch.Tensor]
    known: Mapping[str, Condition]

    def facts(self) -> dict[str, str]:
        """Return a line on each condition, for the files of an evaluation."""
        facts = {}
        for name, values in self.values.items():
            beyond = (_within(values, self.known[name]) != values) & ~values.isnan()
            share = beyond.any(dim=-1).float().mean().item()
            clamped = (
                f"; {share:.1%} of the frames lie beyond the learned range, and are clamped to it" if share else ""
            )
            facts[name] = f"{self.known[name]}{clamped}"
        return facts

    def only(self, names: Container[str]) -> "TrueConditions":
        """Return the conditions among `names`, such as those of the checkpoint without its adapter."""
        return TrueConditions({name: values for name, values in self.values.items() if name in names}, self.known)

    def scaled(self, name: str, factor: float, given: Sequence[int]) -> "TrueConditions":
        """Multiply the values of one condition, except between two neighbouring given frames, whose values are fixed.

        Raises:
            ValueError: if there is no such condition.
        """
        if name not in self.values:
            raise ValueError(
                f"--condition-scale names {name}; this checkpoint takes {', '.join(self.values) or 'no conditions'}"
            )
        changed = self.values[name].clone()
        changed[:, self._free(name, given)] *= factor
        return TrueConditions({**self.values, name: changed}, self.known)

    def told_of(self, name: str, true: "TrueConditions", given: Sequence[int]) -> dict[str, float]:
        """Return how much of a condition is told after it was multiplied and clamped to the learned range.

        Returns:
            `factor`, the sum of what is told over that of the true values, and `clamped`, the share of the values that
            lie beyond the range.
        """
        places = self._free(name, given)
        wanted, own = self.values[name][:, places], true.values[name][:, places]
        told, known = _within(wanted, self.known[name]), ~wanted.isnan()
        own = _within(own, self.known[name])
        return {
            "factor": (told[known].sum() / own[known].sum()).item(),
            "clamped": (told != wanted)[known].float().mean().item(),
        }

    def _free(self, name: str, given: Sequence[int]) -> list[int]:
        """Return the frames whose values are not fixed by two neighbouring given frames."""
        return [i for i in range(self.values[name].shape[1]) if not {i - 1, i} <= set(given)]

    def of(self, first: int, count: int) -> dict[str, torch.Tensor]:
        """Return the conditions of some windows, within the ranges that the checkpoint learned."""
        return {name: _within(values[first : first + count], self.known[name]) for name, values in self.values.items()}


@torch.no_grad()
def true_conditions(pipe: MarDiniPipeline, windows: EvaluationWindows) -> TrueConditions:
    """Return the conditions of windows, or none for a checkpoint without conditions.

    Raises:
        ValueError: if the table of a clip cannot be used, or a condition is neither a table's nor derived.
    """
    known = pipe.conditions
    if not known:
        return TrueConditions({}, {})
    source = open_source(windows.source, windows.picture_fps)
    clips = ClipConditions(source, {name: _config(one) for name, one in known.items()})
    found: dict[str, list[torch.Tensor]] = {name: [] for name in known}
    for entry, places, frames in zip(windows.entries, windows.places, windows.frames, strict=True):
        pixels = frames[None].to(pipe.device, pipe.vae.dtype) * 2 - 1
        latents = encode_video(pipe.vae, pixels)[0].float().cpu()  # (frames, channels, h, w)
        for name, values in clips.of(entry, places, latents).items():
            found[name].append(values)
    return TrueConditions({name: torch.stack(values) for name, values in found.items()}, known)


def _config(condition: Condition) -> ConditionConfig:
    """Return the configuration with which a checkpoint's condition was trained, from what its own says of it."""
    arguments = {"range": list(condition.ranges or [(-1.0, 1.0)]), "unit": condition.unit}
    if condition.names:
        return ConditionConfig(columns=list(condition.names), interval=condition.interval, **arguments)
    for derive in DERIVED:
        config = ConditionConfig(derive=derive, **arguments)
        if condition.description == config.info["description"] or condition.name == derive:
            return config
    raise ValueError(
        f"the checkpoint takes {condition}, and does not say how it is read: without names of channels, which are "
        f"columns of the tables beside clips, only {' and '.join(DERIVED)} are known; add `names` to its "
        "`condition_info`"
    )


def _within(values: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Clamp values to the learned range; NaN stays."""
    if condition.ranges is None:
        return values
    low, high = torch.tensor(condition.ranges).T
    return values.clamp(low, high)
