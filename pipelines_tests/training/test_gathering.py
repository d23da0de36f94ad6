"""Count by hand what processes send each other, and how many of them the plan says make sense."""

import pytest

from pipelines_tests.training.test_plan import make_config, write_config
from training.costs import count_parameters, count_tokens, estimate_stage
from training.engine.layout import Layout
from training.gathering import Bandwidth, count_sent, count_sharing, sharing_notes
from training.plan import main, read_layout


def sent(layout: Layout, stage=None, **overrides) -> tuple[float, float]:
    config = make_config({"batch_size": None, "global_batch": 16, **(stage or {})}, **overrides)
    return count_sent(config, config.stages[0].for_processes(layout.data_ranks), layout)


def parameters() -> int:
    counts = count_parameters(make_config())
    return counts["planner"] + counts["transformer"]


def test_copies_sum_their_gradients_and_shards_gather_their_weights_too():
    n = parameters()
    assert sent(Layout()) == (0, 0)
    assert sent(Layout(copies=4)) == (0, pytest.approx(3 / 4 * 2 * 4 * n))  # float32, there and back
    # Weights of each part for the forward and the backward pass, gradients once.
    assert sent(Layout(shards=4)) == (pytest.approx(3 / 4 * n * (2 * 4 + 4)), 0)
    assert sent(Layout(shards=4), {"gradient_accumulation": 2})[0] == pytest.approx(3 / 4 * n * (2 * 2 * 4 + 4))
    assert sent(Layout(shards=4), mixed_precision="bf16")[0] == pytest.approx(3 / 4 * n * (2 * 2 + 4))
    within, across = sent(Layout(copies=2, shards=4))
    assert within == pytest.approx(3 / 4 * n * 12) and across == pytest.approx(1 / 2 * 2 * 4 * n / 4)


def test_only_the_parts_that_a_stage_trains_are_sent():
    within, _ = sent(Layout(shards=2), {"trains": "transformer"})
    assert within == pytest.approx(1 / 2 * count_parameters(make_config())["transformer"] * 12)


def test_muon_sends_whole_matrices():
    for layout in (Layout(copies=4), Layout(shards=4), Layout(2, 2)):
        assert sum(sent(layout, optimizer={"name": "muon"})) > sum(sent(layout))


@pytest.mark.parametrize("attention, layers", [("temporal", 3), ("spatiotemporal", 6)])
def test_processes_that_share_tokens_exchange_heads(attention, layers):
    stage = {"temporal_attention": attention}
    tokens = count_tokens(make_config(stage), make_config(stage).stages[0])
    alone, shared = (sent(Layout(shards=4, context=context), stage)[0] for context in (1, 2))
    # Queries, keys, values and outputs, forward and backward: half of each process's tokens of 16 / 2 windows go to the
    # other. The planner has two layers of two attentions and 32 channels, the transformer three of 16.
    channels = tokens["planner"] * 4 * 32 + tokens["transformer"] * layers * 16
    assert shared - alone == pytest.approx(8 * 2 * 4 * channels * 4 / 2 / 2)


def sharing(layout: Layout, within=1e12, across=1e12, flops=1e9, **stage):
    config = make_config({"batch_size": None, "global_batch": 24, **stage})
    resolved = config.for_processes(layout.data_ranks)
    costs = estimate_stage(resolved, resolved.stages[0], layout, flops, None)
    found = count_sharing(config, config.stages[0], costs, layout, Bandwidth(within, across), flops)
    assert found.computing == pytest.approx(costs.seconds_per_step)
    return found


def test_with_a_fast_network_as_many_processes_make_sense_as_there_are_windows():
    found = sharing(Layout(shards=4))
    assert (found.windows, found.waiting, found.most_processes) == (6, 0, 24)
    assert found.gathering == pytest.approx(found.within / 1e12) and found.limit == "one window each"
    assert sharing(Layout(shards=4, context=2)).most_processes == 48  # two share a window
    assert sharing(Layout(copies=2, shards=16)).most_processes == 32  # whole groups


def test_with_a_slow_network_the_most_processes_are_those_that_gather_no_longer_than_they_compute():
    fast = sharing(Layout(shards=4))
    bandwidth = fast.within / fast.computing  # four processes gather just as long as they compute six windows
    found = sharing(Layout(shards=4), within=1.01 * bandwidth)
    assert found.most_processes == 4 and "gather longer" in found.limit
    assert found.gathering < found.computing
    most = sharing(Layout(shards=5), within=1.01 * bandwidth)
    assert most.gathering > most.computing * 0.99


def test_the_most_processes_do_not_depend_on_how_many_are_asked_for():
    bandwidth = sharing(Layout(shards=4)).within / sharing(Layout(shards=4)).computing
    for stage in ({}, {"batch_size": 4}, {"batch_size": 4, "gradient_accumulation": 3}):
        most = {sharing(Layout(shards=shards), bandwidth, **stage).most_processes for shards in (2, 4, 24)}
        assert len(most) == 1, stage


def test_processes_that_wait_for_others_are_told():
    config = make_config({"batch_size": None, "global_batch": 24})

    def notes(layout):
        return sharing_notes(config.for_processes(layout.data_ranks), layout)

    assert notes(Layout(shards=8)) == notes(Layout(shards=16, context=2)) == []
    (idle,) = notes(Layout(shards=64, context=2))
    assert "8 of 32 processes have no window of a step, which has 24; use at most 48 processes" in idle
    (uneven,) = notes(Layout(shards=16))
    assert "24 windows do not divide by 16" in uneven and "those with 2, 25% of the time; 12 processes" in uneven


def test_a_stage_is_as_slow_as_its_busiest_process():
    even, uneven = (sharing(Layout(copies=ranks)) for ranks in (12, 16))
    assert even.computing == pytest.approx(uneven.computing) and uneven.waiting == 0.25


def test_the_command_line_states_a_layout(tmp_path, capsys):
    assert read_layout(64, "hybrid", None, 2) == Layout(8, 8, 2)
    assert read_layout(64, "fsdp", None, 1) == Layout(1, 64)
    assert read_layout(3, "ddp", None, 1) == Layout(3)
    path = write_config(tmp_path, make_config({"batch_size": None, "global_batch": 24}))
    shared = [path, "--no-data", "--processes", "16", "--flops-per-second", "1e9", "--bandwidth", "1"]
    hybrid = ["--parallel", "hybrid", "--node", "4", "--context", "2", "--bandwidth-across", "0.1"]
    assert main([*shared, *hybrid]) == 0
    text = capsys.readouterr().out
    assert "test: 1 stages, 16 processes: 4 copies, 4 shards, 2 that share tokens" in text
    assert "most processes" in text and "one window each" in text and "gathers for" not in text
    slow = [*shared[:-1], "1e-6", "--parallel", "hybrid", "--node", "4"]
    assert main(slow) == 0
    text = capsys.readouterr().out
    assert "stage 's': a step gathers for" in text and "at most 4 processes make sense" in text
    for wrong, message in (
        (["--parallel", "hybrid", "--node", "5"], "--processes is 16, which nodes of 5 do not divide"),
        (["--parallel", "ddp", "--context", "2"], "only shards share tokens: use fsdp"),
        (["--node", "8"], "it belongs to hybrid"),
        (["--bandwidth", "0"], "as numbers above 0"),
        (["--parallel", "hybrid", "--node", "4", "--context", "4"], "cannot share the 20 tokens"),
    ):
        assert main([*shared, *wrong]) == 1
        assert message in capsys.readouterr().out
