"""Score long videos: `slow_motion` between frames further and further apart, and `extend` further and further.

    python -m training.reproduction.long_video_quality CHECKPOINT CLIPS -o outputs/results/long-video

1. Slow motion: every 8th, 16th or 32nd frame at the beginning of each clip is given, and all between are sampled. A
   window has nine frames, so 16 and 32 need two levels. Only frames that are sampled in all three cases are scored.
2. Extension: the first four frames of each clip are given, and it is continued to its end, window by window.
3. Far: some clips are continued for hundreds of frames beyond their end; only sharpness and motion are scored.

Writes `results.json`, `results.md`, charts and contact sheets; after an interruption, the same command goes on.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.pipelines.window_plans import extension_windows, slow_motion_windows
from training.evaluation.evaluation_windows import EvaluationWindows, digest_of, load_windows, to_bytes
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.intervals import Bootstrap
from training.evaluation.methods import BASELINE, CEILING, OURS, Method, baselines, model_key, sampling_key
from training.evaluation.metrics import frame_sharpness, motion_steps
from training.evaluation.networks.lpips import Lpips
from training.evaluation.results import without_nan
from training.evaluation.sampling import reconstruct
from training.evaluation.scores import paired_difference
from training.figures.charts import draw
from training.figures.contact_sheets import contact_sheet
from training.page_blocks import fill_all
from training.reproduction.frame_scores import Scores, over, row, score_each_frame
from training.reproduction.long_video_report import extension_panels, slow_motion_panels, tables_of
from training.reproduction.shared_options import add_options, facts, load_lpips, load_pipeline


ANOTHER = "another clip's frames"
# Pictures of the page, by the name of the file in the folder of results.
PICTURES = {
    "slow_motion_chart": "slow_motion",
    "extension_chart": "extension",
    "extension_sheet": "extension_sheet",
    "far_sheet": "far_sheet",
}
NAMES = {"copy of the nearest given frame": "copy"}  # short names for charts and tables


@dataclass(frozen=True)
class LongVideoSampler:
    """Sampling and scoring for all three parts.

    Attributes:
        pipe: the checkpoint.
        key: the facts of checkpoint and sampler that frames depend on.
        network: LPIPS, if it is installed.
        finished: the parts that are done already.
        options: of the program.
    """

    pipe: MarDiniPipeline
    key: dict[str, Any]
    network: Lpips | None
    finished: FinishedParts
    options: argparse.Namespace

    def generators(self, seed: int, first: int, count: int) -> list[torch.Generator]:
        """Return a generator for each clip, seeded by its number."""
        return [torch.Generator().manual_seed(seed * 1_000_003 + first + i) for i in range(count)]

    def method(self, name: str, count: int, call: Callable[[torch.Tensor, list], torch.Tensor], **key: Any) -> Method:
        """Return ours; `call` takes given frames `(clips, given, 3, height, width)` and generators, returns videos."""

        def sample(windows: torch.Tensor, given: Sequence[int], first: int, seed: int) -> torch.Tensor:
            frames = call(windows[:, list(given)], self.generators(seed, first, len(windows))).float().cpu()
            frames[:, list(given)] = windows[:, list(given)]
            return frames

        key = {"method": name, **self.key, "window": self.options.window, **key}
        return Method("ours", OURS, key, tuple(self.options.seeds), self.parts(count), sample)

    def ceiling(self, count: int) -> Method:
        """Return the method that encodes and decodes the true frames."""
        key = {"method": "autoencoder", "given": "true", **self.key}

        def sample(windows: torch.Tensor, given: Sequence[int], *_: int) -> torch.Tensor:
            return reconstruct(self.pipe, windows, given)

        return Method("autoencoder", CEILING, key, (0,), self.parts(count), sample)

    def parts(self, count: int) -> list[tuple[int, int]]:
        """Return first and last-plus-one of clips sampled together; more clips later leave them as they are."""
        size = self.options.batch_size
        return [(first, min(first + size, count)) for first in range(0, count, size)]

    def scores(self, method: Method, truth: torch.Tensor, given: Sequence[int]) -> tuple[list[Scores], torch.Tensor]:
        """Return the scores of every frame by seed, and the sampled videos of the first seed."""
        found, videos = [], []
        for seed in method.seeds:
            done = [self._part(method, truth[first:last], given, first, seed) for first, last in method.batches]
            found.append({name: torch.cat([scores[name] for scores, _ in done]) for name in done[0][0]})
            videos.append(torch.cat([frames for _, frames in done]))
        return found, videos[0]

    def _part(
        self, method: Method, truth: torch.Tensor, given: Sequence[int], first: int, seed: int
    ) -> tuple[Scores, torch.Tensor]:
        """Return scores and videos of clips that are sampled together."""
        last, sources = first + len(truth), dict(self.network.sources) if self.network is not None else {}
        key = {"variant": method.key, "clips": digest_of(truth), "given": list(given), "seed": seed}
        sampled = self.finished.get(
            key, first, last, lambda: {"frames": to_bytes(method.sample(truth, given, first, seed))}
        )
        frames = sampled["frames"].float() / 255
        key |= {"scores": "frames", "networks": sources}
        return self.finished.get(key, first, last, lambda: score_each_frame(frames, truth, self.network)), frames


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        _measure(options, "python -m training.reproduction.long_video_quality " + shlex.join(typed))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _measure(options: argparse.Namespace, command: str) -> None:
    span = max(options.distances)
    if any(distance < 2 or span % distance for distance in options.distances):
        raise ValueError(
            f"--distances {options.distances}: each must be at least 2 and divide the largest one, {span}"
        )
    if not 1 <= options.overlap < options.window:
        raise ValueError(f"--overlap {options.overlap}: give at least 1, and less than --window {options.window}")
    if options.num_frames <= options.overlap:
        raise ValueError(
            f"--num-frames {options.num_frames}: give more than the --overlap of {options.overlap} given ones"
        )
    for name in ("far_block", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    pipe = load_pipeline(options)
    short = _first_clips(options, span + 1, stride=1)
    long = _first_clips(
        options, options.num_frames, options.stride or 2, None if options.stride else pipe.trained_window.fps
    )
    networks, missing = load_lpips(options.size, options.num_frames)
    key = {**model_key(pipe), **sampling_key(pipe.scheduler, options.steps)}
    sampler = LongVideoSampler(pipe, key, networks.lpips.get("alex"), FinishedParts(options.output / "kept"), options)
    with torch.no_grad():
        slow = slow_motion(sampler, short)
        extended = extension(sampler, long)
        far = far_extension(sampler, long)
    settings = facts(options, command, key["checkpoint"]) | {"networks": networks.sources, "not_measured": missing}
    slow |= {"clips": short.clips, "skipped": short.skipped}
    extended |= {"clips": long.clips, "skipped": long.skipped}
    record = {**settings, "slow_motion": slow, "extension": extended, "far": far}
    text = json.dumps(without_nan(record), indent=1, allow_nan=False)
    (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    tables = tables_of(record)
    text = "\n\n".join(f"{name[0].upper()}{name[1:]}:\n\n{table}" for name, table in tables.items())
    (options.output / "results.md").write_text(f"`{command}`\n\n{text}\n", encoding="utf-8")
    if options.page:
        fill_all(options.page, tables)
    draw(options.output / "slow_motion_chart.png", slow_motion_panels(slow))
    draw(options.output / "extension_chart.png", extension_panels(extended, far))
    if options.pictures:
        for name, shown in PICTURES.items():
            options.pictures.mkdir(parents=True, exist_ok=True)
            shutil.copy(options.output / f"{name}.png", options.pictures / f"long_video_{shown}.png")
    print(f"\n{text}\n\nWrote results.json, results.md, charts and contact sheets to {options.output}")


def _first_clips(
    options: argparse.Namespace, num_frames: int, stride: int, fps: float | None = None
) -> EvaluationWindows:
    """Return the first window of each clip."""
    return load_windows(options.clips, options.size, num_frames, stride, 1, fps, options.max_clips)


def slow_motion(sampler: LongVideoSampler, windows: EvaluationWindows) -> dict[str, Any]:
    """Run part 1: return rows by distance and level, and paired differences."""
    options, count, span = sampler.options, len(windows.frames), windows.frames.shape[1] - 1
    common = [place for place in range(span + 1) if all(place % distance for distance in options.distances)]
    rows, scores, sheet, bootstrap = [], {}, {}, Bootstrap(windows.clips)
    for distance in tqdm(sorted(options.distances), unit="distance", desc="slow motion", disable=None):
        given = list(range(0, span + 1, distance))

        def call(frames: torch.Tensor, generators: list, distance: int = distance) -> torch.Tensor:
            return sampler.pipe.slow_motion(
                frames,
                distance,
                options.window,
                num_inference_steps=options.steps,
                generator=generators,
                output_type="pt",
            ).frames

        methods = [
            *baselines(count, given, span + 1, None),
            sampler.ceiling(count),
            sampler.method("slow motion", count, call, factor=distance),
        ]
        levels = slow_motion_levels(len(given), distance, options.window)
        for method in methods:
            name = NAMES.get(method.name, method.name)
            each, sheet[name] = sampler.scores(method, windows.frames, given)
            label = f"{distance} apart, {name}"
            scores[label] = over(each, common)
            labels = {"distance": distance, "name": name}
            rows.append(row(label, method.kind, scores[label], bootstrap, **labels, level=None))
            for level in range(1, max(levels) + 1):
                places = [place for place, found in enumerate(levels) if found == level]
                found = over(each, places)
                rows.append(row(f"{label}, level {level}", method.kind, found, bootstrap, **labels, level=level))
    ours = [f"{distance} apart, ours" for distance in sorted(options.distances)]
    pairs = [(label, other) for label in ours for other in scores if other.startswith(label[:-4]) and other != label]
    pairs += [(label, ours[0]) for label in ours[1:]]
    differences = [paired_difference(*pair, scores, bootstrap) for pair in pairs if "autoencoder" not in pair[1]]
    _sheet(
        options.output / "slow_motion_sheet.png",
        f"slow motion, {span - 1} frames between two",
        {"truth": windows.frames, "ours": sheet["ours"], "cross-fade": sheet["cross-fade"]},
        [round(i * span / 10) for i in range(11)],
        windows.clips,
        given={0, span},
    )
    return {"rows": rows, "differences": differences, "scored_places": common}


def slow_motion_levels(num_given: int, factor: int, window: int) -> list[int]:
    """Return the level of recursion of each frame of the slowed clip.

    It is 0 for given frames, 1 for frames between given ones, 2 for frames between those.
    """
    levels = [0] * ((num_given - 1) * factor + 1)
    for made in slow_motion_windows(num_given, factor, window):
        above = max(levels[made.places[i]] for i in made.given_indices)
        for place in made.new_places:
            levels[place] = above + 1
    return levels


def extension(sampler: LongVideoSampler, windows: EvaluationWindows) -> dict[str, Any]:
    """Run part 2: return rows by window of the chain, and scores of every frame."""
    options, (count, num_frames) = sampler.options, windows.frames.shape[:2]
    given = list(range(options.overlap))
    new = num_frames - len(given)
    chain = [window.new_places for window in extension_windows(len(given), new, options.window, options.overlap)]
    chain = [[place for place in places if place < num_frames] for places in chain]

    def call(frames: torch.Tensor, generators: list) -> torch.Tensor:
        return _extend(sampler, frames, new, generators)

    another = Method(
        ANOTHER, BASELINE, {"method": ANOTHER}, (0,), [(0, count)], lambda frames, *_: frames.roll(1, dims=0)
    )
    methods = [
        *baselines(count, given, num_frames, None),
        *([another] if count > 1 else []),
        sampler.ceiling(count),
        sampler.method("extension", count, call, overlap=options.overlap),
    ]
    rows, frames, videos, bootstrap = [], [], {}, Bootstrap(windows.clips)
    scores = {number: {} for number in range(len(chain))}
    for method in tqdm(methods, unit="method", desc="extension", disable=None):
        name = NAMES.get(method.name, method.name)
        each, videos[name] = sampler.scores(method, windows.frames, given)
        for number, places in enumerate(chain):
            scores[number][name] = over(each, places)
            label = f"frames {places[0]} to {places[-1]}, {name}"
            found = scores[number][name]
            rows.append(row(label, method.kind, found, bootstrap, window=number + 1, name=name))
        for place in range(len(given), num_frames):
            frames.append(row(name, method.kind, over(each, [place]), bootstrap, place=place, name=name))
    differences = []
    for number, places in enumerate(chain):
        for name in scores[number]:
            if name not in ("ours", "autoencoder"):
                found = paired_difference("ours", name, scores[number], bootstrap)
                differences.append({**found, "method": f"frames {places[0]} to {places[-1]}: ours"})
    shown = list(range(0, num_frames, max(1, num_frames // 10)))
    _sheet(
        options.output / "extension_sheet.png",
        f"extension, {options.overlap} frames given",
        {"truth": windows.frames, "ours": videos["ours"]},
        shown,
        windows.clips,
        given=set(given),
        count=3,
    )
    return {"rows": rows, "differences": differences, "frames": frames, "given": given}


def far_extension(sampler: LongVideoSampler, windows: EvaluationWindows) -> dict[str, Any]:
    """Run part 3: return sharpness and motion of a few clips by block, relative to the mean of all true clips."""
    options = sampler.options
    truth = windows.frames
    starts = truth[: options.far_clips, : options.overlap]
    count, length = len(starts), options.overlap + options.far_frames
    key = {"method": "far", **sampler.key, "clips": digest_of(starts), "window": options.window}
    key |= {"frames": length, "overlap": options.overlap, "seed": options.seeds[0]}

    def make() -> dict[str, torch.Tensor]:
        generators = sampler.generators(options.seeds[0], 0, count)
        return {"frames": to_bytes(_extend(sampler, starts, options.far_frames, generators))}

    frames = sampler.finished.get(key, 0, count, make)["frames"].float() / 255  # (clips, length, 3, height, width)
    motion, sharpness = motion_steps(frames), frame_sharpness(frames)[:, 1:]  # (clips, length - 1)
    true = {"motion": motion_steps(truth).mean().item(), "sharpness": frame_sharpness(truth).mean().item()}
    blocks = []
    for first in range(options.overlap, length, options.far_block):
        last = min(first + options.far_block, length)
        places = slice(first - 1, last - 1)
        found = {
            "motion": (motion[:, places].mean(dim=1) / true["motion"]).tolist(),
            "sharpness": (sharpness[:, places].mean(dim=1) / true["sharpness"]).tolist(),
        }
        blocks.append({"first": first, "last": last - 1, **found})
    # The range of the true clips, to compare the blocks with.
    spread = {
        "motion": (motion_steps(truth).mean(dim=1) / true["motion"]).sort().values.tolist(),
        "sharpness": (frame_sharpness(truth).mean(dim=1) / true["sharpness"]).sort().values.tolist(),
    }
    shown = [round(i * (length - 1) / 12) for i in range(13)]
    _sheet(
        options.output / "far_sheet.png",
        f"extension by {options.far_frames} frames",
        {"ours": frames},
        shown,
        windows.clips,
        given={place for place in shown if place < options.overlap},
        count=count,
    )
    return {"clips": windows.clips[:count], "blocks": blocks, "true_clips": spread}


def _extend(sampler: LongVideoSampler, frames: torch.Tensor, new: int, generators: list) -> torch.Tensor:
    options = sampler.options
    return (
        sampler.pipe.extend(
            frames,
            new,
            options.window,
            options.overlap,
            num_inference_steps=options.steps,
            generator=generators,
            output_type="pt",
        )
        .frames.float()
        .cpu()
    )


def _sheet(
    path: Path,
    title: str,
    rows: dict[str, torch.Tensor],
    places: Sequence[int],
    clips: Sequence[str],
    given: set[int],
    count: int = 2,
) -> None:
    """Draw a few clips, evenly spaced over all (not chosen), at some of their frames."""
    total = len(next(iter(rows.values())))
    count = min(count, total)
    picked = sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})
    groups = [(clips[i], {label: frames[i][list(places)] for label, frames in rows.items()}) for i in picked]
    columns = [column for column, place in enumerate(places) if place in given]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(groups, columns, title, width=96, names=[str(place) for place in places]).quantize(256).save(
        path, optimize=True
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.long_video_quality", description=__doc__.splitlines()[0]
    )
    add_options(parser)
    parser.add_argument("--max-clips", type=int, help="use only the first clips")
    parser.add_argument("--window", type=int, default=9, help="frames of a window, as many as in training")
    parser.add_argument(
        "--distances", type=int, nargs="+", default=[8, 16, 32], help="of given frames, for slow motion"
    )
    parser.add_argument("--num-frames", type=int, default=32, help="frames that a clip is extended to")
    parser.add_argument(
        "--stride",
        type=int,
        help="clip frames from one frame of an extended clip to the next; default: as the "
        "checkpoint was trained, or 2",
    )
    parser.add_argument("--overlap", type=int, default=4, help="given frames, and leading frames of each window")
    parser.add_argument("--far-clips", type=int, default=2, help="number of clips for the far extension")
    parser.add_argument("--far-frames", type=int, default=200, help="frames of the far extension")
    parser.add_argument("--far-block", type=int, default=25, help="frames of a block")
    parser.add_argument("--pictures", type=Path, help="folder for a copy of charts and sheets, named long_video_...")
    return parser


if __name__ == "__main__":
    main()
