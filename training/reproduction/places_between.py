"""Compare ways to sample frames at times that no grid of the window has: `retime` of the pipeline rests on the result.

    python -m training.reproduction.places_between CHECKPOINT CLIPS -o outputs/results/places-between

A clip is thinned to a source rate, and frames at a target rate are sampled between those that are left; both are whole
strides of the clip, so that the truth is known. Ways:

1. exact grid: a window has a place for every clip frame between two given ones; those in demand are kept.
2. grid of 8, grid of 4: as many equal places between two given frames; the nearest one is taken.
3. fractional places: a window holds only given frames and those in demand; rotary positions follow their times.
4. fractional places, gap by gap: so does a window of two given frames, whose places are 0 and 8.
5. sparse grid: the windows of the first way, up to eight places long, without the places that are not in demand.
6. times ignored: the windows of the third way with the usual positions 0, 1, 2, ...
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.pipelines.sampling_options import SamplingOptions
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.intervals import Bootstrap
from training.evaluation.methods import model_key, sampling_key
from training.evaluation.metrics import motion_steps, score_frames
from training.page_blocks import fill_all
from training.reproduction.shared_options import add_options, facts, load_pipeline


# Clip frames from one source frame to the next, and from one target frame to the next.
CASES = {
    "every 5th to every 2nd (24 to 60)": (5, 2),
    "every 4th to every 5th (30 to 24)": (4, 5),
    "every 8th to every 3rd (12 to 32)": (8, 3),
    "every 16th to every 3rd": (16, 3),
}
SPAN = 48  # clip frames; cut to the last whole gap of the source
WINDOW = 9
Way = Callable[[torch.Tensor, int, list[int]], torch.Tensor]


def sample_windows(
    pipe: MarDiniPipeline,
    windows: list[tuple[list[float], list[int]]],
    frames: torch.Tensor,
    places_of: Callable[[list[float]], list[float] | None],
    steps: int,
    seed: int,
) -> torch.Tensor:
    """Sample the masked frames of some windows at their places.

    Args:
        pipe: samples.
        windows: times of the frames, and which of them are given.
        frames: true ones by time, `(clips, times, 3, height, width)` in [0, 1].
        places_of: returns the places of the frames of a window.
        steps, seed: of the sampler.

    Returns:
        Frames by time, the true ones where nothing was sampled.
    """
    result, generator = frames.clone(), torch.Generator().manual_seed(seed)
    for times, given in windows:
        indices = [times.index(time) for time in given]
        pixels = frames[:, given] * 2 - 1
        options = SamplingOptions(num_inference_steps=steps, generator=generator)
        references = pipe.encode_frames(pixels)
        pipe._reset_call()
        positions = places_of(times)
        signals = pipe.plan(pipe.encode_low_frames(pixels), indices, len(times), positions=positions)
        noise = pipe.prepare_latents((len(frames), len(times), *references.shape[2:]), generator)
        latents = pipe.denoise(noise, references, indices, signals, options, None, positions=positions)
        decoded = pipe.decode(latents, "pt").float().cpu()
        for i, time in enumerate(times):
            if time not in given and time == int(time):
                result[:, int(time)] = decoded[:, i]
    return result


def group(given: list[int], wanted: list[int], most: int) -> list[tuple[list[float], list[int]]]:
    """Return windows of up to `most` given and wanted times, each from one given time to another."""
    windows: list[tuple[list[float], list[int]]] = []
    for start, stop in pairwise(given):
        times = [start, *(time for time in wanted if start < time < stop), stop]
        if windows and windows[-1][0][-1] == start and len(windows[-1][0]) + len(times) - 1 <= most:
            windows[-1][0].extend(times[1:])
            windows[-1][1].append(stop)
        else:
            windows.append((times, [start, stop]))
    return [(times, ends) for times, ends in windows if len(times) > len(ends)]


def sparse_grids(given: list[int], wanted: list[int], unit: float) -> list[tuple[list[float], list[int]]]:
    """Return windows of given and wanted times alone that span up to eight units, or one gap."""
    windows: list[tuple[list[float], list[int]]] = []
    for start, stop in pairwise(given):
        times = [start, *(time for time in wanted if start < time < stop), stop]
        if windows and windows[-1][0][-1] == start and stop - windows[-1][0][0] <= 8 * unit:
            windows[-1][0].extend(times[1:])
            windows[-1][1].append(stop)
        else:
            windows.append((times, [start, stop]))
    return [(times, ends) for times, ends in windows if len(times) > len(ends)]


def ways(pipe: MarDiniPipeline, steps: int, seed: int, source: int) -> dict[str, Way]:
    """Return functions of `(frames, source, wanted)` that return frames by time, for one case."""

    def grid(parts: int) -> Way:
        def sample(frames: torch.Tensor, source: int, wanted: list[int]) -> torch.Tensor:
            made = pipe.slow_motion(
                frames[:, ::source], parts, WINDOW, num_inference_steps=steps, output_type="pt",
                generator=torch.Generator().manual_seed(seed),
            ).frames.float().cpu()  # fmt: skip
            result = frames.clone()
            for time in wanted:
                result[:, time] = made[:, int(time * parts / source + 0.5)]
            return result

        return sample

    def placed(most: int, places_of: Callable[[list[float]], list[float] | None]) -> Way:
        def sample(frames: torch.Tensor, source: int, wanted: list[int]) -> torch.Tensor:
            given = list(range(0, frames.shape[1], source))
            return sample_windows(pipe, group(given, wanted, most), frames, places_of, steps, seed)

        return sample

    unit = source / min(source, 8)

    def sparse(frames: torch.Tensor, source: int, wanted: list[int]) -> torch.Tensor:
        windows = sparse_grids(list(range(0, frames.shape[1], source)), wanted, unit)
        return sample_windows(pipe, windows, frames, of_unit, steps, seed)

    def of_unit(times: list[float]) -> list[float]:
        return [(time - times[0]) / unit for time in times]

    def by_time(times: list[float]) -> list[float]:
        return [(time - times[0]) * (len(times) - 1) / (times[-1] - times[0]) for time in times]

    def of_eight(times: list[float]) -> list[float]:
        return [(time - times[0]) * 8 / source for time in times]

    return {
        "exact grid": grid(source),
        "sparse grid": sparse,
        "grid of 8": grid(8),
        "grid of 4": grid(4),
        "fractional places": placed(WINDOW, by_time),
        "fractional places, gap by gap": placed(3, of_eight),
        "times ignored": placed(WINDOW, lambda times: None),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.places_between", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    parser.add_argument("--max-clips", type=int, help="use only the first clips")
    options = parser.parse_args(arguments)
    pipe = load_pipeline(options)
    truth = load_windows(options.clips, options.size, SPAN + 1, 1, per_clip=1, max_clips=options.max_clips)
    finished = FinishedParts(options.output / "kept")
    key = {**model_key(pipe), **sampling_key(pipe.scheduler, options.steps)}
    bootstrap, rows = Bootstrap(truth.clips), []
    for case, (source, target) in CASES.items():
        frames = truth.frames[:, : SPAN // source * source + 1]
        wanted = [time for time in range(0, frames.shape[1], target) if time % source]
        for name, way in ways(pipe, options.steps, options.seeds[0], source).items():

            def make(frames=frames, way=way, source=source, wanted=wanted, target=target) -> dict[str, torch.Tensor]:
                with torch.no_grad():
                    made = way(frames, source, wanted)
                shown = made[:, ::target]  # as a viewer sees them, given ones too
                scores = score_frames(made[:, wanted], frames[:, wanted])
                found = {name: scores[name].mean(dim=1) for name in ("ssim", "psnr")}
                steps, true_steps = motion_steps(shown), motion_steps(frames[:, ::target])
                return found | {"unevenness": (steps - true_steps).abs().mean(dim=1) / true_steps.mean()}

            done = finished.get({**key, "case": case, "way": name, "clips": truth.digest()}, 0, len(frames), make)
            row = {"case": case, "way": name} | {score: values.mean().item() for score, values in done.items()}
            row["intervals"] = {score: bootstrap.interval(done, score) for score in done}
            rows.append(row)
            print(row, flush=True)
    record = {**facts(options, "python -m training.reproduction.places_between " + shlex.join(
        sys.argv[1:] if arguments is None else arguments), key["checkpoint"]), "rows": rows}  # fmt: skip
    (options.output / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    if options.page:
        fill_all(options.page, {"places between": table(rows)})
    return record


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in markdown."""
    lines = ["| source to target | way | mean SSIM | mean PSNR | error of motion |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = row["intervals"]["ssim"]
        lines.append(
            f"| {row['case']} | {row['way']} | {row['ssim']:.3f} [{low:.3f}, {high:.3f}] | {row['psnr']:.2f} "
            f"| {row['unevenness']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
