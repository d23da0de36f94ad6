"""Skip and report steps whose loss or gradient is not finite; after several in a row the run goes back.

Such a step would put NaN into every weight; skipping it in silence would hide the clip or the learning rate that
caused it. Weights and losses are checked, too: a run whose weights are absurd has failed, and neither saves nor
exports them.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from training.data.batches import Batch, Draw
from training.engine.sharding import local, whole
from training.files import write_whole


# Far above any weight of a model that learns: AdamW changes a weight by about the learning rate in a step.
MAX_WEIGHT = 1e6
# A loss is hopeless if it is so many times that of a model that predicts zeros.
MAX_LOSS = 100.0


class RunFailed(RuntimeError):
    """The run cannot continue; the message says why and what to do."""


class RollBack(Exception):
    """Too many steps in a row were not finite."""


class NonFiniteGuard:
    """Count skipped steps and write a report on each.

    Args:
        folder: of the reports, `nonfinite/` of the run.
        max_skipped: number of skipped steps in a row after which the run goes back.
    """

    def __init__(self, folder: Path, max_skipped: int):
        self.folder = folder
        self.max_skipped = max_skipped
        self.in_a_row = 0
        self.skipped = 0

    def report(
        self,
        accelerator: Accelerator,
        draw: Draw,
        global_step: int,
        batches: list[Batch],
        losses: dict[str, torch.Tensor],
        grad_norm: float,
        norms: dict[str, float],
    ) -> None:
        """Write what the processes know about a skipped step; every process must call it.

        Raises:
            RollBack: if it is the last of too many in a row.
        """
        mine = {
            "process": accelerator.process_index,
            "loss": {name: json_number(value.item()) for name, value in losses.items()},
            "windows": [window for batch in batches for window in batch.windows],
            "timesteps": [timestep for batch in batches for timestep in batch.timesteps.tolist()],
            "latents_are_finite": all(
                bool(torch.isfinite(latents).all()) for b in batches for latents in (b.latents, b.planner_latents)
            ),
        }
        processes = gather_object([mine])
        self.in_a_row += 1
        self.skipped += 1
        if accelerator.is_main_process:
            record = {
                "global_step": global_step, "stage": draw.stage, "step": draw.step, "seed": draw.seed,
                "attempt": draw.attempt, "in_a_row": self.in_a_row, "grad_norm": json_number(grad_norm),
                "grad_norm_by_module": norms, "processes": processes,
            }  # fmt: skip
            path = self.folder / f"step-{global_step:08d}-attempt-{draw.attempt}.json"
            write_whole(path, json.dumps(record, indent=1))
            accelerator.print(f"stage {draw.stage!r}, step {draw.step}: not finite, left out; see {path}")
        if self.in_a_row >= self.max_skipped:
            raise RollBack(f"{self.in_a_row} steps in a row were not finite; the reports lie in {self.folder}")


def grad_norms(models: torch.nn.ModuleDict) -> dict[str, float | str]:
    """Return the gradient norms of every block and every other child of the models; every process must call it."""
    norms = {}
    for name, model in models.items():
        for child, module in model.named_children():
            parts = module.named_children() if isinstance(module, torch.nn.ModuleList) else [("", module)]
            for part, submodule in parts:
                grads = [whole(p.grad.norm()) for p in submodule.parameters() if p.grad is not None]
                if grads:
                    key = ".".join(filter(None, (name, child, part)))
                    norms[key] = json_number(float(torch.stack(grads).norm()))
    return norms


@torch.no_grad()
def absurd_weights(tensors: Mapping[str, torch.Tensor], limit: float = MAX_WEIGHT) -> list[str]:
    """Return the names of tensors with a value, in this process's shard, that is not finite or beyond `limit`."""
    mine = {name: local(tensor) for name, tensor in tensors.items()}
    mine = {name: tensor for name, tensor in mine.items() if tensor.numel()}
    if not mine:
        return []
    largest = torch.stack(torch._foreach_norm(list(mine.values()), float("inf"))).float().tolist()
    return [name for name, value in zip(mine, largest) if not value <= limit]


def hopeless_losses(losses: Mapping[str, float], latents: Iterable[torch.Tensor], finite_only: bool) -> list[str]:
    """Return the names of losses that are not finite or, unless `finite_only`, beyond `MAX_LOSS`.

    Args:
        losses: mean squared errors of latents or velocities, by name.
        latents: the latents that they were measured on.
        finite_only: accept large losses.
    """
    zeros = zeros_loss(latents)
    limit = math.inf if finite_only or not math.isfinite(zeros) else MAX_LOSS * zeros
    return [name for name, value in losses.items() if not (math.isfinite(value) and value <= limit)]


def zeros_loss(latents: Iterable[torch.Tensor]) -> float:
    """Return the most that a model that predicts zeros loses, whether it predicts latents or velocities."""
    return 1 + max(float(each.float().square().mean()) for each in latents)  # v = alpha eps - sigma z


def json_number(value: float) -> float | str:
    """Return the number, or its name if it is not finite: JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else str(value)
