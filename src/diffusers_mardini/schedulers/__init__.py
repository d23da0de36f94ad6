"""The noise schedule and its sampler (Sec. 3: DDIM with velocity prediction)."""

from .scheduling_mardini import MarDiniScheduler, MarDiniSchedulerOutput


__all__ = ["MarDiniScheduler", "MarDiniSchedulerOutput"]
