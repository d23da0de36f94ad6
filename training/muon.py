"""Muon (Jordan et al. 2024): momentum made orthogonal, for the matrices of the blocks. The paper's recipe is AdamW; this is ours.

`torch.optim.Muon` orthogonalizes in bfloat16 and on every process; here that dtype is for hardware that multiplies it only (a
CPU without such units is several times slower with it), and the processes share the matrices between them.
"""

import torch
import torch.distributed as dist

from diffusers_mardini.hardware import has_bfloat16_units


# Quintic Newton-Schulz iteration: these coefficients bring singular values near 1 in five rounds, from anywhere in (0, 1].
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Replaces the singular values of a matrix `(rows, columns)` by values near 1."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for 2-dimensional parameters.

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
        """Updates all parameters; every process must call it with the same gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        device = self.param_groups[0]["params"][0].device
        dtype = torch.bfloat16 if has_bfloat16_units(device) else torch.float32
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
            updates = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in parameters]), parameters)]
            # Largest first, dealt out in turn: the processes get nearly equal work.
            order = sorted(range(len(parameters)), key=lambda i: -parameters[i].numel())
            for turn, i in enumerate(order):
                parameter = parameters[i]
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                if turn % world == rank:
                    update = orthogonalize(parameter.grad.lerp(state["momentum"], group["momentum"]).to(dtype))
                    updates[i].copy_(update * 0.2 * max(parameter.shape) ** 0.5)
            if shared:
                dist.all_reduce(flat)
            for parameter, update in zip(parameters, updates):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
        return loss
