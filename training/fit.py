"""Train a model of own clips with one command, and say whether it is any good: `python -m training.fit CLIPS OUT`.

    python -m training.fit my_clips runs/mine --hours 2

Looks at the clips, holds some out, measures what simple methods reach on them, chooses rate, size and models for the
hours that there are, trains, scores the model beside the simple methods, and publishes it as a folder for
`from_pretrained`. Each step is a command that is printed and can be typed by itself. Typed again after an
interruption, it goes on where it was. Exit codes: 0 finished, 1 failed, 3 advised against (see `--anyway`), 75
stopped.
"""

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from diffusers_mardini.hardware import choose_device
from diffusers_mardini.trained_window import TrainedWindow
from training.config.layers import load_config
from training.config.schema import RunConfig
from training.cores import cores
from training.data.frames import draw_frames
from training.data.manifest import read_manifest_of
from training.data.manifest_files import MANIFESTS
from training.data.sources import open_source
from training.evaluation.evaluation_windows import load_windows
from training.evaluation.intervals import SURE
from training.evaluation.probe import slower_rates
from training.evaluation.results import with_nan
from training.evaluation.verdict import verdict
from training.files import read_json, write_whole
from training.locks import Owner, turn_to_write
from training.overheads import read_seconds
from training.own_clips import choose, configs, present
from training.own_clips.choose import Choices
from training.own_clips.hold_out import KNOWN_FOOTAGE
from training.own_clips.look import state_of
from training.probe import NO_ROOM
from training.stopping import SIGNALS, STOPPED


STEPS = {
    "look": "Look at the clips and hold some out",
    "probe": "Measure what simple methods reach on the held-out clips",
    "choose": "Choose rate, size and models",
    "autoencoder": "Train the autoencoder",
    "train": "Train the planner and the transformer",
    "judge": "Score the model on the held-out clips",
    "publish": "Publish the model",
}
AUTOENCODER_SHARE = 0.12  # of the hours
JUDGE_SHARE = 0.12
JUDGE_SECONDS = 300  # at least, of more than half an hour
LEAST_SECONDS = 20  # of a training
START_SECONDS = 30  # of a program that loads libraries, clips and models
MOST_JUDGED = 48  # windows
SAMPLING_STEPS = 10
BASIS = Path("cache", "basis")  # an autoencoder for the plan, while the one of the fit is not trained


class Ended(Exception):
    """A step has ended the command with an exit code, after the reason was printed."""

    def __init__(self, code: int):
        super().__init__(str(code))
        self.code = code


class Record:
    """The record of a fit, `fit.json`: what was asked for, the steps that are done, seconds and most memory of each.

    Args:
        folder: of the fit.
        asked: what later starts must ask for, too.

    Raises:
        ValueError: if the folder was begun with something else, or holds something else.
    """

    def __init__(self, folder: Path, asked: dict[str, Any]):
        self.path = folder / "fit.json"
        if not self.path.exists():
            others = [path.name for path in folder.iterdir() if not path.name.startswith((".", "fit."))]
            if others:
                raise ValueError(f"'{folder}' holds {others[0]}, which training.fit did not make; give another folder")
            self.content: dict[str, Any] = {"asked": asked, "seconds": {}, "gib": {}, "done": []}
            self.save()
        self.content = read_json(self.path, ("asked", "seconds", "done"))
        before = self.content["asked"]
        if not (folder / "choices.json").exists():  # nothing depends on them yet
            before["hours"] = asked.get("hours")
        wrong = [key for key in asked if before.get(key) != asked[key]]
        differ = ", ".join(f"no {key}" if before.get(key) is None else f"{key} {before[key]}" for key in wrong)
        if differ:
            raise ValueError(f"'{folder}' was begun with {differ}; repeat that, or give another folder")

    def save(self) -> None:
        """Write the file, whole."""
        write_whole(self.path, json.dumps(self.content, indent=1) + "\n")

    def seconds_of(self, *steps: str) -> float:
        """Return the seconds of some steps so far."""
        return sum(self.content["seconds"].get(step, 0.0) for step in steps)

    @property
    def spent(self) -> float:
        """Return the seconds of all steps so far, those of interrupted starts included."""
        return sum(self.content["seconds"].values())

    def begin_anew(self, step: str) -> None:
        """Forget that this step and those after it are done, because what they rest on is made anew."""
        later = list(STEPS)[list(STEPS).index(step) :]
        self.content["done"] = [name for name in self.content["done"] if name not in later]
        self.save()

    def is_done(self, step: str) -> bool:
        """Return whether a step is done."""
        return step in self.content["done"]

    def add(self, step: str, seconds: float) -> None:
        """Count seconds of a step."""
        self.content["seconds"][step] = self.content["seconds"].get(step, 0.0) + seconds
        self.save()

    def see_memory(self, step: str, process: subprocess.Popen) -> None:
        """Keep the most memory, in GiB, that a program and those that it has started were seen to hold."""
        with suppress(psutil.Error):
            program = psutil.Process(process.pid)
            held = sum(each.memory_info().rss for each in (program, *program.children(recursive=True))) / 2**30
            most = self.content.setdefault("gib", {})
            most[step] = round(max(held, most.get(step, 0.0)), 2)

    @contextmanager
    def step(self, name: str):
        """Print the heading of a step; mark it as done, and count the seconds that no program counted, at its end."""
        number = list(STEPS).index(name) + 1
        print(
            f"\n== {number} of {len(STEPS)}: {STEPS[name]}" + (", done before" if self.is_done(name) else ""),
            flush=True,
        )
        before, started, was_done = self.spent, time.monotonic(), self.is_done(name)
        try:
            yield
            if not self.is_done(name):
                self.content["done"].append(name)
                self.save()
        finally:
            if not was_done:
                self.add(name, max(0.0, time.monotonic() - started - (self.spent - before)))

    def run(
        self, step: str, command: Sequence[str], accepted: Container[int] = (0,), threads: int = 1,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        """Print a command of Python, run it in a process of its own, and count its seconds as they pass.

        Args:
            step: that the seconds are counted for.
            command: arguments of Python.
            accepted: exit codes with which it may end.
            threads: of a CPU, for each process.
            folder: working directory, by default this process's.

        Raises:
            Ended: if it ends with another code.
        """
        print(f"\n$ {shlex.join(['python', *command])}" + (f"   (in {folder})" if folder else ""), flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if choose_device().type == "cpu":
            environment["ACCELERATE_USE_CPU"] = "true"
        counted, began = time.monotonic(), time.time()
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, cwd=folder, preexec_fn=_ends_with_parent()
        )
        with _signals_passed_on(process) as signals:
            code = None
            while code is None:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=5)
                self.see_memory(step, process)
                now = time.monotonic()
                self.add(step, now - counted)
                counted = now
        # A launcher of several processes ends with 1, whatever ended them.
        if signals or (
            code and (code == STOPPED or code in [-number for number in SIGNALS] or self._run_stopped(began))
        ):
            print("stopped; type the same command to go on")
            raise Ended(STOPPED)
        if code not in accepted:
            print(f"this step has failed; the lines above say why (exit code {code})")
            raise Ended(1)

    def _run_stopped(self, since: float) -> bool:
        """Return whether the training said after a time that it was asked to stop, as by a file in its folder."""
        status = self.path.parent / "run" / "status.json"
        if not status.is_file() or status.stat().st_mtime < since - 1:
            return False
        return read_json(status).get("state") == "stopped"


@contextmanager
def _signals_passed_on(process: subprocess.Popen):
    """Pass signals on to a program; Ctrl-C and Ctrl-Break of a terminal reach it by themselves.

    It is ended if this block is left early.

    Yields the signals that have come, a list that grows.
    """
    came: list[int] = []

    def handle(number: int, _frame) -> None:
        came.append(number)
        if number not in (signal.SIGINT, getattr(signal, "SIGBREAK", None)):  # a console sends these to both
            process.send_signal(number)

    handlers = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield came
    finally:
        if process.poll() is None:
            process.terminate()
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # none: it was not Python's


def _ends_with_parent() -> Callable[[], object] | None:
    """Return what makes a program end when this one is killed. Only Linux has it; elsewhere it finishes its step."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def fit(
    clips: str, out: Path, hours: float, anyway: bool = False, dry_run: bool = False, picture_fps: float | None = None
) -> Path | None:
    """Go through all steps; those that are done are not done again.

    Args:
        clips: a source, as `open_source` takes it.
        out: folder of the fit.
        hours: for everything, from looking at the clips to the published model.
        anyway: train where the probe advises against it.
        dry_run: end when everything is chosen and planned.
        picture_fps: frames per second of pictures in folders or archives that do not state it.

    Returns:
        The folder of the published model; `None` after a dry run.

    Raises:
        ValueError: if the clips cannot be used, or `out` holds something else.
        Ended: if a step fails, is stopped, or advises against training.
    """
    if not hours > 0:
        raise ValueError(f"--hours is {hours:g}; give a positive number")
    source = open_source(clips, picture_fps, MANIFESTS)  # a missing one is named before anything is made
    out.mkdir(parents=True, exist_ok=True)
    with Owner(out / "fit.lock.json", f"the fit {out}"):
        record = Record(out, {"clips": clips, "hours": hours, "picture_fps": picture_fps})
        with record.step("look"):
            if not record.is_done("look"):
                rate = [] if picture_fps is None else ["--picture-fps", f"{picture_fps:g}"]
                record.run("look", ["-m", "training.look", clips, str(out / "clips"), *rate])
            _compare_clips(record, state_of(source, clips))
        with record.step("probe"):
            _probe(record, out, anyway)
        with record.step("choose"):
            choices = _choose(record, out, hours, anyway)
            if not record.is_done("choose"):
                record.run("choose", _planning_command(choices, out, anyway))
        if dry_run:
            print(
                f"\nNothing is trained yet. Edit {out / 'config.yaml'} if you like, and type the command without --dry-run."
            )
            return None
        with record.step("autoencoder"):
            _wait_for(out / ".autoencoder.lock.json", "the autoencoder")
            if not (out / "autoencoder" / "config.json").is_file():
                if (out / "run").exists():
                    raise ValueError(
                        f"'{out / 'run'}' was trained with an autoencoder that is not there any more; delete it to "
                        f"train anew, or put '{out / 'autoencoder'}' back"
                    )
                record.begin_anew("autoencoder")
                record.run(
                    "autoencoder", ["-m", "training.train_autoencoder", str(out / "autoencoder.yaml")],
                    threads=cores(),
                )  # fmt: skip
        with record.step("train"):
            _wait_for(out / "run" / "lock.json", "the run")
            if not (out / "run" / "pipeline" / "model_index.json").is_file():
                record.begin_anew("train")
                record.run("train", _training_command(choices, out, anyway), threads=_threads(choices))
        with record.step("judge"):
            if not record.is_done("judge"):
                record.run("judge", _judging_command(out, choices), threads=cores())
        with record.step("publish"):
            options = ["--hours", f"{hours:g}"]
            options += [] if picture_fps is None else ["--picture-fps", f"{picture_fps:g}"]
            _publish(record, clips, out, [*options, *(["--anyway"] if anyway else [])])
    sentences = [*_verdict(out), *_shortened(out)]
    print("\n" + "\n".join(["The verdict:", *(f"  {sentence}" for sentence in sentences)]))
    print(
        f"\n{out / 'model'} holds the model, its card, pictures and how-to-use.md. It took {record.spent / 60:.0f} "
        "minutes."
    )
    print(f"To put it on the Hub: mardini push {shlex.quote(str(out / 'model'))} your-name/your-model")
    return out / "model"


def _compare_clips(record: Record, state: str | None) -> None:
    """Say so if the clips are others than those that were looked at."""
    before = record.content.setdefault("clips", state)
    record.save()
    if state is not None and before is not None and state != before:
        print(
            "note: these clips have changed since they were looked at; this fit goes on with those that were there "
            "then. Give another folder to take in the new ones"
        )


def _shortened(out: Path) -> list[str]:
    """Return a sentence if the run had time for far fewer steps than were planned."""
    status = out / "run" / "status.json"
    taken = read_json(status).get("global_step") if status.is_file() else None
    planned = sum(stage.steps for stage in load_config(out / "config.yaml").stages)
    if taken is None or taken >= planned / 2:
        return []
    return [
        f"The training had time for {taken:,} of the {planned:,} steps that were planned: reading the clips, or the "
        "steps, took longer than expected. More hours, or fewer clips, may give a better model."
    ]


def _wait_for(lock: Path, what: str) -> None:
    """Wait for a program that a killed start of this fit has left, and that still saves its state or finishes."""
    with turn_to_write(lock, what):
        pass


def _probe(record: Record, out: Path, anyway: bool) -> None:
    """Probe the held-out clips; raise `Ended` where no model could win, unless `anyway`."""
    result = out / "probe.json"
    if not record.is_done("probe"):
        record.run("probe", _probing_command(out, result), accepted=(0, NO_ROOM), threads=cores())
    else:
        print("\n".join(f"verdict: {sentence}" for sentence in read_json(result)["verdict"]))
    _stop_without_room(result, anyway)


def _probing_command(out: Path, result: Path, *options: str) -> list[str]:
    height, width = choose.choose_size(*_clip_size(out), choose.PROBED)
    lists = str(out / "clips" / "held_out.jsonl")
    rates = [f"{rate.fps:g}" for rate in slower_rates(choose.usual_rate(_rates(out)))]
    command = ["-m", "training.probe", lists, "--size", f"{height}x{width}", "--fps", *rates]
    return [*command, "--json", str(result), *options]


def _rates(out: Path) -> list[float]:
    """Return the frames per second of the clips on both sides."""
    return [
        json.loads(line)["fps"]
        for side in ("train", "held_out")
        for line in (out / "clips" / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def _stop_without_room(result: Path, anyway: bool) -> None:
    found = read_json(result)
    clips = max((distance["clips"] for distance in found["distances"]), default=SURE)
    if clips < SURE and not found["has_room"]:
        print(f"note: {clips} held-out clip{'s' * (clips != 1)} can't decide whether a model could win; going on")
        return
    if not found["distances"] or not (found["has_room"] or anyway):
        print("Nothing is trained, because no model could win there." + ("" if not found["distances"] else
              " To train one nevertheless, add --anyway."))  # fmt: skip
        raise Ended(NO_ROOM)


def _clip_size(out: Path) -> tuple[int, int]:
    """Return the commonest width and height of the clips."""
    sizes = read_json(out / "clips" / "look.json")["sizes"]
    width, height = max(sizes, key=sizes.get).split("x")
    return int(width), int(height)


def _choose(record: Record, out: Path, hours: float, anyway: bool) -> Choices:
    """Choose what is not chosen yet; write `choices.json`, `autoencoder.yaml` and `config.yaml`.

    Raises:
        Ended: if the bare linear basis of an autoencoder leaves no room above the simple methods, unless `anyway`.
    """
    kept = out / "choices.json"
    wanted = (kept, out / "autoencoder.yaml", out / "config.yaml")
    if all(path.is_file() for path in wanted):
        return Choices(**read_json(kept))
    device, began, looked = choose_device().type, time.monotonic(), record.seconds_of("look", "probe", "choose")
    judging = max(JUDGE_SHARE * hours * 3600, min(JUDGE_SECONDS, hours * 3600 / 6))
    all_seconds = hours * 3600 * (1 - AUTOENCODER_SHARE) - judging - looked - 3 * START_SECONDS
    if all_seconds < LEAST_SECONDS:
        raise ValueError(
            f"{hours:g} hours leave {max(0, all_seconds):.0f} seconds for the training, after {looked:.0f} seconds of "
            "looking at the clips; give more --hours"
        )
    sides = choose.choose_size(*_clip_size(out), choose.PROBED)
    frames = {side: _frames(out, side, sides) for side in ("train", "held_out")}
    basis, why_channels = choose.choose_latents(frames["train"], frames["held_out"])
    basis.save_pretrained(out / BASIS)
    channels = basis.config.latent_channels
    below = out / "probe-basis.json"  # the ceiling counts: where the autoencoder blurs more than a copy, no model wins
    record.run(
        "choose",
        _probing_command(out, below, "--autoencoder", str(out / BASIS)),
        accepted=(0, NO_ROOM),
        threads=cores(),
    )
    _stop_without_room(below, anyway)
    fps, why_fps = choose.choose_fps(read_json(below))
    processes = choose.processes_for(device, cores(), choose.WINDOWS_PER_STEP)

    def candidate(preset: str, pixels: int) -> Choices:
        height, width = choose.choose_size(*_clip_size(out), pixels)
        return Choices(fps, height, width, channels, preset, choose.WINDOWS_PER_STEP, processes, 1000, why)

    why = {"fps": why_fps, "latent_channels": why_channels, "size": "", "preset": ""}
    candidates = [(candidate(preset, pixels), needed) for preset, pixels, needed in choose.CANDIDATES]
    runs = [(choices.preset, _config(choices, out, hours), needed) for choices, needed in candidates]
    reading, longest, all_frames = _reading_seconds(out, sides)
    # One process encodes a clip; before that, the autoencoder's training reads them, too.
    encoding = max(reading / processes, longest) + reading / cores()
    seconds = all_seconds - (time.monotonic() - began)
    if seconds - encoding < LEAST_SECONDS:
        raise ValueError(
            f"{hours:g} hours leave {max(0, seconds - encoding):.0f} seconds for the training: reading the clips' "
            f"{all_frames:,} frames takes about {encoding / 60:.0f} minutes; give more --hours, or another "
            "folder with fewer clips"
        )
    if device == "cpu":
        torch.set_num_threads(max(1, cores() // processes))  # as in the training
    index, step, why["preset"] = choose.choose_models(runs, seconds - encoding, processes)
    if math.isinf(step):
        raise ValueError("even the smallest model does not fit into the device's memory; free some, or use a CPU")
    choices = candidates[index][0]
    choices.searches_matches = reading < judging / 2
    seconds = all_seconds - (time.monotonic() - began)
    why["size"] = f"clips are {'x'.join(map(str, _clip_size(out)))} (width x height); this is height x width"
    choices.steps = max(20, int((seconds - encoding) / step))
    minutes = hours * 60 * AUTOENCODER_SHARE
    write_whole(out / "autoencoder.yaml", configs.autoencoder_text(choices, out, minutes, cores()))
    write_whole(out / "config.yaml", configs.run_text(choices, out, seconds / 3600, anyway))
    write_whole(kept, json.dumps(asdict(choices), indent=1) + "\n")
    print("\n".join(f"{name}: {reason}" for name, reason in why.items()))
    return choices


def _reading_seconds(out: Path, size: tuple[int, int]) -> tuple[float, float, int]:
    """Return about how long all frames of both sides take to be read, those of the longest clip, and their number."""
    seconds = longest = frames = 0
    for side in ("train", "held_out"):
        source = open_source(out / "clips" / f"{side}.jsonl", manifests=MANIFESTS)
        entries = read_manifest_of(source, MANIFESTS).ok
        each, counts = read_seconds(source, entries, size), [entry.num_frames for entry in entries]
        frames += sum(counts)
        seconds += each * sum(counts)
        longest = max(longest, each * max(counts, default=0))
    return seconds, longest, frames


def _frames(out: Path, side: str, size: tuple[int, int]):
    source = open_source(out / "clips" / f"{side}.jsonl", manifests=MANIFESTS)
    manifest = read_manifest_of(source, MANIFESTS)
    entries = manifest.ok
    if not len(entries):
        raise ValueError(f"no clip of '{source.spec}' can be read any more:\n{manifest.census()}")
    return draw_frames(source, entries, size, choose.FRAMES, cores())


def _config(choices: Choices, out: Path, hours: float) -> RunConfig:
    """Return the run of a candidate, as the trainer would read it from a file."""
    path = out / "cache" / "candidate.yaml"
    write_whole(path, configs.run_text(choices, out, hours))
    return load_config(str(path))


def _threads(choices: Choices) -> int:
    return max(1, cores() // choices.processes)


def _training_command(choices: Choices, out: Path, anyway: bool) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(choices.processes)]
    program = ["-m", "training.train_mardini", str(out / "config.yaml"), "--runs", str(out)]
    return [*(launcher if choices.processes > 1 else []), *program, *(["anyway=true"] if anyway else [])]


def _planning_command(choices: Choices, out: Path, anyway: bool) -> list[str]:
    processes = ["--processes", str(choices.processes), "--parallel", "ddp"] if choices.processes > 1 else []
    return ["-m", "training.plan", str(out / "config.yaml"), f"vae={configs.quoted(out / BASIS)}",
            *(["anyway=true"] if anyway else []), *processes]  # fmt: skip


def _judging_command(out: Path, choices: Choices) -> list[str]:
    lists = out / "clips"
    match = ["--train-clips", str(lists / "train.jsonl")] if choices.searches_matches else []
    return [
        "-m", "training.evaluate", str(out / "run" / "pipeline"), str(lists / "held_out.jsonl"),
        *match, "--steps", str(SAMPLING_STEPS),
        "--windows-per-clip", "8", "--max-windows", str(MOST_JUDGED), "-o", str(out / "evaluation"),
    ]  # fmt: skip


def _verdict(out: Path) -> list[str]:
    results = with_nan(read_json(out / "evaluation" / "results.json", ("rows", "differences")))
    return [*verdict(results["rows"], results["differences"]), *_reservations(out)]


def _reservations(out: Path) -> list[str]:
    """Return sentences on what a verdict leaves open; they name no clip, since cards are published."""
    split = read_json(out / "clips" / "split.json")["reasons"]
    choices = Choices(**read_json(out / "choices.json"))
    unmatched = "Not compared with the best match among the training clips: searching them would take too long for these hours."
    return [
        *(each for each in split if KNOWN_FOOTAGE in each),
        *([] if choices.searches_matches else [unmatched]),
    ]


def _publish(record: Record, clips: str, out: Path, options: Sequence[str]) -> None:
    """Write the folder of the model: weights, card, pictures, a video, and how to use it."""
    model = out / "model"
    if record.is_done("publish"):
        return
    results = out / "evaluation" / "results.json"
    present.write_card_facts(
        out / "card.yaml", out.resolve().name, present.short_name(clips), options, read_json(results)["num_frames"],
        _reservations(out),
    )  # fmt: skip
    record.run(
        "publish", ["-m", "training.publish", str(out / "run"), str(out / "card.yaml"), str(results), "-o", str(model)]
    )
    # What was trained, which the person may have changed in `config.yaml`.
    window = TrainedWindow.from_config(read_json(model / "model_index.json"))
    windows = load_windows(
        out / "clips" / "held_out.jsonl", window.size or 64, window.frames, 1, 1, window.fps, max_windows=MOST_JUDGED
    )
    present.write_example(model, windows)
    cli = ["-m", "diffusers_mardini.cli"]
    run = lambda arguments: record.run("publish", [*cli, *arguments], threads=cores(), folder=model)  # noqa: E731
    present.write_how_to_use(model, run, _verdict(out))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "clips", help="a folder of videos or pictures, an archive, a video, or another source (docs/data.md)"
    )
    parser.add_argument("out", type=Path, help="folder for everything that is made")
    parser.add_argument("--hours", type=float, default=2.0, help="for everything (default 2)")
    parser.add_argument(
        "--anyway", action="store_true", help="train although simple methods do as well as any model could"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="end when everything is chosen, before anything is trained"
    )
    parser.add_argument(
        "--picture-fps", type=float, help="frames per second of pictures in folders or archives that do not state it"
    )
    options = parser.parse_args(arguments)
    try:
        fit(options.clips, options.out, options.hours, options.anyway, options.dry_run, options.picture_fps)
    except Ended as ended:
        return ended.code
    except KeyboardInterrupt:
        print("stopped; type the same command to go on")
        return STOPPED
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
