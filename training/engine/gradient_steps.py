"""How the models of a stage learn: backward passes of a step's parts, the norm of the whole gradient, then a step or none.

Here for one process, for copies (DDP) and for shards (FSDP2); DeepSpeed's way is in `zero.py`. Which steps are taken is decided in `loop.py`.
"""

import contextlib
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from training.config.schema import OptimizerConfig
from training.curriculum import Batch
from training.engine.optimizers import load_optimizers, make_optimizers, optimizer_tensors
from training.engine.sharding import data_parallel, gather, gradients_kept_local, whole
from training.losses import MarDiniTrainingModel


class Learner:
    """The training model of a stage with its optimizers; every process must call every method.

    Args:
        model: the stage's, on its device and sharded, if it is going to be.
        config: which parameters learn by which rule, and the clipping.
        learning_rate: of the stage, at its peak.
        accelerator: the processes and the precision.
    """

    def __init__(
        self, model: MarDiniTrainingModel, config: OptimizerConfig, learning_rate: float, accelerator: Accelerator
    ):
        self.config = config
        self.accelerator = accelerator
        self.optimizers = make_optimizers(model, config, learning_rate)
        self.model = data_parallel(model, accelerator)

    @property
    def learning_rate(self) -> float:
        """Of the step that was taken last, as the optimizers have it."""
        return self.optimizers[0].param_groups[0]["lr"]

    def set_learning_rate(self, learning_rate: float) -> None:
        """For the next step."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def backward(self, batches: list[Batch]) -> dict[str, torch.Tensor]:
        """Adds the gradients of a step's parts up, sent between processes with the last one; returns this process's mean losses."""
        losses: dict[str, torch.Tensor] = {}
        for part, batch in enumerate(batches):
            with self._part(last=part + 1 == len(batches)), self.accelerator.autocast():
                part_losses = {
                    name: loss / len(batches) for name, loss in self.model(batch.to(self.accelerator.device)).items()
                }
                self._send_back(part_losses["loss"])
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in part_losses.items()}
        return losses

    def _part(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else gradients_kept_local(self.model, self.accelerator)

    def _send_back(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def grad_norm(self) -> torch.Tensor:
        """Of the whole gradient, over all processes, before clipping; a scalar that is not finite where the gradient is not."""
        return whole(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))

    def step(self, grad_norm: torch.Tensor) -> None:
        """Clips the gradient, whose norm is given, takes the step and forgets the gradient."""
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.skip()

    def skip(self) -> None:
        """Forgets the gradient."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, torch.Tensor], list[dict]]:
        """The optimizers' state as `optimizer_tensors` has it: whole tensors, on the main process only, and the rest."""
        tensors, rest = optimizer_tensors(self.optimizers)
        return gather(tensors, self.accelerator), rest

    def load_state(self, tensors: Mapping[str, torch.Tensor], rest: list[dict]) -> None:
        """Puts what `state` returned in place, whichever way its processes shared it."""
        load_optimizers(self.optimizers, tensors, rest)

    def close(self) -> None:
        """Lets the parameters go, for another stage's learner."""
        self.accelerator.free_memory()
