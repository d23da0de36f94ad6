"""Check whether a scheduler of diffusers can replace ours, by the object, not by its configuration.

`from_config` keeps keys that the new class ignores, so that a configuration may claim what the object does not do.
Therefore the noise levels are read from the object, and its steps are tried on a problem with a known solution, in
milliseconds and without any model.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .scheduling_mardini import MarDiniScheduler


ADVICE = (
    "use `MarDiniScheduler`, or one with betas and v-prediction made from the configuration that the model came with: "
    "`UniPCMultistepScheduler.from_config(MarDiniScheduler.load_config(checkpoint, subfolder='scheduler'))`"
)
# Largest difference of signal amplitudes within one process. With and without zero terminal SNR they differ by less
# than 0.001, two kinds of schedules by more than 0.1.
SAME_PROCESS = 0.02
# The known problem: values of a normal distribution, with a mean that shows whether a scheduler clamps to [-1, 1].
MEAN, SPREAD = 2.0, 0.5
# Tolerated errors of the mean and of the spread, as shares of each. A narrower spread is always tolerated: it only
# means that too few steps blur. On the CarRacing checkpoint, between two frames, the spread of Heun's scheduler from
# pure noise is too wide by 9, 0.6 and 0.13 with 10, 25 and 40 steps, and it is worse than ours by 18, 7 and 3.5 dB; of
# the others none is too wide by more than 0.121 (the ancestral KDPM2, 10 steps, leading spacing).
# Starting below pure noise, the mean is off by 0.05 with 10 steps (leading spacing), worse by 4 dB.
# So Heun's passes from about 44 steps on, where it is off by less than that.
TOLERANCES = (0.15, 0.13)
MOST_PASSED = 1024  # trials that are remembered
_passed: set[tuple] = set()


def check_scheduler(scheduler: SchedulerMixin, noise_levels: torch.Tensor | None = None) -> None:
    """Check that a scheduler has the process of MarDini's velocities.

    Args:
        scheduler: of any class.
        noise_levels: `alphas_cumprod` of the model's original scheduler, if known.

    Raises:
        ValueError: for a scheduler without betas, one that does not take predictions for velocities, and one with
            other noise levels than those of its betas or of the model.
    """
    label = f"the {type(scheduler).__name__} of this pipeline"
    levels, betas = getattr(scheduler, "alphas_cumprod", None), getattr(scheduler, "betas", None)
    if not isinstance(levels, torch.Tensor) or not isinstance(betas, torch.Tensor):
        raise ValueError(
            f"{label} has no betas, but MarDini predicts velocities of a process with betas, and the transformer was "
            f"trained with its timesteps; flow matching and EDM cannot be used: {ADVICE}"
        )
    # The key may come from the configuration of another class, and be ignored.
    takes_kind = "prediction_type" in inspect.signature(type(scheduler).__init__).parameters
    kind = scheduler.config.get("prediction_type") if takes_kind else None
    if kind != "v_prediction":
        what = f"has prediction_type={kind!r}" if takes_kind else "has no argument `prediction_type`"
        raise ValueError(f"{label} {what}, but MarDini predicts velocities ('v_prediction'); {ADVICE}")
    own = torch.cumprod(1 - betas.cpu().double(), dim=0)  # MPS has no float64
    if levels.shape != own.shape or len(levels) != scheduler.config.get("num_train_timesteps") or _differ(levels, own):
        raise ValueError(
            f"{label} has noise levels (`alphas_cumprod`) that do not follow from its betas, so that its timesteps "
            f"mean other noise than the model's; {ADVICE}"
        )
    if noise_levels is not None and (levels.shape != noise_levels.shape or _differ(levels, noise_levels)):
        raise ValueError(
            f"{label} has other noise levels (betas) than the scheduler that this pipeline was made with, so that its "
            f"timesteps mean other noise than the model's; {ADVICE}"
        )


def set_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: Sequence[int] | None, device: torch.device | str
) -> int:
    """Set a scheduler's noise levels, `timesteps` if given; return the number of steps.

    Raises:
        ValueError: for `timesteps` if the scheduler accepts none.
    """
    if timesteps is None:
        scheduler.set_timesteps(num_inference_steps, device=device)
        return num_inference_steps
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ValueError(
            f"`timesteps` was given, but {type(scheduler).__name__} accepts no levels of the caller's choice; "
            "use `num_inference_steps`, or another scheduler such as `MarDiniScheduler`"
        )
    scheduler.set_timesteps(timesteps=timesteps, device=device)
    return len(timesteps)


def accepted(function: Callable, **kwargs: Any) -> dict[str, Any]:
    """Return those of `kwargs` that `function` accepts: some schedulers have no `eta` or draw no noise."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in kwargs.items() if name in parameters}


def check_sampling(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: Sequence[int] | None = None, eta: float = 0.0
) -> None:
    """Check that steps of a scheduler reach the clean values, on a problem whose velocity is known exactly.

    The scheduler itself is not changed. What has passed once is not tried again in the same process.

    Raises:
        ValueError: if they do not, or if the scheduler cannot take such steps at all.
    """
    tried = _what_is_tried(scheduler, num_inference_steps, timesteps, eta)
    if tried in _passed:
        return
    label = f"the {type(scheduler).__name__} of this pipeline"
    steps = f"{num_inference_steps} steps" if timesteps is None else f"the {len(timesteps)} `timesteps` given"
    allowed = TOLERANCES
    if timesteps is not None:
        # Levels of the caller's choice may begin anywhere: errors that our scheduler has with them are tolerated. It
        # also refuses invalid levels.
        ours = MarDiniScheduler(trained_betas=scheduler.betas.tolist(), rescale_betas_zero_snr=False)
        allowed = [most + max(missed, 0) for most, missed in zip(allowed, _misses(ours, 0, timesteps, 0.0))]
    try:
        missed = _misses(scheduler, num_inference_steps, timesteps, eta)
    except Exception as error:  # other classes may raise anything
        raise ValueError(f"{label} cannot take {steps} ({error or type(error).__name__}); {ADVICE}") from error
    if not all(one <= most for one, most in zip(missed, allowed)):  # also of NaN
        if isinstance(scheduler, MarDiniScheduler) and timesteps is None:
            total = scheduler.config.num_train_timesteps
            raise ValueError(
                f"{label} does not reproduce a known distribution with {steps}: DDIM goes down by {total} // steps "
                f"levels at each, which misses the listed ones unless the number of steps divides {total}; use 25 or 50"
            )
        raise ValueError(
            f"{label} does not reproduce a known distribution with {steps}. Some schedulers cannot start at pure "
            "noise (Heun's, and the ancestral KDPM2, with trailing spacing), some begin too low or run backwards, "
            "some clamp predictions (`clip_sample`, `thresholding`). Use more steps or "
            f"`timestep_spacing='leading'`, or {ADVICE}"
        )
    if len(_passed) == MOST_PASSED:
        _passed.clear()
    _passed.add(tried)


def _what_is_tried(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: Sequence[int] | None, eta: float
) -> tuple:
    """Return everything that the outcome of a trial follows from, as a key; `alphas_cumprod` may have been changed."""
    levels = None if timesteps is None else tuple(float(level) for level in timesteps)
    patched = tuple(sorted(key for key, value in vars(scheduler).items() if callable(value)))
    settings = repr(sorted((key, repr(value)) for key, value in scheduler.config.items()))
    noise = hash(tuple(scheduler.alphas_cumprod.tolist()))
    return type(scheduler), patched and id(scheduler), settings, noise, num_inference_steps, levels, eta


def _misses(
    scheduler: SchedulerMixin, num_inference_steps: int, timesteps: Sequence[int] | None, eta: float
) -> tuple[float, float]:
    """Return by how much the mean of sampled values is wrong, and by how much their spread is too wide, as shares."""
    # Schedulers write to their lists of earlier predictions in place.
    scheduler = copy.copy(scheduler)
    vars(scheduler).update({key: list(value) for key, value in vars(scheduler).items() if isinstance(value, list)})
    # Tables may lie on a GPU: by the default device, or since `add_noise` moved them there.
    vars(scheduler).update({key: value.cpu() for key, value in vars(scheduler).items() if torch.is_tensor(value)})
    with torch.random.fork_rng(devices=[]):  # some draw from global state
        set_timesteps(scheduler, num_inference_steps, timesteps, "cpu")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        kwargs = accepted(scheduler.step, generator=torch.Generator().manual_seed(0), eta=eta)
        # Evenly spread quantiles of the normal distribution, (videos, frames, channels, h, w).
        quantiles = (torch.arange(1024, dtype=torch.float64, device="cpu") + 0.5) / 1024
        values = torch.special.ndtri(quantiles).float().reshape(1, 4, 4, 8, 8) * scheduler.init_noise_sigma
        amplitudes = scheduler.alphas_cumprod.cpu().double() ** 0.5
        for timestep in scheduler.timesteps:
            velocity = _known_velocity(scheduler.scale_model_input(values, timestep), float(timestep), amplitudes)
            values = scheduler.step(velocity, timestep, values, return_dict=False, **kwargs)[0]
    return abs(values.mean().item() - MEAN) / MEAN, values.std().item() / SPREAD - 1


def _known_velocity(noisy: torch.Tensor, timestep: float, amplitudes: torch.Tensor) -> torch.Tensor:
    """Return the exact velocity of values with mean `MEAN` and spread `SPREAD`; interpolates between noise levels."""
    place = min(max(timestep, 0.0), len(amplitudes) - 1.0)  # raises ValueError of NaN, below
    lower = int(place)
    share = place - lower
    alpha = (1 - share) * amplitudes[lower] + share * amplitudes[min(lower + 1, len(amplitudes) - 1)]
    sigma = (1 - alpha**2) ** 0.5
    away = noisy.double() - alpha * MEAN
    clean = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * away
    noise = (noisy.double() - alpha * clean) / sigma
    return (alpha * noise - sigma * clean).to(noisy.dtype)


def _differ(levels: torch.Tensor, others: torch.Tensor) -> bool:
    difference = levels.cpu().double().clamp(min=0) ** 0.5 - others.cpu().double().clamp(min=0) ** 0.5
    return not difference.abs().max() <= SAME_PROCESS
