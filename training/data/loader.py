"""Prepare the batches of the next steps in a thread while one is computed.

A batch is a function of its step's number, so there is no state to save and any number of workers gives the same
batches; `training/curriculum.py` draws them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar


Prepared = TypeVar("Prepared")


class BatchLoader(Generic[Prepared]):
    """Iterate over `(step, make(step))` in order; a context manager that ends its thread.

    Args:
        make: prepares a step; its errors are raised when the step is reached.
        steps: the steps.
        workers: number of steps prepared ahead, all by one thread so that clips are read in order; 0: none, in the
            loop's own thread.
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
        """Finish the batch that is being prepared, and drop the others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
