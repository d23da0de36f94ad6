"""Scores of sampled windows beside the real ones, one per window; `intervals.py` takes means and intervals of them.

SSIM and PSNR reward blur, so they are never reported without the amount and evenness of motion and the sharpness.
Frames are in [0, 1], `(batch, frames, 3, height, width)`. Scores that need a network are in `networks/`.
"""

from collections.abc import Sequence

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


# One exact frame has infinite PSNR and would make every mean infinite.
MAX_PSNR = 60.0

# Divided by the true clips' values only after summing over all windows, because a single still window has zero.
RATIOS = {
    "motion": "true_motion",
    "evenness": "true_evenness",
    "sharpness": "true_sharpness",
    "colours": "true_colours",  # of drift alone
}


def score_windows(frames: torch.Tensor, truth: torch.Tensor, given: Sequence[int]) -> dict[str, torch.Tensor]:
    """Score each window of a batch by itself.

    Args:
        frames: sampled windows in [0, 1], `(batch, frames, 3, height, width)`; given frames are ignored.
        truth: the real windows, same shape.
        given: positions of the given frames.

    Returns:
        Float tensors `(batch,)`: `mid_ssim` and `mid_psnr` (dB) of the middle frame, `ssim` and `psnr` averaged over
        the sampled frames, and the raw values of `RATIOS` with their true counterparts, which `summarize` divides.
    """
    if frames.shape != truth.shape or frames.ndim != 5:
        raise ValueError(
            f"sampled windows are {tuple(frames.shape)} and real ones {tuple(truth.shape)}; both must be the same "
            "(batch, frames, 3, height, width)"
        )
    num_frames = truth.shape[1]
    generated = generated_indices(num_frames, given)
    frames = frames.float().clamp(0, 1)
    frames = torch.stack([truth[:, i].float() if i in set(given) else frames[:, i] for i in range(num_frames)], dim=1)
    truth = truth.float()

    each = score_frames(frames[:, generated], truth[:, generated])  # (batch, generated)
    middle = generated.index(middle_index(num_frames, given))
    return {
        "mid_ssim": each["ssim"][:, middle],
        "mid_psnr": each["psnr"][:, middle],
        "ssim": each["ssim"].mean(dim=1),
        "psnr": each["psnr"].mean(dim=1),
        "motion": motion_steps(frames).mean(dim=1),
        "true_motion": motion_steps(truth).mean(dim=1),
        "evenness": _evenness(frames),
        "true_evenness": _evenness(truth),
        "sharpness": each["sharpness"].mean(dim=1),
        "true_sharpness": each["true_sharpness"].mean(dim=1),
    }


def score_frames(frames: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Score each frame by itself.

    Args:
        frames: sampled frames in [0, 1], `(batch, frames, 3, height, width)`.
        truth: the real ones, same shape.

    Returns:
        Float tensors `(batch, frames)`: `ssim`, `psnr` (dB), `sharpness` and `true_sharpness`, as `score_windows` has
        them.
    """
    pairs = list(zip(frames.unbind(dim=1), truth.unbind(dim=1), strict=True))
    return {
        "ssim": torch.stack([_ssim(frame, true) for frame, true in pairs], dim=1),
        "psnr": torch.stack([_psnr(frame, true) for frame, true in pairs], dim=1),
        "sharpness": frame_sharpness(frames),
        "true_sharpness": frame_sharpness(truth),
    }


def summarize(scores: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return means over windows; for `RATIOS`, the sum over all sampled windows divided by that over the true ones."""
    result = {}
    for name, values in scores.items():
        if name in RATIOS:
            true = scores[RATIOS[name]].sum().item()
            result[name] = values.sum().item() / true if true > 0 else float("nan")
        elif name not in RATIOS.values():
            result[name] = values.mean().item()
    return result


def generated_indices(num_frames: int, given: Sequence[int]) -> list[int]:
    """Return the positions of the masked frames, which a method samples."""
    generated = [i for i in range(num_frames) if i not in set(given)]
    if not generated or len(generated) == num_frames or not all(0 <= i < num_frames for i in given):
        raise ValueError(
            f"given frames are {list(given)} of {num_frames}; give at least one, and leave at least one to sample"
        )
    return generated


def middle_index(num_frames: int, given: Sequence[int]) -> int:
    """Return the middle of the window, as in VIDIM-Bench's MidF scores; if it is given, the middle sampled frame."""
    generated = generated_indices(num_frames, given)
    return num_frames // 2 if num_frames // 2 in generated else generated[len(generated) // 2]


def _ssim(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return structural_similarity_index_measure(frames, truth, data_range=1.0, reduction="none").reshape(-1)


def _psnr(frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return peak_signal_noise_ratio(frames, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)).clamp(max=MAX_PSNR)


def motion_steps(frames: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute change from each frame to the next, `(batch, frames - 1)`."""
    return (frames[:, 1:] - frames[:, :-1]).abs().mean(dim=(2, 3, 4))


def _evenness(frames: torch.Tensor) -> torch.Tensor:
    """Return how evenly a window's motion is spread: 1 for equal steps, 1 / steps for one jump, 0 for no motion.

    It is the perplexity of the steps' shares of the motion, divided by the number of steps.
    """
    steps = motion_steps(frames)
    shares = steps / steps.sum(dim=1, keepdim=True).clamp(min=1e-12)
    perplexity = torch.special.entr(shares).sum(dim=1).exp()
    return torch.where(steps.sum(dim=1) > 0, perplexity / steps.shape[1], 0.0)


def frame_sharpness(frames: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of neighbouring pixels of each frame, `(batch, frames)`."""
    across = (frames[..., 1:] - frames[..., :-1]).abs().mean(dim=(2, 3, 4))
    down = (frames[..., 1:, :] - frames[..., :-1, :]).abs().mean(dim=(2, 3, 4))
    return across + down
