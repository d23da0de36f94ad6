"""Which schedulers of diffusers are taken, all that it exports; the others are refused before any model runs."""

import copy
import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.schedulers import MarDiniScheduler
from diffusers_mardini.schedulers.compatibility import check_sampling, check_scheduler
from pipelines_tests.tiny_pipeline import CallCounter, clip, seeded, tiny_pipeline


# Made by `from_config` of ours; the others of diffusers are refused.
ACCEPTED = {
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}
REFUSED = {
    "BlockRefinementScheduler": "has no betas",
    "CMStochasticIterativeScheduler": "has no betas",
    "CogVideoXDDIMScheduler": "do not follow from its betas",
    "CogVideoXDPMScheduler": "do not follow from its betas",
    "DDIMInverseScheduler": "does not reproduce",
    "DDPMWuerstchenScheduler": "has no betas",
    "DPMSolverMultistepInverseScheduler": "does not reproduce",
    "DiscreteDDIMScheduler": "has no betas",
    "EDMDPMSolverMultistepScheduler": "has no betas",
    "EDMEulerScheduler": "has no betas",
    "EntropyBoundScheduler": "has no betas",
    "FlowMapEulerDiscreteScheduler": "has no betas",
    "FlowMatchEulerDiscreteScheduler": "has no betas",
    "FlowMatchHeunDiscreteScheduler": "has no betas",
    "FlowMatchLCMScheduler": "has no betas",
    "HeliosDMDScheduler": "has no betas",
    "HeliosScheduler": "has no betas",
    "HeunDiscreteScheduler": "does not reproduce",
    "IPNDMScheduler": "has no betas",
    "KDPM2AncestralDiscreteScheduler": "cannot take 10 steps|does not reproduce",
    "KarrasVeScheduler": "has no betas",
    "LTXEulerAncestralRFScheduler": "has no betas",
    "MiniMaxH3Scheduler": "has no betas",
    "PiflowScheduler": "has no betas",
    "RePaintScheduler": "has no argument `prediction_type`",
    "SCMScheduler": "has no betas",
    "ScoreSdeVeScheduler": "has no betas",
    "UnCLIPScheduler": "cannot take 10 steps",
}
# They ask for arguments of their own, or for packages that may be missing (scipy, torchsde).
NOT_MADE = {
    "AmusedScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "LMSDiscreteScheduler",
    "RFD4ProteinaScheduler",
    "VQDiffusionScheduler",
}


def made(name: str, **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated ones
        return getattr(diffusers, name).from_config(MarDiniScheduler().config, **changes)


def check(scheduler, steps: int = 10) -> None:
    check_scheduler(scheduler, MarDiniScheduler().alphas_cumprod)
    check_sampling(scheduler, steps)


def sample_known(scheduler, steps: int) -> torch.Tensor:
    """Samples values drawn from two narrow normal distributions, whose velocity is known exactly."""
    means, deviation = torch.tensor([-1.0, 1.2], dtype=torch.float64), 0.15
    scheduler.set_timesteps(steps)
    levels, generator = scheduler.alphas_cumprod.double(), seeded()
    values = torch.randn(1, 1, 4, 32, 32, generator=generator) * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(values, timestep).double()
        alpha = levels[int(timestep)] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        away = noisy[..., None] - alpha * means
        variance = alpha**2 * deviation**2 + sigma**2
        shares = (-(away**2) / (2 * variance)).softmax(dim=-1)
        clean = (shares * (means + alpha * deviation**2 / variance * away)).sum(dim=-1)
        velocity = (alpha * (noisy - alpha * clean) / sigma - sigma * clean).float()
        kwargs = {"generator": generator} if takes_generator else {}
        values = scheduler.step(velocity, timestep, values, return_dict=False, **kwargs)[0]
    return values


def test_every_scheduler_of_diffusers_is_accepted_or_refused():
    exported = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert exported == ACCEPTED | set(REFUSED) | NOT_MADE


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_an_accepted_scheduler_reaches_what_ours_reaches(name):
    check(made(name))
    values = sample_known(made(name), 25)
    assert values.isfinite().all()
    # Nearly all values lie where the data do, in both places.
    near = [((values - mean).abs() < 0.5).float().mean().item() for mean in (-1.0, 1.2)]
    assert sum(near) > 0.97 and min(near) > 0.4


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_every_other_scheduler_is_refused_with_its_reason_and_what_to_use(name):
    with pytest.raises(ValueError, match=f"the {name} of this pipeline .*({REFUSED[name]})") as error:
        check(made(name))
    assert "UniPCMultistepScheduler.from_config(" in str(error.value)


@pytest.mark.parametrize("name", sorted(ACCEPTED | set(REFUSED)))
def test_no_scheduler_with_betas_of_its_own_is_taken(name):
    """Their defaults are a linear schedule, which means other noise by a timestep than the model that a pipeline
    came with."""
    kind = getattr(diffusers, name)
    own = (
        {"prediction_type": "v_prediction"} if "prediction_type" in inspect.signature(kind.__init__).parameters else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = kind(**own)
    with pytest.raises(ValueError, match=f"the {name} of this pipeline"):
        check(scheduler)


@pytest.mark.parametrize("steps", [2, 5, 10, 25, 30, 40])
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_what_cannot_start_at_pure_noise_is_refused_or_right(kind, steps):
    scheduler = kind.from_config(MarDiniScheduler().config)
    try:
        check(scheduler, steps)
    except ValueError:
        return
    assert kind is KDPM2AncestralDiscreteScheduler and steps >= 25
    values = sample_known(scheduler, steps)
    assert sum(((values - mean).abs() < 0.5).float().mean().item() for mean in (-1.0, 1.2)) > 0.97


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler])
def test_below_pure_noise_they_are_taken(kind):
    check(kind.from_config(MarDiniScheduler().config, timestep_spacing="leading"))


@pytest.mark.parametrize(
    "scheduler",
    [
        MarDiniScheduler(clip_sample=True),
        MarDiniScheduler(thresholding=True),
        made("DDIMScheduler", clip_sample=True),
        made("DDPMScheduler", thresholding=True),
        made("UniPCMultistepScheduler", predict_x0=False),
        made("EulerDiscreteScheduler", timestep_type="continuous", use_karras_sigmas=True),
        made("DDPMScheduler", variance_type="learned_range"),
    ],
    ids=["ours clamps", "ours thresholds", "clamps", "thresholds", "infinite", "other timesteps", "learned"],
)
def test_settings_that_sample_nonsense_are_refused(scheduler):
    with pytest.raises(ValueError, match="does not reproduce|cannot take"):
        check(scheduler)


@pytest.mark.parametrize(
    "settings", [{"use_karras_sigmas": True}, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}]
)
def test_settings_that_sample_well_are_taken(settings):
    check(made("DPMSolverMultistepScheduler", **settings))


def test_a_scheduler_of_ones_own_is_tried_like_any():
    class Backwards(DDIMScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.timesteps = self.timesteps.flip(0)

    check(type("Same", (DDIMScheduler,), {}).from_config(MarDiniScheduler().config))
    with pytest.raises(ValueError, match="the Backwards of this pipeline"):
        check(Backwards.from_config(MarDiniScheduler().config))


def test_the_object_counts_and_not_its_configuration():
    scheduler = made("DDIMScheduler")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ValueError, match="do not follow from its betas"):
        check(scheduler)
    carried = made("IPNDMScheduler")
    assert carried.config.prediction_type == "v_prediction"  # which it never reads
    with pytest.raises(ValueError, match="has no betas"):
        check(carried)


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "SASolverScheduler", "PNDMScheduler", "MarDiniScheduler"]
)
def test_the_trial_leaves_scheduler_and_random_numbers_as_they_were(name):
    scheduler = MarDiniScheduler() if name == "MarDiniScheduler" else made(name)
    scheduler.set_timesteps(5)
    before, drawn = copy.deepcopy(vars(scheduler)), torch.get_rng_state()
    check(scheduler)
    assert torch.equal(torch.get_rng_state(), drawn) and vars(scheduler).keys() == before.keys()
    for key, value in before.items():
        now = vars(scheduler)[key]
        if key != "_device_tables" and not callable(value):
            assert np.array_equal(now, value), key


def test_what_has_passed_is_not_tried_again_and_what_differs_is():
    class Counted(MarDiniScheduler):
        calls = 0

        def step(self, *args, **kwargs):
            Counted.calls += 1
            return super().step(*args, **kwargs)

    scheduler = Counted()
    for steps in (7, 7, 8):
        check_sampling(scheduler, steps)
    assert Counted.calls == 7 + 8
    check_sampling(Counted(), 7)
    assert Counted.calls == 7 + 8
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.flip(0)
    with pytest.raises(ValueError, match="does not reproduce"):
        check_sampling(scheduler, 7)


def test_levels_of_the_callers_choice_are_held_against_ours_at_the_same():
    check_sampling(made("DPMSolverMultistepScheduler"), 25, timesteps=[999, 600, 300, 10])
    check_sampling(made("EulerDiscreteScheduler"), 25, timesteps=[500, 250, 10])
    with pytest.raises(
        ValueError, match="HeunDiscreteScheduler .* does not reproduce .* with the 4 `timesteps` given"
    ):
        check_sampling(made("HeunDiscreteScheduler"), 25, timesteps=[999, 600, 300, 10])
    with pytest.raises(ValueError, match="fall strictly"):
        check_sampling(made("DDPMScheduler"), 25, timesteps=[10, 600])


@pytest.mark.parametrize(
    "scheduler",
    [made("EDMEulerScheduler"), made("HeunDiscreteScheduler"), DDIMScheduler(prediction_type="v_prediction")],
)
@pytest.mark.parametrize("method", ["__call__", "slow_motion", "extend"])
def test_every_method_refuses_before_any_model_runs(scheduler, method):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler
    counter = CallCounter(pipe)
    amount = {"__call__": {"num_frames": 4}, "slow_motion": {"factor": 2}, "extend": {"num_new_frames": 2}}[method]
    with pytest.raises(ValueError, match=f"the {type(scheduler).__name__} of this pipeline"):
        getattr(pipe, method)(video=clip(2), num_inference_steps=10, **amount)
    assert sum(counter.counts.values()) == 0


def test_another_pipeline_of_the_same_models_knows_their_noise_levels():
    pipe = tiny_pipeline()
    other = MarDiniPipeline.from_pipe(pipe, scheduler=UniPCMultistepScheduler(prediction_type="v_prediction"))
    with pytest.raises(ValueError, match="has other noise levels"):
        other(image=clip(1)[0], num_frames=3, num_inference_steps=5)


def test_a_pipeline_with_a_schedule_of_its_own_takes_the_like():
    pipe = tiny_pipeline(beta_schedule="linear", rescale_betas_zero_snr=False)
    for kind in (DPMSolverMultistepScheduler, EulerDiscreteScheduler, DDPMScheduler):
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        frames = pipe(
            image=clip(1)[0], num_frames=3, num_inference_steps=5, output_type="latent", generator=seeded()
        ).frames
        assert frames.isfinite().all()


def test_the_message_does_not_advise_what_fails():
    with pytest.raises(ValueError) as error:
        check(FlowMatchEulerDiscreteScheduler())
    advised = MarDiniScheduler().config
    assert "flow matching and EDM cannot be used" in str(error.value)
    check(UniPCMultistepScheduler.from_config(advised))


@pytest.mark.parametrize("kind", [MarDiniScheduler, DDIMScheduler])
def test_schedulers_are_tried_wherever_their_tables_lie(kind):
    """`add_noise` moves the table of several schedulers of diffusers to the device of its samples."""

    class Elsewhere(torch.Tensor):
        """Refuses to be combined with other tensors, as one on a GPU does."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.cpu, torch.Tensor.tolist):
                return function(args[0].as_subclass(torch.Tensor))
            if function.__name__ in ("__get__", "__len__", "__repr__", "dim"):
                return super().__torch_function__(function, types, args, kwargs)
            raise RuntimeError(f"{function.__name__} of a tensor on another device")

    scheduler = kind.from_config(MarDiniScheduler().config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.as_subclass(Elsewhere)
    check_sampling(scheduler, 7 if kind is DDIMScheduler else 6)
    assert isinstance(scheduler.alphas_cumprod, Elsewhere)


def test_tables_stay_on_the_cpu_whatever_the_default_device_is():
    with torch.device("meta"):
        scheduler = MarDiniScheduler()
    assert {str(value.device) for value in vars(scheduler).values() if torch.is_tensor(value)} == {"cpu"}
    assert torch.equal(scheduler.alphas_cumprod, MarDiniScheduler().alphas_cumprod)


def test_steps_that_do_not_divide_the_levels_are_refused_with_what_to_do():
    check_sampling(MarDiniScheduler(), 30)
    with pytest.raises(ValueError, match="unless the number of steps divides 1000; use 25 or 50"):
        check_sampling(MarDiniScheduler(), 700)
