"""Batches prepared beside the loop: the same ones, in order, with nothing left behind."""

import threading
import time

import pytest

from training.data.loader import BatchLoader


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_come_in_order_and_no_more_than_asked_for_are_prepared(workers):
    made, most_ahead = [], 0

    def make(step):
        made.append(step)
        return step * step

    with BatchLoader(make, range(4, 12), workers) as loader:
        for step, batch in loader:
            assert batch == step * step
            most_ahead = max(most_ahead, len(made) - (step - 4) - 1)
    assert made == list(range(4, 12)) and most_ahead <= workers


def test_the_next_step_is_prepared_while_one_is_computed():
    begun = [threading.Event() for _ in range(4)]
    with BatchLoader(lambda step: begun[step].set(), range(4), workers=1) as loader:
        for step, _ in loader:  # the loop holds this step, and the next one is begun all the same
            assert begun[min(step + 1, 3)].wait(timeout=60)
    begun = [threading.Event() for _ in range(4)]
    with BatchLoader(lambda step: begun[step].set(), range(4), workers=0) as loader:
        assert next(iter(loader))[0] == 0 and not begun[1].is_set()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_is_raised_where_the_step_is_asked_for(workers):
    def make(step):
        if step == 2:
            raise ValueError("none of the clips can be read")
        return step

    seen = []
    with pytest.raises(ValueError, match="none of the clips"), BatchLoader(make, range(5), workers) as loader:
        for step, _ in loader:
            seen.append(step)
    assert seen == [0, 1]


def test_no_thread_is_left_when_the_loop_is_left_early():
    begun, ended = [], []

    def make(step):
        begun.append(step)
        time.sleep(0.05)
        ended.append(step)

    with pytest.raises(KeyboardInterrupt), BatchLoader(make, range(100), workers=4) as loader:
        for step, _ in loader:
            if step == 1:
                raise KeyboardInterrupt
    assert begun == ended and len(begun) < 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
