"""Compiled blocks: every stage of a run is compiled, and what would not be is told."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipelines_tests.training.test_train_mardini import make_config, make_run
from training import compiling
from training.guards import RunFailed


SIZES = [(32, 32), (16, 32), (32, 16), (32, 48), (48, 32), (48, 48)]


def make_stages(count: int, **fields):
    """Joint stages of different shapes and attention, each of two steps with compiled blocks."""
    config = make_config(**fields)
    stage = {**config.stages[2].model_dump(), "steps": 2, "compile": True}
    stages = [
        {**stage, "name": f"stage-{i}", "size": size, "num_frames": 4 + i % 3,
         "temporal_attention": ("temporal", "spatiotemporal")[i % 2]}
        for i, size in enumerate(SIZES[:count])
    ]  # fmt: skip
    return type(config).model_validate({**config.model_dump(), "stages": stages, "checkpoint_every": 100})


def count_compilations(run) -> CompileCounter:
    """Has the blocks compiled by a backend that only counts."""
    counter = CompileCounter()
    for name in ("planner", "transformer"):
        run.models[name].compile_repeated_blocks(backend=counter)
    return counter


@pytest.fixture(autouse=True)
def forget():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_all_stages_of_a_long_run_are_compiled(tmp_path, monkeypatch, caplog):
    run = make_run(tmp_path, make_stages(6))
    counter, compiled = count_compilations(run), []
    train_stage = run._train_stage

    def counted(*arguments):
        before = counter.frame_count
        train_stage(*arguments)
        compiled.append(counter.frame_count - before)

    monkeypatch.setattr(run, "_train_stage", counted)
    run.train()
    assert len(compiled) == 6 and min(compiled) >= 2, compiled  # a block of the planner and one of the transformer
    assert "recompile_limit" not in caplog.text
    assert torch._dynamo.config.recompile_limit == 8 and not torch._dynamo.config.fail_on_recompile_limit_hit


def test_a_stage_that_would_go_on_uncompiled_fails_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "MAX_COMPILATIONS", 1)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    run = make_run(tmp_path, make_stages(1, validate_every=100))
    count_compilations(run)
    stage = run.config.stages[0]
    with pytest.raises(RunFailed, match="stage 'stage-0': a block was compiled 1 times.*stages.stage-0.compile=false --allow-change"):
        with compiling.blocks_of(stage):
            block = run.transformer.transformer_blocks[0]
            torch._dynamo.reset()
            double = torch.compile(lambda tensor: tensor * 2, backend="eager", dynamic=False)
            for size in range(2, 6):
                double(torch.ones(size))
            assert block is not None


def test_a_stage_that_is_not_compiled_runs_eagerly(tmp_path):
    config = make_stages(1)
    stages = [config.stages[0].model_copy(update={"compile": False}), config.stages[0].model_copy(update={"name": "b"})]
    run = make_run(tmp_path, config.model_copy(update={"stages": stages}))
    counter = count_compilations(run)
    run.train(stop_after="stage-0")
    assert counter.frame_count == 0
