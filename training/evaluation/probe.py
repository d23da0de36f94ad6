"""Measure where clips leave room for a model: between what simple methods reach and what the autoencoder reaches.

Nothing is trained: the middle frames of held-out windows are copied, cross-faded, warped by optical flow, and
reconstructed by the autoencoder, at several distances between frames. `training/probe.py` is the program;
`training/evaluate.py` scores a trained checkpoint.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from diffusers_mardini.latents import decode_latents, encode_video
from training.config.schema import RunConfig
from training.data.buckets import Bucket, WindowRequest, window_request
from training.data.clips import FoundClip
from training.data.entries import Entry
from training.data.moments import ClipError
from training.data.order import Rate, num_starts
from training.data.sources import Source
from training.data.windows import PixelWindows, WindowDraw
from training.evaluation.baselines import copy_nearest, cross_fade, flow_warp
from training.evaluation.evaluation_windows import to_bytes
from training.evaluation.intervals import SURE, Bootstrap
from training.evaluation.metrics import middle_index, score_frames
from training.evaluation.networks.lpips import MIN_SIZE, Lpips, load_lpips
from training.evaluation.tables import COLUMNS, markdown_table, score_cell


SIMPLE = {"copying": copy_nearest, "cross-fade": cross_fade, "optical flow": flow_warp}
CEILING = "autoencoder"
SSIM, LPIPS = "mid_ssim", "mid_lpips"
NUM_FRAMES = 9  # of a window, as VIDIM-Bench has it
MOST_WINDOWS = 48  # at each distance
# Less room than this, in SSIM, is not worth a model. Without an autoencoder the ceiling is taken for 1, which none
# reaches, so that more is asked for.
NEAR, NEAR_WITHOUT = 0.05, 0.1
STILL = 0.85  # SSIM of copying the nearest given frame, above which clips hardly move
_BATCH = 8  # windows in memory at once
_SLOWER = (1, 2, 3, 6)  # the clips' own distance between frames, times these


@dataclass(frozen=True)
class Distance:
    """Scores at one distance between the frames of a window.

    Attributes:
        name: of the distance, such as "5 frames per second" or "stride 2".
        seconds: between two frames; the median over the clips that have such windows.
        windows, clips: numbers that were scored.
        rows: a row for each method, with its scores and their 95% `intervals`.
        best: name of the simple method with the highest SSIM.
        ceiling: SSIM of the autoencoder, 1 without one.
        room: `ceiling` minus the SSIM of `best`.
        room_interval: of `room`, from paired differences; "not a number" for a single clip.
        left_out: reasons by clip, for windows that could not be read.
    """

    name: str
    seconds: float
    windows: int
    clips: int
    rows: list[dict[str, Any]]
    best: str
    ceiling: float
    room: float
    room_interval: tuple[float, float]
    left_out: dict[str, str]

    def ssim(self, method: str) -> float:
        """Return the SSIM of a method."""
        return next(row[SSIM] for row in self.rows if row["method"] == method)

    @property
    def judged(self) -> str:
        """Return `below` (the autoencoder scores less than a simple method), `little` room, or `room`."""
        has_autoencoder = any(row["method"] == CEILING for row in self.rows)
        if has_autoencoder and self.room < 0 and self.room_interval[1] < 0:
            return "below"
        return "little" if self.room < (NEAR if has_autoencoder else NEAR_WITHOUT) else "room"


@dataclass(frozen=True)
class Probe:
    """The result: scores by distance, smallest first; empty if no clip has such windows.

    Attributes:
        distances: those at which some clip has windows.
        size: height and width of the frames.
        num_frames: of a window.
        notes: what was not measured, and why.
    """

    distances: tuple[Distance, ...]
    size: tuple[int, int]
    num_frames: int
    notes: tuple[str, ...] = ()

    @property
    def has_room(self) -> bool:
        """Return whether a model can win at some distance."""
        return any(distance.judged == "room" for distance in self.distances)

    @property
    def is_below(self) -> bool:
        """Return whether the autoencoder scores less than a simple method at every distance, on enough clips."""
        return bool(self.distances) and all(d.judged == "below" and d.clips >= SURE for d in self.distances)

    def table(self) -> str:
        """Return the scores as tables in markdown, one for each metric."""
        tables = []
        for column in (SSIM, LPIPS):
            if not self.distances or column not in self.distances[0].rows[0]:
                continue
            methods = [row["method"] for row in self.distances[0].rows]
            cells = []
            for distance in self.distances:
                scores = [score_cell(row, column) for row in distance.rows]
                low, high = distance.room_interval
                room = [f"{distance.room:+.3f} [{_signed(low)}, {_signed(high)}]"] if column == SSIM else []
                cells.append([_label(distance), f"{distance.windows} of {distance.clips} clips", *scores, *room])
            head = [COLUMNS[column], "windows", *methods, *(["room"] if column == SSIM else [])]
            tables.append(markdown_table(head, cells))
        return "\n\n".join(tables)

    def verdict(self) -> list[str]:
        """Return sentences on where a model can win, and where none can."""
        if not self.distances:
            return [f"no clip has windows of {self.num_frames} frames at these distances; give longer clips"]
        kinds = {kind: [d for d in self.distances if d.judged == kind] for kind in ("below", "little", "room")}
        found = [_below(kinds["below"], len(self.distances))] if kinds["below"] else []
        if kinds["little"]:
            found.append(_little(kinds["little"], bool(kinds["room"])))
        if kinds["room"]:
            most = max(kinds["room"], key=lambda distance: distance.room)
            where = "at every distance tried" if len(kinds["room"]) == len(self.distances) > 1 else "for a model"
            found.append(
                f"there is room {where}: at {most.name} {most.best} reaches an SSIM of {most.ssim(most.best):.2f} and "
                f"{'the autoencoder' if CEILING in _methods(most) else 'a perfect model'} {most.ceiling:.2f}; that is "
                "where a model can win"
            )
        fewest = min(distance.clips for distance in self.distances)
        if fewest < SURE:
            found.append(f"this rests on {fewest} clip{'s' * (fewest != 1)}; hold out {SURE} or more to be sure")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything as values of JSON; "not a number" as null."""
        values = asdict(self)
        for distance, row in zip(self.distances, values["distances"]):
            row["judged"] = distance.judged
            row["room_interval"] = [None if math.isnan(end) else end for end in distance.room_interval]
            for score in row["rows"]:
                score["intervals"] = {
                    name: [None if math.isnan(end) else end for end in ends]
                    for name, ends in score["intervals"].items()
                }
        return values | {"verdict": self.verdict(), "has_room": self.has_room, "is_below": self.is_below}


def probe(
    source: Source,
    entries: Iterable[Entry],
    size: tuple[int, int],
    rates: Sequence[Rate] = (),
    vae: torch.nn.Module | None = None,
    num_frames: int = NUM_FRAMES,
    most_windows: int = MOST_WINDOWS,
) -> Probe:
    """Score the simple methods and the autoencoder on fixed windows of held-out clips, read a few at a time.

    Args:
        source: of the clips.
        entries: the clips, as in a manifest.
        size: height and width in pixels.
        rates: distances between frames; by default `own_rates` of the clips.
        vae: the autoencoder, used where it is; `None` leaves the ceiling out.
        num_frames: of a window, at least 3; the first and the last are given.
        most_windows: at each distance, evenly spaced over all windows.
    """
    if num_frames < 3:
        raise ValueError(f"a window of {num_frames} frames has no middle one to score; give at least 3")
    entries = tuple(entries)
    usable = [entry for entry in entries if entry.status == "ok"]
    lpips, notes = _lpips(size)
    windows, wholes = PixelWindows(source, entries, [size], vae, 1), whole_clips(source, usable)
    distances = []
    for rate in rates or own_rates(usable, num_frames):
        fitting = [entry for entry in usable if num_starts(entry, num_frames, rate)]
        if not fitting:
            notes.append(f"no clip has {num_frames} frames at {rate}")
            continue
        request = WindowRequest(
            "probe",
            (Bucket(*size, num_frames),),
            () if rate.fps else ((rate.stride, 1.0),),
            ((rate.fps, 1.0),) if rate.fps else (),
        )
        seconds = 1 / rate.fps if rate.fps else rate.stride / median(entry.fps for entry in fitting)
        distance = _score(windows, windows.heldout(request, most_windows), str(rate), seconds, vae, lpips, wholes)
        distances += [distance] if distance is not None else []
        notes += [] if distance is not None else [f"no window at {rate} can be read"]
    distances.sort(key=lambda distance: distance.seconds)
    return Probe(tuple(distances), size, num_frames, tuple(notes))


def probe_run(config: RunConfig, source: Source, entries: Iterable[Entry], vae: torch.nn.Module) -> Probe | None:
    """Probe the windows of a run's last stage, at all its distances; `None` if they have no frame between two."""
    shape = config.by_bucket(config.stages[-1])[0]
    if shape.num_frames < 3:
        return None
    rates = window_request(config, config.stages[-1]).rates
    return probe(source, entries, config.size_of(shape), rates, vae, shape.num_frames)


def whole_clips(source: Source, entries: Iterable[Entry]) -> dict[str, str]:
    """Return by key the clip of which each entry shows a part: parts of one clip are not independent."""
    return {entry.key: FoundClip(source, entry).whole for entry in entries}


def own_rates(entries: Sequence[Entry], num_frames: int = NUM_FRAMES) -> tuple[Rate, ...]:
    """Return the clips' median rate and slower ones, as far as some clip has windows."""
    if not entries:
        return ()
    rates = slower_rates(median(entry.fps for entry in entries))
    return tuple(rate for rate in rates if any(num_starts(entry, num_frames, rate) for entry in entries))


def slower_rates(fps: float) -> list[Rate]:
    """Return a rate and slower ones."""
    return [Rate(fps=float(f"{fps / slower:.4g}")) for slower in _SLOWER]


def _lpips(size: tuple[int, int]) -> tuple[Lpips | None, list[str]]:
    if min(size) < MIN_SIZE:
        return None, [f"LPIPS is not measured: it needs frames of at least {MIN_SIZE} pixels"]
    try:
        with torch.random.fork_rng(devices=[]):  # what a run draws must not depend on being probed
            return load_lpips(), []
    except ValueError:
        return None, ["LPIPS is not measured: its weights are not installed; docs/evaluation.md says how to get them"]


@torch.no_grad()
def _score(
    windows: PixelWindows,
    draws: Sequence[WindowDraw],
    name: str,
    seconds: float,
    vae: torch.nn.Module | None,
    lpips: Lpips | None,
    wholes: Mapping[str, str],
) -> Distance | None:
    """Score the middle frames of windows by every method; `None` if no window can be read."""
    num_frames = draws[0].bucket.frames
    given = [0, num_frames - 1]
    middle = middle_index(num_frames, given)
    if 2 * middle == num_frames - 1:  # half-way between the given frames: the others make no difference to it
        draws = [replace(draw, frames=(draw.frames[0], draw.frames[middle], draw.frames[-1])) for draw in draws]
        middle, given = 1, [0, 2]
    by_method: dict[str, list[dict[str, torch.Tensor]]] = {}
    clips, left_out = [], {}
    for first in range(0, len(draws), _BATCH):
        windows.prefetch(draws[first : first + 2 * _BATCH])
        batch = []
        for draw in draws[first : first + _BATCH]:
            try:
                batch.append(windows.pixels(draw))
                clips.append(wholes[draw.clip])
            except ClipError as error:
                left_out[draw.clip] = str(error)
        if not batch:
            continue
        truth = torch.stack(batch).float() / 255  # (batch, frames, 3, height, width)
        for method, frames in _middles(truth, given, middle, vae).items():
            by_method.setdefault(method, []).append(_scores(frames, truth[:, [middle]], lpips))
    if not clips:
        return None
    scores = {
        method: {column: torch.cat([part[column] for part in parts]) for column in parts[0]}
        for method, parts in by_method.items()
    }
    return _distance(name, seconds, clips, scores, left_out)


def _middles(
    truth: torch.Tensor, given: list[int], middle: int, vae: torch.nn.Module | None
) -> dict[str, torch.Tensor]:
    """Return the middle frames by method, `(batch, 1, 3, height, width)`."""
    found = {name: method(truth, given)[:, [middle]] for name, method in SIMPLE.items()}
    if vae is not None:
        like = next(vae.parameters())
        frames = [
            decode_latents(vae, encode_video(vae, window[None, [middle]].to(like.device, like.dtype) * 2 - 1))
            for window in truth  # one at a time: a pretrained autoencoder at 512 pixels fills a small GPU
        ]
        found[CEILING] = (torch.cat(frames).float().cpu() / 2 + 0.5).clamp(0, 1)
    return found


def _scores(frames: torch.Tensor, truth: torch.Tensor, lpips: Lpips | None) -> dict[str, torch.Tensor]:
    frames = to_bytes(frames).float() / 255  # as files hold them
    scores = {SSIM: score_frames(frames, truth)["ssim"][:, 0]}
    return scores if lpips is None else scores | {LPIPS: lpips(frames[:, 0], truth[:, 0])}


def _distance(
    name: str,
    seconds: float,
    clips: Sequence[str],
    scores: Mapping[str, dict[str, torch.Tensor]],
    left_out: dict[str, str],
) -> Distance:
    bootstrap = Bootstrap(clips)
    rows = [
        {
            "method": method,
            **{column: values.mean().item() for column, values in columns.items()},
            "intervals": {column: bootstrap.interval(columns, column) for column in columns},
        }
        for method, columns in scores.items()
    ]
    best = max(SIMPLE, key=lambda method: scores[method][SSIM].mean().item())
    ceiling = scores.get(CEILING, {SSIM: torch.ones(len(clips))})
    room = (ceiling[SSIM].mean() - scores[best][SSIM].mean()).item()
    interval = bootstrap.difference(ceiling, scores[best], SSIM)
    number = len(set(clips))
    return Distance(
        name, seconds, len(clips), number, rows, best, ceiling[SSIM].mean().item(), room, interval, left_out
    )


def _methods(distance: Distance) -> list[str]:
    return [row["method"] for row in distance.rows]


def _label(distance: Distance) -> str:
    return f"{distance.name}, {distance.seconds:.2g} s"


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


def _listed(distances: Sequence[Distance]) -> str:
    names = [distance.name for distance in distances]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _below(distances: Sequence[Distance], number: int) -> str:
    worst = min(distances, key=lambda distance: distance.room)
    where = "" if len(distances) < number or number == 1 else ", and less than a simple method at every distance tried"
    return (
        f"the autoencoder reaches an SSIM of {worst.ceiling:.2f} at {worst.name}, less than the "
        f"{worst.ssim(worst.best):.2f} of {worst.best}{where}: no model with this autoencoder can win there; train "
        "one on clips like these with more `latent_channels` or a smaller `patch`, or use another one"
    )


def _little(distances: Sequence[Distance], room_elsewhere: bool) -> str:
    last = distances[-1]
    still = all(distance.ssim("copying") > STILL for distance in distances)
    why = "these clips hardly move" if still else "simple methods do nearly as well as any model could"
    advice = "" if room_elsewhere else "; a model cannot win there: try fewer frames per second, or other clips"
    scores = f"{last.best} reaches {last.ssim(last.best):.2f} of {last.ceiling:.2f}"
    return f"{why} at {_listed(distances)}: {scores}{advice}"
