"""Train a MarDini by the curriculum of a YAML file: `accelerate launch -m training.train_mardini CONFIG`.

The same command resumes from the newest checkpoint; see `docs/training.md`. Exit codes: 0 finished, 75 saved and
stopped before the end (a signal, the file `stop` in the run's folder, `max_hours`), 1 failed, or another process
trains the run.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from training.config.layers import load_config
from training.config.schema import RunConfig
from training.data.preparation import on_main_process, prepare_data
from training.engine.adapter import refuse_shards
from training.engine.checkpoint import newest_checkpoint
from training.engine.compiling import refuse_sharded_steps
from training.engine.context_parallel import refuse_without_exchange
from training.engine.feasibility import find_problems, warmup_notes
from training.engine.guards import RunFailed
from training.engine.models import load_vae
from training.engine.optimizers import learned
from training.engine.sharding import layout_of, make_accelerator, uses_bfloat16
from training.locks import Owner
from training.loop import Run
from training.monitoring.status import RunStatus
from training.monitoring.trackers import finish_trackers, tracker_arguments
from training.probe import check_room
from training.report import write_report
from training.stopping import STOPPED, Stopped, StopRequest


def train(
    config: RunConfig,
    runs: Path = Path("runs"),
    resume: str = "auto",
    start_at: str | None = None,
    stop_after: str | None = None,
    allow_change: Sequence[str] = (),
) -> Path:
    """Run the stages; return the folder of the finished pipeline or adapter, or of the stage after which to stop.

    Args:
        config: the run.
        runs: folder of all runs; this one's is `runs/<name>`.
        resume: `auto` resumes from the newest checkpoint, if there is one; `never` refuses a folder that has one.
        start_at, stop_after: names of stages, see `Run.train`.
        allow_change: dotted keys of the configuration that may differ from what the checkpoint was trained with.

    Raises:
        ValueError: if configuration, checkpoint or clips cannot be used, if no model can win with the autoencoder
            (unless `config.anyway`), or while another process trains the run.
        Stopped: if the run was asked to stop; its state is saved.
        RunFailed: if the weights have blown up; the last good checkpoint stays.
    """
    folder = runs / config.name
    if resume == "never" and newest_checkpoint(folder / "checkpoints") is not None:
        raise ValueError(
            f"{folder} holds checkpoints already; use another `name`, or --resume auto to go on from them"
        )
    accelerator = make_accelerator(uses_bfloat16(config), **tracker_arguments(config.trackers, folder))
    layout = layout_of(accelerator)
    given, config = config, config.for_processes(layout.data_ranks)
    if found := find_problems(config, layout=layout):
        raise ValueError("\n".join([f"{config.name} cannot be trained:", *(f"  {problem}" for problem in found)]))
    if config.lora is not None:
        refuse_shards(accelerator)
    refuse_sharded_steps(config, accelerator)
    refuse_without_exchange(layout)
    with contextlib.ExitStack() as held:
        owner = Owner(folder / "lock.json", f"the run {folder}")
        on_main_process(lambda: held.enter_context(owner), accelerator)
        stop = held.enter_context(StopRequest(folder, config.max_hours))
        vae = load_vae(config.vae, config.vae_subfolder)
        status = RunStatus(folder, given, accelerator, report)
        try:
            data = prepare_data(
                config, vae, folder, accelerator, status.resumes, lambda: stop.reason,
                partial(check_room, config, vae, folder),
            )  # fmt: skip
            run = Run(config, accelerator, vae, data.train, data.validation, folder, allow_change)
            result = _train(run, status, stop, start_at, stop_after)
        except Stopped as stopped:
            if accelerator.is_main_process:
                stop.done()
            status.write("stopped", str(stopped))
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
    """Train, and keep the run's status."""
    config, accelerator = run.config, run.accelerator
    counts = {name: sum(p.numel() for p in learned(model).values()) / 1e6 for name, model in run.models.items()}
    accelerator.print(
        f"{config.name}: {len(config.stages)} stages, {run.layout} on {accelerator.device}, "
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
            pass  # `train` writes it, for stopped preparations too
        elif status.begun or not status.resumes:
            status.write("failed", f"{type(error).__name__}: {error}")
        else:
            finish_trackers(accelerator)
        raise
    status.global_step = run.global_step
    status.write("finished")
    return result


def report(folder: Path) -> None:
    """Write the report of a run that has ended; an error in it must not hide how the run ended."""
    try:
        print(f"the report is {write_report(folder)}")
    except Exception as error:
        print(
            f"the report could not be written ({type(error).__name__}: {error}); `python -m training.report {folder}` "
            "tries again"
        )


def run_command(description: str, adapter: bool, arguments: Sequence[str] | None = None) -> None:
    """Run the command line of this program or of `train_mardini_lora`.

    Args:
        description: of the program.
        adapter: the program is for configurations with a `lora` block.
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
        "--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="folder of the run's folder (default runs)"
    )
    parser.add_argument(
        "--allow-change",
        metavar="KEY",
        action="append",
        default=[],
        help="a key that may differ from the checkpoint's configuration",
    )
    parser.add_argument(
        "--longer",
        metavar="STEPS",
        action="append",
        type=int,
        default=[],
        help="train a finished run so many steps longer, in a stage like its last one whose learning rate warms up and "
        "decays again; give it again for a further stage",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_config(options.config, options.overrides).longer(options.longer)
        if adapter != (config.lora is not None):
            raise ValueError(
                f"{options.config} has {'no' if adapter else 'a'} `lora` block; "
                f"python -m training.{'train_mardini' if adapter else 'train_mardini_lora'} trains it"
            )
        train(
            config, options.runs, options.resume, options.start_at, options.stop_after, options.allow_change
        )  # fmt: skip
    except Stopped as stopped:
        print(f"stopped ({stopped}); the state is saved, and the same command goes on from it")
        sys.exit(STOPPED)
    except (ValueError, OSError, RunFailed) as error:
        sys.exit(f"error: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    run_command(__doc__, adapter=False, arguments=arguments)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
