"""diffusers' own tests of schedulers, and those of its DDIM scheduler that ask for nothing else but what ours is."""

import pytest
from diffusers.utils import DummyObject
from diffusers.utils.import_utils import is_scipy_available, is_torchsde_available

from diffusers_mardini import MarDiniScheduler
from pipelines_tests.upstream.checkout import require_checkout


require_checkout()

from tests.schedulers import test_schedulers as upstream  # noqa: E402


class TestMarDiniScheduler(upstream.SchedulerCommonTest):
    scheduler_classes = (MarDiniScheduler,)
    forward_default_kwargs = (("eta", 0.0), ("num_inference_steps", 50))

    def get_scheduler_config(self, **kwargs):
        return {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", **kwargs}

    @pytest.mark.skipif(
        not (is_torchsde_available() and is_scipy_available()),
        reason="torchsde or scipy is not installed, and DPMSolverSDEScheduler and LMSDiscreteScheduler are in the list",
    )
    def test_compatibles(self):
        super().test_compatibles()

    def test_compatibles_that_are_installed(self):
        scheduler = MarDiniScheduler(**self.get_scheduler_config())
        installed = [kind for kind in scheduler.compatibles if not isinstance(kind, DummyObject)]
        assert len(installed) > 10
        for kind in installed:
            other = kind.from_config(scheduler.config)
            assert other.config.prediction_type == "v_prediction"
            again = MarDiniScheduler.from_config(other.config)
            keys = scheduler.config.keys() - {"_use_default_values"}  # a list in no certain order
            assert {key: again.config[key] for key in keys} == {key: scheduler.config[key] for key in keys}

    def test_timesteps(self):
        for count in (100, 500, 1000):
            self.check_over_configs(num_train_timesteps=count)

    def test_betas(self):
        for start, end in ((0.0001, 0.002), (0.001, 0.02), (0.01, 0.2)):
            self.check_over_configs(beta_start=start, beta_end=end, beta_schedule="linear")

    def test_schedules(self):
        for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2"):
            self.check_over_configs(beta_schedule=schedule)

    def test_spacing_clipping_and_thresholding(self):
        for spacing in ("trailing", "leading", "linspace"):
            self.check_over_configs(timestep_spacing=spacing)
        for choice in (True, False):
            self.check_over_configs(clip_sample=choice)
            self.check_over_configs(rescale_betas_zero_snr=choice)
            self.check_over_configs(set_alpha_to_one=choice)
        self.check_over_configs(thresholding=True, sample_max_value=2.0)

    def test_time_indices(self):
        for step in (1, 10, 49):
            self.check_over_forward(time_step=step)

    def test_inference_steps(self):
        for step, count in ((1, 10), (10, 50), (50, 500)):
            self.check_over_forward(time_step=step, num_inference_steps=count)

    def test_eta(self):
        for step, eta in ((1, 0.0), (10, 0.5), (49, 1.0)):
            self.check_over_forward(time_step=step, eta=eta)
