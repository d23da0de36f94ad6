"""ZeRO stages 1 and 2 by DeepSpeed: weights whole in every process, moments and (stage 2) gradients in shards. All that is DeepSpeed's is here.

accelerate's launcher says whether (`training/configs/accelerate/deepspeed_zero2.yaml`); the engine is made here and not by
`Accelerator.prepare`, whose backward pass steps at once: this trainer looks at the gradient before it lets the engine step. The engine
keeps weights in float32 and runs forward passes under autocast, so that averages, evaluations and checkpoints are those of DDP.
Written for, and held against, the insides of DeepSpeed 0.19.6; others are refused where they differ.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin

from training.config.schema import OptimizerConfig
from training.engine.gradient_steps import Learner
from training.engine.optimizers import make_optimizers
from training.losses import MarDiniTrainingModel


VERSION = "0.19.6"
# What is read of DeepSpeed beside its documented interface.
_INSIDES = ("bit16_groups", "single_partition_of_fp32_groups", "averaged_gradients", "overflow", "optimizer")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def zero_plugin(accelerator: Accelerator) -> DeepSpeedPlugin | None:
    """accelerate's settings of DeepSpeed, as its launcher hands them on; `None` where it was not asked for or one process has nothing
    to share."""
    asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    return DeepSpeedPlugin() if asked and accelerator.num_processes > 1 else None


def zero_problems(accelerator: Accelerator, optimizer: OptimizerConfig) -> list[str]:
    """What keeps DeepSpeed, where it was asked for, from training as it was asked to: in words, each with the way out."""
    plugin = zero_plugin(accelerator)
    return [] if plugin is None else [f"DeepSpeed: {problem}" for problem in _problems(plugin, optimizer)]


def _problems(plugin: DeepSpeedPlugin, optimizer: OptimizerConfig) -> list[str]:
    problems = []
    if importlib.util.find_spec("deepspeed") is None:
        problems.append(
            f"deepspeed is not installed; `pip install deepspeed=={VERSION}`, or use fsdp2_keep_parameters.yaml"
        )
    if plugin.zero_stage == 3:
        problems.append(
            "zero_stage: 3; use training/configs/accelerate/fsdp2.yaml, which shards the same, weights included"
        )
    elif plugin.zero_stage not in (1, 2):
        problems.append(f"zero_stage: {plugin.zero_stage}; set it to 1 or 2, or use ddp.yaml, which shards nothing")
    if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        problems.append("deepspeed_config_file; leave it out: the engine's settings follow from the run's file")
    if plugin.offload_optimizer_device not in ("none", None):
        problems.append(
            "offload_optimizer_device; leave it out: more processes or `gradient_checkpointing` lower the memory"
        )
    if plugin.gradient_clipping not in ("auto", None):
        problems.append("gradient_clipping; leave it out, and set `optimizer.max_grad_norm` in the run's file")
    if plugin.gradient_accumulation_steps not in ("auto", 1):
        problems.append(
            "gradient_accumulation_steps; leave it out, and set `gradient_accumulation` of the run's stages"
        )
    if optimizer.name == "muon":
        problems.append(
            "`optimizer.name: muon` of the run's file: it needs whole matrices, which DeepSpeed cuts up; set adamw, or use "
            "training/configs/accelerate/fsdp2.yaml"
        )
    return problems


class ZeroLearner(Learner):
    """A learner whose gradients and moments lie in shards; its state is that of AdamW in one process.

    Raises:
        RuntimeError: if this version of DeepSpeed differs inside from the one that this was written for.
    """

    def __init__(
        self, model: MarDiniTrainingModel, config: OptimizerConfig, learning_rate: float, accelerator: Accelerator
    ):
        if accelerator.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # it would look for another device by itself
        import deepspeed

        self.config = config
        self.accelerator = accelerator
        self.optimizers = make_optimizers(model, config, learning_rate)
        (adamw,) = self.optimizers
        # Parameters in the order in which AdamW numbers them, by the group that becomes one flat tensor.
        self._groups = [list(group["params"]) for group in adamw.param_groups]
        self.model, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw,
            config=engine_settings(zero_plugin(accelerator).zero_stage, config, accelerator.mixed_precision == "bf16"),
            dist_init_required=False,
        )
        self._zero = self.model.optimizer
        self._check_insides(deepspeed.__version__)

    @contextlib.contextmanager
    def _part(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def _send_back(self, loss: torch.Tensor) -> None:
        self.model.backward(loss)

    @torch.no_grad()
    def grad_norm(self) -> torch.Tensor:
        # Not the engine's own norm: it takes -1 for that of a group which is not finite, and is finite itself.
        total = torch.zeros((), device=self.accelerator.device)
        for pieces in self._zero.averaged_gradients.values():
            for piece in pieces:
                total += piece.float().square().sum()
        dist.all_reduce(total)
        return total.sqrt()

    def step(self, grad_norm: torch.Tensor) -> None:
        self.model.step()  # clips as well

    def skip(self) -> None:
        self._zero.overflow = True  # as after a gradient that is too large for float16: it is dropped everywhere
        self.model.step()
        self._zero.overflow = False

    def state(self) -> tuple[dict[str, torch.Tensor], list[dict]]:
        adamw, main = self._zero.optimizer, self.accelerator.is_main_process
        groups = adamw.state_dict()["param_groups"]
        tensors: dict[str, torch.Tensor] = {}
        for group, (first, parameters, flat) in zip(groups, self._flat_groups(), strict=True):
            group["params"] = list(range(first, first + len(parameters)))
            state = adamw.state.get(flat, {})  # none before the first step
            moments = {name: self._gather(state[name]) for name in _MOMENTS if state}
            begin = 0
            for number, parameter in enumerate(parameters if main and state else (), start=first):
                end = begin + parameter.numel()
                tensors |= {
                    f"0.{number}.{name}": whole[begin:end].view_as(parameter) for name, whole in moments.items()
                }
                tensors[f"0.{number}.step"] = state["step"].cpu()
                begin = end
        return tensors, [{"param_groups": groups, "state": {}}]

    def _gather(self, shard: torch.Tensor) -> torch.Tensor:
        """All processes' shards, one after the other, on the main process's CPU; nothing on the others."""
        received = []
        for owner in range(dist.get_world_size()):
            sent = shard.clone() if owner == dist.get_rank() else torch.empty_like(shard)
            dist.broadcast(sent, src=owner)
            received.append(sent.cpu() if self.accelerator.is_main_process else sent[:0])
        return torch.cat(received)

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor], rest: list[dict]) -> None:
        if len(rest) != 1:
            raise ValueError("the checkpoint was made with Muon, which DeepSpeed cannot go on with; use fsdp2.yaml")
        for first, parameters, flat in self._flat_groups():
            if f"0.{first}.step" not in tensors:
                continue
            state = {"step": tensors[f"0.{first}.step"].to(flat.device)}
            mine = dist.get_rank() * flat.numel()
            for name in _MOMENTS:
                state[name], begin = torch.zeros_like(flat), -mine  # where the next parameter begins in this shard
                for number, parameter in enumerate(parameters, start=first):
                    low, high = max(begin, 0), min(begin + parameter.numel(), flat.numel())
                    if low < high:
                        state[name][low:high] = tensors[f"0.{number}.{name}"].flatten()[low - begin : high - begin]
                    begin += parameter.numel()
            self._zero.optimizer.state[flat] = state

    def close(self) -> None:
        self.model.destroy()  # its hooks on the parameters, above all
        super().close()

    def _flat_groups(self) -> Iterator[tuple[int, list[torch.Tensor], torch.Tensor]]:
        """For each group the number of its first parameter, its parameters, and this process's shard of all of them, padded at the end."""
        first = 0
        for parameters, flat in zip(self._groups, self._zero.single_partition_of_fp32_groups, strict=True):
            yield first, parameters, flat
            first += len(parameters)

    def _check_insides(self, version: str) -> None:
        missing = [name for name in _INSIDES if not hasattr(self._zero, name)]
        same_order = not missing and all(
            len(own) == len(theirs) and all(a is b for a, b in zip(own, theirs))
            for own, theirs in zip(self._groups, self._zero.bit16_groups, strict=True)
        )
        float32 = all(parameter.dtype == torch.float32 for parameter in self.model.parameters())
        autocasts = getattr(self.model, "torch_autocast_enabled", lambda: None)()
        if not same_order or not float32 or autocasts is not (self.accelerator.mixed_precision == "bf16"):
            raise RuntimeError(
                f"DeepSpeed {version} differs inside from {VERSION}, which this trainer was written for ({missing=}, {same_order=}, "
                f"{float32=}, {autocasts=}); install that version, or use training/configs/accelerate/fsdp2_keep_parameters.yaml"
            )


def engine_settings(zero_stage: int, config: OptimizerConfig, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: what the run's file says, and nothing that the trainer does itself (rates, batches, checkpoints)."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # only for its own throughput: the trainer deals out the windows
        "gradient_accumulation_steps": 1,  # parts are told to the engine one by one, and their losses are divided already
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": zero_stage, "round_robin_gradients": False},
        "zero_allow_untested_optimizer": True,  # torch's AdamW, fused
        "zero_force_ds_cpu_optimizer": False,
        # Weights in float32 under autocast, as everywhere else in this trainer; no module's gradients are summed in bfloat16.
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "steps_per_print": 10**9,
    }
