"""Measure what calls allocate on this machine's CPU, to compare counts with it."""

from collections.abc import Callable

import torch


def most_allocated(call: Callable[[], object]) -> int:
    """The most bytes that a call has allocated at any moment, kernels' own included, as torch's profiler sees them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
