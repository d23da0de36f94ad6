"""The loop: stages in order, steps in order, resumed from the newest checkpoint.

The parts stand apart: what a step draws in `curriculum.py`, the losses in `step.py`, the state on disk in `checkpoint.py`, what stops
a run in `stopping.py`, what a step that is not finite does in `guards.py`.
"""

import contextlib
import copy
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel

from diffusers_mardini import (
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.presets import load_preset

from .checkpoint import (
    Checkpoint,
    CheckpointError,
    clear_leftovers,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from .config import RunConfig, StageConfig, shaping_fields
from .curriculum import Batch, Draw, draw_batch, learning_rate_factor
from .data.latents import LatentClips
from .guards import NonFiniteGuard, RollBack, grad_norms, json_number
from .heldout import heldout_losses
from .heldout_windows import heldout_windows
from .monitor import Monitor
from .optimizers import make_optimizers
from .painting import Painter
from .quality import heldout_quality
from .samples import draw_samples
from .step import MarDiniTrainingModel, PlannerReconstructionHead
from .stopping import StopRequest
from .trackers import start_trackers, track, track_sheets


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


class Run:
    """The models of a run and where it stands; `train` carries it to the end of its last stage.

    Args:
        config: the run.
        accelerator: devices, processes, precision.
        vae: goes into the exported pipelines.
        train_data, validation_data: latents of clips.
        folder: of the run.
        allow_change: dotted keys of `config` that may differ from what a checkpoint was trained with.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        vae: torch.nn.Module,
        train_data: LatentClips,
        validation_data: LatentClips | None,
        folder: Path,
        allow_change: Sequence[str] = (),
    ):
        self.config = config
        self.allow_change = allow_change
        self.accelerator = accelerator
        self.vae = vae
        self.train_data = train_data
        self.validation_data = validation_data
        self.folder = folder
        preset = load_preset(config.preset)
        torch.manual_seed(config.seed)  # initialization only; steps draw from `step_generator`
        self.scheduler = MarDiniScheduler(**{**preset["scheduler"], **config.scheduler})
        self.planner = MarDiniPlannerTransformer3DModel(**{**preset["planner"], **config.planner})
        self.transformer = MarDiniTransformer3DModel(**{**preset["transformer"], **config.transformer})
        if config.init_from is not None:
            self._start_from(config.init_from)
        planner = self.planner.config
        planning_dim = planner.num_attention_heads * planner.attention_head_dim
        self.head = PlannerReconstructionHead(planning_dim, planner.in_channels, planner.patch_size)
        self.models = torch.nn.ModuleDict(
            {"planner": self.planner, "transformer": self.transformer, "head": self.head}
        ).to(accelerator.device)
        if config.gradient_checkpointing:
            self.planner.enable_gradient_checkpointing()
            self.transformer.enable_gradient_checkpointing()
        self.ema = EMAModel(self.models.parameters(), decay=config.optimizer.ema_decay, foreach=True)
        self.ema.to(accelerator.device)
        if accelerator.device.type == "cpu":
            # The fused kernel's backward pass is slow there: at these sizes up to five times slower than plain matrix products.
            self.planner.set_attention_backend("_native_math")
            self.transformer.set_attention_backend("_native_math")
        if any(stage.compile for stage in config.stages):
            self.planner.compile_repeated_blocks()
            self.transformer.compile_repeated_blocks()
        self.guard = NonFiniteGuard(folder / "nonfinite", config.max_skipped_steps)
        self.monitor = Monitor(config, accelerator)
        self.global_step = 0
        self.windows_seen = 0
        self.attempt = 0

    def train(
        self, stop: StopRequest | None = None, start_at: str | None = None, stop_after: str | None = None
    ) -> Path:
        """Trains every stage from where the newest checkpoint stands; returns the folder of the finished pipeline.

        Args:
            stop: asked after every step.
            start_at: name of the stage to begin with, for a run that has no checkpoint yet and an `init_from`.
            stop_after: name of the last stage to train.

        Raises:
            ValueError: if the checkpoint cannot be read or was trained with another configuration, or a stage is unknown.
            Stopped: if `stop` had a reason; the state is saved.
            RuntimeError: if steps are not finite again after the run went back to its last checkpoint.
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
                    return self._train_stages(stop, start_at, stop_after)
            except RollBack as error:
                if self.attempt > 0:
                    raise RuntimeError(
                        f"{error}, again after going back; look at the clips that they name, lower `learning_rate` or raise "
                        "`warmup_steps`. The last checkpoint is untouched"
                    ) from error
                if newest_checkpoint(self.folder / "checkpoints") is None:
                    raise RuntimeError(f"{error}, and there is no checkpoint to go back to") from error
                self.accelerator.print(f"{error}; going back to the last checkpoint, once, with other draws")
                self.accelerator.free_memory()
                self.attempt = 1

    def _train_stages(self, stop: StopRequest, start_at: str | None, stop_after: str | None) -> Path:
        stage_name, step, optimizer_states = self._resume(start_at)
        start_trackers(self.accelerator, self.config, self.folder, self.global_step)
        names = [stage.name for stage in self.config.stages]
        first, last = names.index(stage_name), names.index(stop_after or names[-1])
        for stage in self.config.stages[first : last + 1]:
            with torch.compiler.set_stance("default" if stage.compile else "force_eager"):
                self._train_stage(stage, step, optimizer_states, stop)
            finished = self.export(self.folder / "stages" / stage.name)
            step, optimizer_states = 0, None
        return self.export(self.folder / "pipeline") if last == len(names) - 1 else finished

    def _start_from(self, pipeline: str) -> None:
        """Copies planner and transformer of a trained pipeline; the reconstruction head starts anew."""
        for name, model in (("planner", self.planner), ("transformer", self.transformer)):
            weights = type(model).from_pretrained(pipeline, subfolder=name).state_dict()
            own = model.state_dict()
            differing = sorted(
                k
                for k in own.keys() | weights.keys()
                if k not in own or k not in weights or own[k].shape != weights[k].shape
            )
            if differing:
                raise ValueError(
                    f"the {name} of {pipeline} (`init_from`) has other sizes than this run's: {len(differing)} tensors differ, "
                    f"the first is {differing[0]!r}; use the same `preset` and overrides, or start from scratch"
                )
            model.load_state_dict(weights)

    def _train_stage(
        self, stage: StageConfig, first_step: int, optimizer_states: list[dict] | None, stop: StopRequest
    ) -> None:
        config, accelerator = self.config, self.accelerator
        trains_planner = stage.trains in ("planner", "joint")
        trains_transformer = stage.trains in ("transformer", "joint")
        reconstructs = stage.trains == "planner" or (stage.trains == "joint" and stage.planner_loss_weight > 0)
        self.transformer.set_temporal_attention(stage.temporal_attention)
        model = MarDiniTrainingModel(
            self.planner if trains_planner else None,
            self.head if reconstructs else None,
            self.transformer if trains_transformer else None,
            self.scheduler,
            stage.planner_loss_weight,
        )
        optimizers = make_optimizers(model, config.optimizer, stage.learning_rate)
        for optimizer, state in zip(optimizers, optimizer_states or [], strict=bool(optimizer_states)):
            optimizer.load_state_dict(state)
        factor = learning_rate_factor(stage)
        model, *optimizers = accelerator.prepare(model, *optimizers)
        self.monitor.begin_stage(stage, first_step, self._rows(stage))
        sample_every = config.sample_every if self.validation_data is not None else 0
        if sample_every and self.windows_seen == 0:
            self._sample(stage, first_step)

        parts = range(stage.gradient_accumulation)
        for step, draws, batches in self.monitor.waiting(self._draw(stage, first_step)):
            # 1. Drawn; at which rate to learn
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = stage.learning_rate * factor(step)

            # 2. Learn, unless the loss or the gradient of any process is not finite
            losses: dict[str, torch.Tensor] = {}
            for part, batch in enumerate(batches):
                last_part = part + 1 == len(parts)
                with contextlib.nullcontext() if last_part else accelerator.no_sync(model), accelerator.autocast():
                    part_losses = {
                        name: loss / len(parts) for name, loss in model(batch.to(accelerator.device)).items()
                    }
                    accelerator.backward(part_losses["loss"])
                losses = {name: losses.get(name, 0) + loss.detach() for name, loss in part_losses.items()}
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            reason = stop.reason
            finite, stopping = self._agree(torch.isfinite(grad_norm + losses["loss"]), reason)
            norms = None if finite else grad_norms(self.models)
            if finite:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.optimizer.max_grad_norm, grad_norm)
                for optimizer in optimizers:
                    optimizer.step()
                self.ema.step(self.models.parameters())
                self.guard.in_a_row = 0
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            if not finite:
                self.guard.report(
                    accelerator, draws[0], self.global_step + 1, batches, losses, float(grad_norm), norms
                )
            self.global_step += 1
            self.windows_seen += self._rows(stage)
            self.monitor.step()

            # 3. Tell, check, keep
            last = step + 1 == stage.steps
            if self.global_step % config.log_every == 0 or last:
                self._log(stage, step + 1, losses, grad_norm, stage.learning_rate * factor(step))
            if self.validation_data is not None and (self.global_step % config.validate_every == 0 or last):
                self._validate(stage, step + 1)
            if sample_every and (self.global_step % sample_every == 0 or last):
                self._sample(stage, step + 1)
            if self.global_step % config.checkpoint_every == 0 or last or stopping:
                self._save(stage, step + 1, optimizers)
            if stopping:
                raise Stopped(reason or "another process was asked to")
        accelerator.free_memory()

    def _draw(self, stage: StageConfig, first_step: int) -> Iterator[tuple[int, list[Draw], list[Batch]]]:
        """What this process draws in each step of a stage from `first_step` on, one batch for each accumulated part."""
        parts = range(stage.gradient_accumulation)
        timesteps = self.scheduler.config.num_train_timesteps
        for step in range(first_step, stage.steps):
            draws = [
                Draw(
                    self.config.seed, stage.name, step, (self.accelerator.process_index * len(parts) + part) * stage.batch_size,
                    stage.batch_size, self._rows(stage), self.attempt,
                )
                for part in parts
            ]  # fmt: skip
            yield step, draws, [draw_batch(stage, self.train_data, timesteps, draw) for draw in draws]

    def _rows(self, stage: StageConfig) -> int:
        """Windows of one step, over all processes."""
        return stage.batch_size * stage.gradient_accumulation * self.accelerator.num_processes

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

    def _validate(self, stage: StageConfig, step: int) -> None:
        config = self.config
        with self._averages():
            losses = heldout_losses(
                self.planner, self.head, self.transformer, self.scheduler, self.validation_data, stage,
                config.validation_windows, config.seed, self.accelerator,
            )  # fmt: skip
            if config.quality_windows:
                windows = heldout_windows(self.validation_data, stage, config.quality_windows)
                losses |= heldout_quality(self._painter(), windows, stage)
        self._write({"stage": stage.name, "step": step, "heldout": losses})

    def _sample(self, stage: StageConfig, step: int) -> None:
        windows = heldout_windows(self.validation_data, stage, self.config.sample_windows)
        with self._averages():
            told = draw_samples(self._painter(), windows, stage, self.global_step, self.folder)
        self._write({"stage": stage.name, "step": step, "samples": told})
        track_sheets(
            self.accelerator, {task: self.folder / each["sheet"] for task, each in told.items()}, self.global_step
        )

    @contextlib.contextmanager
    def _averages(self) -> Iterator[None]:
        """Within it the models carry their averages, and run eagerly: for a few batches without gradients, of another size,
        compiling anew would cost minutes."""
        self.ema.store(self.models.parameters())
        self.ema.copy_to(self.models.parameters())
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.ema.restore(self.models.parameters())

    def _painter(self) -> Painter:
        config = self.config
        return Painter(
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

    def _save(self, stage: StageConfig, step: int, optimizers: list) -> None:
        failure: list[CheckpointError | None] = [None]
        if self.accelerator.is_main_process:
            names = [name for name, _ in self.models.named_parameters()]
            checkpoint = Checkpoint(
                dict(self.models.named_parameters()),
                dict(zip(names, self.ema.shadow_params, strict=True)),
                [optimizer.state_dict() for optimizer in optimizers],
                {
                    "stage": stage.name,
                    "step": step,
                    "global_step": self.global_step,
                    "windows_seen": self.windows_seen,
                    "ema_steps": self.ema.optimization_step,
                    "attempt": self.attempt,
                    "skipped": [self.guard.skipped, self.guard.in_a_row],
                    "shaped_by": self._shaped_by(stage.name),
                },  # fmt: skip
            )
            try:
                save_checkpoint(self.folder / "checkpoints", checkpoint, self.config.keep_checkpoints)
            except CheckpointError as error:
                failure = [error]
        # Told to all, so that no process waits for one that has failed.
        broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]

    def _shaped_by(self, stage_name: str) -> dict:
        """What the weights at this stage depend on; later stages may still be edited."""
        names = [stage.name for stage in self.config.stages]
        fields = shaping_fields(self.config, names[: names.index(stage_name) + 1])
        return fields | {
            f"stages.{stage.name}.windows_per_step": self._rows(stage)
            for stage in self.config.stages[: names.index(stage_name) + 1]
        }

    def _resume(self, start_at: str | None) -> tuple[str, int, list[dict] | None]:
        names = [stage.name for stage in self.config.stages]
        path = newest_checkpoint(self.folder / "checkpoints")
        if path is None:
            if start_at is not None and self.config.init_from is None and start_at != names[0]:
                raise ValueError(
                    f"stage {start_at!r} cannot be the first without weights to start from; give `init_from`, for example "
                    "the folder stages/<name> of another run"
                )
            first = names.index(start_at) if start_at else 0
            self.global_step = sum(stage.steps for stage in self.config.stages[:first])
            self._forget_records_after(-1)  # of a run that was killed before its first checkpoint
            return names[first], 0, None
        checkpoint = load_checkpoint(path)
        state = checkpoint.state
        if state["stage"] not in names:
            raise ValueError(
                f"{path} stands in stage {state['stage']!r}, which the configuration does not have ({names}); "
                "use the configuration it was trained with, or another `name` for a new run"
            )
        if start_at is not None and names.index(state["stage"]) < names.index(start_at):
            raise ValueError(
                f"{path} stands in stage {state['stage']!r}, before {start_at!r}; leave the stage out to go on from there, or use "
                "another `name` and `init_from`"
            )
        now = self._shaped_by(state["stage"])
        changed = [
            f"  {key}: {state['shaped_by'].get(key)!r} then, {now.get(key)!r} now"
            for key in sorted(now.keys() | state["shaped_by"].keys())
            if now.get(key) != state["shaped_by"].get(key) and key not in self.allow_change
        ]
        if changed:
            raise ValueError(
                "\n".join(
                    [f"{path} was trained with another configuration:", *changed,
                     "put these back, use another `name` for a new run, or accept them by name with --allow-change"]
                )
            )  # fmt: skip
        self.models.load_state_dict(checkpoint.weights)
        self.ema.shadow_params = [
            checkpoint.averages[name].to(self.accelerator.device) for name, _ in self.models.named_parameters()
        ]
        self.ema.optimization_step = state["ema_steps"]
        self.global_step, self.windows_seen = state["global_step"], state["windows_seen"]
        self.attempt = max(self.attempt, state["attempt"])
        self.guard.skipped, in_a_row = state["skipped"]
        self.guard.in_a_row = in_a_row if state["attempt"] == self.attempt else 0  # other draws: counted anew
        self._forget_records_after(self.global_step)
        self.accelerator.print(f"resuming {path}: stage {state['stage']}, step {state['step']}")
        return state["stage"], state["step"], checkpoint.optimizers

    def _forget_records_after(self, global_step: int) -> None:
        """Steps that ran after the checkpoint run again; `metrics.jsonl` tells of each once."""
        path = self.folder / "metrics.jsonl"
        if self.accelerator.is_main_process and path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["global_step"] <= global_step]
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(kept))
            temporary.replace(path)

    def export(self, folder: Path) -> Path:
        """Saves the averaged weights as a pipeline that `MarDiniPipeline.from_pretrained` loads; whole or absent."""
        if self.accelerator.is_main_process:
            names = [name for name, _ in self.models.named_parameters()]
            averages = dict(zip(names, self.ema.shadow_params, strict=True))
            models = {"vae": copy.deepcopy(self.vae)}
            for part in ("planner", "transformer"):
                model = self.models[part]
                # A copy from the config: the trained one may be compiled, and must not be rounded to `save_dtype`.
                models[part] = type(model).from_config(model.config)
                models[part].load_state_dict(
                    {n: averages.get(f"{part}.{n}", t) for n, t in model.state_dict().items()}
                )
            dtype = getattr(torch, self.config.save_dtype)
            for parameter in itertools.chain.from_iterable(model.parameters() for model in models.values()):
                parameter.data = parameter.data.to("cpu", dtype)
            pipeline = MarDiniPipeline(
                **models, scheduler=self.scheduler, planner_downscale=self.config.data.planner_downscale
            )
            temporary = folder.with_name(f".{folder.name}.partial")
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            pipeline.save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        self.accelerator.wait_for_everyone()
        return folder
