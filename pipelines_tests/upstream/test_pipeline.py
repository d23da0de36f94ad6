"""diffusers' own tests of pipelines: the common ones, LoRA, memory and caches."""

import pytest

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.tiny_pipeline import clip, tiny_pipeline
from pipelines_tests.upstream.checkout import require_checkout


require_checkout()

from tests.pipelines.testing_utils import (  # noqa: E402
    BasePipelineTesterConfig,
    FasterCacheTesterMixin,
    FirstBlockCacheTesterMixin,
    LoraMemoryTesterMixin,
    LoraTesterMixin,
    MagCacheTesterMixin,
    MemoryTesterMixin,
    PipelineTesterMixin,
    PyramidAttentionBroadcastTesterMixin,
    TaylorSeerCacheTesterMixin,
)


PICKLES = "it writes and reads a pickle; the same is tested with safetensors in pipelines_tests/loaders/test_lora.py"


class PipelineConfig(BasePipelineTesterConfig):
    pipeline_class = MarDiniPipeline
    required_input_params_in_call_signature = frozenset(
        ["image", "last_image", "video", "frame_indices", "num_frames", "height", "width", "guidance_scale"]
    )
    optional_input_params = frozenset(
        ["num_inference_steps", "num_videos_per_prompt", "generator", "latents", "output_type", "return_dict"]
    )
    batch_input_params = frozenset(["image"])
    callback_cfg_params = frozenset(["planning_signals"])
    output_shape = (5, 3, 32, 32)

    def get_dummy_components(self, num_layers=2):
        assert num_layers == 2, "the tiny pipeline has two layers"
        return {**tiny_pipeline().components, "planner_downscale": 2}

    def get_dummy_inputs(self):
        return {
            "image": clip(1)[0],
            "num_frames": 5,
            "num_inference_steps": 2,
            "guidance_scale": 2.5,
            "generator": self.get_generator(0),
            "output_type": "pt",
        }


class TestPipeline(PipelineConfig, PipelineTesterMixin):
    pass


class TestPipelineMemory(PipelineConfig, MemoryTesterMixin):
    pass


class TestPipelineLora(PipelineConfig, LoraTesterMixin):
    denoiser_target_modules = dict.fromkeys(["planner", "transformer"], ["to_q", "to_k", "to_v", "to_out.0"])

    @pytest.mark.skip(reason=PICKLES)
    def test_low_cpu_mem_usage_with_loading(self):
        pass

    @pytest.mark.skip(reason=PICKLES)
    def test_simple_inference_with_text_denoiser_lora_save_load(self):
        pass

    @pytest.mark.skip(
        reason="a LoRA of which no tensor fits is refused here, see pipelines_tests/loaders/test_lora_fit.py"
    )
    def test_logs_info_when_no_lora_keys_found(self):
        pass


class TestPipelineLoraMemory(PipelineConfig, LoraMemoryTesterMixin):
    denoiser_target_modules = TestPipelineLora.denoiser_target_modules


class TestPipelinePyramidAttentionBroadcast(PipelineConfig, PyramidAttentionBroadcastTesterMixin):
    # Theirs names every layer in `transformer_blocks` a spatial one; ours are told apart by `enable_cache`.
    PAB_CONFIG = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (100, 800)}


class TestPipelineFasterCache(PipelineConfig, FasterCacheTesterMixin):
    pass


class TestPipelineFirstBlockCache(PipelineConfig, FirstBlockCacheTesterMixin):
    pass


class TestPipelineTaylorSeerCache(PipelineConfig, TaylorSeerCacheTesterMixin):
    pass


class TestPipelineMagCache(PipelineConfig, MagCacheTesterMixin):
    pass
