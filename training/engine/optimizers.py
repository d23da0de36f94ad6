"""Optimizers of a stage (AdamW; Muon, of `muon.py`, for matrices), and their state as named tensors."""

from collections.abc import Mapping

import torch

from training.config.schema import OptimizerConfig
from training.engine.muon import Muon
from training.engine.sharding import read_like


def learned(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that a run learns, averages and saves in checkpoints, by name: all but frozen ones."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def learns_by_muon(name: str, parameter: torch.Tensor, config: OptimizerConfig) -> bool:
    """Return whether Muon updates this parameter of the training model, rather than AdamW."""
    return config.name == "muon" and parameter.ndim == 2 and "transformer_blocks" in name


def make_optimizers(
    model: torch.nn.Module, config: OptimizerConfig, learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Return AdamW for everything (the paper), or AdamW and, for the matrices of the transformer blocks, Muon.

    Norms, biases and learned tokens have no weight decay.
    """
    named = list(learned(model).items())
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


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Return the state of optimizers: tensors named `<optimizer>.<parameter>.<name>`, and the rest of each as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    rest = []
    for index, optimizer in enumerate(optimizers):
        state_dict = optimizer.state_dict()
        plain: dict[str, dict] = {}
        for parameter, values in state_dict["state"].items():
            for name, value in values.items():
                if torch.is_tensor(value):
                    tensors[f"{index}.{parameter}.{name}"] = value
                else:
                    plain.setdefault(str(parameter), {})[name] = value
        rest.append({"param_groups": state_dict["param_groups"], "state": plain})
    return tensors, rest


def load_optimizers(
    optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, torch.Tensor], rest: list[dict]
) -> None:
    """Restore whole tensors of `optimizer_tensors` into optimizers of the same parameters, sharded or not.

    Keeps the optimizers' own decays and rates, so that a change accepted by `--allow-change` takes effect.
    """
    for index, (optimizer, own) in enumerate(zip(optimizers, rest, strict=True)):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = {int(parameter): dict(values) for parameter, values in own["state"].items()}
        for key in tensors:
            number, parameter, name = key.split(".", 2)
            if int(number) == index:
                value = read_like(tensors, key, parameters[int(parameter)])
                state.setdefault(int(parameter), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
