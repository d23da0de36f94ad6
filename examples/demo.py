"""Sample the three tasks on real clips and show truth, ours and a simple method side by side: `make demo`.

A checkpoint that takes actions, the same one or `--driving`, also drives on from the first clip, once to the left and
once to the right.

    python -m examples.demo --clips examples/clips --checkpoint checkpoints/mardini-tiny-carracing

Writes an mp4, a gif and a contact sheet for each task, with one sample of each clip in the order of the files; none is
chosen.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.app.driving import ACTION, action_of, told
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.masking import TASKS, task_indices
from diffusers_mardini.video_io import write_video
from training.data.clips import find_clips
from training.evaluation.baselines import copy_nearest, cross_fade
from training.evaluation.evaluation_windows import (
    EvaluationWindows,
    add_window_options,
    choose_window,
    load_windows,
)
from training.evaluation.metrics import score_windows, summarize
from training.evaluation.sampling import generate
from training.figures.contact_sheets import contact_sheet, side_by_side


ROOT = Path(__file__).resolve().parent.parent
DRIVEN, STRENGTH = 12, 0.4  # new frames of a drive, and the share of each pedal's and the wheel's range
SHOWN = ("mid_psnr", "mid_ssim", "motion", "sharpness")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    if not (Path(options.checkpoint) / "model_index.json").is_file():
        raise SystemExit(
            f"error: there is no checkpoint in '{options.checkpoint}'; give the folder of one with CHECKPOINT=folder, "
            "or train one with `make train-tiny-carracing`, CHECKPOINT=outputs/mardini-tiny-carracing"
        )
    device = choose_device("auto")
    dtype, why = choose_dtype("auto", device)
    print(f"Sampling frames into the clips of {options.clips} with {options.checkpoint}, {options.steps} steps,")
    print(f"on {device} in {str(dtype).removeprefix('torch.')} ({why})", flush=True)
    try:
        clips = find_clips(options.clips, picture_fps=options.picture_fps)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    print(f"windows of {choose_window(options, pipe.trained_window)}", flush=True)
    try:
        windows = load_windows(
            options.clips, options.size, options.num_frames, options.stride, 1, options.fps, options.max_clips,
            picture_fps=options.picture_fps,
        )  # fmt: skip
        first = next(clip for clip in clips if clip.name == windows.clips[0])
        clip_fps = first.entry.fps
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    fps = options.fps or clip_fps / options.stride
    options.output.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        run_task(pipe, windows, task, options.steps, options.seed, fps, options.output)
    if ACTION not in pipe.conditions and (Path(options.driving) / "model_index.json").is_file():
        pipe = MarDiniPipeline.from_pretrained(options.driving, dtype=dtype).to(device)
        pipe.set_progress_bar_config(disable=True)
    if ACTION in pipe.conditions:
        run_drive(pipe, windows, options.steps, options.seed, fps, options.output)
    print(f"\nThe files lie in {options.output.resolve()}")


def run_task(
    pipe: MarDiniPipeline, windows: EvaluationWindows, task: str, steps: int, seed: int, fps: float, output: Path
) -> dict[str, dict[str, float]]:
    """Sample, score and draw one task; print and return the scores of each method."""
    truth = windows.frames
    given = task_indices(task, truth.shape[1])
    start = time.perf_counter()
    sampled = {"ours": generate(pipe, truth, given, steps, seed)}
    seconds = (time.perf_counter() - start) / len(truth)
    sampled["copy"] = copy_nearest(truth, given)
    simple = "copy"
    if max(given) == truth.shape[1] - 1:  # with frames on both sides
        sampled["cross-fade"] = cross_fade(truth, given)
        simple = "cross-fade"

    print(f"\n{task}: frames {', '.join(map(str, given))} of {truth.shape[1]} given, {seconds:.1f} s a clip")
    print(
        f"  {'':<12}{'mid PSNR':>10}{'mid SSIM':>10}{'motion':>10}{'sharpness':>11}   (motion, sharpness: truth = 1)"
    )
    scores = {}
    for method, frames in sampled.items():
        scores[method] = summarize(score_windows(frames, truth, given))
        psnr, ssim, motion, sharpness = (scores[method][name] for name in SHOWN)
        print(f"  {method:<12}{psnr:>7.2f} dB{ssim:>10.3f}{motion:>10.2f}{sharpness:>11.2f}")

    groups = [
        (clip, {"truth": truth[i], "ours": sampled["ours"][i], simple: sampled[simple][i]})
        for i, clip in enumerate(windows.clips)
    ]
    sheet = output / f"{task}.png"
    contact_sheet(groups, given, title=f"{task}, {steps} steps").save(sheet)
    frames = side_by_side(groups, given)
    for suffix in (".mp4", ".gif"):
        # Three times at half speed, because nine frames are too short to see anything.
        write_video(output / f"{task}{suffix}", frames * 3 if suffix == ".mp4" else frames, fps / 2)
    print(f"  {sheet}, {task}.mp4, {task}.gif", flush=True)
    return scores


def run_drive(
    pipe: MarDiniPipeline, windows: EvaluationWindows, steps: int, seed: int, fps: float, output: Path
) -> dict[str, torch.Tensor]:
    """Drive on from the end of the first window, to the left, straight on and to the right, from the same noise.

    Returns:
        The new frames by key, `(DRIVEN, 3, height, width)` in [0, 1].
    """
    start = windows.frames[0]
    drives = {}
    for keys in (("left", "up"), ("up",), ("right", "up")):
        action = torch.tensor([action_of(keys, pipe.conditions[ACTION], STRENGTH)] * DRIVEN)
        actions = torch.cat([torch.full((len(start), action.shape[1]), torch.nan), action])
        made = pipe.extend(
            start, num_new_frames=DRIVEN, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed),
            output_type="pt", conditions=told(pipe, actions, fps),
        )  # fmt: skip
        drives[" and ".join(keys)] = made.frames[0][-DRIVEN:].float().cpu()
    shown = {keys: torch.cat([start[-1:], frames]) for keys, frames in drives.items()}
    groups = [(windows.clips[0], shown)]
    names = ["given", *(f"{(i + 1) / fps:.2f} s" for i in range(DRIVEN))]
    contact_sheet(groups, [0], title="the same start, driven by keys", names=names).save(output / "drive.png")
    for suffix in (".mp4", ".gif"):
        write_video(output / f"drive{suffix}", side_by_side(groups, [0]), fps / 2)
    print(f"\ndrive: {', '.join(drives)}, {DRIVEN} frames each from the end of {windows.clips[0]}")
    print(f"  {output / 'drive.png'}, drive.mp4, drive.gif", flush=True)
    return drives


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=ROOT / "examples/clips", help="folder of clips")
    parser.add_argument(
        "--checkpoint", default=str(ROOT / "checkpoints/mardini-tiny-carracing"), help="folder of a pipeline"
    )
    parser.add_argument(
        "--driving",
        default=str(ROOT / "checkpoints/mardini-tiny-driving"),
        help="one that takes actions, for the drive",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/demo")
    parser.add_argument("--steps", type=int, default=25)
    add_window_options(parser)
    parser.add_argument("--picture-fps", type=float, help="frames per second of pictures that do not state it")
    parser.add_argument("--max-clips", type=int, default=6, help="use only the first clips")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
