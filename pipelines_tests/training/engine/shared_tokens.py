"""Program of `test_context_parallel.py`: two processes share the tokens of a batch and learn from it. Its argument is a
folder for what they say."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pipelines_tests.training.forked import fork_processes
from pipelines_tests.training.test_plan import make_config
from training.costs import Shape
from training.engine.context_parallel import share_tokens
from training.engine.layout import Layout


SIZES = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "mlp_dim": 16}


def gradients(kind: str, checkpointing: bool, layout: Layout) -> dict[str, torch.Tensor]:
    """Gradients of both models' losses of one batch, averaged over the processes as FSDP2 does."""
    config = make_config(
        {"temporal_attention": kind}, planner=SIZES, transformer={**SIZES, "planning_dim": 16},
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    torch.manual_seed(0)
    shape = Shape.of(config, config.stages[0].model_copy(update={"batch_size": 2}), num_masked=3)
    model = shape.training_model(device="cpu")
    model.planner_loss_weight = 0.5
    for parameter in model.parameters():  # gates and outputs start at zero and would hide everything
        nn.init.normal_(parameter, std=0.2)
    batch = shape.batch_of("cpu", torch.float32)
    models = nn.ModuleDict({"planner": model.planner, "transformer": model.transformer})
    tokens = []
    model.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(lambda m, a, y: tokens.append(y.shape[2]))
    share_tokens(models, layout, torch.device("cpu"))
    model(batch)["loss"].backward()
    assert tokens[0] == 72 // layout.context, tokens  # 8 rows of 8 patches and [NEXT]
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    for gradient in found.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return found


def work() -> None:
    dist.init_process_group("gloo")
    for kind in ("temporal", "spatiotemporal"):
        for checkpointing in (False, True):
            alone, shared = (
                gradients(kind, checkpointing, layout) for layout in (Layout(), Layout(shards=2, context=2))
            )
            assert alone.keys() == shared.keys()
            largest = max(gradient.abs().max().item() for gradient in alone.values())
            for name, expected in alone.items():
                # Keys' biases have gradients of rounding alone.
                atol = 1e-4 * expected.abs().max().item() + 1e-8 * largest
                torch.testing.assert_close(
                    shared[name], expected, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
                )  # fmt: skip
            print(kind, checkpointing, "is the same", flush=True)


if __name__ == "__main__":
    children = fork_processes(2, Path(sys.argv[1]), work)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(codes))
