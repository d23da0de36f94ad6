"""Gradient steps of a stage: backward passes of a step's parts, the gradient's norm, then an optimizer step or none.

Works for one process, for copies (DDP) and for shards (FSDP2). Which steps are taken is decided in `loop.py`; the
losses are in `losses.py`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from accelerate import Accelerator
from torch import nn

from training.config.schema import OptimizerConfig
from training.data.batches import Batch
from training.engine.optimizers import load_optimizers, make_optimizers, optimizer_tensors
from training.engine.sharding import data_parallel, gradients_kept_local, layout_of, whole


class GradientSteps:
    """Compute gradients of a stage's training model and step its optimizers; every process must call every method.

    Args:
        model: returns the losses of a batch by name, `loss` among them; on its device, and sharded if ever.
        config: which parameters learn by which rule, and the clipping.
        learning_rate: of the stage, at its peak.
        accelerator: the processes and the precision.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, learning_rate: float, accelerator: Accelerator):
        self.config = config
        self.accelerator = accelerator
        self.ranks = layout_of(accelerator).data_ranks
        self.optimizers = make_optimizers(model, config, learning_rate)
        self.model = data_parallel(model, accelerator)

    @property
    def learning_rate(self) -> float:
        """Return the rate of the last step, as the optimizers have it."""
        return self.optimizers[0].param_groups[0]["lr"]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the rate of the next step."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def backward(self, batches: Sequence[Batch], shares: Sequence[Fraction]) -> dict[str, torch.Tensor]:
        """Add up the gradients of a step's parts; return this process's losses, whose mean over all is the step's.

        Gradients are sent between processes once, with the last part.

        Args:
            batches: the parts; every process has as many.
            shares: of the step's loss, see `Draw.share`.
        """
        losses: dict[str, torch.Tensor] = {}
        for part, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            is_last = part + 1 == len(batches)
            local = contextlib.nullcontext() if is_last else gradients_kept_local(self.model, self.accelerator)
            with local, self.accelerator.autocast():
                # Processes' losses and gradients are averaged, whatever their shares. Equal shares divide by the number
                # of parts, to the bit.
                weight = share * self.ranks
                # Without names of clips: a compiled step would be compiled anew for others.
                inputs = replace(batch.to(self.accelerator.device), windows=())
                part_losses = {
                    name: loss * weight.numerator / weight.denominator for name, loss in self.model(inputs).items()
                }
                self.accelerator.backward(part_losses["loss"])
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in part_losses.items()}
        return losses

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient over all processes; not finite if the gradient is not."""
        return whole(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))

    def step(self, grad_norm: torch.Tensor) -> None:
        """Clip the gradient, whose norm is given, step the optimizers and drop the gradient."""
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.max_grad_norm, grad_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.skip()

    def skip(self) -> None:
        """Drop the gradient."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> tuple[dict[str, torch.Tensor], list[dict]]:
        """Return the result of `optimizer_tensors`; the tensors of shards are sharded like them."""
        return optimizer_tensors(self.optimizers)

    def load_state(self, tensors: Mapping[str, torch.Tensor], rest: list[dict]) -> None:
        """Restore what `state` returned, whichever way the processes shared it then."""
        load_optimizers(self.optimizers, tensors, rest)

    def close(self) -> None:
        """Release the parameters for the next stage."""
        self.accelerator.free_memory()
