"""Measure whether a checkpoint obeys the steering wheel, by counterfactuals in CarRacing.

    python -m training.counterfactuals checkpoints/mardini-tiny-carracing -o outputs/counterfactuals

From a state of an unseen track the simulator drives three true futures: left, straight on, right. The checkpoint rolls
out the same three from the same given frames and the same noise. A rollout obeys if it is nearer to its own future
than to the other two; chance is a third. Writes `counterfactuals.json` and `.md` and a contact sheet into a folder
named like the checkpoint. The true futures are kept in `OUT/kept`, for the next checkpoint too. Needs the extra `sim`.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffusers_mardini.schedulers.named import scheduler_named
from training.data.recipes.car_racing import make_env
from training.data.recipes.car_racing_futures import HELD, Pace, futures_of
from training.evaluation.counterfactuals import (
    Distance,
    action_condition,
    correlation,
    dissimilarity,
    distances,
    mean_squared_error,
    obedience,
    sample_futures,
    turns_of,
)
from training.evaluation.evaluation_windows import digest_of, to_bytes
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import model_key, sampling_key
from training.evaluation.networks.lpips import MIN_SIZE, load_lpips
from training.evaluation.results import without_nan
from training.evaluation.sampling import load_pipeline, scheduler_replaced
from training.evaluation.tables import markdown_table
from training.figures.contact_sheets import contact_sheet
from training.files import write_whole


FIRST_SEED = 400_000  # tracks that no recipe records
SHOWN_STATES, SHOWN_COLUMNS = 4, 8  # of the contact sheet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    command = "python -m training.counterfactuals " + shlex.join(sys.argv[1:] if arguments is None else arguments)
    try:
        _measure(options, command)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    # 1. Check
    pace = Pace(options.given, options.frames, options.fps, options.size)
    for name, value, least in (
        ("--states", options.states, 1),
        ("--frames", options.frames, 1),
        ("--given", options.given, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; give at least {least}")
    if options.window <= options.given:
        raise ValueError(
            f"--window is {options.window} and --given {options.given}, so that a window adds no frame; raise --window"
        )
    _ = pace.steps
    pipe, how = load_pipeline(options.checkpoint, options.device, options.dtype)
    print(
        f"{options.checkpoint}: {options.states} states, {options.frames} frames at {options.fps:g} a second after "
        f"{options.given} given ones, by `{action_condition(pipe)}`; {how}"
    )
    measures, missing = load_distances(options.size)
    # 2. Futures and rollouts
    finished = FinishedParts(options.output / "kept")
    true = true_futures(finished, options.states, pace)
    sampling = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    scheduler = scheduler_named(pipe.scheduler, options.scheduler) if options.scheduler else None
    key = {"window": options.window, "seed": options.seed, "truth": digest_of(true["given"] / 255), **model_key(pipe)}
    key |= {"pace": vars(pace), "held": HELD}
    key |= sampling_key(scheduler or pipe.scheduler, options.steps, options.guidance_scale, options.scheduler)
    held = torch.tensor(list(HELD.values()))

    def sample(first: int, last: int) -> torch.Tensor:
        with scheduler_replaced(pipe, scheduler):
            return sample_futures(
                pipe, true["given"][first:last].float() / 255, true["given_actions"][first:last], held,
                pace.num_frames, pace.fps, [options.seed * 1_000_003 + i for i in range(first, last)], options.window, **sampling,
            )  # fmt: skip

    rollouts = sampled_futures(finished, key, sample, options.states, options.batch_size)
    # 3. Scores
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    facts |= {"command": command, "held": HELD, "not_measured": missing, "sampled_by": model_key(pipe)}
    result = {**facts, **score(rollouts, true, measures, options.horizons)}
    write(options.output / checkpoint_name(options.checkpoint), result, rollouts, true, pace)


def load_distances(size: int) -> tuple[dict[str, Distance], list[str]]:
    """Return the distances by name, LPIPS first if it is installed, and a sentence on it if it is not."""
    found: dict[str, Distance] = {}
    missing = []
    try:
        if size < MIN_SIZE:
            raise ValueError(f"LPIPS needs frames of at least {MIN_SIZE} pixels, got {size}")
        found["LPIPS"] = load_lpips()
    except ValueError as error:
        missing.append(str(error))
    return found | {"1 - SSIM": dissimilarity, "MSE": mean_squared_error}, missing


def true_futures(finished: FinishedParts, states: int, pace: Pace) -> dict[str, torch.Tensor]:
    """Return the results of `futures_of` for all states, one below the other; drives those that are not kept."""
    env = None

    def drive(seed: int) -> dict[str, torch.Tensor]:
        nonlocal env
        env = env or make_env()
        return futures_of(env, seed, pace, list(HELD.values()))

    key = {"futures": 1, "held": HELD, "pace": vars(pace), "first_seed": FIRST_SEED}
    each = [
        finished.get(key, i, i + 1, lambda i=i: drive(FIRST_SEED + i))
        for i in tqdm(range(states), unit="state", desc="true futures", disable=None)
    ]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def sampled_futures(
    finished: FinishedParts,
    key: Mapping[str, Any],
    sample: Callable[[int, int], torch.Tensor],
    states: int,
    batch: int,
) -> torch.Tensor:
    """Return the rollouts of all states in [0, 1], rounded as a file rounds them; samples those that are not kept."""
    if batch < 1:
        raise ValueError(f"--batch-size is {batch}; give at least 1")
    parts = []
    for first in tqdm(range(0, states, batch), unit="batch", desc="rollouts", disable=None):
        last = min(first + batch, states)
        part = finished.get(
            {"rollouts": 1, **key},
            first,
            last,
            lambda first=first, last=last: {"frames": to_bytes(sample(first, last))},
        )
        parts.append(part["frames"])
    return torch.cat(parts).float() / 255


def score(
    rollouts: torch.Tensor,
    true: Mapping[str, torch.Tensor],
    measures: Mapping[str, Distance],
    horizons: Sequence[int],
) -> dict[str, Any]:
    """Return `obedience` by distance and horizon, and `turns`, how the view turns beside the simulator's car.

    Args:
        rollouts: in [0, 1], `(states, actions, frames, 3, height, width)`.
        true: result of `true_futures`.
        measures: distances by name.
        horizons: numbers of frames; those beyond the rollouts' length are left out.
    """
    futures = true["futures"].float() / 255
    horizons = sorted({horizon for horizon in horizons if 1 <= horizon <= rollouts.shape[2]})
    found = {name: distances(rollouts, futures, measure) for name, measure in measures.items()}
    last = true["given"][:, -1:].float() / 255  # (states, 1, 3, height, width)

    def measured(videos: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [torch.stack([turns_of(torch.cat([last[i], one])) for one in state]) for i, state in enumerate(videos)]
        )

    return {
        "obedience": obedience(found, rollouts, horizons, list(HELD)),
        "chance": 1 / len(HELD),
        "turns": {
            "rollouts": correlation(measured(rollouts).flatten(), true["turns"].flatten()),
            "true frames": correlation(measured(futures).flatten(), true["turns"].flatten()),
        },
    }


def write(
    folder: Path, result: Mapping[str, Any], rollouts: torch.Tensor, true: Mapping[str, torch.Tensor], pace: Pace
) -> None:
    """Write `counterfactuals.json`, `counterfactuals.md` and `counterfactuals.png`; print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_nan(result), indent=1, allow_nan=False)
    write_whole(folder / "counterfactuals.json", text + "\n")
    rows = [
        [row["distance"], row["frames"], f"{row['obeyed']:.1%} [{', '.join(f'{end:.1%}' for end in row['interval'])}]"]
        + [f"{share:.1%}" for share in row["by_action"].values()]
        for row in result["obedience"]
    ]
    turns = [
        [name, f"{one['correlation']:.3f}", f"{one['slope']:.2f}", f"{one['not_measured']:.1%}"]
        for name, one in result["turns"].items()
    ]
    tables = [
        markdown_table(["distance", "frames", "obeyed", *HELD], rows),
        markdown_table(["turn of the view, registered", "correlation with the car's", "slope", "not measured"], turns),
    ]
    setting = (
        f"{len(rollouts)} states of unseen tracks, {pace.num_frames} frames at {pace.fps:g} a second after "
        f"{pace.num_given} given ones; obeyed: nearer to the true future of its own action than to the other two, "
        f"by the mean distance over that many frames (chance: {result['chance']:.1%}; in brackets: 95% interval over "
        "states)."
    )
    notes = [f"Not measured: {reason}." for reason in result["not_measured"]]
    page = "\n\n".join([f"`{result['command']}`", setting, *tables, *notes])
    write_whole(folder / "counterfactuals.md", page + "\n")
    sheet_of(rollouts, true, pace).save(folder / "counterfactuals.png", optimize=True)
    print("\n" + "\n\n".join(tables))
    print(f"\nWrote counterfactuals.json, .md and .png to {folder}")


def sheet_of(rollouts: torch.Tensor, true: Mapping[str, torch.Tensor], pace: Pace):
    """Draw some states, evenly spaced over all of them: the last given frame, true futures and rollouts."""
    states, frames = len(rollouts), rollouts.shape[2]
    count = min(SHOWN_STATES, states)
    picked = sorted({round(i * (states - 1) / max(1, count - 1)) for i in range(count)})
    columns = sorted({round((i + 1) * frames / SHOWN_COLUMNS) - 1 for i in range(SHOWN_COLUMNS)} - {-1})
    groups = []
    for state in picked:
        given = true["given"][state, -1:].float() / 255
        rows = {}
        for i, action in enumerate(HELD):
            rows[f"true {action}"] = torch.cat([given, true["futures"][state, i, columns].float() / 255])
            rows[f"rollout {action}"] = torch.cat([given, rollouts[state, i, columns]])
        groups.append((f"track {FIRST_SEED + state}", rows))
    names = ["given", *(f"{(column + 1) / pace.fps:.2f} s" for column in columns)]
    return contact_sheet(groups, [0], title="counterfactuals", names=names)


def checkpoint_name(checkpoint: str) -> str:
    """Return the name of a checkpoint's folder, of the run's for the pipeline within it."""
    path = Path(checkpoint).resolve()
    return path.parent.name if path.name == "pipeline" else path.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.counterfactuals", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline that takes actions")
    parser.add_argument("--states", type=int, default=100, help="each on a track of its own")
    parser.add_argument("--frames", type=int, default=16, help="of each future")
    parser.add_argument("--fps", type=float, default=12.5, help="frames per second; 50 divided by a whole number")
    parser.add_argument("--given", type=int, default=5, help="frames that lead to a state")
    parser.add_argument("--window", type=int, default=9, help="frames of a window, given ones included")
    parser.add_argument("--horizons", type=int, nargs="+", default=[4, 8, 16], help="frames over which is compared")
    parser.add_argument("--size", type=int, default=64, help="side of a frame in pixels")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps")
    parser.add_argument("--scheduler", default="", help="of diffusers, made by from_config")
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="most states sampled together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/counterfactuals"), help="folder")
    return parser


if __name__ == "__main__":
    main()
