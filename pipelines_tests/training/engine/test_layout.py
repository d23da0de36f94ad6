"""Read from accelerate's sizes how many copies, shards and processes that share tokens there are."""

import pytest

from training.engine.layout import Layout


@pytest.mark.parametrize(
    "processes, sizes, expected",
    [
        (1, {}, (1, 1, 1)),
        (8, {}, (1, 8, 1)),
        (64, {"shards": 8}, (8, 8, 1)),
        (64, {"copies": 4}, (4, 16, 1)),
        (8, {"context": 2}, (1, 8, 2)),
        (64, {"shards": 4, "context": 2}, (8, 8, 2)),
        (8, {"copies": 2, "shards": 2, "context": 2}, (2, 4, 2)),
    ],
)
def test_sizes_that_are_not_given_follow_from_the_number_of_processes(processes, sizes, expected):
    layout = Layout.sharded(processes, **sizes)
    assert (layout.copies, layout.shards, layout.context) == expected
    assert layout.processes == processes and layout.data_ranks == processes // layout.context
    ranks = [layout.data_rank(process) for process in range(processes)]
    assert sorted(set(ranks)) == list(range(layout.data_ranks))
    assert all(ranks.count(rank) == layout.context for rank in set(ranks))


@pytest.mark.parametrize("processes, sizes", [(6, {"shards": 4}), (8, {"copies": 3}), (2, {"context": 4})])
def test_sizes_that_do_not_make_up_the_processes_are_refused(processes, sizes):
    with pytest.raises(ValueError, match=rf"there are {processes} processes, but .* are \d+; change one"):
        Layout.sharded(processes, **sizes)


def test_a_start_that_recorded_no_layout_had_copies():
    recorded = {"processes": 8, "layout": Layout(1, 8, 2).as_json()}
    assert Layout.of_start(recorded) == Layout(1, 8, 2)
    assert Layout.of_start({"processes": 8}) == Layout(copies=8)


def test_a_layout_keeps_its_kind_for_another_number_of_windows():
    assert Layout(copies=2).of_data_ranks(5) == Layout(copies=5)
    assert Layout(shards=4, context=2).of_data_ranks(5) == Layout(shards=10, context=2)
    assert Layout(2, 8, 2).of_data_ranks(9) == Layout(3, 8, 2)  # 18 processes fill three groups
