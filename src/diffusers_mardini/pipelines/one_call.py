"""Refuse a second call of a pipeline, from another thread or a callback, while one runs.

The scheduler counts its steps, and the pipeline keeps the guidance and the states of the present window: with another
call in between, both would return wrong pictures.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


# Not attributes of the objects, which would be copied and pickled with them.
_in_use: set[int] = set()
_lock = threading.Lock()


@contextmanager
def in_use(*objects: Any) -> Iterator[None]:
    """Mark objects as in use by this call.

    Raises:
        ValueError: if one of them is in use by another call.
    """
    keys = {id(one) for one in objects if one is not None}
    with _lock:
        if not keys.isdisjoint(_in_use):
            raise ValueError(
                "this pipeline, or another one with the same scheduler, is at work already, and serves one call at a "
                "time, also from callbacks; wait for it, or make one for each thread from the same models: "
                "`MarDiniPipeline.from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler), dtype=pipe.dtype)`"
            )
        _in_use.update(keys)
    try:
        yield
    finally:
        with _lock:
            _in_use.difference_update(keys)


def one_call_at_a_time(method: Callable) -> Callable:
    """Decorate a method of a pipeline: it raises `ValueError` while the pipeline or its scheduler is in use by another
    call."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with in_use(self, getattr(self, "scheduler", None)):
            return method(self, *args, **kwargs)

    return wrapper
