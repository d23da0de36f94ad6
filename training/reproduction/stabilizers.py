"""Run a program with models that have other stabilizers than identity attention (Sec. 2.3.2), for training/runs/stabilizers.sh.

    python -m training.reproduction.stabilizers --marks -m training.train_mardini CONFIG

`--marks` adds a learned embedding to the tokens of reference frames, in both models; `--batch-norm` puts batch
normalization in place of the norm before the attention across frames. Neither is an option of the models, since no
checkpoint is meant to have them: what is trained through this program is sampled through it, too, with the same
options. Other models than this program's have no such weights.
"""

import argparse
import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from diffusers_mardini import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from training.costs import forget_counts


MODELS = (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel)
# Of the running statistics: an average over about ten steps, of which the run's average of weights takes the mean.
MOMENTUM = 0.1


class TokenBatchNorm(nn.Module):
    """Batch normalization of tokens: each channel by its mean and variance over all tokens of the batch.

    In training the batch's own statistics are used, and averaged for sampling. The averages are parameters without a
    gradient, so that they are saved, averaged and exported as weights are; optimizers leave them alone.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.running_mean = nn.Parameter(torch.zeros(dim))
        self.running_variance = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalize the last axis of `(batch, frames, tokens, dim)` in float32; return the input's dtype."""
        tokens = hidden_states.float()
        if self.training:
            variance, mean = torch.var_mean(tokens, dim=(0, 1, 2), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)
                self.running_variance.lerp_(variance.to(self.running_variance.dtype), MOMENTUM)
        else:
            mean, variance = self.running_mean.detach().float(), self.running_variance.detach().float()
        normed = (tokens - mean) * torch.rsqrt(variance + self.eps)
        return (normed * self.weight.float() + self.bias.float()).type_as(hidden_states)


def add_batch_norm(model: MarDiniPlannerTransformer3DModel | MarDiniTransformer3DModel) -> None:
    """Put `TokenBatchNorm` in place of the norm before the attention across frames of each block."""
    for block in model.transformer_blocks:
        block.norm2 = TokenBatchNorm(block.norm2.weight.shape[0], block.norm2.eps)


def add_marks(model: MarDiniPlannerTransformer3DModel | MarDiniTransformer3DModel) -> None:
    """Add a learned embedding to all tokens of reference frames, zero at the start."""
    model.reference_mark = nn.Parameter(torch.zeros_like(model.next_token))
    signature = inspect.signature(type(model).forward)
    seen: list[torch.Tensor] = []

    def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
        mask = signature.bind(module, *args, **kwargs).arguments.get("reference_mask")
        if mask is None:
            raise ValueError("marks need the whole window with its `reference_mask`; sample without a window state")
        seen[:] = [mask]

    def mark(module: nn.Module, args: tuple, tokens: torch.Tensor) -> torch.Tensor:
        is_reference = seen[0][:, :, None, None]  # (batch, frames, 1, 1)
        return tokens + is_reference * model.reference_mark.to(tokens.dtype)  # (batch, frames, tokens, dim)

    model.register_forward_pre_hook(remember, with_kwargs=True)
    model.next_tokens.register_forward_hook(mark)


@contextlib.contextmanager
def stabilized(batch_norm: bool = False, marks: bool = False) -> Iterator[None]:
    """Let every planner and transformer that is made inside the block have these stabilizers.

    Raises:
        ValueError: inside the block, for a model with identity attention, which none of them is meant for.
    """
    changes = [change for change, wanted in ((add_batch_norm, batch_norm), (add_marks, marks)) if wanted]
    own = {model_class: model_class.__init__ for model_class in MODELS}
    for model_class, init in own.items():
        model_class.__init__ = _changed(init, changes)
    forget_counts()
    try:
        yield
    finally:
        forget_counts()
        for model_class, init in own.items():
            model_class.__init__ = init


def _changed(own: Callable, changes: Sequence[Callable[[nn.Module], None]]) -> Callable:
    @functools.wraps(own)  # diffusers reads the arguments of a configuration from the signature
    def init(self: nn.Module, *args, **kwargs) -> None:
        own(self, *args, **kwargs)
        if self.config.identity_attention:
            raise ValueError("stabilizers replace identity attention; set `identity_attention: false` in both models")
        for change in changes:
            change(self)

    return init


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, program = (given[: given.index("-m")], given[given.index("-m") + 1 :]) if "-m" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.stabilizers", description=__doc__.splitlines()[0],
        usage="%(prog)s [--batch-norm] [--marks] -m PROGRAM ...",
    )  # fmt: skip
    parser.add_argument("--batch-norm", action="store_true", help="before the attention across frames")
    parser.add_argument("--marks", action="store_true", help="a learned embedding of reference frames")
    options = parser.parse_args(own)
    if not program:
        parser.error("give the program to run, such as -m training.train_mardini CONFIG")
    with stabilized(options.batch_norm, options.marks):
        importlib.import_module(program[0]).main(program[1:])


if __name__ == "__main__":
    main()
