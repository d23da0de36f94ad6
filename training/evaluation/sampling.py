"""Fills in the frames of windows with the pipeline that users call: one sample each, nothing chosen."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.latents import decode_latents, encode_video
from training.digests import tensors_digest
from training.evaluation.altered_signals import OTHER, PlanChange, PlanContext


ADAPTED = ", with the adapter"  # in names of methods
# Added to the seeds of what changes a plan draws, so that it has nothing to do with the noise that is sampled from.
PLAN_SEED = 1 << 40


@contextlib.contextmanager
def plan_changed(pipe: MarDiniPipeline, change: PlanChange | None, context: PlanContext) -> Iterator[None]:
    """Within it the transformer meets another plan than the planner's; `None` leaves the planner's own."""

    def replace(module, args, output):
        new = change.apply(output[0], context)  # (batch, frames, rows, columns, channels)
        if isinstance(output, tuple):
            return (new, *output[1:])
        return type(output)(planning_signals=new)

    handle = pipe.planner.register_forward_hook(replace) if change is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def scheduler_named(pipe: MarDiniPipeline, name: str) -> SchedulerMixin:
    """A scheduler of diffusers with the noise schedule that the checkpoint was trained with.

    Raises:
        ValueError: if diffusers has no such scheduler, or it cannot take over the schedule.
    """
    compatible = {cls.__name__: cls for cls in pipe.scheduler.compatibles}
    if name not in compatible:
        raise ValueError(
            f"scheduler {name!r} cannot take over the checkpoint's {type(pipe.scheduler).__name__}; these can: "
            f"{', '.join(sorted(compatible))}"
        )
    return compatible[name].from_config(pipe.scheduler.config)


@contextlib.contextmanager
def scheduler_replaced(pipe: MarDiniPipeline, scheduler: SchedulerMixin | None) -> Iterator[None]:
    """Within it the pipeline samples with `scheduler`; `None` leaves its own."""
    own = pipe.scheduler
    pipe.scheduler = own if scheduler is None else scheduler
    try:
        yield
    finally:
        pipe.scheduler = own


def batches(count: int, batch_size: int, least: int = 1) -> list[tuple[int, int]]:
    """First and last-plus-one of batches of nearly equal size.

    Args:
        count: of all windows.
        batch_size: most windows of a batch.
        least: fewest windows of a batch, which may have more than `batch_size` then.

    Raises:
        ValueError: if batches are to be empty, or there are fewer windows than the fewest of a batch.
    """
    if batch_size < 1:
        raise ValueError(f"batches of {batch_size} windows; give a batch size of at least 1")
    if count < least:
        raise ValueError(f"{count} windows; batches of at least {least} were asked for")
    number = min(-(-count // batch_size), count // least)
    sizes = [len(part) for part in torch.arange(count).tensor_split(number)]
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [(end - size, end) for end, size in zip(ends, sizes)]


def sample_batch(
    pipe: MarDiniPipeline,
    windows: torch.Tensor,
    given: Sequence[int],
    steps: int,
    seed: int = 0,
    first: int = 0,
    plan_change: PlanChange | None = None,
    guidance_scale: float | None = None,
) -> torch.Tensor:
    """Samples a batch once from its given frames.

    Each window has a random generator of its own, seeded by `seed` and its number, so that the result does not depend on the
    batch (with the plan of another window it does: that comes from the same batch).

    Args:
        pipe: the checkpoint.
        windows: in [0, 1], `(batch, frames, 3, height, width)`; looked at where `given` says.
        given: positions of the given frames.
        steps: of the scheduler.
        seed: of all windows.
        first: the number of the first window.
        plan_change: what the transformer meets instead of the plan.
        guidance_scale: `None` is the pipeline's own choice for the task.

    Returns:
        Frames in [0, 1], shaped like `windows`, on the CPU; the given ones are those of `windows`.
    """
    generators, plan_generators = (
        [torch.Generator().manual_seed(stream + seed * 1_000_003 + first + i) for i in range(len(windows))]
        for stream in (0, PLAN_SEED)
    )
    context = PlanContext(pipe.transformer.unconditional_planning_signal, given, plan_generators)
    with plan_changed(pipe, plan_change, context):
        frames = pipe(
            video=windows[:, list(given)],
            frame_indices=list(given),
            num_frames=windows.shape[1],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="pt",
        ).frames
    frames = frames.float().cpu()
    frames[:, list(given)] = windows[:, list(given)].float()
    return frames


def generate(
    pipe: MarDiniPipeline,
    windows: torch.Tensor,
    given: Sequence[int],
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    plan_change: PlanChange | None = None,
) -> torch.Tensor:
    """Samples every window once, batch by batch; see `sample_batch`."""
    sampled = [
        sample_batch(pipe, windows[first:last], given, steps, seed, first, plan_change)
        for first, last in batches(len(windows), batch_size, least=2 if plan_change is OTHER else 1)
    ]
    return torch.cat(sampled)


@torch.no_grad()
def reconstruct(pipe: MarDiniPipeline, windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    """Every frame but the given ones through the autoencoder and back: the best that any model on top of it can reach.

    Args:
        windows: in [0, 1], `(windows, frames, 3, height, width)`.
        given: positions of the given frames, which stay as they are, as in `sample_batch`.
    """
    frames = [
        decode_latents(pipe.vae, encode_video(pipe.vae, window[None].to(pipe.device, pipe.vae.dtype) * 2 - 1))
        for window in windows
    ]
    rebuilt = (torch.cat(frames).float().cpu() / 2 + 0.5).clamp(0, 1)
    rebuilt[:, list(given)] = windows[:, list(given)].float()
    return rebuilt


def weights_digest(pipe: MarDiniPipeline) -> str:
    """Return a digest of all weights and settings of autoencoder, planner and transformer; the scheduler is `sampling_key`'s."""
    digests = {}
    for name in ("vae", "planner", "transformer"):
        module = getattr(pipe, name)
        # How strongly peft's layers add an adapter (its alpha and rank, and any weight given to it) is in no tensor.
        scalings = {
            f"scaling of {layer}": sorted(scaling.items())
            for layer, part in module.named_modules()
            if isinstance(scaling := getattr(part, "scaling", None), dict)
        }
        digests[f"digest of {name}"] = tensors_digest(module.state_dict(), {**module.config, **scalings})
    return tensors_digest({}, {**pipe.config, **digests})
