"""Prepares the batches of coming steps while one is computed, in a thread beside the loop.

What a step draws is a function of its number, so there is no state to keep and any number of workers gives the same batches; what is drawn
is in `training/curriculum.py`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar


Prepared = TypeVar("Prepared")


class BatchLoader(Generic[Prepared]):
    """Yields `(step, make(step))` in order; a context manager, at whose end no thread of it is left.

    Args:
        make: prepares a step; what it raises is raised where the step is asked for.
        steps: the steps.
        workers: how many steps are prepared ahead, by one thread so that clips are read in order; 0: none, in the loop's own thread.
    """

    def __init__(self, make: Callable[[int], Prepared], steps: range, workers: int):
        self.steps = steps
        self._make = make
        self._ahead = workers
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if workers else None

    def __iter__(self) -> Iterator[tuple[int, Prepared]]:
        waiting: deque[Future[Prepared]] = deque()
        coming = iter(self.steps)
        for step in self.steps:
            if self._pool is None:
                batch = self._make(step)
            else:
                while len(waiting) <= self._ahead and (later := next(coming, None)) is not None:
                    waiting.append(self._pool.submit(self._make, later))
                batch = waiting.popleft().result()
            yield step, batch

    def __enter__(self) -> "BatchLoader[Prepared]":
        return self

    def __exit__(self, *exception) -> None:
        """Lets the batch that is being prepared end, and drops the others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
