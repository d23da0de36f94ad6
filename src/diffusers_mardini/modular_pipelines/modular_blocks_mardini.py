"""All blocks in their order, with the one for the task chosen by what is given (Sec. 2.1: masking decides it)."""

from diffusers import AutoPipelineBlocks, ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import PipelineState

from ..pipelines.inputs import check_task
from .before_denoise import MarDiniPrepareLatentsStep, MarDiniSamplingOptionsStep
from .block import init_pipeline
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
    """Finds the task in what is given: image-to-video, interpolation, expansion or any frames."""

    block_classes = [
        MarDiniAnyFramesInputStep,
        MarDiniExpansionInputStep,
        MarDiniInterpolationInputStep,
        MarDiniImageToVideoInputStep,
    ]
    block_names = ["any_frames", "expansion", "interpolation", "image_to_video"]
    block_trigger_inputs = ["frame_indices", "video", "last_image", None]
    init_pipeline = init_pipeline  # pyright: ignore[reportAssignmentType]

    @property
    def description(self) -> str:
        return (
            "Reads the given frames: `frame_indices` with `video` places them anywhere, `video` alone is expansion, "
            "`last_image` with `image` interpolation, `image` alone image-to-video."
        )

    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        # The chosen block looks at the inputs of its task alone: what contradicts them would be ignored.
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
    init_pipeline = init_pipeline  # pyright: ignore[reportAssignmentType]
    _workflow_map = {
        "image_to_video": {"image": True},
        "interpolation": {"image": True, "last_image": True},
        "expansion": {"video": True},
        "any_frames": {"video": True, "frame_indices": True},
    }

    @property
    def description(self) -> str:
        return "Image-to-video, interpolation, video expansion and any other filling in of frames with MarDini."
