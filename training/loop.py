"""The loop: stages in order, steps in order, resumed from the newest checkpoint.

The parts stand apart: what a step draws in `curriculum.py`, the losses in `step.py`, the state on disk in `checkpoint.py`.
"""

import json
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffusers_mardini import (
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.presets import load_preset

from .checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from .config import RunConfig, StageConfig
from .curriculum import draw_batch, learning_rate_factor
from .data.latents import LatentClips
from .heldout import heldout_losses
from .optimizers import make_optimizers
from .randomness import step_generator
from .step import MarDiniTrainingModel, PlannerReconstructionHead


class Run:
    """The models of a run and where it stands; `train` carries it to the end of its last stage."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        vae: torch.nn.Module,
        train_data: LatentClips,
        validation_data: LatentClips | None,
        folder: Path,
    ):
        self.config = config
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
        self.global_step = 0
        self.windows_seen = 0

    def train(self) -> Path:
        """Trains every stage from where the newest checkpoint stands; returns the folder of the finished pipeline."""
        stage_name, step, optimizer_states = self._resume()
        names = [stage.name for stage in self.config.stages]
        first = names.index(stage_name) if stage_name else 0
        for stage in self.config.stages[first:]:
            with torch.compiler.set_stance("default" if stage.compile else "force_eager"):
                self._train_stage(stage, step, optimizer_states)
            step, optimizer_states = 0, None
        return self.export(self.folder / "pipeline")

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

    def _train_stage(self, stage: StageConfig, first_step: int, optimizer_states: list[dict] | None) -> None:
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
        started, started_at = time.monotonic(), self.windows_seen
        bar = tqdm(
            total=stage.steps, initial=first_step, desc=stage.name, unit="step", disable=not accelerator.is_main_process,
            mininterval=5.0,
        )  # fmt: skip

        for step in range(first_step, stage.steps):
            # 1. Draw
            generator = step_generator(config.seed, stage.name, step, accelerator.process_index)
            batch = draw_batch(stage, self.train_data, self.scheduler.config.num_train_timesteps, generator)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = stage.learning_rate * factor(step)

            # 2. Learn
            with accelerator.autocast():
                losses = model(batch.to(accelerator.device))
            accelerator.backward(losses["loss"])
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm)
            if not torch.isfinite(grad_norm):
                raise RuntimeError(
                    f"the gradient of stage {stage.name!r}, step {step} is not finite; the last checkpoint in "
                    f"{self.folder / 'checkpoints'} is untouched. Lower `learning_rate` or raise `warmup_steps` and start again"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.ema.step(self.models.parameters())
            self.global_step += 1
            self.windows_seen += stage.batch_size * accelerator.num_processes

            # 3. Tell, check, keep
            last = step + 1 == stage.steps
            if self.global_step % config.log_every == 0 or last:
                rate = (self.windows_seen - started_at) / (time.monotonic() - started)
                self._log(stage, step + 1, losses, grad_norm, stage.learning_rate * factor(step), rate)
                bar.set_postfix(loss=f"{losses['loss'].item():.3f}", windows_per_s=f"{rate:.2f}", refresh=False)
            bar.update()
            if self.validation_data is not None and (self.global_step % config.validate_every == 0 or last):
                self._validate(stage, step + 1)
            if self.global_step % config.checkpoint_every == 0 or last:
                self._save(stage, step + 1, optimizers)
        bar.close()
        accelerator.free_memory()

    def _log(self, stage: StageConfig, step: int, losses: dict, grad_norm, learning_rate: float, rate: float) -> None:
        means = {name: self.accelerator.reduce(value.detach(), "mean").item() for name, value in losses.items()}
        self._write(
            {"stage": stage.name, "step": step, **means, "grad_norm": float(grad_norm), "learning_rate": learning_rate,
             "windows_per_second": round(rate, 3)}
        )  # fmt: skip

    def _validate(self, stage: StageConfig, step: int) -> None:
        self.ema.store(self.models.parameters())
        self.ema.copy_to(self.models.parameters())
        # Eagerly: for a few batches without gradients, of another size, compiling anew would cost minutes.
        with torch.compiler.set_stance("force_eager"):
            losses = heldout_losses(
                self.planner, self.head, self.transformer, self.scheduler, self.validation_data, stage,
                self.config.validation_windows, self.config.seed, self.accelerator,
            )  # fmt: skip
        self.ema.restore(self.models.parameters())
        self._write({"stage": stage.name, "step": step, "heldout": losses})

    def _write(self, record: dict) -> None:
        if self.accelerator.is_main_process:
            record = {"global_step": self.global_step, "windows_seen": self.windows_seen, **record}
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")

    def _save(self, stage: StageConfig, step: int, optimizers: list) -> None:
        if self.accelerator.is_main_process:
            names = [name for name, _ in self.models.named_parameters()]
            save_checkpoint(
                self.folder / "checkpoints",
                dict(self.models.named_parameters()),
                dict(zip(names, self.ema.shadow_params, strict=True)),
                [optimizer.state_dict() for optimizer in optimizers],
                {
                    "stage": stage.name,
                    "step": step,
                    "global_step": self.global_step,
                    "windows_seen": self.windows_seen,
                    "ema_steps": self.ema.optimization_step,
                },  # fmt: skip
                self.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def _resume(self) -> tuple[str | None, int, list[dict] | None]:
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if not checkpoints:
            return None, 0, None
        weights, averages, optimizers, state = load_checkpoint(checkpoints[-1])
        names = [stage.name for stage in self.config.stages]
        if state["stage"] not in names:
            raise ValueError(
                f"{checkpoints[-1]} stands in stage {state['stage']!r}, which the configuration does not have ({names}); "
                "use the configuration it was trained with, or another `name` for a new run"
            )
        self.models.load_state_dict(weights)
        self.ema.shadow_params = [
            averages[name].to(self.accelerator.device) for name, _ in self.models.named_parameters()
        ]
        self.ema.optimization_step = state["ema_steps"]
        self.global_step, self.windows_seen = state["global_step"], state["windows_seen"]
        self._forget_records_after(self.global_step)
        self.accelerator.print(f"resuming {checkpoints[-1]}: stage {state['stage']}, step {state['step']}")
        return state["stage"], state["step"], optimizers

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
            self.ema.store(self.models.parameters())
            self.ema.copy_to(self.models.parameters())
            dtype = getattr(torch, self.config.save_dtype)
            pipeline = MarDiniPipeline(
                vae=self.vae, planner=self.planner, transformer=self.transformer, scheduler=self.scheduler,
                planner_downscale=self.config.data.planner_downscale,
            )  # fmt: skip
            temporary = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            pipeline.to("cpu", dtype).save_pretrained(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
            pipeline.to(self.accelerator.device, torch.float32)
            self.ema.restore(self.models.parameters())
        self.accelerator.wait_for_everyone()
        return folder
