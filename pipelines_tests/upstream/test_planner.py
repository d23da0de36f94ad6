"""diffusers' own tests of models, on the planner. No caches: it runs once per window."""

from pipelines_tests.upstream.checkout import require_checkout


require_checkout()

from tests.models.testing_utils import (  # noqa: E402
    AttentionTesterMixin,
    LoraHotSwappingForModelTesterMixin,
    LoraTesterMixin,
    MemoryTesterMixin,
    ModelTesterMixin,
    TorchCompileTesterMixin,
    TrainingTesterMixin,
)

from pipelines_tests.upstream.model_configs import PlannerConfig  # noqa: E402


class TestPlanner(PlannerConfig, ModelTesterMixin):
    pass


class TestPlannerMemory(PlannerConfig, MemoryTesterMixin):
    pass


class TestPlannerTraining(PlannerConfig, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"MarDiniPlannerTransformer3DModel"})


class TestPlannerAttention(PlannerConfig, AttentionTesterMixin):
    pass


class TestPlannerLora(PlannerConfig, LoraTesterMixin):
    pass


class TestPlannerLoraHotSwap(PlannerConfig, LoraHotSwappingForModelTesterMixin):
    pass


class TestPlannerCompile(PlannerConfig, TorchCompileTesterMixin):
    pass
