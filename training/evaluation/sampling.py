"""Sample the masked frames of windows with the pipeline that users call: one sample each, none chosen.

The methods that are compared are made of these functions in `methods.py`.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.latents import decode_latents, encode_video
from diffusers_mardini.measured_sampling import MeasuredSampling
from training.digests import tensors_digest
from training.evaluation.altered_signals import OTHER, Alteration, SignalContext


ADAPTED = ", with the adapter"  # in names of methods
# Added to the seeds of alterations, so that their random numbers are independent of the noise that is denoised.
ALTERATION_SEED = 1 << 40


def load_pipeline(checkpoint: str, device: str, dtype: str) -> tuple[MarDiniPipeline, str]:
    """Load a checkpoint without progress bars.

    Args:
        checkpoint: folder or Hub id.
        device, dtype: as the command line takes them, `auto` among them.

    Returns:
        The pipeline, and in which dtype it runs where, and why.
    """
    place = choose_device(device)
    chosen, why = choose_dtype(dtype, place)
    pipe = MarDiniPipeline.from_pretrained(checkpoint, dtype=chosen).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe, f"{chosen} on {place} ({why})"


@contextlib.contextmanager
def signals_altered(pipe: MarDiniPipeline, alteration: Alteration | None, context: SignalContext) -> Iterator[None]:
    """Alter the planner, or its signals, inside the `with` block; `None` leaves them as they are."""

    def replace(module, args, output):
        new = alteration.apply(output[0], context)  # (batch, frames, rows, columns, channels)
        if isinstance(output, tuple):
            return (new, *output[1:])
        return type(output)(planning_signals=new)

    if alteration is None:
        yield
        return
    around = alteration.around(pipe, context) if alteration.around is not None else contextlib.nullcontext()
    with around:
        handle = pipe.planner.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def scheduler_replaced(pipe: MarDiniPipeline, scheduler: SchedulerMixin | None) -> Iterator[None]:
    """Let the pipeline sample with `scheduler` inside the `with` block; `None` leaves its own."""
    own = pipe.scheduler
    pipe.scheduler = own if scheduler is None else scheduler
    try:
        yield
    finally:
        pipe.scheduler = own


def batches(count: int, batch_size: int, least: int = 1) -> list[tuple[int, int]]:
    """Return first and last-plus-one of batches of nearly equal size.

    Args:
        count: number of windows.
        batch_size: most windows of a batch.
        least: fewest windows of a batch; overrides `batch_size`.

    Raises:
        ValueError: if `batch_size` is below 1, or `count` below `least`.
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
    alteration: Alteration | None = None,
    guidance_scale: float | None = None,
    conditions: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sample a batch once from its given frames.

    Each window has its own random generator, seeded by `seed` and its number, so the result does not depend on the
    batch; only `OTHER` takes planning signals from the same batch.

    Args:
        pipe: the checkpoint.
        windows: in [0, 1], `(batch, frames, 3, height, width)`; only the given frames are used.
        given: positions of the given frames.
        steps: of the scheduler.
        seed: of all windows.
        first: number of the first window.
        alteration: of the planning signals.
        guidance_scale: `None` is the pipeline's own choice for the task.
        conditions: of the windows, `(batch, frames, channels)` each.

    Returns:
        Frames in [0, 1], shaped like `windows`, on the CPU; the given ones are those of `windows`.
    """
    generators, alteration_generators = (
        [torch.Generator().manual_seed(stream + seed * 1_000_003 + first + i) for i in range(len(windows))]
        for stream in (0, ALTERATION_SEED)
    )
    context = SignalContext(
        pipe.transformer.unconditional_planning_signal, given, alteration_generators,
        lambda: regenerated(pipe, windows, given, steps, alteration_generators, guidance_scale, conditions),
    )  # fmt: skip
    with signals_altered(pipe, alteration, context):
        frames = pipe(
            video=windows[:, list(given)],
            frame_indices=list(given),
            num_frames=windows.shape[1],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators,
            output_type="pt",
            conditions=conditions,
        ).frames
    frames = frames.float().cpu()
    frames[:, list(given)] = windows[:, list(given)].float()
    return frames


def regenerated(
    pipe: MarDiniPipeline,
    windows: torch.Tensor,
    given: Sequence[int],
    steps: int,
    generators: Sequence[torch.Generator],
    guidance_scale: float | None = None,
    conditions: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sample the given frames from the others, which are sampled from the given ones first; see `sample_batch`.

    Returns:
        In [0, 1], `(batch, given frames, 3, height, width)`.
    """
    frames = windows
    for known in (list(given), [i for i in range(windows.shape[1]) if i not in set(given)]):
        frames = pipe(
            video=frames[:, known],
            frame_indices=known,
            num_frames=windows.shape[1],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=list(generators),
            output_type="pt",
            conditions=conditions,
        ).frames.float()
    return frames[:, list(given)].cpu()


def generate(
    pipe: MarDiniPipeline,
    windows: torch.Tensor,
    given: Sequence[int],
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    alteration: Alteration | None = None,
) -> torch.Tensor:
    """Sample every window once, batch by batch; see `sample_batch`."""
    sampled = [
        sample_batch(pipe, windows[first:last], given, steps, seed, first, alteration)
        for first, last in batches(len(windows), batch_size, least=2 if alteration is OTHER else 1)
    ]
    return torch.cat(sampled)


@torch.no_grad()
def reconstruct(pipe: MarDiniPipeline, windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    """Encode and decode all frames but the given ones: the best that any model with this autoencoder can reach.

    Args:
        windows: in [0, 1], `(windows, frames, 3, height, width)`.
        given: positions of the given frames, which stay unchanged.
    """
    frames = [
        decode_latents(pipe.vae, encode_video(pipe.vae, window[None].to(pipe.device, pipe.vae.dtype) * 2 - 1))
        for window in windows
    ]
    rebuilt = (torch.cat(frames).float().cpu() / 2 + 0.5).clamp(0, 1)
    rebuilt[:, list(given)] = windows[:, list(given)].float()
    return rebuilt


def weights_digest(pipe: MarDiniPipeline) -> str:
    """Return a digest of all weights and settings of autoencoder, planner and transformer, without the scheduler, and
    without how the checkpoint is sampled best, which the pipeline's methods do not look at."""
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
    settings = {name: value for name, value in pipe.config.items() if name not in MeasuredSampling().config}
    return tensors_digest({}, {**settings, **digests})
