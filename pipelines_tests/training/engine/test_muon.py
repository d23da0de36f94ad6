"""Muon: orthogonal updates for matrices, the same on one process and on two."""

import pytest
import torch
import torch.multiprocessing as mp

from training.config.schema import OptimizerConfig
from training.engine.muon import Muon, orthogonalize
from training.engine.optimizers import make_optimizers


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_orthogonalize_brings_all_singular_values_near_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalize(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (result * (left @ right)).sum() / result.norm() / (left @ right).norm() > 0.97


def test_an_update_has_the_size_that_adamw_rates_are_made_for():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(64, 256))
    parameter.grad = torch.randn(64, 256)
    Muon([parameter], lr=1e-2).step()
    root_mean_square = parameter.square().mean().sqrt().item()
    assert 0.7 * 0.2e-2 < root_mean_square < 1.2 * 0.2e-2
    assert (parameter * parameter.grad).sum() < 0  # downhill


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon before 2.9")
def test_several_steps_are_those_of_torchs_own_muon():
    """Nesterov momentum, decay apart from the gradient, and the size of an update; its orthogonalization is in bfloat16."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 8), (8, 24), (16, 16))]
    ours, theirs = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.05, weight_decay=0.3),
        torch.optim.Muon(
            theirs, lr=0.05, weight_decay=0.3, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
    )
    for _ in range(4):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(ours, theirs, start):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=0)
        assert (one - before).abs().mean() > 2e-2


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def _steps(rank, world, port_file, out):
    if world > 1:
        torch.set_num_threads(1)  # a forked process has none of its parent's threads
        torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world)
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 4), (3, 8))]
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    torch.save([p.detach() for p in parameters], f"{out}-{world}-{rank}")
    if world > 1:
        torch.distributed.destroy_process_group()


def test_two_processes_that_share_the_work_do_what_one_does(tmp_path):
    out = str(tmp_path / "result")
    _steps(0, 1, None, out)
    mp.start_processes(_steps, args=(2, str(tmp_path / "meet"), out), nprocs=2, start_method="fork")
    alone, first, second = (torch.load(f"{out}-{name}", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for a, b, c in zip(alone, first, second, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert torch.equal(b, c)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = torch.nn.ModuleDict({"patch_embed": torch.nn.Linear(2, 2), "transformer_blocks": torch.nn.Linear(2, 2)})
    adamw, muon = make_optimizers(model, OptimizerConfig(name="muon", weight_decay=0.1), 1e-3)
    assert [p is model["transformer_blocks"].weight for p in muon.param_groups[0]["params"]] == [True]
    assert [len(group["params"]) for group in adamw.param_groups] == [1, 2]
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]
    assert len(make_optimizers(model, OptimizerConfig(), 1e-3)) == 1
    (alone,) = make_optimizers(model, OptimizerConfig(beta1=0.8, beta2=0.7), 1e-3)
    assert all(group["betas"] == (0.8, 0.7) and group["lr"] == 1e-3 for group in alone.param_groups)
