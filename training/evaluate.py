"""Scores a checkpoint on windows of held-out clips beside simple methods: one sample each, nothing chosen.

    python -m training.evaluate checkpoints/mardini-tiny-carracing CLIPS --stride 2 -o outputs/evaluation

Writes `results.json` (with the score of every window), `results.md` and contact sheets. The scores are defined in `metrics.py`, the
simple methods in `baselines.py`.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.latents import decode_latents, encode_video
from diffusers_mardini.masking import interpolation_indices, leading_indices

from .adapter import adapter_loaded
from .baselines import best_match, copy_nearest, cross_fade, flow_warp
from .contact_sheet import contact_sheet
from .data.clips import list_clips, load_clip
from .metrics import score_windows, summarize


TASKS = ("interpolation", "image-to-video", "expansion")
PLANNING = {
    "own": "",
    "none": ", planning signal dropped",
    "other": ", plan of another window",
}
ADAPTED = ", with the adapter"
COLUMNS = {
    "mid_ssim": "mid SSIM",
    "mid_psnr": "mid PSNR",
    "ssim": "mean SSIM",
    "psnr": "mean PSNR",
    "motion": "motion",
    "sharpness": "sharpness",
}


@dataclass(frozen=True)
class Windows:
    """The windows to be scored.

    Attributes:
        frames: in [0, 1], `(windows, frames, 3, size, size)`.
        clips: the file name of each window's clip.
        starts: the frame of the clip at which each window begins.
        skipped: reasons by file name, for clips that gave no window.
    """

    frames: torch.Tensor
    clips: list[str]
    starts: list[int]
    skipped: dict[str, str]


def given_indices(task: str, num_frames: int) -> list[int]:
    """The frames that a task gives: first and last, the first, or the leading half (rounded up)."""
    if task == "interpolation":
        return interpolation_indices(num_frames)
    if task == "image-to-video":
        return leading_indices(1)
    if task == "expansion":
        return leading_indices((num_frames + 1) // 2)
    raise ValueError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")


def window_starts(length: int, num_frames: int, stride: int, count: int) -> list[int]:
    """At most `count` different starts, evenly spaced from the first possible to the last possible one; none for short clips."""
    last = length - 1 - (num_frames - 1) * stride
    if last < 0:
        return []
    if count == 1:
        return [0]
    return sorted({round(last * i / (count - 1)) for i in range(count)})


def load_windows(folder: str | Path, size: int, num_frames: int, stride: int, per_clip: int) -> Windows:
    """Cuts the windows out of every clip of a folder; clips that give none are counted and named.

    Raises:
        ValueError: if no clip is long enough, or the numbers make no window.
    """
    for name, value, least in (
        ("num_frames", num_frames, 2),
        ("stride", stride, 1),
        ("windows per clip", per_clip, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    frames, clips, starts, skipped = [], [], [], {}
    for path in list_clips(folder):
        try:
            clip, _ = load_clip(path, size)
        except ValueError as error:
            skipped[path.name] = str(error)
            continue
        found = window_starts(len(clip), num_frames, stride, per_clip)
        if not found:
            skipped[path.name] = f"{len(clip)} frames, a window needs {(num_frames - 1) * stride + 1}"
        for start in found:
            frames.append(clip[start : start + (num_frames - 1) * stride + 1 : stride])
            clips.append(path.name)
            starts.append(start)
    if skipped:
        print(f"{len(skipped)} clips of '{folder}' give no window:")
        for name, reason in skipped.items():
            print(f"  {name}: {reason}")
    if not frames:
        raise ValueError(f"no clip of '{folder}' gives {num_frames} frames at stride {stride}; lower one of them")
    return Windows(torch.stack(frames).float() / 255, clips, starts, skipped)


@contextlib.contextmanager
def planning_replaced(pipe: MarDiniPipeline, planning: str) -> Iterator[None]:
    """Within it the transformer meets its own plan, the unconditional signal, or the plan of the batch's next window.

    The unconditional signal at every place of the planner's grid is the same as no planning signal at all: the cross-attention
    averages equal values.
    """
    if planning not in PLANNING:
        raise ValueError(f"planning {planning!r} is unknown; use one of {', '.join(PLANNING)}")

    def replace(module, args, output):
        signals = output[0]  # (batch, frames, rows, columns, channels)
        if planning == "none":
            new = pipe.transformer.unconditional_planning_signal.to(signals).expand_as(signals)
        else:
            new = signals.roll(1, dims=0)
        if isinstance(output, tuple):
            return (new, *output[1:])
        return type(output)(planning_signals=new)

    handle = pipe.planner.register_forward_hook(replace) if planning != "own" else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def generate(
    pipe: MarDiniPipeline,
    windows: torch.Tensor,
    given: Sequence[int],
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    planning: str = "own",
) -> torch.Tensor:
    """Paints every window once from its given frames.

    Each window has a random generator of its own, seeded by `seed` and its number, so that the result does not depend on the
    batch size (with `planning="other"` it does: the plan comes from the same batch).

    Returns:
        Frames in [0, 1], shaped like `windows`, on the CPU; the given ones are those of `windows`.
    """
    if planning == "other" and len(windows) < 2:
        raise ValueError("the plan of another window needs at least 2 windows")
    # Batches of nearly equal size, so that none is left with a single window and no other one to take the plan from.
    num_batches = max(1, min(-(-len(windows) // batch_size), len(windows) // 2))
    result, number = [], 0
    with planning_replaced(pipe, planning):
        for batch in tqdm(windows.tensor_split(num_batches), desc=f"{steps} steps", leave=False, disable=None):
            generators = [
                torch.Generator().manual_seed(seed * 1_000_003 + number + i) for i in range(len(batch))
            ]  # one per window
            number += len(batch)
            frames = pipe(
                video=batch[:, list(given)],
                frame_indices=list(given),
                num_frames=windows.shape[1],
                num_inference_steps=steps,
                generator=generators,
                output_type="pt",
            ).frames
            result.append(frames.float().cpu())
    frames = torch.cat(result)
    frames[:, list(given)] = windows[:, list(given)]
    return frames


@torch.no_grad()
def reconstruct(pipe: MarDiniPipeline, windows: torch.Tensor) -> torch.Tensor:
    """Every frame through the autoencoder and back: the best that any model on top of it can reach."""
    frames = [
        decode_latents(pipe.vae, encode_video(pipe.vae, window[None].to(pipe.device, pipe.vae.dtype) * 2 - 1))
        for window in windows
    ]
    return (torch.cat(frames).float().cpu() / 2 + 0.5).clamp(0, 1)


def evaluate(
    pipe: MarDiniPipeline,
    windows: Windows,
    task: str,
    stride: int,
    steps: Sequence[int],
    seeds: Sequence[int] = (0,),
    batch_size: int = 8,
    train_clips: str | Path | None = None,
    no_planning: bool = False,
    wrong_planning: bool = False,
    adapter: str | None = None,
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Scores the simple methods and ours, without and with the adapter of a folder.

    Returns:
        Rows (`method`, the means of `COLUMNS`, `mid_ssim_se`, `seconds_per_window`, `windows`: the raw scores), and the
        painted frames by method (of the first seed) for the contact sheets.
    """
    truth = windows.frames
    given = given_indices(task, truth.shape[1])
    painted, rows = {}, []

    def add(method: str, make) -> None:
        start = time.perf_counter()
        samples = make()
        seconds = (time.perf_counter() - start) / len(truth) / len(samples)
        scores = [score_windows(frames, truth, given) for frames in samples]
        painted[method] = samples[0]
        rows.append(_row(method, scores, windows.clips, seconds))
        print(f"  {method}: " + ", ".join(f"{COLUMNS[c]} {rows[-1][c]:.3f}" for c in COLUMNS), flush=True)

    add("copy of the nearest given frame", lambda: [copy_nearest(truth, given)])
    if len(given) > 1 and max(given) == truth.shape[1] - 1:
        add("cross-fade", lambda: [cross_fade(truth, given)])
        add("DIS optical flow", lambda: [flow_warp(truth, given)])
    if train_clips is not None:
        size = truth.shape[-1]
        clips = (load_clip(path, size)[0].float() / 255 for path in list_clips(train_clips))
        add("best match among training windows", lambda: [best_match(truth, given, clips, stride)[0]])
    add("autoencoder alone (ceiling)", lambda: [reconstruct(pipe, truth)])

    def ours(count: int, planning: str):
        return [generate(pipe, truth, given, count, seed, batch_size, planning) for seed in seeds]

    for count in steps:
        add(ours_label(count), lambda count=count: ours(count, "own"))
        if adapter is not None:
            with adapter_loaded(pipe, adapter):
                add(f"{ours_label(count)}{ADAPTED}", lambda count=count: ours(count, "own"))
    for wanted, planning in ((no_planning, "none"), (wrong_planning, "other")):
        if wanted:
            add(ours_label(steps[0], planning), lambda planning=planning: ours(steps[0], planning))
    return rows, painted


def ours_label(steps: int, planning: str = "own") -> str:
    return f"ours, {steps} step{'s' if steps != 1 else ''}{PLANNING[planning]}"


def markdown_table(rows: Sequence[dict]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| method | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        cells = [
            f"{row[c]:.2f}" if c in ("mid_psnr", "psnr", "motion", "sharpness") else f"{row[c]:.3f}" for c in COLUMNS
        ]
        cells[0] += f" ± {row['mid_ssim_se']:.3f}" if row["mid_ssim_se"] is not None else ""
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_results(output: Path, facts: dict, rows: list[dict], windows: Windows) -> None:
    """Writes `results.json` and `results.md` into the folder `output`."""
    output.mkdir(parents=True, exist_ok=True)
    names = [{"clip": clip, "start": start} for clip, start in zip(windows.clips, windows.starts)]
    record = {**facts, "skipped": windows.skipped, "windows": names, "rows": rows}
    (output / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = (
        f"`{facts['command']}`\n\n{len(names)} windows of {len(set(windows.clips))} clips, {facts['task']}; one sample each"
        f"{', mean of seeds ' + ', '.join(map(str, facts['seeds'])) if len(facts['seeds']) > 1 else ''}. "
        "± is the standard error over clips; motion and sharpness are relative to the true clips'.\n\n"
    )
    (output / "results.md").write_text(text + markdown_table(rows), encoding="utf-8")


def write_sheets(
    output: Path,
    windows: Windows,
    painted: dict[str, torch.Tensor],
    task: str,
    method: str,
    count: int,
    per_sheet: int = 4,
) -> list[Path]:
    """Draws `count` windows, evenly spaced over all of them (not chosen), as `sheet_*.png` in the folder `output`."""
    total, paths = len(windows.frames), []
    picked = sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(min(count, total))})
    simple = "cross-fade" if "cross-fade" in painted else "copy of the nearest given frame"
    output.mkdir(parents=True, exist_ok=True)
    for sheet in range(0, len(picked), per_sheet):
        rows = {"truth": windows.frames, "ours": painted[method], simple.split(" of ")[0]: painted[simple]}
        if method + ADAPTED in painted:
            rows = {"truth": windows.frames, "adapted": painted[method + ADAPTED], "not adapted": painted[method]}
        groups = [
            (
                f"{windows.clips[i]}, from frame {windows.starts[i]}",
                {label: frames[i] for label, frames in rows.items()},
            )
            for i in picked[sheet : sheet + per_sheet]
        ]
        given = given_indices(task, windows.frames.shape[1])
        paths.append(output / f"sheet_{sheet // per_sheet}.png")
        contact_sheet(groups, given, title=f"{task}, {method}").save(paths[-1])
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    device = choose_device(options.device)
    dtype, why = choose_dtype(options.dtype, device)
    print(
        f"Scoring {options.checkpoint} on {options.clips}: {options.task}, {options.num_frames} frames of {options.size} pixels, "
        f"every {options.stride} frames; {dtype} on {device} ({why})"
    )
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    windows = load_windows(options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip)
    print(f"{len(windows.frames)} windows of {len(set(windows.clips))} clips")
    rows, painted = evaluate(
        pipe,
        windows,
        options.task,
        options.stride,
        options.steps,
        options.seeds,
        options.batch_size,
        options.train_clips,
        options.no_planning,
        options.wrong_planning,
        options.adapter,
    )
    facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    facts["command"] = "python -m training.evaluate " + " ".join(sys.argv[1:] if arguments is None else arguments)
    write_results(options.output, facts, rows, windows)
    sheets = write_sheets(options.output, windows, painted, options.task, ours_label(options.steps[0]), options.sheets)
    print("\n" + markdown_table(rows))
    print(f"Wrote results.json, results.md and {len(sheets)} contact sheets to {options.output}")


def _row(method: str, scores: list[dict[str, torch.Tensor]], clips: list[str], seconds: float) -> dict:
    mean = {name: torch.stack([score[name] for score in scores]).mean(dim=0) for name in scores[0]}
    # Windows of one clip resemble each other, so that clips are what is counted as independent.
    per_clip = torch.stack(
        [mean["mid_ssim"][[i for i, name in enumerate(clips) if name == clip]].mean() for clip in sorted(set(clips))]
    )
    error = per_clip.std().item() / len(per_clip) ** 0.5 if len(per_clip) > 1 else None
    return {
        "method": method,
        **summarize(mean),
        "mid_ssim_se": error,
        "seeds_mid_ssim": [score["mid_ssim"].mean().item() for score in scores],
        "seconds_per_window": seconds,
        "windows": {name: [round(value, 6) for value in values.tolist()] for name, values in mean.items()},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("--size", type=int, default=64, help="side of the square crop in pixels")
    parser.add_argument("--num-frames", type=int, default=9, help="frames of a window")
    parser.add_argument(
        "--stride", type=int, default=2, help="distance of neighbouring window frames in frames of the clip"
    )
    parser.add_argument(
        "--windows-per-clip", type=int, default=2, help="evenly spaced from the first to the last possible"
    )
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 10, 5], help="sampling steps, one row each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="scores are averaged over them")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--train-clips", type=Path, help="folder to look for the best match in; left out if not given")
    parser.add_argument("--no-planning", action="store_true", help="a row with the unconditional planning signal")
    parser.add_argument("--wrong-planning", action="store_true", help="a row with the plan of another window")
    parser.add_argument(
        "--adapter", help="folder or Hub id of LoRA weights: a second row with them, for each number of steps"
    )
    parser.add_argument("--sheets", type=int, default=8, help="number of windows drawn on contact sheets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
