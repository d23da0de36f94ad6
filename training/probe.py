"""Measure where clips leave room for a model, before any is trained: `python -m training.probe CLIPS`.

    python -m training.probe CLIPS --autoencoder runs/autoencoder --fps 15 7.5 5 --size 64x96

Prints what copying, cross-fading, optical flow and the autoencoder reach at several distances between frames, and the
verdict in words. Give held-out clips: those that no autoencoder was trained on. Exit code 3 if there is no room.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from diffusers_mardini.hardware import choose_device
from diffusers_mardini.sizes import sides
from training.config.schema import RunConfig
from training.data.entries import Entries, Entry
from training.data.manifest import read_manifest_of
from training.data.manifest_files import MANIFESTS
from training.data.order import Rate
from training.data.sources import Source, open_source
from training.engine.models import load_vae
from training.evaluation.evaluation_windows import size_argument
from training.evaluation.intervals import SURE
from training.evaluation.probe import MOST_WINDOWS, NUM_FRAMES, Probe, probe, probe_run, whole_clips
from training.files import write_whole


NO_ROOM = 3  # exit code
LEAST_SIDE = 16  # pixels


def probe_clips(
    spec: str | Path,
    size: tuple[int, int],
    vae: torch.nn.Module | None = None,
    fps: Sequence[float] = (),
    picture_fps: float | None = None,
    num_frames: int = NUM_FRAMES,
    most_windows: int = MOST_WINDOWS,
    manifests: Path = MANIFESTS,
) -> Probe:
    """Probe a source of held-out clips by its name; its manifest is made if it is not there yet.

    Args:
        spec: as `open_source` takes it.
        size: height and width in pixels.
        vae: the autoencoder; `None` leaves the ceiling out.
        fps: frames per second of windows; by default the clips' own and slower ones.
        picture_fps: of picture folders whose metadata do not state it.
        num_frames, most_windows: see `evaluation.probe`.
        manifests: folder of the manifest.

    Raises:
        ValueError: if there are no clips.
    """
    source = open_source(spec, picture_fps, manifests)
    rates = [Rate(fps=value) for value in fps]
    return probe(source, read_manifest_of(source, manifests).ok, size, rates, vae, num_frames, most_windows)


def show_room(
    spec: str | Path, size: tuple[int, int], vae: torch.nn.Module, picture_fps: float | None, manifests: Path
) -> None:
    """Print what a new autoencoder reaches on held-out clips beside the simple methods, and whether there is room."""
    if len(list(itertools.islice(open_source(spec, picture_fps, manifests).keys(), SURE))) < SURE:
        print(f"note: {too_few(spec)}")
    else:
        print(report(probe_clips(spec, size, vae, picture_fps=picture_fps, manifests=manifests)))


def check_room(
    config: RunConfig, vae: torch.nn.Module, folder: Path, source: Source, entries: Sequence[Entry]
) -> Probe | None:
    """Probe the held-out clips of a run before it begins; print the result and write it into the run's folder.

    Returns:
        The result; `None` if there are too few clips, or the windows have no frame between two.

    Raises:
        ValueError: if the autoencoder scores less than simple methods, unless the run has `anyway`.
    """
    if len(set(whole_clips(source, Entries.of(entries).ok).values())) < SURE:
        print(f"note: {too_few(source.spec)}")
        return None
    found = probe_run(config, source, entries, vae)
    if found is None:
        return None
    print(report(found))
    write_whole(folder / "probe.json", json.dumps(found.as_json(), indent=2) + "\n")
    if found.is_below and not config.anyway:
        raise ValueError(
            f"{config.name} is not trained: {found.verdict()[0]}. Set `anyway: true` to train it nevertheless"
        )
    return found


def too_few(spec: str | Path) -> str:
    """Return a sentence on held-out clips that are too few to say whether there is room."""
    return (
        f"{spec} holds fewer than {SURE} clips, too few to say whether a model can win against simple methods; "
        "`python -m training.probe` shows what they reach"
    )


def report(found: Probe) -> str:
    """Return tables, verdict and notes as text."""
    verdict = [f"verdict: {sentence}" for sentence in found.verdict()]
    left_out = {clip: reason for distance in found.distances for clip, reason in distance.left_out.items()}
    notes = [f"note: {note}" for note in (*found.notes, *(f"{clip}: {why}" for clip, why in left_out.items()))]
    return "\n".join([*([found.table(), ""] if found.distances else []), *verdict, *notes])


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of frames per second; give a positive one")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", help="source of held-out clips, as `data.validation` of a run")
    parser.add_argument("--autoencoder", metavar="FOLDER", help="folder or Hub id; without one the ceiling is unknown")
    parser.add_argument("--subfolder", help="of the autoencoder, such as vae in a pipeline's folder")
    parser.add_argument(
        "--fps", type=_positive, nargs="+", default=[], help="frames per second; default: the clips' own and slower"
    )
    parser.add_argument(
        "--size", type=size_argument, default=64, help="64 (square) or 64x96 (height x width) in pixels (default 64)"
    )
    parser.add_argument("--num-frames", type=int, default=NUM_FRAMES, help=f"frames of a window ({NUM_FRAMES})")
    parser.add_argument("--windows", type=int, default=MOST_WINDOWS, help=f"at each distance ({MOST_WINDOWS})")
    parser.add_argument("--picture-fps", type=_positive, help="frames per second of picture folders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    options = parser.parse_args(arguments)
    try:
        size = sides(options.size)
        if min(size) < LEAST_SIDE:
            raise ValueError(f"--size is {size[0]}x{size[1]}; give at least {LEAST_SIDE} pixels on each side")
        if options.windows < 1:
            raise ValueError(f"--windows is {options.windows}; give at least 1")
        vae = None
        if options.autoencoder is not None:
            vae = load_vae(options.autoencoder, options.subfolder).to(choose_device())
        found = probe_clips(
            options.clips, size, vae, options.fps, options.picture_fps, options.num_frames, options.windows
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(report(found))
    if options.json:
        write_whole(options.json, json.dumps(found.as_json(), indent=2) + "\n")
    return 0 if found.has_room else NO_ROOM


if __name__ == "__main__":
    sys.exit(main())
