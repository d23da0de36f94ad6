"""Show what a score means: score the true middle frame one frame late or early, shifted, and turned.

    python -m training.reproduction.yardstick CLIPS --page docs/evaluation.md --block "yardstick carracing"

Windows, crop and middle frame are those of `training.evaluate` for interpolation, so the scores can be compared.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusers_mardini.masking import task_indices
from diffusers_mardini.sizes import Size
from training.data.clips import find_clips, load_clip
from training.data.order import frames_at_stride
from training.evaluation.evaluation_windows import EvaluationWindows, load_windows, size_argument
from training.evaluation.intervals import Bootstrap
from training.evaluation.metrics import middle_index, score_frames
from training.evaluation.tables import markdown_table
from training.page_blocks import fill


SHIFTS = (0.25, 0.5, 1.0)  # pixels of the scored frame, sideways
TURNS = (0.5, 1.0, 2.0)  # degrees, around the centre


def moved(frames: torch.Tensor, degrees: float = 0.0, pixels: float = 0.0) -> torch.Tensor:
    """Turn frames `(batch, 3, side, side)` around the centre and shift them left; bicubic, the border repeated."""
    turn, side = math.radians(degrees), frames.shape[-1]
    matrix = torch.tensor(
        [[math.cos(turn), -math.sin(turn), 2 * pixels / side], [math.sin(turn), math.cos(turn), 0.0]]
    )
    grid = F.affine_grid(matrix.expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def clip_frames(folder: Path, windows: EvaluationWindows, size: Size, place: int, by: int) -> torch.Tensor:
    """Return the clip frames `place + by` after the first frames of the windows, `(windows, 3, height, width)`."""
    clips = {clip.name: load_clip(clip, size)[0] for clip in find_clips(folder) if clip.name in set(windows.clips)}
    chosen = [clips[name][start + place + by] for name, start in zip(windows.clips, windows.starts)]
    return torch.stack(chosen).float() / 255


def displaced(folder: Path, windows: EvaluationWindows, size: Size, stride: int) -> dict[str, torch.Tensor]:
    """Return altered true middle frames by the name of the alteration."""
    num_frames = windows.frames.shape[1]
    middle = middle_index(num_frames, task_indices("interpolation", num_frames))
    place = frames_at_stride(0, num_frames, stride)[middle]
    true = windows.frames[:, middle]
    found = {
        "one frame of the clip late": clip_frames(folder, windows, size, place, 1),
        "one frame of the clip early": clip_frames(folder, windows, size, place, -1),
    }
    found |= {f"shifted by {pixels:g} px": moved(true, pixels=pixels) for pixels in SHIFTS}
    return found | {f"turned by {degrees:g}°": moved(true, degrees=degrees) for degrees in TURNS}


def table(folder: Path, windows: EvaluationWindows, size: Size, stride: int) -> str:
    """Return the table in markdown, with 95% intervals over clips."""
    num_frames = windows.frames.shape[1]
    true = windows.frames[:, middle_index(num_frames, task_indices("interpolation", num_frames))]
    bootstrap = Bootstrap(windows.clips)
    rows = []
    for name, frames in displaced(folder, windows, size, stride).items():
        scores = {key: values[:, 0] for key, values in score_frames(frames[:, None], true[:, None]).items()}
        low, high = bootstrap.interval(scores, "ssim")
        rows.append([name, f"{scores['ssim'].mean():.3f} [{low:.3f}, {high:.3f}]", f"{scores['psnr'].mean():.2f}"])
    return markdown_table(["the true middle frame", "mid SSIM", "mid PSNR"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.yardstick", description=__doc__.splitlines()[0]
    )
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("--size", type=size_argument, default=64, help="64 (square) or 64x128 (height x width)")
    parser.add_argument("--num-frames", type=int, default=9, help="frames of a window")
    parser.add_argument("--stride", type=int, default=2, help="clip frames from one window frame to the next")
    parser.add_argument("--windows-per-clip", type=int, default=2)
    parser.add_argument("--page", type=Path, help="markdown file whose block is filled with the table")
    parser.add_argument("--block", default="yardstick")
    options = parser.parse_args(arguments)
    try:
        windows = load_windows(
            options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip
        )
        print(f"{len(windows.frames)} windows of {len(set(windows.clips))} clips\n", flush=True)
        text = table(options.clips, windows, options.size, options.stride)
        print(f"{text}\n")
        if options.page:
            fill(options.page, options.block, text)
            print(f"Filled {options.block} of {options.page}")
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
