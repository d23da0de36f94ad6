"""Compiled blocks and steps: every stage of a run is compiled, and what would not be is told."""

import functools

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from pipelines_tests.training.test_train_mardini import clips_folder, data_fields, make_config, make_run
from training import loop
from training.engine import compiling
from training.engine.guards import RunFailed


SIZES = [(32, 32), (16, 32), (32, 48)]


def make_stages(*compiled: bool):
    """Stages of the planner, of a step each, with windows of different shapes."""
    config = make_config(data=data_fields(clips_folder(), validation=None), checkpoint_every=100)
    stage = {**config.stages[0].model_dump(), "steps": 1}
    stages = [
        {**stage, "name": f"stage-{i}", "size": SIZES[i], "num_frames": 4 + i, "compile": compiles}
        for i, compiles in enumerate(compiled)
    ]
    return type(config).model_validate({**config.model_dump(), "stages": stages})


def count_compilations(run) -> CompileCounter:
    """Has the planner's blocks compiled by a backend that only counts."""
    counter = CompileCounter()
    run.planner.compile_repeated_blocks(backend=counter)
    return counter


@pytest.fixture(autouse=True)
def a_small_limit():
    """What dynamo allows is reached in the second stage, not in the sixth."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        yield
    torch.compiler.reset()


def test_all_stages_of_a_run_are_compiled(tmp_path, monkeypatch):
    run = make_run(tmp_path, make_stages(True, True, True))
    counter, compiled = count_compilations(run), []
    train_stage = run._train_stage

    def counted(*arguments):
        before = counter.frame_count
        train_stage(*arguments)
        compiled.append(counter.frame_count - before)

    monkeypatch.setattr(run, "_train_stage", counted)
    run.train()
    assert compiled == [1, 1, 1]
    assert torch._dynamo.config.recompile_limit == 1 and not torch._dynamo.config.fail_on_recompile_limit_hit


def test_a_stage_that_would_go_on_uncompiled_fails_and_says_so(monkeypatch):
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 1)
    double = torch.compile(lambda tensor: tensor * 2, backend="eager", dynamic=False)
    told = "stage 'stage-0': a block was compiled 1 times.*stages.stage-0.compile=false --allow-change"
    with pytest.raises(RunFailed, match=told), compiling.compiled_blocks(make_stages(True).stages[0]):
        for size in range(2, 6):
            double(torch.ones(size))


def test_a_stage_that_is_not_compiled_runs_eagerly(tmp_path):
    run = make_run(tmp_path, make_stages(False, True))
    counter = count_compilations(run)
    run.train(stop_after="stage-0")
    assert counter.frame_count == 0


def test_a_step_is_one_graph_in_which_a_run_learns_the_same(tmp_path, monkeypatch):
    """Take any clips that a batch names; several numbers of masked frames are one graph or two."""
    counter, weights = CompileCounter(), {}
    monkeypatch.setattr(loop, "compile_step", functools.partial(compiling.compile_step, backend=counter))
    for compiles in ("step", False):
        config = make_config(data=data_fields(clips_folder(), validation=None), checkpoint_every=100)
        fields = {**config.stages[-1].model_dump(), "steps": 6, "compile": compiles, "learning_rate": 1e-3}
        config = type(config).model_validate({**config.model_dump(), "stages": [fields]})
        pipeline = make_run(tmp_path / str(compiles), config).train()
        weights[compiles] = load_file(pipeline / "transformer/diffusion_pytorch_model.safetensors")
        assert 0 < counter.frame_count <= 4 and not counters["graph_break"]
    torch.testing.assert_close(weights["step"], weights[False], atol=1e-5, rtol=1e-3)


def test_whole_steps_of_models_in_shards_are_refused(monkeypatch):
    config = make_config(stages=[{**make_stages(True).stages[0].model_dump(), "compile": "step"}])
    accelerator = Accelerator(cpu=True)
    compiling.refuse_sharded_steps(config, accelerator)
    monkeypatch.setattr(compiling, "sharding_plugin", lambda accelerator: "a plugin")
    with pytest.raises(ValueError, match="'stage-0' compiles whole steps.*set `stages.stage-0.compile` to true"):
        compiling.refuse_sharded_steps(config, accelerator)
    compiling.refuse_sharded_steps(make_stages(True), accelerator)
