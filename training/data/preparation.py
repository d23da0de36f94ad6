"""Prepare the clips of a run before training: manifests, latent caches or pixels, and the census of every stage.

`train_mardini.py` calls this; `curriculum.py` draws windows from the result.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training.config.schema import RunConfig
from training.data.buckets import WindowRequest, assign, heldout_window_request, window_request
from training.data.census import StageCensus, open_clips, read_clips
from training.data.conditions import ClipConditions
from training.data.drawn_windows import DrawnWindows, LatentForms
from training.data.entries import Entries
from training.data.failures import FailedClips
from training.data.manifest_files import convert_manifest, default_path, read_manifest, write_manifest
from training.data.sources import Source
from training.data.windows import ClipWindows, LatentWindows, PixelWindows
from training.files import read_json, write_whole
from training.locks import turn_to_write
from training.stopping import Stopped


FAILED_CLIPS = "failed_clips.jsonl"


@dataclass(frozen=True)
class RunData:
    """Windows to train on, held-out windows if there are any, and the clips that failed."""

    train: ClipWindows
    validation: ClipWindows | None
    failed: FailedClips


def prepare_data(
    config: RunConfig,
    vae: torch.nn.Module,
    folder: Path,
    accelerator: Accelerator,
    resumes: bool = False,
    stop: Callable[[], str | None] = lambda: None,
    check_heldout: Callable[[Source, Entries], object] = lambda source, entries: None,
) -> RunData:
    """Read the clips, refuse stages without any, encode them, and print the census; every process of a run calls this.

    Args:
        config: with `steps` and `batch_size` (`RunConfig.for_processes`).
        vae: the autoencoder.
        folder: of the run; gets `clips-train.parquet` and `clips-validation.parquet`, the clips at the beginning of the
            run, and `census.json`.
        accelerator: of the run.
        resumes: use the clips of the beginning, so that the same windows are drawn even if the source has changed.
        stop: called between clips; returns a reason to stop, or `None`.
        check_heldout: called on the main process at the beginning of a run, with its held-out clips, before any clip
            is encoded; the autoencoder is on the device.

    Raises:
        ValueError: if a source or a stage has no clips, or `check_heldout` raises it.
        Stopped: on every process, if there was a reason to stop; decoded and encoded clips are kept.
    """
    # 1. The clips, and the windows that each stage asks for
    uses = {"train": window_request, "validation": heldout_window_request}
    specs = {name: spec for name in uses if (spec := getattr(config.data, name)) is not None}
    requests = {name: [uses[name](config, stage) for stage in config.stages] for name in specs}
    sources, entries = {}, {}
    for name, spec in specs.items():
        kept = folder / f"clips-{name}.parquet"
        sources[name], entries[name] = _clips(config, spec, kept, accelerator, resumes, stop)
    on_main_process(lambda: _refuse_stages_without_clips(requests, entries), accelerator)

    # 2. Windows, encoded now or when they are drawn
    vae.to(accelerator.device)
    if "validation" in specs and not resumes:
        on_main_process(lambda: check_heldout(sources["validation"], entries["validation"]), accelerator)
    failed, windows = FailedClips(folder / FAILED_CLIPS), {}
    for name, spec in specs.items():
        windows[name] = _windows(
            config, sources[name], entries[name], requests[name], vae, accelerator, stop, name == "train"
        )
        windows[name].on_failure = partial(failed.add, spec)
    if not config.data.from_pixels:
        vae.to("cpu")  # free the device for the models that are trained
    if config.data.device_gb:
        keep_on_device(windows["train"], accelerator, config.data.device_gb)

    # 3. The census
    censuses = {
        name: {
            stage.name: StageCensus.of(windows[name].census(request), stage.windows_per_step)
            for stage, request in zip(config.stages, requests[name])
        }
        for name in specs
    }
    _refuse_different_clips(censuses)
    if accelerator.is_main_process:
        _report_census(config, censuses, accelerator, folder / "census.json", resumes)
    return RunData(windows["train"], windows.get("validation"), failed)


def _refuse_different_clips(censuses: Mapping[str, Mapping[str, StageCensus]]) -> None:
    """Raise `ValueError` on every process if they do not all find the same clips, from which they draw windows.

    A process that cannot read a table for a moment would leave its clip out alone.
    """
    found = {name: {stage: one.as_json() for stage, one in each.items()} for name, each in censuses.items()}
    digests = gather_object([hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()])
    if len(set(digests)) > 1:
        raise ValueError(
            "the processes of this run found different clips to be usable, mostly because one of them could not read a "
            "table of conditions for a moment; start again"
        )


def _clips(
    config: RunConfig, spec: str, kept: Path, accelerator: Accelerator, resumes: bool, stop: Callable[[], str | None]
) -> tuple[Source, Entries]:
    """Return a source and its clips: those saved with the run or, at its beginning, those the main process finds."""
    source = open_clips(config, spec)

    def find() -> None:
        convert_manifest(kept)
        if resumes and kept.is_file():
            if read_manifest(source, kept) is not None:
                return
            print(f"'{kept}' is of another source or another decoder than this run's, and is made anew")
        write_manifest(read_clips(config, source, stop), kept)

    on_main_process(find, accelerator)
    return source, read_manifest(source, kept).entries


def on_main_process(make: Callable[[], object], accelerator: Accelerator) -> None:
    """Call `make` on the main process while the others wait; all raise its errors, so that none waits forever."""
    failure: list[ValueError | OSError | Stopped | None] = [None]
    if accelerator.is_main_process:
        try:
            make()
        except (ValueError, OSError, Stopped) as error:
            failure = [error]
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


def _refuse_stages_without_clips(requests: dict[str, list[WindowRequest]], entries: dict[str, Entries]) -> None:
    found = []
    for name, asked in requests.items():
        for request in asked:
            census = assign(entries[name], request)
            if not any(census.clips):
                reasons = [f"    {clip}: {reason}" for clip, reason in census.left_out.first(10).items()]
                more = len(census.left_out) - len(reasons)
                found += [
                    f"  stage {request.stage!r}: none of the {len(entries[name])} clips of `data.{name}` can be "
                    "used; lower its `num_frames` or strides, change its `fps`, or add clips",
                    *reasons,
                    *([f"    and {more} more"] if more else []),
                ]
    if found:
        raise ValueError("\n".join(["there is nothing to train on:", *found]))


def _windows(
    config: RunConfig, source: Source, entries: Entries, requests: list[WindowRequest], vae: torch.nn.Module,
    accelerator: Accelerator, stop: Callable[[], str | None], trains: bool,
) -> ClipWindows:  # fmt: skip
    """Return the windows of training clips (`trains`) or held-out ones, read as the configuration says."""
    clip_conditions = ClipConditions(source, config.data.conditions) if config.data.conditions else None
    sizes = sorted({bucket.size for request in requests for bucket in request.buckets})
    if config.data.from_pixels:
        threads = max(1, config.data.workers)
        return PixelWindows(source, entries, sizes, vae, config.data.planner_downscale, threads, clip_conditions)
    cache = config.data.cache / default_path(source.spec).stem

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        lock = turn_to_write(cache / "lock.json", f"the latent cache {cache}", stop)
        with contextlib.ExitStack() as held:
            on_main_process(lambda: held.enter_context(lock), accelerator)
            yield

    if trains:
        form = LatentForms.of(config, [assign(entries, request) for request in requests]).chosen(config, cache, vae)
        if form == "drawn":
            return DrawnWindows(
                source, entries, sizes, vae, config.data.planner_downscale, cache, accelerator, turn, stop,
                clip_conditions,
            )  # fmt: skip
    with turn():
        return LatentWindows.build(
            source, entries, requests, vae, config.data.planner_downscale, cache, accelerator.process_index,
            accelerator.num_processes, accelerator.wait_for_everyone, clip_conditions, stop,
        )  # fmt: skip


def keep_on_device(windows: LatentWindows, accelerator: Accelerator, most_gb: float) -> None:
    """Keep the latents of training clips on every process's device if they fit into so many GB; say which it is."""
    needed = windows.keep_on_device(accelerator.device, most_gb * 1e9) / 1e9
    kept = (
        f"stay on {accelerator.device}"
        if needed <= most_gb
        else f"are read from files (data.device_gb is {most_gb:g})"
    )
    accelerator.print(f"the latents of the training clips, {needed:.3g} GB, {kept}")


def _report_census(
    config: RunConfig, censuses: dict[str, dict[str, StageCensus]], accelerator: Accelerator, path: Path, resumes: bool
) -> None:
    """Print the census of every stage and its changes since the run began; write it with every clip left out."""
    for name, stages in censuses.items():
        print(f"{name}: {getattr(config.data, name)}")
        for stage in config.stages:
            seen = stage.steps * stage.windows_per_step if name == "train" else None
            first, *others = stages[stage.name].lines(seen, most_reasons=10)
            print("\n".join([f"  {stage.name}: {first}", *(f"  {line}" for line in others)]))
    records = {
        name: {"source": getattr(config.data, name), "stages": {k: v.as_json() for k, v in stages.items()}}
        for name, stages in censuses.items()
    }
    records = json.loads(json.dumps(records))  # turns tuples into lists, as in the file
    before = {}
    if resumes and path.is_file():
        try:
            before = read_json(path)
        except ValueError as error:
            print(f"note: {error}; it is made anew, without a comparison with the run's beginning")
    for name, record in before.items():
        for stage, census in record["stages"].items():
            if census != records.get(name, {}).get("stages", {}).get(stage, census):
                print(
                    f"note: stage {stage!r} finds other clips in data.{name} than before, and draws other windows "
                    "from here on"
                )
    write_whole(path, json.dumps(records, indent=1) + "\n")
