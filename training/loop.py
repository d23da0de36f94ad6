"""The training loop: stages in order, steps in order, resumed from the newest checkpoint.

The input of a step is drawn in `curriculum.py`, its losses are in `losses.py`. In `engine/`: models, gradient steps,
checkpoints, guards against steps that are not finite. In `monitoring/`: everything that is shown, sampled and measured
on held-out clips.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from training.config.schema import RunConfig, StageConfig
from training.curriculum import draw_batch, draw_windows
from training.data.batches import Batch, Draw, deal
from training.data.buckets import heldout_window_request, window_request
from training.data.census import StageCensus
from training.data.loader import BatchLoader
from training.data.windows import ClipWindows, WindowDraw, usual_window
from training.digests import tensors_digest
from training.engine.adapter import export_adapter, frozen_digests
from training.engine.checkpoint import clear_leftovers, newest_checkpoint
from training.engine.compiling import compile_step, compiled_blocks
from training.engine.divergence import DivergenceGuard, where_to_go_on
from training.engine.ema import AveragedWeights
from training.engine.exporting import export_pipeline
from training.engine.gradient_steps import GradientSteps
from training.engine.guards import (
    MAX_WEIGHT,
    NonFiniteGuard,
    RollBack,
    RunFailed,
    absurd_weights,
    grad_norms,
    hopeless_losses,
    json_number,
    zeros_loss,
)
from training.engine.models import make_models, make_scheduler, trained_parts
from training.engine.optimizers import learned
from training.engine.resuming import Position, RunCheckpoints
from training.engine.sharding import layout_of
from training.files import append_line
from training.losses import MarDiniTrainingModel
from training.monitoring.heldout_losses import heldout_losses
from training.monitoring.heldout_sampler import HeldoutSampler
from training.monitoring.heldout_scores import heldout_scores
from training.monitoring.heldout_trend import mean_loss
from training.monitoring.heldout_windows import HeldoutWindows, heldout_windows
from training.monitoring.panel import RunPanel
from training.monitoring.records import forget_records_after
from training.monitoring.samples import write_samples
from training.monitoring.simple_scores import read_simple_scores, write_simple_scores
from training.monitoring.trackers import start_trackers, track, track_sheets
from training.randomness import seeded_layers
from training.schedule import Schedule
from training.stopping import SAMPLE_FILE, Stopped, StopRequest


class Run:
    """Hold the models and the position of a run; `train` takes it to the end of its last stage.

    Args:
        config: the run.
        accelerator: devices, processes, precision.
        vae: goes into the exported pipelines.
        train_data, validation_data: windows of clips.
        folder: of the run.
        allow_change: dotted keys of `config` that may differ from what a checkpoint was trained with.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        vae: torch.nn.Module,
        train_data: ClipWindows,
        validation_data: ClipWindows | None,
        folder: Path,
        allow_change: Sequence[str] = (),
    ):
        self.config = config
        self.accelerator = accelerator
        self.vae = vae
        self.train_data = train_data
        self.validation_data = validation_data
        self.folder = folder
        self.layout = layout_of(accelerator)
        self.scheduler = make_scheduler(config)
        self.models = make_models(config, accelerator)
        self.planner, self.transformer = self.models["planner"], self.models["transformer"]
        self.head = getattr(self.models, "head", None)
        self.ema = AveragedWeights(self.models, config.optimizer.ema_decay)
        self.checkpoints = RunCheckpoints(
            config, accelerator, self.models, self.ema, folder / "checkpoints", allow_change,
            {"vae": tensors_digest(vae.state_dict(), vae.config)}
            | ({} if config.lora is None else frozen_digests(self.models)),
        )  # fmt: skip
        self.guard = NonFiniteGuard(folder / "nonfinite", config.max_skipped_steps)
        self.divergence = DivergenceGuard()
        self.schedule = Schedule(config)
        self.monitor = RunPanel(config, accelerator, {stage.name: self._shares(stage) for stage in config.stages})
        # Three, for losses, scores and pictures; those of another stage replace them.
        self._read_heldout = functools.lru_cache(maxsize=3)(heldout_windows)
        self.sample_file = folder / SAMPLE_FILE
        self.global_step = 0
        self.windows_seen = 0
        self.attempt = 0

    def train(
        self,
        stop: StopRequest | None = None,
        start_at: str | None = None,
        stop_after: str | None = None,
        on_accepted: Callable[[], None] = lambda: None,
    ) -> Path:
        """Train every stage, starting at the newest checkpoint; return the folder of the finished pipeline.

        Args:
            stop: asked after every step.
            start_at: name of the stage to begin with, for a run that has no checkpoint yet and an `init_from`.
            stop_after: name of the last stage to train.
            on_accepted: called when the newest checkpoint has been found to fit the configuration, before any
                training.

        Raises:
            ValueError: if the checkpoint cannot be read or was trained with another configuration, or a stage is
                unknown or past.
            Stopped: if `stop` had a reason; the state is saved.
            RunFailed: if steps are not finite again after the run went back to its last checkpoint, or weights or
                losses have blown up.
        """
        stop = stop or StopRequest(self.folder)
        self.schedule.started = stop.started  # preparations count for `hours`
        names = [stage.name for stage in self.config.stages]
        for given in (start_at, stop_after):
            if given is not None and given not in names:
                raise ValueError(f"there is no stage {given!r}; the stages are {', '.join(names)}")
        if self.accelerator.is_main_process:
            clear_leftovers(self.folder / "checkpoints")
        self.accelerator.wait_for_everyone()
        while True:
            try:
                with self.monitor:
                    return self._train_stages(stop, start_at, stop_after, on_accepted)
            except RollBack as error:
                self.checkpoints.writer.finish()
                if self.attempt > 0:
                    raise RunFailed(
                        f"{error}, again after going back; look at the clips that they name, lower `learning_rate` or "
                        "raise `warmup_steps`. The last checkpoint is untouched"
                    ) from error
                if newest_checkpoint(self.folder / "checkpoints") is None:
                    raise RunFailed(f"{error}, and there is no checkpoint to go back to") from error
                self.accelerator.print(f"{error}; going back to the last checkpoint, once, with other draws")
                self.accelerator.free_memory()
                self.attempt = 1
            finally:
                self.checkpoints.writer.close()

    def _train_stages(
        self, stop: StopRequest, start_at: str | None, stop_after: str | None, on_accepted: Callable[[], None]
    ) -> Path:
        position = self._resume(start_at)
        names = [stage.name for stage in self.config.stages]
        first, last = names.index(position.stage), names.index(stop_after or names[-1])
        if first > last:
            raise ValueError(
                f"the run is to stop after {stop_after!r}, but has reached {position.stage!r}, which comes later; "
                "name that or a later stage, or leave it out"
            )
        on_accepted()
        stages = self.config.stages[first : last + 1]
        self.train_data.make_ready(functools.partial(self._windows, stages, position.step))
        start_trackers(self.accelerator, self.config, self.folder, self.global_step)
        step = position.step
        for stage in stages:
            with compiled_blocks(stage), self._load(stage, step) as loader:
                self._train_stage(stage, loader, stop)
            self.checkpoints.writer.finish()  # first, because an export may fail, or be killed
            with self.schedule.timed(stage, "export"):
                finished = self.export(self.folder / "stages" / stage.name, stage)
            step = 0
        if last == len(names) - 1:
            finished = self.export(self.folder / self._whole_run)
        return finished

    @property
    def _whole_run(self) -> str:
        return "pipeline" if self.config.lora is None else "adapter"

    def _windows(self, stages: Sequence[StageConfig], first_step: int) -> Iterator[WindowDraw]:
        """Yield the windows of all steps of some stages, of the first one from a step on."""
        for stage in stages:
            request, steps = window_request(self.config, stage), range(first_step, self.schedule.reach(stage))
            yield from draw_windows(stage, request, self.train_data, self.config.seed, steps, self.attempt)
            first_step = 0

    def _load(self, stage: StageConfig, first_step: int) -> BatchLoader[list[tuple[Draw, Batch]]]:
        """Return a loader of the batches of this process from `first_step` on, one for each accumulated part."""
        sampling, total = window_request(self.config, stage), stage.windows_per_step
        timesteps, on_gpu = self.scheduler.config.num_train_timesteps, self.accelerator.device.type == "cuda"
        rank = self.layout.data_rank(self.accelerator.process_index)
        parts = deal(total, rank, self.layout.data_ranks, stage.gradient_accumulation)

        def draw_step(step: int) -> list[tuple[Draw, Batch]]:
            draws = [Draw.of_rows(self.config.seed, stage.name, step, rows, total, self.attempt) for rows in parts]
            batches = [draw_batch(stage, sampling, self.train_data, timesteps, draw) for draw in draws]
            return list(zip(draws, [batch.pinned() for batch in batches] if on_gpu else batches))

        begun = first_step < self.schedule.steps(stage)
        steps = range(first_step, self.schedule.reach(stage) if begun else first_step)
        return BatchLoader(draw_step, steps, self.config.data.workers)

    def _train_stage(self, stage: StageConfig, loader: BatchLoader, stop: StopRequest) -> None:
        steps = GradientSteps(self._stage_model(stage), self.config.optimizer, stage.learning_rate, self.accelerator)
        with contextlib.closing(steps):
            self.checkpoints.load_optimizers(steps)
            self.monitor.begin_stage(stage, loader.steps.start, stage.windows_per_step)
            self.schedule.begin_stage(stage, loader.steps.start)
            if loader.steps.start == 0:
                self.divergence.begin_stage()
            self.monitor.heldout_means = self.schedule.losses
            self.monitor.simple = read_simple_scores(self.folder).get(stage.name, {})
            self._train_steps(stage, loader, steps, stop)

    def _train_steps(self, stage: StageConfig, loader: BatchLoader, steps: GradientSteps, stop: StopRequest) -> None:
        config, accelerator = self.config, self.accelerator
        has_heldout = self.validation_data is not None
        sample_every = config.sample_every if has_heldout else 0
        if sample_every and self.windows_seen == 0:
            self._sample(stage, loader.steps.start)

        for step, drawn in self.monitor.waiting(loader):
            # 1. Set the learning rate
            draws, batches = zip(*drawn)
            steps.set_learning_rate(stage.learning_rate * self.schedule.factor(stage, step))

            # 2. Learn, unless the loss or the gradient of any process is not finite
            with self._dropout(draws[0]):
                losses = steps.backward(batches, [draw.share for draw in draws])
            grad_norm = steps.grad_norm()
            is_main = accelerator.is_main_process
            reason = stop.reason if is_main else stop.own_reason  # the first process alone looks for files
            nonfinite, stopping, wanted, due, ready = self._count(
                ~torch.isfinite(grad_norm + losses["loss"]), reason is not None,
                is_main and self.sample_file.exists(), is_main and self.schedule.is_due(step + 1),
                self.checkpoints.writer.ready(),
            )  # fmt: skip
            finite = not nonfinite
            norms = None if finite else grad_norms(self.models)
            if finite:
                steps.step(grad_norm)
                self.ema.update()
                self.guard.in_a_row = 0
            else:
                steps.skip()
                self.guard.report(
                    accelerator, draws[0], self.global_step + 1, batches, losses, float(grad_norm), norms
                )
            self.global_step += 1
            self.windows_seen += stage.windows_per_step
            self.monitor.step()

            # 3. Log, check, save
            self.checkpoints.writer.settle(ready)
            last = step + 1 == self.schedule.steps(stage)
            if self.global_step % config.log_every == 0 or last:
                self._log(stage, step + 1, losses, grad_norm, steps.learning_rate, batches)
            if last and finite:
                self._refuse(hopeless_losses(self._means(losses), _latents(batches), False), "losses")
            unmeasured = due and not self.schedule.is_measured(stage, "heldout")
            if has_heldout and (self.global_step % config.validate_every == 0 or last or unmeasured):
                self._validate(stage, step + 1, last)
            if wanted or (sample_every and (self.global_step % sample_every == 0 or last or unmeasured)):
                self._sample(stage, step + 1, wanted)
            if due and not last:
                self._plan(stage, step + 1)
            if self.global_step % config.checkpoint_every == 0 or last or stopping or due:
                self._save(stage, step + 1, steps)
            if stopping:
                self.checkpoints.writer.finish()
                self._export_stopped()
                raise Stopped(reason or "another process was asked to")
            if last:
                return

    def _stage_model(self, stage: StageConfig) -> MarDiniTrainingModel:
        """Return the models that the stage trains as one module with the stage's loss."""
        self.transformer.set_temporal_attention(stage.temporal_attention)
        models = {"planner": self.planner, "head": self.head, "transformer": self.transformer}
        chosen = (model if part in trained_parts(stage) else None for part, model in models.items())
        return compile_step(MarDiniTrainingModel(*chosen, self.scheduler, stage.planner_loss_weight), stage)

    def _dropout(self, draw: Draw) -> contextlib.AbstractContextManager:
        """Seed the dropout of an adapter within the block by the step and by this process's first row."""
        if self.config.lora is None or not self.config.lora.dropout:
            return contextlib.nullcontext()
        keys = (draw.stage, draw.step, draw.attempt, "adapter", draw.first)
        return seeded_layers(self.accelerator.device, draw.seed, *keys)

    def _shares(self, stage: StageConfig) -> list[float]:
        """Return the share of the stage's batches that each bucket has."""
        sampling = window_request(self.config, stage)
        census = StageCensus.of(self.train_data.census(sampling), stage.windows_per_step)
        return [bucket.share for bucket in census.buckets]

    def _any(self, flag: bool) -> bool:
        """Return whether a flag is set on any process."""
        return self._count(flag)[0] > 0

    def _count(self, *flags: torch.Tensor | bool) -> list[int]:
        """Return of each flag on how many processes it is set.

        This is the only host synchronization of a step, and all that processes tell each other beside gradients.
        """
        known = [not torch.is_tensor(flag) and flag for flag in flags]
        mine = torch.tensor(known, dtype=torch.float32, device=self.accelerator.device)
        for place, flag in enumerate(flags):
            if torch.is_tensor(flag):
                mine[place] = flag
        return [int(count) for count in self.accelerator.reduce(mine, "sum").tolist()]

    def _log(
        self, stage: StageConfig, step: int, losses: dict, grad_norm, learning_rate: float, batches: Sequence[Batch]
    ) -> None:
        means = self._means(losses)
        self._write(
            {"stage": stage.name, "step": step, **{name: json_number(mean) for name, mean in means.items()},
             "grad_norm": json_number(float(grad_norm)), "learning_rate": learning_rate, **self.monitor.times()}
        )  # fmt: skip
        if self.validation_data is None and math.isfinite(loss := means["loss"]):
            zeros = self._zeros_loss(_latents(batches)) * (1 + stage.planner_loss_weight)
            good = self.divergence.accepts_training(loss, zeros, self.global_step)
            self._refuse([] if good else [self._far_above(loss)], "training losses")

    def _means(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        """Return the step's losses, over all processes; every one must call it."""
        return {name: self.accelerator.reduce(value, "mean").item() for name, value in losses.items()}

    def _zeros_loss(self, latents: Iterable[torch.Tensor]) -> float:
        """Return the mean of `zeros_loss` over all processes, whose windows differ; every one must call it."""
        mine = torch.tensor(zeros_loss(latents), dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(mine, "mean").item()

    def _far_above(self, loss: float) -> str:
        return f"{loss:.4g}, and {self.divergence.first:.4g} at the start of the stage"

    def _validate(self, stage: StageConfig, step: int, last: bool) -> None:
        config = self.config
        windows = self._heldout(stage, config.validation_windows, shared=True)
        scored = self._heldout(stage, config.quality_windows) if config.quality_windows else None
        with self.schedule.timed(stage, "heldout"), self._averages():
            losses = heldout_losses(
                self.planner, self.head, self.transformer, self.scheduler, windows, stage, config.seed,
                self.accelerator
            )  # fmt: skip
            latents, mean = (windows.latents, windows.planner_latents), mean_loss(losses, stage.trains)
            assert mean is not None, "every stage has held-out losses"
            hopeless = hopeless_losses(losses, latents, finite_only=not last)
            zeros = self._zeros_loss(latents)
            if not hopeless and not self.divergence.accepts(mean, zeros, self.global_step):
                hopeless = [f"their mean {self._far_above(mean)}"]
            losses = {name: json_number(value) for name, value in losses.items()}
            failed = self._any(bool(hopeless))
            if scored is not None and not failed:
                sampler = self._heldout_sampler()
                losses |= heldout_scores(sampler, scored, stage)
                if self.accelerator.is_main_process:
                    self.monitor.simple = write_simple_scores(self.folder, sampler, scored, stage)
        decision = None if failed else self.schedule.heldout(stage, step, mean)
        self.monitor.heldout_means = self.schedule.losses
        self._write({"stage": stage.name, "step": step, "heldout": losses})
        if failed:
            self._refuse(hopeless, "held-out losses")
        self._decided(stage, step, decision)

    def _plan(self, stage: StageConfig, step: int) -> None:
        """Plan the remaining steps for the rest of `hours`: the main process decides for all."""
        decision = None
        if self.accelerator.is_main_process:
            only = stage is self.config.stages[-1]
            decision = self.schedule.plan(stage, step, {} if only else self.monitor.operations_of_a_step())
        agreed = [decision, self.schedule.state()["turns"]]
        broadcast_object_list(agreed)
        self.schedule.adopt(agreed[1])
        self._decided(stage, step, agreed[0])

    def _decided(self, stage: StageConfig, step: int, decision: dict | None) -> None:
        """Record and show a change of the stages' steps."""
        if decision is None:
            return
        self.monitor.planned |= decision["steps"]
        self._write({"stage": stage.name, "step": step, "planned": decision})

    def _refuse(self, found: list[str], what: str, consequence: str = "nothing is exported") -> None:
        """End the run on every process if weights or losses have blown up on any.

        Args:
            found: names of what has blown up on this process.
            what: a word for them.
            consequence: a clause on what is not written.

        Raises:
            RunFailed: if there are any.
        """
        if not self._any(bool(found)):
            return
        self.checkpoints.writer.finish()  # it may be the last good one
        raise RunFailed(
            f"the run has blown up after {self.global_step} steps: {what} are not finite or absurdly large"
            f"{f' ({found[0]}, {len(found)} in all)' if found else ''}; {consequence}. Lower `learning_rate` or raise "
            f"`warmup_steps`; "
            + where_to_go_on(self.folder / "checkpoints", self.divergence.good_until, self.accelerator.is_main_process)
        )

    def _sample(self, stage: StageConfig, step: int, wanted: bool = False) -> None:
        """Write pictures of held-out windows; if they are `wanted`, by a file in the run's folder, delete it."""
        if wanted and self.accelerator.is_main_process:
            self.sample_file.unlink(missing_ok=True)
        if self.validation_data is None:
            self.accelerator.print(f"{self.sample_file}: there are no pictures without `data.validation`")
            return
        windows = self._heldout(stage, self.config.sample_windows)
        with self.schedule.timed(stage, "samples"), self._averages():
            samples = write_samples(self._heldout_sampler(), windows, stage, self.global_step, self.folder)
        self._write({"stage": stage.name, "step": step, "samples": samples})
        sheets = {task: self.folder / sample["sheet"] for task, sample in samples.items()}
        track_sheets(self.accelerator, sheets, self.global_step)

    def _heldout(self, stage: StageConfig, count: int, shared: bool = False) -> HeldoutWindows:
        """Return the stage's held-out windows, read once for all its evaluations; only this process's, if `shared`."""
        sampling, seed = heldout_window_request(self.config, stage), self.config.seed
        rank = self.layout.data_rank(self.accelerator.process_index)
        share = (rank, self.layout.data_ranks) if shared else (0, 1)
        with self.schedule.timed(stage, "reading"):
            return self._read_heldout(self.validation_data, sampling, count, seed, *share)

    @contextlib.contextmanager
    def _averages(self) -> Iterator[None]:
        """Use averaged weights in eval mode, uncompiled, within the block.

        A few batches of another size, without gradients, would take minutes to compile.
        """
        self.models.eval()
        with self.ema.swapped(), torch.compiler.set_stance("force_eager"):
            yield
        self.models.train()

    def _heldout_sampler(self) -> HeldoutSampler:
        config = self.config
        return HeldoutSampler(
            self.vae, self.planner, self.head, self.transformer, self.scheduler, config.data.planner_downscale,
            config.sample_steps, config.seed, self.accelerator,
        )  # fmt: skip

    def _write(self, record: dict) -> None:
        record = {
            "global_step": self.global_step, "windows_seen": self.windows_seen, **record,
            "seconds": self.monitor.seconds_since_line(),
        }  # fmt: skip
        if self.accelerator.is_main_process:
            append_line(self.folder / "metrics.jsonl", record)
        track(self.accelerator, record)
        self.monitor.show(record)

    def _save(self, stage: StageConfig, step: int, steps: GradientSteps) -> None:
        averages = {f"the average of {name}": tensor for name, tensor in self.ema.tensors.items()}
        self._refuse(absurd_weights(learned(self.models) | averages), "weights", "they are not saved")
        skipped = (self.guard.skipped, self.guard.in_a_row)
        position = Position(stage.name, step, self.global_step, self.windows_seen, self.attempt, skipped)
        more = {"schedule": self.schedule.state(), "divergence": self.divergence.state()}
        with self.schedule.timed(stage, "checkpoint"):
            self.checkpoints.save(position, steps, more, self.divergence.good_until)

    def _resume(self, start_at: str | None) -> Position:
        position = self.checkpoints.load(start_at)
        self.global_step, self.windows_seen = position.global_step, position.windows_seen
        self.attempt = max(self.attempt, position.attempt)
        self.guard.skipped, self.guard.in_a_row = position.skipped
        if more := self.checkpoints.more:
            self.schedule.load_state(more["schedule"], position.stage)
            self.divergence.load_state(more["divergence"])
            self.monitor.planned = {stage.name: self.schedule.steps(stage) for stage in self.config.stages}
        if self.accelerator.is_main_process:
            # A run that was killed before its first checkpoint loses all records, those of step 0 too.
            forget_records_after(self.folder / "metrics.jsonl", self.global_step if self.windows_seen else -1)
        return position

    def _export_stopped(self) -> None:
        """Leave a pipeline, or adapter, of a run that is asked to stop; its state is saved already."""
        target = self.folder / "stopped" / self._whole_run
        if self._any(bool(absurd_weights(self.ema.tensors, self._largest_weight))):
            self.accelerator.print(f"{target} is not written: weights are too large for {self.config.save_dtype}")
            return
        try:
            self.export(target)
        except (OSError, SafetensorError) as error:  # of the main process; the others wait for it
            self.accelerator.wait_for_everyone()
            print(
                f"{target} could not be written ({error}); `python -m training.export {self.folder}` makes one later"
            )
        else:
            self.accelerator.print(f"the {self._whole_run} as it is now lies in {target}")

    @property
    def _largest_weight(self) -> float:
        return min(MAX_WEIGHT, torch.finfo(getattr(torch, self.config.save_dtype)).max)

    def export(self, folder: Path, stage: StageConfig | None = None) -> Path:
        """Save the averaged weights as a pipeline, or as the folder of an adapter; whole or absent.

        Of models in shards, the main process reads the files of the checkpoint that was written last; nothing is gathered.

        Args:
            folder: where to.
            stage: whose window the pipeline gets; the last one by default.

        Raises:
            RunFailed: if they have blown up, or are too large for `save_dtype`.
        """
        found = absurd_weights(self.ema.tensors, self._largest_weight)
        self._refuse(found, f"weights (as {self.config.save_dtype})")
        stage = self.config.stages[-1] if stage is None else stage
        window = usual_window(self.train_data.entries, heldout_window_request(self.config, stage))
        if self.config.lora is not None:
            return export_adapter(folder, self.config, self.models, self.ema.tensors, window, self.accelerator)
        averages = self.ema.tensors if self.layout.shards == 1 else self.checkpoints.written_averages()
        return export_pipeline(
            folder, self.config, self.models, averages, self.vae, self.scheduler, window, self.accelerator
        )


def _latents(batches: Sequence[Batch]) -> list[torch.Tensor]:
    return [latents for batch in batches for latents in (batch.latents, batch.planner_latents)]
