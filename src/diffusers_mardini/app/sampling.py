"""The work behind the tabs: sample a window or a long video, and report how far it is.

A report is a `Progress`; the pipeline's step callback makes it, and raises `Ended` when the job is to end.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..measured_sampling import MeasuredSampling
from ..pipelines.leading_frames import read_leading_frames
from ..pipelines.pipeline_mardini import MarDiniPipeline
from .jobs import Job
from .limits import Limits


MOST_PREVIEWS = 8  # of one window: each is decoded, which takes time of the sampling


@dataclass(frozen=True)
class Sampling:
    """Say how to sample, as the visitor asks for it; see [`MarDiniPipeline.__call__`]."""

    steps: int = 25
    guidance: float | None = None
    seed: int = 0

    def arguments(self, limits: Limits) -> dict[str, Any]:
        """Return the arguments of the pipeline; raise `ValueError` for too many steps."""
        if not 1 <= self.steps <= limits.steps:
            raise ValueError(f"the number of steps is {self.steps}; give 1 to {limits.steps}")
        return {
            "num_inference_steps": int(self.steps),
            "guidance_scale": self.guidance,
            "generator": torch.Generator().manual_seed(int(self.seed) % 2**63),
        }


@dataclass(frozen=True)
class Progress:
    """Tell how far work is.

    Attributes:
        done, total: steps of the sampler.
        preview: the frames as they would be if sampling ended now; `None` if not decoded at this step.
    """

    done: int
    total: int
    preview: list[Image.Image] | None = None


def output_size(pipe: MarDiniPipeline, picture: Image.Image, limits: Limits) -> tuple[int, int]:
    """Return width and height to sample at: those of the training, else those of a picture, cut to what is possible."""
    window, multiple = pipe.trained_window, pipe.size_multiple
    if window.height and window.width:
        width, height = window.width, window.height
    else:
        width, height = (max(multiple, side // multiple * multiple) for side in picture.size)
    if width * height > limits.sampled_pixels:
        shrink = (limits.sampled_pixels / (width * height)) ** 0.5
        width, height = (max(multiple, int(side * shrink) // multiple * multiple) for side in (width, height))
    return width, height


def fitted(pictures: Sequence[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """Return pictures cropped around the centre and resized."""
    return [ImageOps.fit(picture, size, Image.Resampling.BICUBIC) for picture in pictures]


def at_rate(frames: Sequence[Image.Image], rate: float | None, wanted: float | None) -> list[Image.Image]:
    """Return the frames of a clip that lie as far apart in time as those of the training; all if a rate is unknown."""
    stride = max(1.0, rate / wanted) if rate and wanted else 1.0
    return [frames[int(i * stride)] for i in range(int((len(frames) - 1) // stride) + 1)]


def fill(
    pipe: MarDiniPipeline,
    given: Mapping[int, Image.Image],
    num_frames: int,
    sampling: Sampling,
    limits: Limits,
    job: Job,
    report: Callable[[Progress], None],
) -> list[Image.Image]:
    """Sample the frames of a window that are not given; return all of them."""
    if not given:
        raise ValueError("nothing is given; drop a picture onto a place of the strip, or a clip onto the field above")
    if not 2 <= num_frames <= limits.window_frames:
        raise ValueError(f"the window has {num_frames} frames; choose 2 to {limits.window_frames}")
    if len(given) >= num_frames:
        raise ValueError("all frames are given, so none is left to make; take one off the strip, or add frames")
    indices = sorted(given)
    pictures = [given[index] for index in indices]
    width, height = output_size(pipe, pictures[0], limits)
    result = pipe(
        video=fitted(pictures, (width, height)),
        frame_indices=indices,
        num_frames=num_frames,
        height=height,
        width=width,
        callback_on_step_end=StepReports(job, report, previews=True),
        **sampling.arguments(limits),
    )
    return result.frames[0]


def lengthen(
    pipe: MarDiniPipeline,
    clip: Sequence[Image.Image],
    rate: float | None,
    task: str,
    amount: int,
    sampling: Sampling,
    limits: Limits,
    job: Job,
    report: Callable[[Progress], None],
) -> tuple[list[Image.Image], float]:
    """Make slow motion of a clip (`amount` times as many frames), extend it (by `amount` frames), or give it another rate.

    Args:
        pipe: samples.
        clip, rate: frames and how many of them are a second; `rate` is `None` where the file does not say.
        task: "slow", "extend" or "retime".
        amount: the factor, the number of new frames, or the frames per second of the result.
        sampling, limits: say how to sample, and how much at most.
        job, report: end the work, and are told of its steps.

    Returns:
        The frames and their rate.
    """
    trained = pipe.trained_window
    frames = at_rate(clip, rate, trained.fps) if task == "extend" else list(clip)
    if task == "extend" and rate and trained.fps:
        rate = min(rate, trained.fps)  # frames are left out, and none are added
    rate = rate or trained.fps or 8
    made = {
        "slow": lambda: (len(frames) - 1) * amount + 1,
        "extend": lambda: len(frames) + amount,
        "retime": lambda: int((len(frames) - 1) / rate * amount) + 1,
    }[task]()
    if amount < {"slow": 2, "extend": 1, "retime": 1}[task]:
        raise ValueError("ask for at least twice as many frames, for one new frame, or for one frame a second")
    if made > limits.made_frames:
        raise ValueError(
            f"the result would have {made} frames; this page makes at most {limits.made_frames}. Give a shorter clip, "
            "or use `mardini` on the command line"
        )
    pictures = fitted(frames, output_size(pipe, frames[0], limits))
    callback = StepReports(job, report, previews=False)
    arguments = {**sampling.arguments(limits), "callback_on_step_end": callback}
    with _counted(pipe, callback):
        if task == "slow":
            result = pipe.slow_motion(pictures, factor=amount, **arguments)
        elif task == "extend":
            overlap = read_leading_frames(trained.frames, None, 0).overlap
            anchors = MeasuredSampling.from_config(pipe.config).anchors_of(overlap)
            result = pipe.extend(pictures, num_new_frames=amount, overlap=overlap, anchors=anchors, **arguments)
        else:
            result = pipe.retime(pictures, fps=amount, source_fps=rate, **arguments)
    return result.frames[0], amount if task == "retime" else rate


@dataclass
class StepReports:
    """A step callback that reports, makes previews, and ends the job when it is to end."""

    job: Job
    report: Callable[[Progress], None]
    previews: bool
    done: int = 0
    total: int | None = None  # that of one window unless it is known to be more
    _before: torch.Tensor | None = field(default=None, repr=False)

    def __call__(self, pipe: MarDiniPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        """Report a step."""
        self.job.check()
        self.done += 1
        steps, preview = pipe.num_timesteps, None
        if self.previews:
            every = max(1, steps // MOST_PREVIEWS)
            latents = tensors["latents"]
            if self._before is not None and step % every == 0 and step < steps - 1:
                preview = pipe.decode(clean_estimate(pipe, step, self._before, latents), "pil")[0]
            self._before = latents.clone()
        self.report(Progress(self.done, max(self.total or steps, self.done), preview))


def clean_estimate(pipe: MarDiniPipeline, step: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return what two neighbouring steps of DDIM take for the clean latents, without a call of the transformer.

    Both lie on the line from noise to clean latents that the step assumes: `a * clean + s * noise` with two known pairs
    of `a` and `s`. Exact for DDIM, near for other samplers; good enough for a preview.

    Args:
        pipe: gives the noise levels.
        step: number of the step that led from `before` to `after`.
        before, after: latents `(videos, frames, channels, h, w)`; given frames are equal in both.
    """
    levels, timesteps = pipe.scheduler.alphas_cumprod, pipe.scheduler.timesteps
    a, a_next = (float(levels[int(t)]) ** 0.5 for t in timesteps[step : step + 2])
    s, s_next = (1 - a**2) ** 0.5, (1 - a_next**2) ** 0.5
    clean = (s * after - s_next * before) / max(s * a_next - s_next * a, 1e-6)
    given = (before == after).flatten(2).all(dim=2)[:, :, None, None, None]
    return torch.where(given, after, clean)


@contextmanager
def _counted(pipe: MarDiniPipeline, callback: StepReports):
    """Tell a callback how many steps a long video takes, which the pipeline tells its progress bar only."""

    class Bar:
        def update(self, count: int = 1) -> None:
            pass

    @contextmanager
    def progress_bar(iterable: Any = None, total: int | None = None):
        callback.total = total
        yield Bar()

    pipe.progress_bar = progress_bar
    try:
        yield
    finally:
        del pipe.progress_bar


def cross_fade(given: Mapping[int, Image.Image], num_frames: int) -> list[Image.Image]:
    """Return the simple way to fill in: fade from each given frame to the next, and hold at the ends.

    Args:
        given: pictures of one size by their places.
        num_frames: of the result.
    """
    indices = sorted(given)
    arrays = np.stack([np.asarray(given[index], dtype=np.float32) for index in indices])
    places = np.interp(range(num_frames), indices, range(len(indices)))
    lower = np.floor(places).astype(int)
    upper = np.minimum(lower + 1, len(indices) - 1)
    share = (places - lower)[:, None, None, None]
    mixed = arrays[lower] * (1 - share) + arrays[upper] * share
    return [Image.fromarray(frame.round().astype(np.uint8)) for frame in mixed]
