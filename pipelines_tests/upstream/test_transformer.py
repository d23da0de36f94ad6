"""diffusers' own tests of models, on the transformer, caches included."""

from pipelines_tests.upstream.checkout import require_checkout


require_checkout()

from tests.models.testing_utils import (  # noqa: E402
    AttentionTesterMixin,
    FasterCacheTesterMixin,
    FirstBlockCacheTesterMixin,
    LoraHotSwappingForModelTesterMixin,
    LoraTesterMixin,
    MagCacheTesterMixin,
    MemoryTesterMixin,
    ModelTesterMixin,
    PyramidAttentionBroadcastTesterMixin,
    TaylorSeerCacheTesterMixin,
    TorchCompileTesterMixin,
    TrainingTesterMixin,
)

from pipelines_tests.upstream.model_configs import TransformerConfig  # noqa: E402


class TestTransformer(TransformerConfig, ModelTesterMixin):
    pass


class TestTransformerMemory(TransformerConfig, MemoryTesterMixin):
    pass


class TestTransformerTraining(TransformerConfig, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"MarDiniTransformer3DModel"})


class TestTransformerAttention(TransformerConfig, AttentionTesterMixin):
    pass


class TestTransformerLora(TransformerConfig, LoraTesterMixin):
    pass


class TestTransformerLoraHotSwap(TransformerConfig, LoraHotSwappingForModelTesterMixin):
    pass


class TestTransformerCompile(TransformerConfig, TorchCompileTesterMixin):
    pass


class TestTransformerPyramidAttentionBroadcast(TransformerConfig, PyramidAttentionBroadcastTesterMixin):
    pass


class TestTransformerFasterCache(TransformerConfig, FasterCacheTesterMixin):
    # One row alone has no unconditional half; with guidance it is tested on the pipeline.
    FASTER_CACHE_CONFIG = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 901),
        "tensor_format": "BFCHW",
        "is_guidance_distilled": True,
    }


class TestTransformerFirstBlockCache(TransformerConfig, FirstBlockCacheTesterMixin):
    pass


class TestTransformerTaylorSeerCache(TransformerConfig, TaylorSeerCacheTesterMixin):
    pass


class TestTransformerMagCache(TransformerConfig, MagCacheTesterMixin):
    pass
