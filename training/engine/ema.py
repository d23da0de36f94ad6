"""The moving average of the weights: what is evaluated and exported.

Sharded as the weights are, since an average is taken entry by entry: no process holds or sends more than its shards.
"""

import contextlib
from collections.abc import Iterator

import torch

from training.engine.optimizers import learned
from training.engine.sharding import local, reshard


class AveragedWeights:
    """Exponential moving average of a module's parameters, with the warm-up of diffusers' `EMAModel`.

    All parameters are averaged at every update, those that a stage does not train as well; frozen ones have no average.

    Args:
        model: on its device and sharded, if it is going to be.
        decay: of the average, after the warm-up `(1 + updates) / (10 + updates)`.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model = model
        self.decay = decay
        self.updates = 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in learned(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after an optimizer step in; the first time it takes them over."""
        decay = min((1 + self.updates) / (10 + self.updates), self.decay) if self.updates > 0 else 0.0
        self.updates += 1
        averages = [local(tensor) for tensor in self.tensors.values()]
        weights = [local(parameter) for parameter in learned(self.model).values()]
        torch._foreach_sub_(averages, torch._foreach_sub(averages, weights), alpha=1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Within, the model has the averages as its weights; afterwards its own, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self.model)  # an evaluation leaves the gathered weights in the shards' place
        for average, parameter in zip(self.tensors.values(), learned(self.model).values(), strict=True):
            mine, theirs = local(average), local(parameter)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
