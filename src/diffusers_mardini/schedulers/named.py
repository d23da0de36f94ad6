"""Make a scheduler by its name, with the noise schedule of another one."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin


SHORT_NAMES = {
    "ddim": "DDIMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def scheduler_named(scheduler: SchedulerMixin, name: str) -> SchedulerMixin:
    """Return a scheduler of diffusers with the noise schedule of another, which a checkpoint was trained with.

    Args:
        scheduler: the checkpoint's.
        name: of a class, or short (`SHORT_NAMES`); the class of `scheduler` itself gives a copy.

    Raises:
        ValueError: if diffusers has no such scheduler, or it cannot take over the schedule.
    """
    own = type(scheduler)
    compatible = {cls.__name__: cls for cls in [*scheduler.compatibles, own]}
    full_name = SHORT_NAMES.get(name, name)
    if full_name not in compatible:
        raise ValueError(
            f"scheduler {name!r} cannot take over the checkpoint's {own.__name__}; these can: "
            f"{', '.join([*SHORT_NAMES, *sorted(compatible)])}"
        )
    return compatible[full_name].from_config(scheduler.config)
