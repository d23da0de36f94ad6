"""Which parameters learn by which rule."""

import torch

from .config import OptimizerConfig
from .muon import Muon


def make_optimizers(
    model: torch.nn.Module, config: OptimizerConfig, learning_rate: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything (the paper), or Muon for the matrices of the transformer blocks and AdamW for the rest.

    Norms, biases and learned tokens have no weight decay.
    """

    def by_muon(name: str, parameter: torch.Tensor) -> bool:
        return config.name == "muon" and parameter.ndim == 2 and "transformer_blocks" in name

    named = list(model.named_parameters())
    matrices = [p for name, p in named if by_muon(name, p)]
    decayed = [p for name, p in named if p.ndim >= 2 and not by_muon(name, p)]
    others = [p for name, p in named if p.ndim < 2]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, lr=learning_rate, weight_decay=config.weight_decay)]
