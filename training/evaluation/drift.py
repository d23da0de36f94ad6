"""Drift of a clip that a checkpoint continues for a long time: how frames far out differ from those near the clip.

`training/drift.py` is the program. An arm is a way of continuing, so that remedies can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from diffusers_mardini import MarDiniPipeline
from training.evaluation.metrics import frame_sharpness, motion_steps


RANGES = ((1, 50), (101, 150), (451, 500), (951, 1000))  # of new frames, counted from 1


@dataclass(frozen=True)
class Arm:
    """A way of continuing a clip.

    Attributes:
        name: in tables.
        window, overlap: frames of a window, and how many of them lead it.
        steps: of the scheduler.
        guidance_scale: `None` is the pipeline's own choice.
        generated_noise, anchors, keyframe_interval: see `MarDiniPipeline.extend`.
        colours: share, 0 to 1, by which mean and deviation of each channel of the latents of new frames are brought
            back to those of the given frames.
    """

    name: str
    window: int = 9
    overlap: int = 4
    steps: int = 10
    guidance_scale: float | None = None
    generated_noise: float = 0.0
    anchors: int = 0
    keyframe_interval: int = 1
    colours: float = 0.0

    @classmethod
    def read(cls, text: str, base: "Arm") -> "Arm":
        """Read `name: key=value …`; keys that are not named are those of `base`.

        Raises:
            ValueError: for an unknown key, or a value that is no number.
        """
        name, _, settings = text.partition(":")
        kinds = {f.name: int if f.type in ("int", int) else float for f in fields(cls) if f.name != "name"}
        changes: dict[str, float] = {}
        for setting in settings.split():
            key, _, value = setting.partition("=")
            if key not in kinds:
                raise ValueError(f"arm {name.strip()!r} sets {key!r}; the settings are {', '.join(kinds)}")
            try:
                changes[key] = kinds[key](value)
            except ValueError as error:
                kind = "a whole number" if kinds[key] is int else "a number"
                raise ValueError(f"arm {name.strip()!r} sets {key} to {value!r}; give {kind}") from error
        arm = replace(base, name=name.strip(), **changes)
        if not 1 <= arm.overlap < arm.window:
            raise ValueError(
                f"arm {arm.name!r} has an overlap of {arm.overlap} in windows of {arm.window}; give 1 to {arm.window - 1}"
            )
        return arm


@dataclass
class Curves:
    """What is kept of a long video, per frame, for each clip; frames themselves only within `ranges`.

    Attributes:
        motion: change from the frame before, `(clips, frames)`.
        sharpness: `(clips, frames)`.
        colours: mean and deviation of red, green and blue, `(clips, frames, 6)`.
        kept: frames of the ranges by their number, bytes `(clips, 3, height, width)`.
    """

    motion: torch.Tensor
    sharpness: torch.Tensor
    colours: torch.Tensor
    kept: dict[int, torch.Tensor] = field(default_factory=dict)


def colour_moments(frames: torch.Tensor) -> torch.Tensor:
    """Return mean and deviation of each colour of frames `(clips, frames, 3, height, width)`: `(clips, frames, 6)`."""
    return torch.cat([frames.mean(dim=(3, 4)), frames.std(dim=(3, 4))], dim=2)


@torch.no_grad()
def continue_clips(
    pipe: MarDiniPipeline,
    given: torch.Tensor,
    arm: Arm,
    num_frames: int,
    seeds: Sequence[int],
    ranges: Sequence[tuple[int, int]],
    conditions: Mapping[str, float],
) -> Curves:
    """Continue clips, and measure the frames as they are made: a thousand frames take no more memory than a window.

    Args:
        pipe: the checkpoint; its scheduler is used as it is.
        given: frames that lead, in [0, 1], `(clips, given frames, 3, height, width)`.
        arm: how.
        num_frames: how many frames to add.
        seeds: of each clip.
        ranges: first and last of the frames to keep, counted from 1.
        conditions: one value for all frames, given ones included, by name.
    """
    told = {name: torch.full((given.shape[1], 1), value) for name, value in conditions.items()}
    rollout = pipe.rollout(
        given,
        window=arm.window,
        overlap=arm.overlap,
        num_inference_steps=arm.steps,
        guidance_scale=arm.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        generated_noise=arm.generated_noise,
        anchors=arm.anchors,
        keyframe_interval=arm.keyframe_interval,
        output_type="pt",
        conditions=told,
        callback_on_step_end=_colours_kept(pipe, given, arm) if arm.colours else None,
    )
    last, made = given[:, -1:], 0
    parts: list[Curves] = []
    kept: dict[int, torch.Tensor] = {}
    while made < num_frames:
        count = min(rollout.most_new_frames, num_frames - made)
        told = {name: torch.full((rollout.most_new_frames, 1), value) for name, value in conditions.items()}
        frames = rollout.step(conditions=told).frames[:, :count].float().cpu()
        motion = motion_steps(torch.cat([last, frames], dim=1))
        parts.append(Curves(motion, frame_sharpness(frames), colour_moments(frames)))
        for i in range(count):
            if any(low <= made + i + 1 <= high for low, high in ranges):
                kept[made + i + 1] = (frames[:, i] * 255).round().to(torch.uint8)
        last, made = frames[:, -1:], made + count
    columns = {
        name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("motion", "sharpness", "colours")
    }
    return Curves(**columns, kept=kept)


def _colours_kept(pipe: MarDiniPipeline, given: torch.Tensor, arm: Arm):
    """Return a callback that, after the last step of a window, brings new frames' latents back to the given ones'
    mean and deviation, by the arm's share."""
    latents = pipe.encode_frames(given * 2 - 1)  # (clips, given frames, channels, h, w)
    mean, deviation = (statistic(latents) for statistic in (_mean, _deviation))

    def keep(pipe: MarDiniPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        if step + 1 < pipe.num_timesteps:
            return {}
        new = tensors["latents"]
        own_mean, own_deviation = _mean(new), _deviation(new)
        matched = (new - own_mean) / own_deviation * deviation + mean
        return {"latents": torch.lerp(new, matched, arm.colours)}

    return keep


def _mean(latents: torch.Tensor) -> torch.Tensor:
    return latents.mean(dim=(1, 3, 4), keepdim=True)


def _deviation(latents: torch.Tensor) -> torch.Tensor:
    return latents.std(dim=(1, 3, 4), keepdim=True).clamp(min=1e-4)


def colour_distance(colours: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return how far the colours of clips lie from the mean of other true clips' frames, in deviations between these.

    A deviation counts as one grey level of 256 at least, since less than that is not seen. `colour_distance(true, true)`
    is what is usual.

    Args:
        colours: moments, `(clips, frames, 6)`.
        true: moments of two true clips or more, of which the first ones belong to `colours`: each clip is compared with
            the others.

    Returns:
        The root of the mean square over frames and moments, `(clips,)`.
    """
    distances = []
    for i, own in enumerate(colours):
        others = torch.cat([true[:i], true[i + 1 :]]).flatten(0, 1)  # (true frames, 6)
        centre, spread = others.mean(dim=0), others.std(dim=0).clamp(min=1 / 255)
        distances.append(((own - centre) / spread).square().mean().sqrt())
    return torch.stack(distances)
