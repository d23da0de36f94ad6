"""The loop: stages in order, steps in order, resumed from the newest checkpoint.

The parts stand apart: what a step draws in `curriculum.py`, the losses in `step.py`, the models in `models.py` and their shards in `sharding.py`,
how they learn from a step in `learner.py`, the state on disk in `saved_state.py`, what stops a run in `stopping.py`, what a step that is not
finite does in `guards.py`, what is shown in `monitor.py`.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from training.config.schema import RunConfig, StageConfig
from training.curriculum import Batch, Draw, draw_batch, heldout_window_request, learning_rate_factor, window_request
from training.data.census import StageCensus
from training.data.latents import fingerprint
from training.data.loader import BatchLoader
from training.data.windows import Windows
from training.engine.adapter import export_adapter, fingerprints
from training.engine.checkpoint import CheckpointError, clear_leftovers, newest_checkpoint
from training.engine.compiling import blocks_of
from training.engine.ema import AveragedWeights
from training.engine.gradient_steps import Learner
from training.engine.guards import (
    MAX_WEIGHT,
    NonFiniteGuard,
    RollBack,
    RunFailed,
    absurd_weights,
    grad_norms,
    hopeless_losses,
    json_number,
)
from training.engine.models import export_pipeline, make_models, make_scheduler
from training.engine.optimizers import learned
from training.engine.resuming import Position, SavedState
from training.engine.sharding import shard
from training.losses import MarDiniTrainingModel
from training.monitoring.heldout_losses import heldout_losses
from training.monitoring.heldout_sampler import HeldoutSampler
from training.monitoring.heldout_scores import heldout_quality
from training.monitoring.heldout_windows import HeldoutWindows, heldout_windows
from training.monitoring.panel import Monitor
from training.monitoring.records import METRICS, whole_lines
from training.monitoring.samples import draw_samples
from training.monitoring.trackers import start_trackers, track, track_sheets
from training.randomness import seeded_layers
from training.stopping import Stopped, StopRequest
from training.zero import ZeroLearner, zero_plugin


class Run:
    """The models of a run and where it stands; `train` carries it to the end of its last stage.

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
        train_data: Windows,
        validation_data: Windows | None,
        folder: Path,
        allow_change: Sequence[str] = (),
    ):
        self.config = config
        self.accelerator = accelerator
        self.vae = vae
        self.train_data = train_data
        self.validation_data = validation_data
        self.folder = folder
        self.scheduler = make_scheduler(config)
        self.models = make_models(config)
        shard(self.models, accelerator)  # before averages and optimizers are made of the parameters
        self.planner, self.transformer = self.models["planner"], self.models["transformer"]
        self.head = self.models.get("head", None)
        self.ema = AveragedWeights(self.models, config.optimizer.ema_decay)
        self.saved = SavedState(
            config, accelerator, self.models, self.ema, folder / "checkpoints", self._rows, allow_change,
            {"vae": fingerprint(vae)} | ({} if config.lora is None else fingerprints(self.models)),
        )  # fmt: skip
        self.guard = NonFiniteGuard(folder / "nonfinite", config.max_skipped_steps)
        self.monitor = Monitor(config, accelerator, {stage.name: self._shares(stage) for stage in config.stages})
        # Three: those of losses, of scores and of pictures; another stage's push them out.
        self._read_heldout = functools.lru_cache(maxsize=3)(heldout_windows)
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
        """Trains every stage from where the newest checkpoint stands; returns the folder of the finished pipeline.

        Args:
            stop: asked after every step.
            start_at: name of the stage to begin with, for a run that has no checkpoint yet and an `init_from`.
            stop_after: name of the last stage to train.
            on_accepted: called once it is sure that the configuration goes on from the newest checkpoint, before anything is trained.

        Raises:
            ValueError: if the checkpoint cannot be read or was trained with another configuration, or a stage is unknown or past.
            Stopped: if `stop` had a reason; the state is saved.
            RunFailed: if steps are not finite again after the run went back to its last checkpoint, or what would be
                kept is no model's.
        """
        stop = stop or StopRequest(self.folder)
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
                if self.attempt > 0:
                    raise RunFailed(
                        f"{error}, again after going back; look at the clips that they name, lower `learning_rate` or raise "
                        "`warmup_steps`. The last checkpoint is untouched"
                    ) from error
                if newest_checkpoint(self.folder / "checkpoints") is None:
                    raise RunFailed(f"{error}, and there is no checkpoint to go back to") from error
                self.accelerator.print(f"{error}; going back to the last checkpoint, once, with other draws")
                self.accelerator.free_memory()
                self.attempt = 1

    def _train_stages(
        self, stop: StopRequest, start_at: str | None, stop_after: str | None, on_accepted: Callable[[], None]
    ) -> Path:
        position = self._resume(start_at)
        names = [stage.name for stage in self.config.stages]
        first, last = names.index(position.stage), names.index(stop_after or names[-1])
        if first > last:
            raise ValueError(
                f"the run is to stop after {stop_after!r}, but stands in {position.stage!r}, which comes later; name that or a later stage, "
                "or leave it out"
            )
        on_accepted()
        start_trackers(self.accelerator, self.config, self.folder, self.global_step)
        step = position.step
        for stage in self.config.stages[first : last + 1]:
            with blocks_of(stage), self._load(stage, step) as loader:
                self._train_stage(stage, loader, stop)
            finished = self.export(self.folder / "stages" / stage.name)
            step = 0
        whole_run = "pipeline" if self.config.lora is None else "adapter"
        return self.export(self.folder / whole_run) if last == len(names) - 1 else finished

    def _load(self, stage: StageConfig, first_step: int) -> BatchLoader[list[tuple[Draw, Batch]]]:
        """What this process draws in the steps of a stage from `first_step` on, one batch for each accumulated part."""
        sampling, parts = window_request(self.config, stage), range(stage.gradient_accumulation)
        timesteps, on_gpu = self.scheduler.config.num_train_timesteps, self.accelerator.device.type == "cuda"

        def draw_step(step: int) -> list[tuple[Draw, Batch]]:
            draws = [
                Draw(
                    self.config.seed, stage.name, step, (self.accelerator.process_index * len(parts) + part) * stage.batch_size,
                    stage.batch_size, self._rows(stage), self.attempt,
                )
                for part in parts
            ]  # fmt: skip
            batches = [draw_batch(stage, sampling, self.train_data, timesteps, draw) for draw in draws]
            return list(zip(draws, [batch.pinned() for batch in batches] if on_gpu else batches))

        return BatchLoader(draw_step, range(first_step, stage.steps), self.config.data.workers)

    def _train_stage(self, stage: StageConfig, loader: BatchLoader, stop: StopRequest) -> None:
        kind = ZeroLearner if zero_plugin(self.accelerator) else Learner
        learner = kind(self._stage_model(stage), self.config.optimizer, stage.learning_rate, self.accelerator)
        with contextlib.closing(learner):
            self.saved.load_optimizers(learner)
            self.monitor.begin_stage(stage, loader.steps.start, self._rows(stage))
            self._train_steps(stage, loader, learner, stop)

    def _train_steps(self, stage: StageConfig, loader: BatchLoader, learner: Learner, stop: StopRequest) -> None:
        config, accelerator = self.config, self.accelerator
        factor = learning_rate_factor(stage)
        sample_every = config.sample_every if self.validation_data is not None else 0
        if sample_every and self.windows_seen == 0:
            self._sample(stage, loader.steps.start)

        for step, drawn in self.monitor.waiting(loader):
            # 1. Drawn; at which rate to learn
            draws, batches = zip(*drawn)
            learner.set_learning_rate(stage.learning_rate * factor(step))

            # 2. Learn, unless the loss or the gradient of any process is not finite
            with self._dropout(draws[0]):
                losses = learner.backward(batches)
            grad_norm = learner.grad_norm()
            reason = stop.reason
            finite, stopping = self._agree(torch.isfinite(grad_norm + losses["loss"]), reason)
            norms = None if finite else grad_norms(self.models)
            if finite:
                learner.step(grad_norm)
                self.ema.update()
                self.guard.in_a_row = 0
            else:
                learner.skip()
                self.guard.report(
                    accelerator, draws[0], self.global_step + 1, batches, losses, float(grad_norm), norms
                )
            self.global_step += 1
            self.windows_seen += self._rows(stage)
            self.monitor.step()

            # 3. Tell, check, keep
            last = step + 1 == stage.steps
            if self.global_step % config.log_every == 0 or last:
                self._log(stage, step + 1, losses, grad_norm, learner.learning_rate)
            if last and finite:
                latents = [latents for batch in batches for latents in (batch.latents, batch.planner_latents)]
                self._refuse(hopeless_losses({k: float(v) for k, v in losses.items()}, latents, False), "losses")
            if self.validation_data is not None and (self.global_step % config.validate_every == 0 or last):
                self._validate(stage, step + 1, last)
            if sample_every and (self.global_step % sample_every == 0 or last):
                self._sample(stage, step + 1)
            if self.global_step % config.checkpoint_every == 0 or last or stopping:
                self._save(stage, step + 1, learner)
            if stopping:
                raise Stopped(reason or "another process was asked to")

    def _stage_model(self, stage: StageConfig) -> MarDiniTrainingModel:
        """The models that the stage trains, as one module with the stage's loss."""
        trains_planner = stage.trains in ("planner", "joint")
        reconstructs = stage.trains == "planner" or (stage.trains == "joint" and stage.planner_loss_weight > 0)
        self.transformer.set_temporal_attention(stage.temporal_attention)
        return MarDiniTrainingModel(
            self.planner if trains_planner else None,
            self.head if reconstructs else None,
            self.transformer if stage.trains in ("transformer", "joint") else None,
            self.scheduler,
            stage.planner_loss_weight,
        )

    def _dropout(self, draw: Draw) -> contextlib.AbstractContextManager:
        """Within it an adapter drops what the step and its first row, this process's, say: all that is drawn besides the batch."""
        if self.config.lora is None or not self.config.lora.dropout:
            return contextlib.nullcontext()
        keys = (draw.stage, draw.step, draw.attempt, "adapter", draw.first)
        return seeded_layers(self.accelerator.device, draw.seed, *keys)

    def _shares(self, stage: StageConfig) -> list[float]:
        """Of the stage's batches, by bucket."""
        sampling = window_request(self.config, stage)
        census = StageCensus.of(self.train_data.census(sampling), sampling, self._rows(stage))
        return [bucket.share for bucket in census.buckets]

    def _rows(self, stage: StageConfig) -> int:
        """Windows of one step, over all processes."""
        return stage.windows_per_step(self.accelerator.num_processes)

    def _agree(self, finite: torch.Tensor, reason: str | None) -> tuple[bool, bool]:
        """Whether every process is finite, and whether any was asked to stop; the one host synchronization of a step."""
        flags = torch.stack([(~finite).float(), torch.full_like(finite, reason is not None, dtype=torch.float32)])
        nonfinite, stopping = self.accelerator.reduce(flags, "sum").tolist()
        return nonfinite == 0, stopping > 0

    def _log(self, stage: StageConfig, step: int, losses: dict, grad_norm, learning_rate: float) -> None:
        means = {name: json_number(self.accelerator.reduce(value, "mean").item()) for name, value in losses.items()}
        self._write(
            {"stage": stage.name, "step": step, **means, "grad_norm": json_number(float(grad_norm)),
             "learning_rate": learning_rate, **self.monitor.times()}
        )  # fmt: skip

    def _validate(self, stage: StageConfig, step: int, last: bool) -> None:
        config = self.config
        windows = self._heldout(stage, config.validation_windows, shared=True)
        with self._averages():
            losses = heldout_losses(
                self.planner, self.head, self.transformer, self.scheduler, windows, stage, config.seed,
                self.accelerator
            )  # fmt: skip
            hopeless = hopeless_losses(losses, (windows.latents, windows.planner_latents), finite_only=not last)
            losses = {name: json_number(value) for name, value in losses.items()}
            failed = self._on_any_process(bool(hopeless))
            if config.quality_windows and not failed:
                losses |= heldout_quality(self._heldout_sampler(), self._heldout(stage, config.quality_windows), stage)
        self._write({"stage": stage.name, "step": step, "heldout": losses})
        if failed:
            self._refuse(hopeless, "held-out losses")

    def _on_any_process(self, mine: bool) -> bool:
        return self.accelerator.reduce(torch.tensor(float(mine), device=self.accelerator.device), "sum").item() > 0

    def _refuse(self, found: list[str], what: str, consequence: str = "nothing is exported") -> None:
        """Ends the run on every process if something that it is judged by, or that it keeps, is no model's on any.

        Raises:
            RunFailed: if so.
        """
        if not self._on_any_process(bool(found)):
            return
        try:
            good = newest_checkpoint(self.folder / "checkpoints")
        except CheckpointError:
            good = None
        raise RunFailed(
            f"the run has blown up after {self.global_step} steps: {what} are not finite or absurdly large"
            f"{f' ({found[0]}, {len(found)} in all)' if found else ''}; {consequence}. Lower `learning_rate` or "
            "raise `warmup_steps`; "
            + (
                f"the last good checkpoint is {good}, which goes on so with --allow-change"
                if good
                else "there is no checkpoint"
            )
        )

    def _sample(self, stage: StageConfig, step: int) -> None:
        with self._averages():
            windows = self._heldout(stage, self.config.sample_windows)
            told = draw_samples(self._heldout_sampler(), windows, stage, self.global_step, self.folder)
        self._write({"stage": stage.name, "step": step, "samples": told})
        track_sheets(
            self.accelerator, {task: self.folder / each["sheet"] for task, each in told.items()}, self.global_step
        )

    def _heldout(self, stage: StageConfig, count: int, shared: bool = False) -> HeldoutWindows:
        """Windows that the stage holds out, read (or decoded and encoded) once for all its evaluations; `shared`: this process's."""
        sampling, seed = heldout_window_request(self.config, stage), self.config.seed
        share = (self.accelerator.process_index, self.accelerator.num_processes) if shared else (0, 1)
        return self._read_heldout(self.validation_data, sampling, count, seed, *share)

    @contextlib.contextmanager
    def _averages(self) -> Iterator[None]:
        """Within it the models carry their averages, drop nothing, and run eagerly: for a few batches without gradients, of another size,
        compiling anew would cost minutes."""
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
            "global_step": self.global_step, "windows_seen": self.windows_seen, **record, "seconds": self.monitor.lap()
        }  # fmt: skip
        if self.accelerator.is_main_process:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        track(self.accelerator, record)
        self.monitor.tell(record)

    def _save(self, stage: StageConfig, step: int, learner: Learner) -> None:
        averages = {f"the average of {name}": tensor for name, tensor in self.ema.tensors.items()}
        self._refuse(absurd_weights(learned(self.models) | averages), "weights", "they are not saved")
        skipped = (self.guard.skipped, self.guard.in_a_row)
        position = Position(stage.name, step, self.global_step, self.windows_seen, self.attempt, skipped)
        self.saved.save(position, learner)

    def _resume(self, start_at: str | None) -> Position:
        position = self.saved.load(start_at)
        self.global_step, self.windows_seen = position.global_step, position.windows_seen
        self.attempt = max(self.attempt, position.attempt)
        self.guard.skipped, self.guard.in_a_row = position.skipped
        # Records of a run that was killed before its first checkpoint go as a whole, those of its start too.
        self._forget_records_after(self.global_step if self.windows_seen else -1)
        return position

    def _forget_records_after(self, global_step: int) -> None:
        """Steps that ran after the checkpoint run again; `metrics.jsonl` tells of each once."""
        path = self.folder / "metrics.jsonl"
        if self.accelerator.is_main_process and path.is_file():
            kept = [line for line, record in whole_lines(path, METRICS) if record["global_step"] <= global_step]
            temporary = path.with_suffix(".partial")
            temporary.write_bytes(b"".join(kept))
            temporary.replace(path)

    def export(self, folder: Path) -> Path:
        """Saves the averaged weights as a pipeline that `MarDiniPipeline.from_pretrained` loads, or an adapter as a folder that
        `pipe.load_lora_weights` takes; whole or absent.

        Raises:
            RunFailed: if they are no model's, or too large for `save_dtype`.
        """
        limit = min(MAX_WEIGHT, torch.finfo(getattr(torch, self.config.save_dtype)).max)
        self._refuse(absurd_weights(self.ema.tensors, limit), f"weights (as {self.config.save_dtype})")
        if self.config.lora is not None:
            return export_adapter(folder, self.config, self.models, self.ema, self.accelerator)
        return export_pipeline(folder, self.config, self.models, self.ema, self.vae, self.scheduler, self.accelerator)
