"""All blocks in their order; the given frames select the block of the task (Sec. 2.1: masking decides it)."""

from diffusers import AutoPipelineBlocks, ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import PipelineState

from ..pipelines.inputs import check_task
from .before_denoise import MarDiniPrepareLatentsStep, MarDiniSamplingOptionsStep
from .decoders import MarDiniDecoderStep
from .denoise import MarDiniDenoiseStep
from .encoders import MarDiniPlannerStep, MarDiniVaeEncoderStep
from .inputs import (
    TASK_INPUTS,
    MarDiniAnyFramesInputStep,
    MarDiniExpansionInputStep,
    MarDiniImageToVideoInputStep,
    MarDiniInterpolationInputStep,
)


class MarDiniAutoInputStep(AutoPipelineBlocks):
    """Select the task by the given frames: image-to-video, interpolation, expansion or any frames."""

    block_classes = [
        MarDiniAnyFramesInputStep,
        MarDiniExpansionInputStep,
        MarDiniInterpolationInputStep,
        MarDiniImageToVideoInputStep,
    ]
    block_names = ["any_frames", "expansion", "interpolation", "image_to_video"]
    block_trigger_inputs = ["frame_indices", "video", "last_image", None]

    @property
    def description(self) -> str:
        """Text of `doc` and of the blocks' listing."""
        return (
            "Reads the given frames: `frame_indices` with `video` places them anywhere, `video` alone is expansion, "
            "`last_image` with `image` interpolation, `image` alone image-to-video."
        )

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        """Run the block of the task; raises `ValueError` for inputs of two tasks."""
        # The selected block reads the inputs of its task alone, and would ignore contradicting ones.
        check_task(**{name: state.get(name) for name in TASK_INPUTS})
        return super().__call__(components, state)


class MarDiniBlocks(SequentialPipelineBlocks):
    """`MarDiniPipeline.__call__` as blocks: the same arguments, the same result to the bit, as `videos`."""

    block_classes = [
        MarDiniAutoInputStep,
        MarDiniSamplingOptionsStep,
        MarDiniVaeEncoderStep,
        MarDiniPlannerStep,
        MarDiniPrepareLatentsStep,
        MarDiniDenoiseStep,
        MarDiniDecoderStep,
    ]
    block_names = ["input", "sampling_options", "vae_encoder", "planner", "prepare_latents", "denoise", "decode"]
    _workflow_map = {
        "image_to_video": {"image": True},
        "interpolation": {"image": True, "last_image": True},
        "expansion": {"video": True},
        "any_frames": {"video": True, "frame_indices": True},
    }

    @property
    def description(self) -> str:
        """Text of `doc` and of the blocks' listing."""
        return "Image-to-video, interpolation, video expansion and any other filling in of frames with MarDini."
