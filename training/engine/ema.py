"""The moving average of the weights, which is evaluated and exported.

Averages are sharded like the weights: each process updates its shards and sends nothing.
"""

import contextlib
from collections.abc import Iterator

import torch

from training.engine.optimizers import learned
from training.engine.sharding import local, reshard


class AveragedWeights:
    """Keep an exponential moving average of a module's parameters, with the warm-up of diffusers' `EMAModel`.

    Every update averages all parameters, even those that the stage does not train; frozen ones have no average.

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
        """Add the weights after an optimizer step to the average; the first update copies them."""
        decay = min((1 + self.updates) / (10 + self.updates), self.decay) if self.updates > 0 else 0.0
        self.updates += 1
        averages = [local(tensor) for tensor in self.tensors.values()]
        weights = [local(parameter) for parameter in learned(self.model).values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # in place: the weights are not copied

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model the averages as its weights within the block; afterwards its own, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        reshard(self.model)  # an evaluation leaves gathered weights in place of the shards
        for average, parameter in zip(self.tensors.values(), learned(self.model).values(), strict=True):
            mine, theirs = local(average), local(parameter)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
