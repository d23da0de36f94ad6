"""Muon (Jordan et al. 2024): orthogonalized momentum for the matrices of the blocks; the paper uses AdamW.

`torch.optim.Muon` orthogonalizes in bfloat16 and repeats the work on every process. Here bfloat16 is used only by
hardware that multiplies it (a CPU without such units is several times slower with it), and the processes share the
matrices.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from diffusers_mardini.hardware import has_bfloat16_units
from training.engine.sharding import sharded_like


# Quintic Newton-Schulz iteration: these coefficients bring singular values from (0, 1] near 1 in five rounds.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix `(rows, columns)` with its singular values replaced by values near 1."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Update 2-dimensional parameters by Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: matrices, all on one device.
        lr: learning rate; an update's entries have a root mean square of 0.2 `lr`, so that AdamW's rates can be used.
        momentum: decay of the gradient's average.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices only, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters; every process must call it, with the same gradients or its shards of them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Largest first, in turn: the processes get nearly equal work.
            parameters = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: -p.numel())
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])

            def direction(parameter: torch.Tensor, momentum: float = group["momentum"]) -> torch.Tensor:
                return parameter.grad.lerp(self.state[parameter]["momentum"], momentum)

            sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
            for parameter, update in (_updates_of_shards if sharded else _updates)(parameters, direction):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        return loss


def _update(direction: torch.Tensor) -> torch.Tensor:
    dtype = torch.bfloat16 if has_bfloat16_units(direction.device) else torch.float32
    return orthogonalize(direction.to(dtype)) * 0.2 * max(direction.shape) ** 0.5


def _updates(
    parameters: list[torch.Tensor], direction: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield whole parameters with their updates: each is computed by one process, all are sent at once."""
    rank, world = _rank_and_world()
    if world == 1:
        for parameter in parameters:
            yield parameter, _update(direction(parameter)).float()
        return
    if not parameters:
        return
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    updates = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in parameters]), parameters)]
    for turn, (parameter, update) in enumerate(zip(parameters, updates)):
        if turn % world == rank:
            update.copy_(_update(direction(parameter)))
    dist.all_reduce(flat)
    yield from zip(parameters, updates)


def _updates_of_shards(
    parameters: list[torch.Tensor], direction: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield sharded parameters with their updates, sharded alike.

    Gathers as many matrices at a time as there are processes; each is orthogonalized by one process, which sends it to
    the others.
    """
    rank, world = _rank_and_world()
    for first in range(0, len(parameters), world):
        chosen = parameters[first : first + world]
        matrices = [direction(parameter).full_tensor().contiguous() for parameter in chosen]
        for owner, matrix in enumerate(matrices):
            if owner == rank:
                matrix.copy_(_update(matrix))
        for owner, (parameter, matrix) in enumerate(zip(chosen, matrices)):
            dist.broadcast(matrix, src=owner)
            yield parameter, sharded_like(matrix, parameter)


def _rank_and_world() -> tuple[int, int]:
    shared = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
