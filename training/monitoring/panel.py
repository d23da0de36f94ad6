"""Show a run's progress: a live panel on a terminal, plain lines elsewhere; measure the times of `metrics.jsonl`.

Nothing here waits for the device: the loop has read the losses for a line of `metrics.jsonl`, and it waits for every
step anyway to check that it is finite.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from training.config.schema import RunConfig, StageConfig
from training.costs import count_operations, count_tokens
from training.engine.sharding import layout_of, uses_bfloat16
from training.monitoring.device_speed import measure_peak
from training.monitoring.heldout_scores import SCORES
from training.monitoring.heldout_trend import TREND_OVER, trend
from training.progress import duration


T = TypeVar("T")

# Keys of `metrics.jsonl` that differ between two runs of the same configuration.
TIMES = ("windows_per_second", "seconds", "waiting_seconds")

MODELS = ("planner", "transformer")
LINE_SECONDS = 10.0  # between two plain lines
COUNT_AFTER_SECONDS = 10.0  # a shorter stage would take longer to count its operations than to train


@dataclass
class _StepTimes:
    """Sums over the steps between two lines of losses."""

    windows: int = 0
    steps: int = 0
    seconds: float = 0.0
    waiting: float = 0.0


class RunPanel:
    """Shows the progress of a run; use it as a context manager, so that the terminal is restored at the end.

    Args:
        config: of the run, in `steps` and `batch_size`.
        accelerator: of the run; only its main process shows anything.
        shares: shares of a stage's batches by bucket, by name of the stage; equal shares unless given.
        console: by default the standard output; a terminal gets the panel, others get lines.
        clock: returns rising seconds.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        shares: Mapping[str, Sequence[float]] | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.config = config
        self.accelerator = accelerator
        self.shares = shares or {}
        self.console = console or Console()
        self.clock = clock
        self.live: Live | None = None
        self.operations: dict[str, float] = {}  # of a step on this process, by stage; empty until counted
        self.peak: float | None = None
        self.planned: dict[str, int] = {}  # steps of stages whose number of steps has changed
        self.losses: dict = {}
        self.heldout: dict = {}
        self.heldout_means: Sequence[float] = ()  # mean held-out losses of the stage
        self.simple: Mapping[str, Mapping[str, float | str]] = {}  # scores of simple methods
        self.best_ssim: float | None = None  # of the stage
        self.last_line = float("-inf")
        self.refresh_seconds = 1.0  # between two refreshes of the panel

    def __enter__(self) -> "RunPanel":
        return self

    def __exit__(self, *_) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def begin_stage(self, stage: StageConfig, first_step: int, windows_per_step: int) -> None:
        """Begin or continue a stage at `first_step`; `windows_per_step` counts all processes."""
        self.stage = stage
        self.first_step = self.step_number = first_step
        self.windows_per_step = windows_per_step
        self.began = self.line_at = self.refreshed = self.clock()
        self.now, self.shown = _StepTimes(), _StepTimes()
        self.losses, self.heldout_means, self.best_ssim = {}, (), None
        self.tokens = {
            name: self._mean(stage, lambda shape: count_tokens(self.config, shape)[name]) for name in MODELS
        }
        if self.accelerator.is_main_process and self.live is None and shows_panel(self.console):
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        self._refresh()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same batches; a step begins with the request for its batch, and the wait for it is measured."""
        batches = iter(batches)
        while True:
            self.step_began = self.clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.now.waiting += self.clock() - self.step_began
            yield batch

    def step(self) -> None:
        """End a step; lines, held-out losses and checkpoints until the next one do not count as step time."""
        now = self.clock()
        self.now.seconds += now - self.step_began
        self.now.steps += 1
        self.now.windows += self.windows_per_step
        self.step_number += 1
        if self.live is not None and now - self.refreshed >= self.refresh_seconds:
            self._refresh()

    def times(self) -> dict[str, float]:
        """Return the times of the steps since the last line of losses, all of `TIMES` except `seconds`."""
        speed, self.shown, self.now = self.now, self.now, _StepTimes()
        return {
            "windows_per_second": round(speed.windows / speed.seconds, 3) if speed.seconds else 0.0,
            "waiting_seconds": round(speed.waiting, 4),
        }

    def seconds_since_line(self) -> float:
        """Return the seconds since the last line of `metrics.jsonl` or the beginning of the stage."""
        now = self.clock()
        seconds, self.line_at = now - self.line_at, now
        return round(seconds, 4)

    def show(self, record: dict) -> None:
        """Show a line of `metrics.jsonl`."""
        if not self.accelerator.is_main_process:
            return
        if "heldout" in record:
            self.heldout = record["heldout"]
            if isinstance(ssim := self.heldout.get("quality/mid_ssim"), float):
                self.best_ssim = max(ssim, self.best_ssim or ssim)
        elif "loss" in record:
            self.losses = record
            if not self.operations and self.clock() - self.began >= COUNT_AFTER_SECONDS:
                self._count()
        if self.live is not None:
            self._refresh()
        elif "heldout" in record or ("loss" in record and self._line_is_due()):
            self._print(self.line("heldout" in record))

    def readings(self) -> dict[str, str]:
        """Return the displayed values by label."""
        speed, stage = self.shown, self.stage
        per_second = speed.windows / speed.seconds if speed.seconds else None
        tokens = {name: count for name, count in self.tokens.items() if count}
        names = [each.name for each in self.config.stages]
        stage_left, run_left = self._time_left()
        return {
            "stage": f"{names.index(stage.name) + 1} of {len(names)}: {stage.name}",
            "step": f"{self.step_number:,} of {self._steps(stage):,}",
            "loss": _number(self.losses.get("loss"), ".4f"),
            "learning rate": _number(self.losses.get("learning_rate"), ".2e"),
            "gradient norm": _number(self.losses.get("grad_norm"), ".3f"),
            "clips/s": _number(per_second, ",.2f"),
            **{f"{k} tokens/s": _number(per_second and per_second * count, ",.0f") for k, count in tokens.items()},
            "waiting for data": _number(speed.seconds and speed.waiting / speed.seconds, ".1%"),
            "of measured peak": _number(self._share_of_peak(), ".1%"),
            "memory": f"{memory_in_use(self.accelerator.device) / 2**30:.2f} GiB",
            "left of the stage": _duration(stage_left),
            "left of the run": _duration(run_left),
            "held-out loss": self._heldout_loss(),
            "held out": self._heldout_scores(),
        }  # fmt: skip

    def line(self, heldout: bool = False) -> str:
        """Return the displayed values in one line."""
        reading = self.readings()
        start = f"stage {reading['stage']}, step {reading['step']}"
        if heldout:
            means = f", mean loss {reading['held-out loss']}" if self.heldout_means else ""
            return f"{start}: held out {reading['held out']}{means}"
        short = {"learning rate": "lr", "gradient norm": "grad norm", "waiting for data": "waiting"}
        rest = {
            k: v for k, v in reading.items() if k not in ("stage", "step", "held-out loss", "held out") and v != "–"
        }
        return f"{start}: " + ", ".join(f"{short.get(label, label)} {value}" for label, value in rest.items())

    def panel(self) -> Panel:
        """Return the displayed values as a panel."""
        grid = Table.grid(padding=(0, 2))
        reading = list(self.readings().items())
        *pairs, loss, scores = reading
        half = -(-len(pairs) // 2)
        for left, right in zip(pairs[:half], [*pairs[half:], ("", "")]):
            grid.add_row(Text(left[0], "dim"), Text(left[1]), Text(right[0], "dim"), Text(right[1]))
        whole = Table.grid()
        whole.add_row(grid)
        for label, text in (loss, scores):
            whole.add_row(Text.assemble((label, "dim"), "  ", text))
        return Panel(whole, title=Text(self.config.name), expand=False)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.update(self.panel(), refresh=True)
            self.refreshed = self.clock()

    def _line_is_due(self) -> bool:
        now = self.clock()
        if now - self.last_line < LINE_SECONDS and self.step_number < self._steps(self.stage):
            return False
        self.last_line = now
        return True

    def operations_of_a_step(self) -> Mapping[str, float]:
        """Return the operations of a step of each stage on this process; counted at the first call."""
        if not self.operations:
            self._count()
        return self.operations

    def _steps(self, stage: StageConfig) -> int:
        assert stage.steps is not None, "the panel has the stages in steps"
        return self.planned.get(stage.name, stage.steps)

    def _heldout_loss(self) -> str:
        """Return the mean held-out loss, the stage's best, and whether it falls."""
        if not self.heldout_means:
            return "–"
        best, way = min(self.heldout_means), trend(self.heldout_means[-TREND_OVER:])
        beside = f" (best {best:.4f})" if best < self.heldout_means[-1] else ""
        return f"{self.heldout_means[-1]:.4f}{beside}" + (f", {way}" if way else "")

    def _heldout_scores(self) -> str:
        """Return the scores, if there are any, beside the best one and simple methods; else the first loss."""
        scores = {name: self.heldout[f"quality/{name}"] for name in SCORES if f"quality/{name}" in self.heldout}
        shown = {
            name: f"{name} {_number(value, '.3f')}"
            for name, value in (scores or dict(list(self.heldout.items())[:1])).items()
        }
        if "mid_ssim" in shown:
            is_best = scores["mid_ssim"] == self.best_ssim
            beside = ({} if is_best else {"best": self.best_ssim}) | {
                k: own["mid_ssim"] for k, own in self.simple.items()
            }
            texts = [f"{name} {_number(value, '.3f')}" for name, value in beside.items() if value is not None]
            shown["mid_ssim"] += f" ({', '.join(texts)})" if texts else ""
        return ", ".join(shown.values()) or "–"

    def _count(self) -> None:
        """Count the operations of all stages and measure the peak, once: seconds even for the models of the paper."""
        context = layout_of(self.accelerator).context  # processes that share tokens share their operations
        self.operations = {
            stage.name: self._mean(stage, lambda shape: count_operations(self.config, shape)) / context
            for stage in self.config.stages
        }
        dtype = torch.bfloat16 if uses_bfloat16(self.config) else torch.float32
        self.peak, how = measure_peak(self.accelerator.device, dtype)
        self._print(f"peak measured here: {how}")

    def _mean(self, stage: StageConfig, count: Callable[[StageConfig], float]) -> float:
        """Return the mean of `count` over a stage's buckets, weighted by their shares of the batches."""
        shapes = self.config.by_bucket(stage)
        shares = self.shares.get(stage.name) or [1 / len(shapes)] * len(shapes)
        return sum(share * count(shape) for share, shape in zip(shares, shapes, strict=True))

    def _share_of_peak(self) -> float | None:
        if self.peak is None or not self.shown.seconds:
            return None
        return self.operations[self.stage.name] * self.shown.steps / self.shown.seconds / self.peak

    def _time_left(self) -> tuple[float | None, float | None]:
        """Return the seconds left of the stage and of the run, including held-out losses and checkpoints.

        The pace is that of this stage; the steps of later stages take longer in proportion to their operations.
        """
        done = self.step_number - self.first_step
        if not done:
            return None, None
        pace = (self.clock() - self.began) / done
        stage_left = pace * (self._steps(self.stage) - self.step_number)
        names = [stage.name for stage in self.config.stages]
        later = self.config.stages[names.index(self.stage.name) + 1 :]
        if later and not self.operations:
            return stage_left, None
        ratios = (
            self._steps(stage) * self.operations[stage.name] / self.operations[self.stage.name] for stage in later
        )
        return stage_left, stage_left + pace * sum(ratios)


def shows_panel(console: Console) -> bool:
    """Return whether the console is a terminal that can move its cursor, outside of continuous integration."""
    return (
        console.is_terminal and not console.is_dumb_terminal and os.environ.get("CI", "").lower() in ("", "0", "false")
    )


def memory_in_use(device: torch.device) -> int:
    """Return bytes: the most that was allocated on a CUDA device, else the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _number(value: float | str | None, form: str) -> str:
    """Format a number; pass on the name of one that is not finite, and a dash for none."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else format(value, form)


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)
