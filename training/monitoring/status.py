"""The state of a run for whoever watches its folder: `status.json`. Launchers do not pass on exit codes."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from training.config.schema import RunConfig
from training.data.failures import FailedClips
from training.data.preparation import FAILED_CLIPS
from training.engine.checkpoint import newest_checkpoint, step_of
from training.files import write_whole
from training.monitoring.environment import record_start
from training.monitoring.trackers import finish_trackers


class RunStatus:
    """Keep the files that say what a run is doing; every process must call every method.

    Args:
        folder: of the run.
        given: its configuration, for any number of processes.
        accelerator: its main process writes.
        report: writes the report of the run's folder at its end.
    """

    def __init__(self, folder: Path, given: RunConfig, accelerator: Accelerator, report: Callable[[Path], None]):
        self.folder = folder
        self.given = given
        self.accelerator = accelerator
        self.report = report
        self.begun = False
        newest = newest_checkpoint(folder / "checkpoints")
        self.resumes = newest is not None
        self.global_step = step_of(newest) if newest else 0

    def begin(self) -> None:
        """Write configuration and start once the run has been accepted: a refused start leaves its folder unchanged.

        Further calls, after going back to the last checkpoint, do nothing.
        """
        if self.begun:
            return
        self.begun = True
        if self.accelerator.is_main_process:
            write_whole(self.folder / "config.json", self.given.model_dump_json(indent=2))
            record_start(self.folder, self.accelerator)
        self.write("running")

    def write(self, state: str, reason: str | None = None) -> None:
        """Write `status.json` and, unless the run goes on, its report."""
        if self.accelerator.is_main_process:
            failed = len(FailedClips(self.folder / FAILED_CLIPS))
            status = {"state": state, "reason": reason, "global_step": self.global_step, "failed_clips": failed}
            write_status(self.folder, status)
        if state != "running":
            finish_trackers(self.accelerator)
            if self.accelerator.is_main_process and (self.folder / "config.json").is_file():
                self.report(self.folder)


def write_status(folder: Path, status: dict) -> None:
    """Write `status.json` with the present time."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_whole(folder / "status.json", json.dumps({**status, "time": now}) + "\n")
