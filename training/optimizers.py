"""Which parameters learn by which rule."""

import torch

from .config import OptimizerConfig
from .muon import Muon


def learns_by_muon(name: str, parameter: torch.Tensor, config: OptimizerConfig) -> bool:
    """Whether Muon updates this parameter of the training model, rather than AdamW."""
    return config.name == "muon" and parameter.ndim == 2 and "transformer_blocks" in name


def make_optimizers(
    model: torch.nn.Module, config: OptimizerConfig, learning_rate: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything (the paper), or Muon for the matrices of the transformer blocks and AdamW for the rest.

    Norms, biases and learned tokens have no weight decay.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if learns_by_muon(name, p, config)]
    decayed = [p for name, p in named if p.ndim >= 2 and not learns_by_muon(name, p, config)]
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
