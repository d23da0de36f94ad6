"""The noise schedule and its sampler (Sec. 3: DDIM with velocity prediction)."""

from .scheduling_mardini import MarDiniScheduler, MarDiniSchedulerOutput
from .timestep_shift import shifted_timesteps


__all__ = ["MarDiniScheduler", "MarDiniSchedulerOutput", "shifted_timesteps"]
