"""Choose the given frames of a window: the tasks as patterns, and random patterns for training (Sec. 2.1, Sec. 4).

A mask is a bool tensor `(batch, frames)`; True is a *reference* frame ([REF], given and clean), False a *masked* one.
The paper's "mask ratio" is the share of given frames, called `reference_ratio` here. Pure functions of their
arguments.
"""

from collections.abc import Sequence

import torch


def reference_mask_from_indices(
    indices: Sequence[int], num_frames: int, batch_size: int = 1, device: torch.device | str | None = None
) -> torch.Tensor:
    """Return a mask `(batch_size, num_frames)` in which the frames at `indices` are given in every row."""
    mask = torch.zeros(batch_size, num_frames, dtype=torch.bool)
    mask[:, list(indices)] = True
    return mask.to(device)


def num_reference_frames_range(num_frames: int, reference_ratio: tuple[float, float]) -> tuple[int, int]:
    """Return the least and the largest number of given frames in a range of reference ratios (Fig. 4).

    At least one frame is always given and at least one masked, whatever the ratios. Ours: shares are rounded to whole
    frames, so that the 35% of four frames in Fig. 4 are one.
    """
    low, high = reference_ratio
    if not 0 <= low <= high <= 1:
        raise ValueError(f"`reference_ratio` is {reference_ratio}; it must be two numbers with 0 <= low <= high <= 1")
    if num_frames < 2:
        raise ValueError(f"`num_frames` is {num_frames}; a window needs at least 2 frames, one given and one masked")
    least = min(max(1, round(low * num_frames)), num_frames - 1)
    return least, max(least, min(num_frames - 1, round(high * num_frames)))


def interpolation_indices(num_frames: int) -> list[int]:
    """Return the first and the last frame (Sec. 3.4, interpolation)."""
    return [0, num_frames - 1]


def leading_indices(num_kept: int) -> list[int]:
    """Return the leading frames: one is image-to-video, several are video expansion."""
    return list(range(num_kept))


TASKS = ("interpolation", "image-to-video", "expansion")


def task_indices(task: str, num_frames: int, num_leading: int | None = None) -> list[int]:
    """Return the given frames of a task.

    Args:
        task: `"interpolation"` gives the first and the last frame, `"image-to-video"` the first, `"expansion"` a run of
            leading frames.
        num_frames: frames of the window.
        num_leading: given frames of an expansion, by default half of the window, rounded up.
    """
    if task == "interpolation":
        return interpolation_indices(num_frames)
    if task == "image-to-video":
        return leading_indices(1)
    if task == "expansion":
        return leading_indices((num_frames + 1) // 2 if num_leading is None else num_leading)
    raise ValueError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")


def random_reference_mask(
    batch_size: int, num_frames: int, num_kept: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return a mask `(batch_size, num_frames)` on the CPU, with `num_kept` given frames at random places in each row.

    Every row has the same number of them, so that both models can compute the masked frames' queries alone.
    """
    if not 1 <= num_kept < num_frames:
        raise ValueError(
            f"`num_kept` is {num_kept}; of {num_frames} frames at least 1 and at most {num_frames - 1} are kept"
        )
    order = torch.rand(batch_size, num_frames, generator=generator).argsort(dim=1)
    return torch.zeros(batch_size, num_frames, dtype=torch.bool).scatter(1, order[:, :num_kept], True)
