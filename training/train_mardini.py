"""Trains a MarDini by the curriculum of a YAML file: `accelerate launch -m training.train_mardini CONFIG`.

Typing the same command again resumes from the newest checkpoint; `docs/training.md` tells the rest. Exit codes: 0 finished, 75 saved and
stopped before the end (a signal, the file `stop` in the run's folder, `max_hours`), 1 failed, or another process
trains the run.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, ModelMixin

from diffusers_mardini import AutoencoderPatchBasis
from diffusers_mardini.hardware import choose_device, has_bfloat16_units
from training.config.layers import load_config
from training.config.schema import RunConfig
from training.data.failures import FailedClips
from training.data.preparation import FAILED_CLIPS, on_main_process, prepare_data
from training.engine.adapter import refuse_shards
from training.engine.checkpoint import newest_checkpoint
from training.engine.guards import RunFailed
from training.engine.models import how_to_convert
from training.engine.optimizers import learned
from training.engine.sharding import make_accelerator
from training.locks import Owner
from training.loop import Run
from training.monitoring.environment import record_start
from training.monitoring.trackers import finish_trackers, tracker_arguments
from training.plan import problems, warmup_notes
from training.report import write_report
from training.stopping import STOPPED, Stopped, StopRequest
from training.zero import zero_problems


def load_vae(path: str, subfolder: str | None = None) -> ModelMixin:
    """Load an `AutoencoderKL`, or this project's `AutoencoderPatchBasis`, whichever the folder or Hub repository
    holds.

    Raises:
        ValueError: if there is none, or one whose weights are pickled, damaged or not whole.
    """
    where = f"`vae` is {path!r}" + (f" with `vae_subfolder` {subfolder!r}" if subfolder else "")
    if (Path(path).is_absolute() or path.startswith((".", "~"))) and not Path(path).is_dir():
        raise ValueError(f"{where}, and there is no such folder; give that of an autoencoder, or a Hub id")
    try:
        name = AutoencoderPatchBasis.load_config(path, subfolder=subfolder).get("_class_name")
    except OSError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{where}, where no autoencoder can be read ({said}); give its folder or Hub id") from error
    vae_class = {"AutoencoderKL": AutoencoderKL, "AutoencoderPatchBasis": AutoencoderPatchBasis}.get(name)
    if vae_class is None:
        raise ValueError(f"{path} holds a {name}; accepted are AutoencoderKL and AutoencoderPatchBasis")
    try:
        vae = vae_class.from_pretrained(path, subfolder=subfolder, use_safetensors=True)
    except OSError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{where}, whose weights cannot be read as safetensors ({said}). {how_to_convert(path, subfolder)}"
        ) from error
    if absent := [name for name, tensor in vae.state_dict().items() if tensor.is_meta]:
        raise ValueError(
            f"{where}, whose weights lack {len(absent)} tensors, the first is {absent[0]!r}; get it again"
        )
    return vae.eval().requires_grad_(False)


class RunStatus:
    """What a run's folder says of its state, to whoever watches it from outside: launchers do not pass on exit codes.

    Args:
        folder: of the run.
        given: its configuration, for any number of processes.
        accelerator: its main process writes.
    """

    def __init__(self, folder: Path, given: RunConfig, accelerator: Accelerator):
        self.folder = folder
        self.given = given
        self.accelerator = accelerator
        self.begun = False
        newest = newest_checkpoint(folder / "checkpoints")
        self.resumes = newest is not None
        self.global_step = int(newest.name.rpartition("-")[2]) if newest else 0

    def begin(self) -> None:
        """Write configuration and start, once it is sure that the run goes on: a start that is refused leaves its folder
        as it was. Called again after going back to the last checkpoint."""
        if self.begun:
            return
        self.begun = True
        if self.accelerator.is_main_process:
            write_whole(self.folder / "config.json", self.given.model_dump_json(indent=2))
            record_start(self.folder, self.accelerator)
        self.tell("running")

    def tell(self, state: str, reason: str | None = None) -> None:
        """Write `status.json` and, at the end, the report."""
        if self.accelerator.is_main_process:
            failed = len(FailedClips(self.folder / FAILED_CLIPS))
            status = {"state": state, "reason": reason, "global_step": self.global_step, "failed_clips": failed}
            write_status(self.folder, status)
        if state != "running":
            finish_trackers(self.accelerator)
            if self.accelerator.is_main_process and (self.folder / "config.json").is_file():
                report(self.folder)


def train(
    config: RunConfig,
    runs: Path = Path("runs"),
    resume: str = "auto",
    start_at: str | None = None,
    stop_after: str | None = None,
    allow_change: Sequence[str] = (),
) -> Path:
    """Runs the stages; returns the folder of the finished pipeline or adapter, or of the stage after which to stop.

    Args:
        config: the run.
        runs: folder of all runs; this one's is `runs/<name>`.
        resume: `auto` goes on from the newest checkpoint, if there is one; `never` refuses a folder that has one.
        start_at, stop_after: names of stages, see `Run.train`.
        allow_change: dotted keys of the configuration that may differ from what the checkpoint was trained with.

    Raises:
        ValueError: on a configuration, checkpoint or clips that cannot be used, or while another process trains the
            run.
        Stopped: if the run was asked to stop; its state is saved.
        RunFailed: if what was learned is no model; the last good checkpoint stays.
    """
    folder = runs / config.name
    if resume == "never" and newest_checkpoint(folder / "checkpoints") is not None:
        raise ValueError(
            f"{folder} holds checkpoints already; use another `name`, or --resume auto to go on from them"
        )
    use_bf16 = config.mixed_precision == "bf16" or (
        config.mixed_precision == "auto" and has_bfloat16_units(choose_device())
    )
    accelerator = make_accelerator(use_bf16, deepspeed=True, **tracker_arguments(config.trackers, folder))
    given, config = config, config.for_processes(accelerator.num_processes)
    if found := [*problems(config), *zero_problems(accelerator, config.optimizer)]:
        raise ValueError("\n".join([f"{config.name} cannot be trained:", *(f"  {problem}" for problem in found)]))
    if config.lora is not None:
        refuse_shards(accelerator)
    with contextlib.ExitStack() as held:
        owner = Owner(folder / "lock.json", f"the run {folder}")
        on_main_process(lambda: held.enter_context(owner), accelerator)
        stop = held.enter_context(StopRequest(folder, config.max_hours))
        vae = load_vae(config.vae, config.vae_subfolder)
        status = RunStatus(folder, given, accelerator)
        try:
            data = prepare_data(config, vae, folder, accelerator, status.resumes, lambda: stop.reason)
            run = Run(config, accelerator, vae, data.train, data.validation, folder, allow_change)
            result = _train(run, status, stop, start_at, stop_after)
        except Stopped as stopped:
            if accelerator.is_main_process:
                stop.done()
            status.tell("stopped", str(stopped))
            raise
    if run.guard.skipped:
        accelerator.print(f"{run.guard.skipped} step(s) were not finite and left out; see {run.guard.folder}")
    if len(data.failed):
        accelerator.print(f"{len(data.failed)} clip(s) broke during the run and were replaced; see {data.failed.path}")
    for note in warmup_notes(config):
        accelerator.print(f"note: {note}")
    accelerator.print(f"the finished {'pipeline' if config.lora is None else 'adapter'} lies in {result}")
    return result


def _train(run: Run, status: RunStatus, stop: StopRequest, start_at: str | None, stop_after: str | None) -> Path:
    """Says what is going to be done, does it, and keeps the run's status."""
    config, accelerator = run.config, run.accelerator
    counts = {name: sum(p.numel() for p in learned(model).values()) / 1e6 for name, model in run.models.items()}
    accelerator.print(
        f"{config.name}: {len(config.stages)} stages, {accelerator.num_processes} process(es) on "
        f"{accelerator.device}, "
        f"{'bf16 autocast' if accelerator.mixed_precision == 'bf16' else 'float32'}, million parameters to be "
        "trained: " + ", ".join(f"{name} {count:.2f}" for name, count in counts.items())
    )
    for note in warmup_notes(config):
        accelerator.print(f"note: {note}")
    try:
        result = run.train(stop, start_at, stop_after, status.begin)
    except Exception as error:
        status.global_step = run.global_step
        if isinstance(error, Stopped):
            pass  # told where preparations are stopped as well
        elif status.begun or not status.resumes:
            status.tell("failed", f"{type(error).__name__}: {error}")
        else:
            finish_trackers(accelerator)
        raise
    status.global_step = run.global_step
    status.tell("finished")
    return result


def report(folder: Path) -> None:
    """Writes the report of a run that has ended; what goes wrong in it must not hide how the run ended."""
    try:
        print(f"the report is {write_report(folder)}")
    except Exception as error:
        print(
            f"the report could not be written ({type(error).__name__}: {error}); `python -m training.report {folder}` tries again"
        )


def write_status(folder: Path, status: dict) -> None:
    """Writes `status.json`."""
    told = {**status, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    write_whole(folder / "status.json", json.dumps(told) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def run_command(description: str, adapter: bool, arguments: Sequence[str] | None = None) -> None:
    """The command line of this program and of `train_mardini_lora`.

    Args:
        description: of the program.
        adapter: whether it is the one for configurations with a `lora` block.
        arguments: by default the process's.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, for example training/configs/tiny-racing.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to it, such as optimizer.ema_decay=0.99 stages.joint.steps=10",
    )
    parser.add_argument(
        "--resume", choices=("auto", "never"), default="auto", help="never: refuse a run that has begun"
    )
    parser.add_argument("--start-at", metavar="STAGE", help="begin with this stage (needs init_from)")
    parser.add_argument("--stop-after", metavar="STAGE", help="end with this stage, whose result is stages/<name>")
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="a key that may differ from the checkpoint's configuration",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if adapter != (config.lora is not None):
            raise ValueError(
                f"{options.config} has {'no' if adapter else 'a'} `lora` block; "
                f"{'python -m training.train_mardini' if adapter else 'python -m training.train_mardini_lora'} trains it"
            )
        train(
            config, resume=options.resume, start_at=options.start_at, stop_after=options.stop_after,
            allow_change=options.allow_change,
        )  # fmt: skip
    except Stopped as stopped:
        print(f"stopped ({stopped}); the state is saved, and the same command goes on from it")
        sys.exit(STOPPED)
    except (ValueError, OSError, RunFailed) as error:
        sys.exit(f"error: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    run_command(__doc__, adapter=False, arguments=arguments)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
